//! The path of the admin socket: where it is looked for, how it is made, and who made it before.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Name in one of the usual folders.
const NAME: &str = "admin.sock";
/// Conversations that nobody accepted yet.
const BACKLOG: i32 = 64;
/// For its owner only.
const MODE: u32 = 0o600;

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// None of the usual folders is there.
    #[error(
        "no admin socket: none of these folders is there and can be written to: {}; make one, or \
         name a path with --admin",
        list(.0)
    )]
    NoUsualFolder(Vec<PathBuf>),
    /// The folder of the path is not there.
    #[error("no admin socket {}: its folder is not there", .0.display())]
    NoFolder(PathBuf),
    /// Somebody answers there.
    #[error(
        "the admin socket {} belongs to a vestibule that runs: stop it, or name another path with \
         --admin",
        .0.display()
    )]
    Live(PathBuf),
    /// Something else has this path.
    #[error("the admin socket's path {} belongs to something that is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("cannot make the admin socket {}", path.display())]
    System {
        /// Its path.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
}

impl AdminError {
    /// Whether the program can do without, with a warning, though a path was asked for: there is no
    /// such folder.
    pub fn is_mere_absence(&self) -> bool {
        matches!(self, Self::NoUsualFolder(_) | Self::NoFolder(_))
    }
}

fn list(folders: &[PathBuf]) -> String {
    let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    names.join(", ")
}

/// The folders in which the socket is looked for, best first: `$RUNTIME_DIRECTORY` (its first part,
/// systemd.exec(5)), `/run/vestibule`, `$XDG_RUNTIME_DIR/vestibule`.
pub fn usual_folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let absolute = |name| {
        let value = variable(name)?;
        let first = value.as_bytes().split(|byte| *byte == b':').next()?;
        let path = PathBuf::from(OsStr::from_bytes(first));
        path.is_absolute().then_some(path)
    };
    let mut folders = Vec::with_capacity(3);
    folders.extend(absolute("RUNTIME_DIRECTORY"));
    folders.push(PathBuf::from("/run/vestibule"));
    folders.extend(absolute("XDG_RUNTIME_DIR").map(|folder| folder.join("vestibule")));
    folders
}

/// Where a client looks, best first: the path that is named, or the usual ones.
pub fn candidates(named: Option<&Path>) -> Vec<PathBuf> {
    match named {
        Some(path) => vec![path.to_owned()],
        None => {
            let folders = usual_folders(|name| std::env::var_os(name));
            folders.into_iter().map(|folder| folder.join(NAME)).collect()
        }
    }
}

/// A listening socket with a path, which is removed with it.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    socket: OwnedFd,
    /// Device and number of the path, to remove nobody else's.
    identity: (u64, u64),
}

