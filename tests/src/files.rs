//! Folders and programs that every user may enter and run. The target folder of a build belongs to
//! whoever builds, often below a home that nobody else may enter.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder that is gone after the test.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder that everybody may enter and read, and nobody else may write to.
    pub fn new() -> Self {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vestibule-tests-{}-{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o755);
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A copy of a program that everybody may run.
    ///
    /// Another process writes it: a descriptor open for writing here could be inherited by what
    /// another test starts at this moment, and nobody can execute a file that somebody may write to.
    pub fn copy(&self, program: impl AsRef<Path>) -> PathBuf {
        let program = program.as_ref();
        let copy = self.0.join(program.file_name().unwrap());
        let copied = Command::new("cp").arg(program).arg(&copy).status().unwrap();
        assert!(copied.success(), "{} is not copied", program.display());
        set_mode(&copy, 0o755);
        copy
    }

    /// A file with this content and mode.
    pub fn write(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        set_mode(&path, mode);
        path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind in a temporary folder hurts nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A place where a worker waits, before it is ready, until the case lets it go on.
#[derive(Debug)]
pub struct Gate(Folder);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        let folder = Folder::new();
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("gate"), mode).unwrap();
        Self(folder)
    }

    /// Its path, for `TEST_GATE`.
    pub fn path(&self) -> PathBuf {
        self.0.join("gate")
    }

    /// Lets the one worker through that waits here, or will.
    pub fn open(&self) {
        fs::OpenOptions::new().write(true).open(self.path()).unwrap();
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets the permission bits of a path.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
