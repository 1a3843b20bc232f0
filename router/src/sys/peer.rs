//! What the kernel knows about the process at the other end of a connection.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

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
