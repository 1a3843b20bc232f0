//! A file system of one file whose `flush`, which is what `close` waits for, is not answered until the
//! test says so: `fuse(4)` spoken on `/dev/fuse`, mounted where only this thread and what it starts
//! see it.
#![allow(unsafe_code, reason = "mounts and namespaces have no safe wrapper")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::files::Folder;

/// The one file's number; the root's is 1.
const FILE: u64 = 2;

/// Bytes of `fuse_in_header` and of `fuse_out_header`.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// The mounted file system. Dropping it answers everything that waits and unmounts it.
#[derive(Debug)]
pub struct Sleepy {
    folder: Folder,
    server: Arc<Server>,
    target: CString,
}

#[derive(Debug)]
struct Server {
    device: File,
    flushes: AtomicUsize,
    awake: AtomicBool,
    /// Requests whose answer is kept back, and the threads that wait for it.
    asleep: Mutex<Vec<(u64, u32)>>,
}

/// Set where there is no FUSE: then what needs it is left out.
const WITHOUT: &str = "TEST_WITHOUT_FUSE";

impl Sleepy {
    /// Mounts it; `None` only if `TEST_WITHOUT_FUSE` is set.
    ///
    /// # Panics
    /// It cannot be mounted, and nobody said so.
    pub fn wanted() -> Option<Self> {
        match Self::mount() {
            Ok(sleepy) => Some(sleepy),
            Err(error) if std::env::var_os(WITHOUT).is_some() => {
                println!("no FUSE here, as {WITHOUT} says: {error}");
                None
            }
            Err(error) => panic!(
                "no FUSE here: {error}. Run this as root, with /dev/fuse; or without, by {WITHOUT}=1"
            ),
        }
    }

    /// Mounts it for this thread and for what it starts from here on.
    ///
    /// # Errors
    /// This system gives no FUSE, or lets nobody mount it.
    fn mount() -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let folder = Folder::new();
        let target = CString::new(folder.path().as_os_str().as_encoded_bytes())?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options)?;
        // SAFETY: only this thread leaves the mounts that it shares with the others.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let none = std::ptr::null();
        // SAFETY: the path is a string, and there is nothing else to read.
        let private = check(unsafe {
            libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast())
        });
        // Below chroot(2) `/` is no mount: then others may see this one until it is unmounted.
        private.or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Ok(()),
            _ => Err(error),
        })?;
        // SAFETY: four strings that outlive the call.
        check(unsafe {
            libc::mount(
                c"sleepy".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        })?;
        let server = Arc::new(Server {
            device,
            flushes: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            asleep: Mutex::new(Vec::new()),
        });
        let serving = Arc::clone(&server);
        std::thread::spawn(move || serving.run());
        Ok(Self { folder, server, target })
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.folder.join("file")
    }

    /// How many closes wait or have waited.
    pub fn flushes(&self) -> usize {
        self.server.flushes.load(Ordering::SeqCst)
    }

    /// Whether a thread of a process waits in a close.
    pub fn holds(&self, pid: u32) -> bool {
        let asleep = self.server.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        let is_its = |thread: &u32| Path::new(&format!("/proc/{pid}/task/{thread}")).exists();
        asleep.iter().any(|(_, thread)| is_its(thread))
    }

    /// Lets every close end, from here on.
    pub fn wake(&self) {
        self.server.wake();
    }
}

impl Drop for Sleepy {
    fn drop(&mut self) {
        self.wake();
        // SAFETY: a string. Detached: whoever still has the file keeps what it needs.
        let _ = unsafe { libc::umount2(self.target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Server {
    /// Answers until the file system is unmounted.
    fn run(&self) {
        let mut request = vec![0; 256 * 1024];
        loop {
            match (&self.device).read(&mut request) {
                Ok(length) if length >= IN_HEADER => self.request(&request[..length]),
                Ok(_) => return,
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                // A request that was taken back.
                Err(_) => {}
            }
        }
    }

    fn request(&self, request: &[u8]) {
        let number = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (kind, unique, node) = (number(4), long(8), long(16));
        match kind {
            FORGET | BATCH_FORGET | INTERRUPT => {}
            INIT => {
                let mut body = vec![0; 64];
                // Major and minor version, read-ahead, flags, queue lengths, largest write.
                body[0..4].copy_from_slice(&7u32.to_ne_bytes());
                body[4..8].copy_from_slice(&31u32.to_ne_bytes());
                body[16..18].copy_from_slice(&16u16.to_ne_bytes());
                body[18..20].copy_from_slice(&12u16.to_ne_bytes());
                body[20..24].copy_from_slice(&4096u32.to_ne_bytes());
                self.answer(unique, 0, &body);
            }
            LOOKUP if request[IN_HEADER..].starts_with(b"file\0") => {
                let mut body = vec![0; 40];
                body[0..8].copy_from_slice(&FILE.to_ne_bytes());
                body.extend(attributes(FILE));
                self.answer(unique, 0, &body);
            }
            LOOKUP => self.answer(unique, libc::ENOENT, &[]),
            GETATTR => {
                let mut body = vec![0; 16];
                body.extend(attributes(node));
                self.answer(unique, 0, &body);
            }
            OPEN | OPENDIR => self.answer(unique, 0, &[0; 16]),
            FLUSH => {
                self.flushes.fetch_add(1, Ordering::SeqCst);
                let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
                if self.awake.load(Ordering::SeqCst) {
                    self.answer(unique, 0, &[]);
                } else {
                    asleep.push((unique, number(32)));
                }
            }
            RELEASE | RELEASEDIR => self.answer(unique, 0, &[]),
            _ => self.answer(unique, libc::ENOSYS, &[]),
        }
    }

    fn wake(&self) {
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.awake.store(true, Ordering::SeqCst);
        for (unique, _) in asleep.drain(..) {
            self.answer(unique, 0, &[]);
        }
    }

    /// A request that is gone by now cannot be answered.
    fn answer(&self, unique: u64, error: i32, body: &[u8]) {
        let length = u32::try_from(OUT_HEADER + body.len()).unwrap();
        let mut answer = length.to_ne_bytes().to_vec();
        answer.extend((-error).to_ne_bytes());
        answer.extend(unique.to_ne_bytes());
        answer.extend(body);
        let _ = (&self.device).write(&answer);
    }
}

/// `fuse_attr` of the folder or of the file.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == FILE { libc::S_IFREG | 0o666 } else { libc::S_IFDIR | 0o755 };
    let mut bytes = vec![0; 88];
    bytes[0..8].copy_from_slice(&node.to_ne_bytes());
    bytes[60..64].copy_from_slice(&mode.to_ne_bytes());
    bytes[64..68].copy_from_slice(&1u32.to_ne_bytes());
    bytes
}
