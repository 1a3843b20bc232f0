//! Listening sockets of the Unix domain: a path in the file system, or a name beside it.
//!
//! Who may connect is a matter of the path's mode. The socket gets it before it has a path, so that at
//! no moment more people may connect than shall.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Mode of a path unless another is asked for: whoever reaches the folder may connect, as to a port.
pub const MODE: u32 = 0o666;

/// Longest path or name (unix(7)).
pub const LONGEST: usize = 107;

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The folder of the path is not there.
    #[error("its folder is not there")]
    NoFolder,
    /// Somebody answers there.
    #[error("somebody answers there")]
    Live,
    /// Something else has this path.
    #[error("something that is no socket has this path")]
    NoSocket,
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<Errno> for PathError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::NOTDIR => Self::NoFolder,
            // Somebody was faster.
            Errno::ADDRINUSE => Self::Live,
            error => Self::System(error.into()),
        }
    }
}

/// A socket's path, which goes away with this, unless somebody else's socket has it by then.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Device and number.
    identity: (u64, u64),
}

impl SocketPath {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the path alone: another process listens there.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if identity(&self.path) == Ok(self.identity) {
            // Left behind, it is a socket that nobody answers, which the next start replaces.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// Listens at a path. A socket there that nobody answers is replaced. Nothing here waits.
///
/// # Errors
/// See [`PathError`].
pub fn listen_at(path: &Path, mode: u32, backlog: u32) -> Result<(OwnedFd, SocketPath), PathError> {
    let address = SocketAddrUnix::new(path)?;
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(PathError::NoSocket);
        }
        Ok(_) if is_live(&address)? => return Err(PathError::Live),
        Ok(_) => match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        },
    }
    let socket = socket()?;
    // What the path begins with, less the process's mask (unix(7), as Linux does it).
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&socket, &address)?;
    let path = SocketPath { path: path.to_owned(), identity: identity(path)? };
    widen(&path, mode)?;
    rustix::net::listen(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok((socket, path))
}

/// Listens under a name that is in no file system (unix(7), "abstract"). Whoever is in the same network
/// namespace may connect.
///
/// # Errors
/// See [`PathError`]; [`PathError::Live`] if the name is taken.
pub fn listen_as(name: &str, backlog: u32) -> Result<OwnedFd, PathError> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

/// Gives the path what the process's mask took. By a descriptor of this very file: the path may be
/// somebody else's by now.
fn widen(path: &SocketPath, mode: u32) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path.path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if (stat.st_dev, stat.st_ino) != path.identity {
        return Err(Errno::ADDRINUSE);
    }
    if Mode::from_raw_mode(stat.st_mode) == Mode::from_raw_mode(mode) {
        return Ok(());
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode))
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn identity(path: &Path) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::lstat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether somebody listens. Does not wait: a full queue is somebody's.
fn is_live(address: &SocketAddrUnix) -> Result<bool, Errno> {
    match rustix::net::connect(socket()?, address) {
        // A datagram socket is in use as well.
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("vestibule-path-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("app.sock")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_path_has_its_mode_whatever_the_mask_and_goes_away_with_the_socket() {
        let folder = Folder::new("mode");
        for wanted in [0o666, 0o600, 0o660, 0o777] {
            let (_socket, path) = listen_at(&folder.socket(), wanted, 16).unwrap();
            assert_eq!(mode(path.path()), wanted);
            UnixStream::connect(path.path()).unwrap();
            drop(path);
            assert!(!folder.socket().exists());
        }
    }

    #[test]
    fn what_nobody_answers_is_replaced_and_what_somebody_answers_is_not() {
        let folder = Folder::new("live");
        drop(UnixListener::bind(folder.socket()).unwrap());
        assert!(folder.socket().exists(), "left behind");
        let (_socket, _path) = listen_at(&folder.socket(), MODE, 16).unwrap();
        let again = listen_at(&folder.socket(), MODE, 16);
        assert!(matches!(again, Err(PathError::Live)), "{again:?}");
        UnixStream::connect(folder.socket()).unwrap();
    }

    #[test]
    fn what_is_no_stream_socket_is_left_alone() {
        let folder = Folder::new("file");
        std::fs::write(folder.socket(), "precious").unwrap();
        let result = listen_at(&folder.socket(), MODE, 16);
        assert!(matches!(result, Err(PathError::NoSocket)), "{result:?}");
        std::fs::remove_file(folder.socket()).unwrap();
        let _datagrams = UnixDatagram::bind(folder.socket()).unwrap();
        let result = listen_at(&folder.socket(), MODE, 16);
        assert!(matches!(result, Err(PathError::Live)), "{result:?}");
        let elsewhere = folder.0.join("elsewhere");
        std::fs::remove_file(folder.socket()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, folder.socket()).unwrap();
        let result = listen_at(&folder.socket(), MODE, 16);
        assert!(matches!(result, Err(PathError::NoSocket)), "{result:?}");
        assert!(!elsewhere.exists());
    }

    #[test]
    fn a_folder_that_is_not_there_is_said() {
        let folder = Folder::new("folder");
        let result = listen_at(&folder.0.join("none/app.sock"), MODE, 16);
        assert!(matches!(result, Err(PathError::NoFolder)), "{result:?}");
    }

    #[test]
    fn a_path_that_somebody_else_has_by_now_stays() {
        let folder = Folder::new("other");
        let (_socket, path) = listen_at(&folder.socket(), MODE, 16).unwrap();
        std::fs::remove_file(folder.socket()).unwrap();
        let _other = UnixListener::bind(folder.socket()).unwrap();
        drop(path);
        UnixStream::connect(folder.socket()).unwrap();
    }

    #[test]
    fn a_name_in_no_file_system_is_taken_once() {
        let name = format!("vestibule-test-{}", std::process::id());
        let _socket = listen_as(&name, 16).unwrap();
        let again = listen_as(&name, 16);
        assert!(matches!(again, Err(PathError::Live)), "{again:?}");
    }
}
