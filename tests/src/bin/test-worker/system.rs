//! System calls without a safe wrapper.
#![allow(unsafe_code, reason = "signal dispositions and inherited descriptors")]

use std::os::fd::{FromRawFd, OwnedFd};

/// Frees descriptor 0, so that the next one that arrives gets this number.
pub(crate) fn close_standard_input() {
    // SAFETY: nothing in this process uses its standard input; std never closes it itself.
    drop(unsafe { OwnedFd::from_raw_fd(0) });
}

/// SIGTERM does nothing from here on.
pub(crate) fn ignore_termination() {
    // SAFETY: SIG_IGN runs no code of this process.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}
