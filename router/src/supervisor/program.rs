//! Finding the program, and saying why it cannot be run.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// Why a worker was not started: the path and the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A path that does not exist.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// A name that is in no folder of `PATH`.
    #[error("`{name}` is in no folder of PATH ({path}); a program beside you is `./{name}`")]
    NotInPath { name: String, path: String },
    /// Somebody on the way to it may not pass.
    #[error(
        "{} may not be run: the folder {} cannot be entered by this user", .program.display(),
        .folder.display()
    )]
    Blocked { program: PathBuf, folder: PathBuf },
    /// It is there, but not executable.
    #[error("{} is not executable (chmod +x)", .0.display())]
    NotExecutable(PathBuf),
    /// Its interpreter or loader is missing: exec says that the file does not exist, though it does.
    #[error("{} names an interpreter that does not exist (its first line, or its loader)", .0.display())]
    Interpreter(PathBuf),
    /// The working directory is missing.
    #[error("the working directory {} cannot be entered", .0.display())]
    Directory(PathBuf),
    /// Anything else.
    #[error("{} cannot be started: {source}", .program.display())]
    System { program: PathBuf, source: io::Error },
}

/// The program's path: as it is with a slash, else the first in `PATH`.
pub(crate) fn find(program: &Path, path: Option<&OsStr>) -> Result<PathBuf, StartError> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Ok(program.to_owned());
    }
    let path = path.unwrap_or_default();
    std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|at| at.is_file())
        .ok_or_else(|| StartError::NotInPath {
            name: program.display().to_string(),
            path: path.to_string_lossy().into_owned(),
        })
}

/// What a failed start means.
pub(crate) fn explain(program: PathBuf, directory: Option<&Path>, source: io::Error) -> StartError {
    if let Some(directory) = directory
        && rustix::fs::access(directory, Access::EXEC_OK).is_err()
    {
        return StartError::Directory(directory.to_owned());
    }
    match source.kind() {
        io::ErrorKind::NotFound if program.exists() => StartError::Interpreter(program),
        io::ErrorKind::NotFound => StartError::Missing(program),
        io::ErrorKind::PermissionDenied => denied(program),
        _ => StartError::System { program, source },
    }
}

/// Names the first folder on the way that cannot be entered, else the program itself.
fn denied(program: PathBuf) -> StartError {
    let absolute = std::path::absolute(&program).unwrap_or_else(|_| program.clone());
    let mut folders: Vec<&Path> = absolute.ancestors().skip(1).collect();
    folders.reverse();
    for folder in folders {
        if rustix::fs::access(folder, Access::EXEC_OK).is_err() {
            return StartError::Blocked { folder: folder.to_owned(), program };
        }
    }
    StartError::NotExecutable(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_in_no_folder_says_where_it_was_looked_for() {
        let error = find(Path::new("no-such-program"), Some(OsStr::new("/bin:/usr/bin")));
        assert_eq!(
            error.unwrap_err().to_string(),
            "`no-such-program` is in no folder of PATH (/bin:/usr/bin); a program beside you is \
             `./no-such-program`"
        );
        assert_eq!(find(Path::new("sh"), Some(OsStr::new("/bin"))).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn each_failure_names_the_path() {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let text = |error: StartError| error.to_string();
        assert_eq!(text(explain("/no/such".into(), None, not_found())), "/no/such does not exist");
        assert_eq!(
            text(explain("/etc/passwd".into(), None, denied())),
            "/etc/passwd is not executable (chmod +x)"
        );
        assert_eq!(
            text(explain("/bin/sh".into(), Some(Path::new("/no/such")), not_found())),
            "the working directory /no/such cannot be entered"
        );
    }
}
