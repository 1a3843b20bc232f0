//! What a socket was told, asked of the kernel.
#![allow(unsafe_code, reason = "an option that has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd};

/// Whether a listening socket keeps clients until they have said something (`TCP_DEFER_ACCEPT`, tcp(7)).
pub fn defers_accept(socket: impl AsFd) -> bool {
    let mut seconds: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one c_int, which is live, as its length says; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw mut seconds).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    seconds > 0
}
