//! Finding the program, and saying why it cannot be run by whom it is for.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;

use super::identity::{Identity, IdentityError};
use crate::sys::prepare::{Failed, Step};

/// Why a worker was not started: the path, the user and the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Whom it should run as.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A path that does not exist.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// A name that is in no folder of `PATH`.
    #[error("`{name}` is in no folder of PATH ({path}); a program beside you is `./{name}`")]
    NotInPath { name: String, path: String },
    /// Somebody on the way to it may not pass.
    #[error("{} may not be run: {denied}", .program.display())]
    Program { program: PathBuf, denied: Denied },
    /// Its interpreter or loader is missing: exec says that the file does not exist, though it does.
    #[error("{} needs {} to run, which does not exist", .program.display(), .interpreter.display())]
    Interpreter { program: PathBuf, interpreter: PathBuf },
    /// It exists, and exec says that it does not: what loads it is missing.
    #[error("{} names a loader that does not exist: it is of another system", .0.display())]
    Loader(PathBuf),
    /// The working directory is missing, or is none.
    #[error("the working directory {} cannot be entered: {source}", .directory.display())]
    Directory { directory: PathBuf, source: Errno },
    /// The working directory may not be entered.
    #[error("the working directory {} may not be entered: {denied}", .directory.display())]
    DirectoryDenied { directory: PathBuf, denied: Denied },
    /// A step between fork and exec.
    #[error("{} cannot be started: {}: {}", .program.display(), .failed.step.as_str(), .failed.error)]
    Step { program: PathBuf, failed: Failed },
    /// Fork or exec, for want of processes.
    #[error(
        "{} cannot be started: no more processes are allowed (RLIMIT_NPROC of {user}, or pids.max)",
        .program.display()
    )]
    Processes { program: PathBuf, user: String },
    /// Anything else.
    #[error("{} cannot be started: {source}", .program.display())]
    System { program: PathBuf, source: io::Error },
}

/// What stands in the way of a user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// A folder on the way.
    #[error("the folder {} cannot be entered by {user} (mode {mode:04o})", .folder.display())]
    Folder { folder: PathBuf, user: String, mode: u32 },
    /// The file itself.
    #[error("{} is not executable for {user} (mode {mode:04o}; chmod +x)", .file.display())]
    File { file: PathBuf, user: String, mode: u32 },
    /// The file system.
    #[error("{} is on a file system that is mounted noexec", .0.display())]
    NoExec(PathBuf),
    /// Neither mode bits nor mount.
    #[error("an access control list or a security module forbids it to {user}")]
    Policy { user: String },
}

/// The program's path as the worker sees it: as it is with a slash (below the caller's directory),
/// else the first in `PATH` that the worker's user may run, or else the first.
pub(crate) fn find(
    program: &Path,
    path: Option<&OsStr>,
    identity: &Identity,
) -> Result<PathBuf, StartError> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        // Exec looks from the worker's directory, whoever writes it from the caller's.
        return match std::path::absolute(program) {
            Ok(absolute) if identity.root.is_none() => Ok(absolute),
            _ => Ok(Path::new("/").join(program)),
        };
    }
    let path = path.unwrap_or_default();
    let found: Vec<PathBuf> = std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .filter(|at| identity.path_outside(at).is_file())
        .collect();
    let runs = |at: &&PathBuf| obstacle(&identity.path_outside(at), identity).is_none();
    found.iter().find(runs).or(found.first()).cloned().ok_or_else(|| StartError::NotInPath {
        name: program.display().to_string(),
        path: path.to_string_lossy().into_owned(),
    })
}

/// What a failed start means.
pub(crate) fn explain(program: PathBuf, identity: &Identity, source: io::Error) -> StartError {
    if let Some(failed) = Failed::from_error(&source) {
        return match (failed.step, &identity.directory) {
            (Step::Directory, Some(directory)) => explain_directory(directory, identity, failed),
            _ => StartError::Step { program, failed },
        };
    }
    match source.kind() {
        io::ErrorKind::NotFound => missing(program, identity),
        io::ErrorKind::PermissionDenied => {
            let denied = why_denied(&program, identity);
            StartError::Program { program, denied }
        }
        io::ErrorKind::WouldBlock => StartError::Processes { program, user: identity.name() },
        _ => StartError::System { program, source },
    }
}

fn explain_directory(directory: &Path, identity: &Identity, failed: Failed) -> StartError {
    let directory = directory.to_owned();
    if failed.error != Errno::ACCESS {
        return StartError::Directory { directory, source: failed.error };
    }
    let here = identity.path_outside(&directory);
    let denied = blocked_folder(&here, identity)
        .or_else(|| closed(&here, identity))
        .unwrap_or_else(|| Denied::Policy { user: identity.name() });
    StartError::DirectoryDenied { directory, denied }
}

