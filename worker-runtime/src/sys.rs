//! System calls that rustix does not wrap, or wraps for one thread only. All unsafe code of this
//! crate is here.
#![allow(unsafe_code, reason = "system calls that rustix does not wrap, or for one thread only")]

use std::ffi::{CStr, CString};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

/// Room for one entry of the user database: names and paths of any real system.
const ENTRY_ROOM: usize = 16 * 1024;

/// Most bytes of a security context that are asked for; the kernel's own labels are far shorter.
const CONTEXT_ROOM: usize = 4096;

/// What a connection's socket is watched for.
const NEWS: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// Takes ownership of a descriptor that this process inherited, if it is a Unix seqpacket socket.
///
/// The caller makes sure that it is taken once.
///
/// # Errors
/// `BADF`: not open. `NOTSOCK`: no socket, or one of another kind. It is left alone then.
pub(crate) fn take_inherited_port(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: not -1, and borrowed only for the calls of this function; a number that is not open
    // makes them fail with EBADF and nothing else.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed)?;
    if !vestibule_protocol::sys::is_seqpacket(borrowed)? {
        return Err(Errno::NOTSOCK);
    }
    vestibule_protocol::sys::set_port_flags(borrowed)?;
    // SAFETY: it is open (checked above), it came with the start of the process and nothing in it
    // owns it: the caller takes it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A socket that another part of this process owns and that can be shut down from here.
#[derive(Debug)]
pub(crate) struct Watched(RawFd);

impl Watched {
    /// Watches a socket. Whoever owns it must drop this before it closes the socket.
    pub(crate) fn new(socket: BorrowedFd<'_>) -> Self {
        Self(socket.as_raw_fd())
    }

    /// Ends the connection in both directions; its owner sees end of file and broken pipe.
    pub(crate) fn shutdown(&self) {
        // SAFETY: `new` obliges the owner to drop this first, under the lock through which alone
        // it is reached: the descriptor is open.
        let socket = unsafe { BorrowedFd::borrow_raw(self.0) };
        shutdown(socket);
    }
}

/// Ends a connection in both directions.
pub(crate) fn shutdown(socket: BorrowedFd<'_>) {
    // Fails only if the client was first.
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}

/// Has the runtime watch a non-blocking socket for all that may come, urgent data included.
///
/// # Errors
/// It cannot be watched; it is closed then.
pub(crate) fn watch_tcp(socket: TcpStream) -> io::Result<AsyncFd<TcpStream>> {
    // SAFETY: a stream of std's owns its descriptor, which is the same one until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, NEWS) }?)
}

/// As [`watch_tcp`], for a Unix-domain socket.
///
/// # Errors
/// As [`watch_tcp`].
pub(crate) fn watch_unix(socket: UnixStream) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: as in `watch_tcp`.
    Ok(unsafe { AsyncFd::register_with_interest(socket, NEWS) }?)
}

/// Receives what there is into the rest of a buffer; returns how many bytes.
///
/// # Errors
/// As `recv(2)`.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: `recv` writes to it, and nothing that was initialized becomes uninitialized by that.
    let room = unsafe { buffer.unfilled_mut() };
    let ((received, _), _) = rustix::net::recv(socket, room, RecvFlags::empty())?;
    let count = received.len();
    // SAFETY: the kernel has just written these.
    unsafe { buffer.assume_init(count) };
    buffer.advance(count);
    Ok(count)
}

/// The peer's security context (`SO_PEERSEC`), without its final NUL.
///
/// # Errors
/// `NOPROTOOPT`: no labelling, or no such kernel module.
pub(crate) fn peer_context(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut context = vec![0u8; CONTEXT_ROOM];
    let mut length = CONTEXT_ROOM as libc::socklen_t;
    // SAFETY: the buffer is live and as long as `length` says; the kernel writes at most that much.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERSEC,
            context.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    check(result)?;
    context.truncate(length as usize);
    while context.last() == Some(&0) {
        context.pop();
    }
    Ok(context)
}

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Looks a user up by name; `None` if there is none.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn user_by_name(name: &CStr) -> io::Result<Option<User>> {
    user(|entry, room, found| {
        // SAFETY: all pointers are live for the call; the room's length is its own.
        unsafe {
            libc::getpwnam_r(name.as_ptr(), entry, room.as_mut_ptr().cast(), room.len(), found)
        }
    })
}

/// Looks a user up by number; `None` if there is none.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn user_by_uid(uid: u32) -> io::Result<Option<User>> {
    user(|entry, room, found| {
        // SAFETY: all pointers are live for the call; the room's length is its own.
        unsafe { libc::getpwuid_r(uid, entry, room.as_mut_ptr().cast(), room.len(), found) }
    })
}

type Found = *mut *mut libc::passwd;

fn user(
    lookup: impl Fn(*mut libc::passwd, &mut [u8], Found) -> libc::c_int,
) -> io::Result<Option<User>> {
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut room = vec![0u8; ENTRY_ROOM];
    let mut found = std::ptr::null_mut();
    match lookup(entry.as_mut_ptr(), &mut room, &raw mut found) {
        // Not found, as glibc and musl say it.
        0 if found.is_null() => return Ok(None),
        libc::ENOENT | libc::ESRCH => return Ok(None),
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // SAFETY: the call succeeded and found an entry, so it filled `entry`.
    let entry = unsafe { entry.assume_init() };
    // SAFETY: the name points into `room`, which is live, and ends with a NUL.
    let name = unsafe { CStr::from_ptr(entry.pw_name) }.to_owned();
    Ok(Some(User { name, uid: entry.pw_uid, gid: entry.pw_gid }))
}

/// Sets the supplementary groups of all threads to those of `user`, its own group among them.
///
/// # Errors
/// As `initgroups(3)`. Nothing has changed then.
pub(crate) fn set_groups_of(user: &User) -> Result<(), Errno> {
    // SAFETY: the name ends with a NUL and lives for the call. glibc changes every thread.
    check(unsafe { libc::initgroups(user.name.as_ptr(), user.gid) })
}

/// Leaves all threads no supplementary group.
///
/// # Errors
/// As `setgroups(2)`. Nothing has changed then.
pub(crate) fn clear_groups() -> Result<(), Errno> {
    // SAFETY: no group is read. glibc changes every thread.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })
}

/// Sets the real, effective and saved group of all threads.
///
/// # Errors
/// As `setresgid(2)`.
pub(crate) fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: takes numbers only. glibc changes every thread, or aborts.
    check(unsafe { libc::setresgid(gid, gid, gid) })
}

/// Sets the real, effective and saved user of all threads.
///
/// # Errors
/// As `setresuid(2)`.
pub(crate) fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: takes numbers only. glibc changes every thread, or aborts.
    check(unsafe { libc::setresuid(uid, uid, uid) })
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// A descriptor's number, for messages only.
pub(crate) fn number(descriptor: &OwnedFd) -> RawFd {
    descriptor.as_raw_fd()
}
