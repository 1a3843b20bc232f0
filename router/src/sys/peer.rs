//! What the kernel knows about the process at the other end of a connection.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vestibule_protocol::connection_info::PeerCredentials;

/// Why there is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoLabel {
    /// The peer has none: the network is not labelled, or no security module labels it.
    None,
    /// It takes so many bytes.
    Larger(usize),
    /// The kernel does not say.
    System(Errno),
}

/// Who connected a Unix-domain socket (`SO_PEERCRED`, unix(7)): as it was at `connect`, whatever that
/// process became since.
///
/// Not rustix's: there a process that is in no namespace of ours, whose number is 0, is no value.
pub(crate) fn credentials(socket: BorrowedFd<'_>) -> Result<PeerCredentials, Errno> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `who` is live and as large as `length` says, and any three numbers are a value of it.
    // The descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    // What is no Unix-domain socket has the user -1.
    if (length as usize) < size_of::<libc::ucred>() || who.uid == libc::uid_t::MAX {
        return Err(Errno::NOPROTOOPT);
    }
    let pid = u32::try_from(who.pid).unwrap_or_default();
    Ok(PeerCredentials { pid, uid: who.uid, gid: who.gid })
}

/// The peer's security context (`SO_PEERSEC`, unix(7)) into `room`. Returns its length, which counts
/// the final zero byte that some security modules write.
pub(crate) fn security(socket: BorrowedFd<'_>, room: &mut [u8]) -> Result<usize, NoLabel> {
    let mut length = libc::socklen_t::try_from(room.len()).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the buffer is live and at least as long as `length` says; the kernel writes at most
    // that much. The descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERSEC,
            room.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let length = length as usize;
    if result == 0 {
        return Ok(length.min(room.len()));
    }
    let error = std::io::Error::last_os_error();
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::NOPROTOOPT => Err(NoLabel::None),
        // The kernel then says how much there is.
        Errno::RANGE if length > room.len() => Err(NoLabel::Larger(length)),
        error => Err(NoLabel::System(error)),
    }
}