fn missing(program: PathBuf, identity: &Identity) -> StartError {
    let here = identity.path_outside(&program);
    if !here.exists() {
        return StartError::Missing(program);
    }
    match interpreter(&here) {
        Some(interpreter) => StartError::Interpreter { program, interpreter },
        None => StartError::Loader(program),
    }
}

/// Why exec said EACCES: the way to the program, or to what interprets it.
fn why_denied(program: &Path, identity: &Identity) -> Denied {
    let here = identity.path_outside(program);
    obstacle(&here, identity)
        .or_else(|| {
            let interpreter = identity.path_outside(&interpreter(&here)?);
            obstacle(&interpreter, identity)
        })
        .unwrap_or_else(|| Denied::Policy { user: identity.name() })
}

/// What keeps the worker's user from executing a file, as far as it can be seen.
fn obstacle(file: &Path, identity: &Identity) -> Option<Denied> {
    if let Some(denied) = blocked_folder(file, identity) {
        return Some(denied);
    }
    if !identity.may_execute(file) {
        let (file, user, mode) = (file.to_owned(), identity.name(), mode(file));
        return Some(Denied::File { file, user, mode });
    }
    let mount = rustix::fs::statvfs(file).ok()?;
    mount.f_flag.contains(StatVfsMountFlags::NOEXEC).then(|| Denied::NoExec(file.to_owned()))
}

/// The first folder on the way that cannot be entered: as the path is written, and where its
/// symbolic links lead.
fn blocked_folder(path: &Path, identity: &Identity) -> Option<Denied> {
    let written = std::path::absolute(path).ok();
    let real = std::fs::canonicalize(path).ok();
    [written, real].into_iter().flatten().find_map(|path| {
        let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
        folders.reverse();
        folders.into_iter().find_map(|folder| closed(folder, identity))
    })
}

fn closed(folder: &Path, identity: &Identity) -> Option<Denied> {
    // Of what cannot be seen, the folder above it is to blame, and that was looked at before.
    if identity.may_execute(folder) || !folder.exists() {
        return None;
    }
    let (folder, user, mode) = (folder.to_owned(), identity.name(), mode(folder));
    Some(Denied::Folder { folder, user, mode })
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0, |meta| meta.mode() & 0o7777)
}

/// What the first line of a script names (`execve(2)`, "Interpreter scripts").
fn interpreter(file: &Path) -> Option<PathBuf> {
    // Opening a pipe would wait for its other end.
    if !file.is_file() {
        return None;
    }
    let mut line = Vec::new();
    // The kernel looks at no more.
    std::fs::File::open(file).ok()?.take(256).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let name = line.split(blank).find(|part| !part.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::identity::IdentityOptions;

    fn unchanged() -> Identity {
        Identity::resolve(&IdentityOptions::default()).unwrap()
    }

    #[test]
    fn a_program_in_no_folder_says_where_it_was_looked_for() {
        let find =
            |name: &str, path: &str| find(Path::new(name), Some(OsStr::new(path)), &unchanged());
        assert_eq!(
            find("no-such-program", "/bin:/usr/bin").unwrap_err().to_string(),
            "`no-such-program` is in no folder of PATH (/bin:/usr/bin); a program beside you is \
             `./no-such-program`"
        );
        assert_eq!(find("sh", "/bin").unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn a_path_is_the_callers_and_not_the_workers() {
        let mut identity = unchanged();
        identity.directory = Some("/".into());
        let found = find(Path::new("./worker"), None, &identity).unwrap();
        assert_eq!(found, std::env::current_dir().unwrap().join("worker"));
    }

    #[test]
    fn each_failure_names_the_path() {
        let error = |code| io::Error::from_raw_os_error(code);
        let text =
            |program: &str, code| explain(program.into(), &unchanged(), error(code)).to_string();
        assert_eq!(text("/no/such", libc::ENOENT), "/no/such does not exist");
        let user = unchanged().name();
        assert_eq!(
            text("/etc/passwd", libc::EACCES),
            format!(
                "/etc/passwd may not be run: /etc/passwd is not executable for {user} (mode 0644; \
                 chmod +x)"
            )
        );
        assert_eq!(
            text("/bin/sh", libc::ENOENT),
            "/bin/sh names a loader that does not exist: it is of another system"
        );
        assert_eq!(
            text("/bin/sh", libc::EAGAIN),
            format!(
                "/bin/sh cannot be started: no more processes are allowed (RLIMIT_NPROC of {user}, \
                 or pids.max)"
            )
        );
        let step = Failed { step: Step::User, error: Errno::PERM };
        assert_eq!(
            explain("/bin/sh".into(), &unchanged(), step.into()).to_string(),
            "/bin/sh cannot be started: its user cannot be set: Operation not permitted (os error 1)"
        );
        let mut identity = unchanged();
        identity.directory = Some("/no/such".into());
        let step = Failed { step: Step::Directory, error: Errno::NOENT };
        assert_eq!(
            explain("/bin/sh".into(), &identity, step.into()).to_string(),
            "the working directory /no/such cannot be entered: No such file or directory (os error \
             2)"
        );
    }
}