impl AdminSocket {
    /// Makes the socket at this path, or in the first of the usual folders that is there and can be
    /// written to. A socket that nobody answers is replaced. Nothing here waits.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn open(named: Option<&Path>) -> Result<Self, AdminError> {
        match named {
            Some(path) => Self::open_at(path),
            None => {
                let folders = usual_folders(|name| std::env::var_os(name));
                match folders.iter().find(|folder| is_usable(folder)) {
                    Some(folder) => Self::open_at(&folder.join(NAME)),
                    None => Err(AdminError::NoUsualFolder(folders)),
                }
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For the runtime; needs one.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        let duplicate = self.socket.try_clone()?;
        tokio::net::UnixListener::from_std(duplicate.into())
    }

    fn open_at(path: &Path) -> Result<Self, AdminError> {
        let system = |source: Errno| match source {
            Errno::NOENT | Errno::NOTDIR => AdminError::NoFolder(path.to_owned()),
            source => AdminError::System { path: path.to_owned(), source: source.into() },
        };
        // Nobody could connect to a path that is too long.
        SocketAddrUnix::new(path).map_err(system)?;
        match rustix::fs::lstat(path) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(system(error)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(AdminError::NoSocket(path.to_owned()));
            }
            Ok(_) if is_live(path).map_err(system)? => {
                return Err(AdminError::Live(path.to_owned()));
            }
            Ok(_) => {}
        }
        let socket = socket().map_err(system)?;
        let identity = put(&socket, path).map_err(system)?;
        Ok(Self { path: path.to_owned(), socket, identity })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if identity(&self.path) == Ok(self.identity) {
            // Left behind, it is a socket that nobody answers, which the next start replaces.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Makes the socket listen beside its place and moves it there: at no moment can anybody meet one
/// with another mode, or one that does not listen, and a dead one is replaced in one step.
fn put(socket: impl AsFd, path: &Path) -> Result<(u64, u64), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let beside = format!(".admin-{}", std::process::id());
    // By its descriptor, as a path of full length has no room for another name.
    let address = format!("/proc/self/fd/{}/{beside}", folder.as_raw_fd());
    match rustix::fs::unlinkat(&folder, &beside, AtFlags::empty()) {
        // What a process of the same number left.
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(address.as_str())?)?;
    let moved = rustix::fs::chmodat(&folder, &beside, Mode::from_raw_mode(MODE), AtFlags::empty())
        .and_then(|()| rustix::net::listen(&socket, BACKLOG))
        .and_then(|()| rustix::fs::renameat(&folder, &beside, &folder, name));
    if let Err(error) = moved {
        // Another start would remove it too.
        let _ = rustix::fs::unlinkat(&folder, &beside, AtFlags::empty());
        return Err(error);
    }
    identity(path)
}

fn identity(path: &Path) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::lstat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn is_usable(folder: &Path) -> bool {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, folder, access, AtFlags::EACCESS).is_ok() && folder.is_dir()
}

/// Whether somebody listens. Does not wait: a full queue is somebody's.
fn is_live(path: &Path) -> Result<bool, Errno> {
    let socket = socket()?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("vestibule-admin-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn folders_are_looked_for_in_the_documented_order() {
        let folders = usual_folders(|name| match name {
            "RUNTIME_DIRECTORY" => Some("/run/a:/run/b".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            _ => None,
        });
        let expected = ["/run/a", "/run/vestibule", "/run/user/7/vestibule"];
        assert_eq!(folders, expected.map(PathBuf::from));
        assert_eq!(usual_folders(|_| Some("relative".into())), [PathBuf::from("/run/vestibule")]);
    }

    #[test]
    fn it_is_for_its_owner_only_and_gone_afterwards() {
        let folder = Folder::new("mode");
        let path = folder.0.join("s");
        let socket = AdminSocket::open(Some(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left beside it");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = Folder::new("dead");
        let path = folder.0.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a socket that nobody answers");
        let first = AdminSocket::open(Some(&path)).unwrap();
        let second = AdminSocket::open(Some(&path));
        assert!(matches!(second, Err(AdminError::Live(_))), "{second:?}");
        UnixStream::connect(first.path()).unwrap();
    }

    #[test]
    fn a_successor_at_the_same_path_is_left_alone() {
        let folder = Folder::new("successor");
        let path = folder.0.join("s");
        let first = AdminSocket::open(Some(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = AdminSocket::open(Some(&path)).unwrap();
        drop(first);
        UnixStream::connect(second.path()).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_not_touched() {
        let folder = Folder::new("file");
        let path = folder.0.join("s");
        std::fs::write(&path, "mine").unwrap();
        let result = AdminSocket::open(Some(&path));
        assert!(matches!(result, Err(AdminError::NoSocket(_))), "{result:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn no_folder_is_mere_absence() {
        let result = AdminSocket::open(Some(Path::new("/no/such/folder/s")));
        assert!(result.is_err_and(|error| error.is_mere_absence()));
    }

    #[test]
    fn a_path_may_be_as_long_as_an_address() {
        let folder = Folder::new("long");
        let room = 107 - folder.0.as_os_str().len() - 1;
        let path = folder.0.join("x".repeat(room));
        let socket = AdminSocket::open(Some(&path)).unwrap();
        UnixStream::connect(socket.path()).unwrap();
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let result = AdminSocket::open(Some(&path));
        assert!(matches!(result, Err(AdminError::System { .. })), "{result:?}");
    }
}
