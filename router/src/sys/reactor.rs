//! Registering descriptors with the runtime's reactor.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor for reading only: a socket that is also watched for writing wakes its
/// process each time the other side reads.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor from here until the AsyncFd drops it, after it
    // took it out of the reactor.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(registered?)
}

/// Registers a descriptor for writing only.
pub(crate) fn writable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `readable`.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::WRITABLE) };
    Ok(registered?)
}

/// As [`readable`], for a duplicate.
pub(crate) fn readable_duplicate(descriptor: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    readable(descriptor.try_clone_to_owned()?)
}
