//! System calls without a safe wrapper.
#![allow(unsafe_code, reason = "inherited descriptors and sessions have no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Takes an inherited descriptor.
pub(crate) fn take(number: RawFd) -> OwnedFd {
    // SAFETY: the environment names it as this process's own, and it is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Starts a process in a session of its own that holds `port` as well: no signal to this process's
/// group reaches it.
#[allow(clippy::zombie_processes, reason = "it outlives this process, which is the point")]
pub(crate) fn spawn_apart(command: &mut Command, port: BorrowedFd<'_>) {
    let port = port.as_raw_fd();
    let prepare = move || {
        rustix::process::setsid()?;
        // SAFETY: open in the parent across the fork.
        let port = unsafe { BorrowedFd::borrow_raw(port) };
        rustix::io::fcntl_setfd(port, rustix::io::FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: two system calls, no allocation.
    unsafe { command.pre_exec(prepare) };
    command.spawn().unwrap();
}
