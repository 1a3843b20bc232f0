//! Starting, watching and ending processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions};
use vestibule_protocol::supervision::Exit;

/// A started process, known by a descriptor that cannot come to mean another one.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// Starts a program as the leader of a session of its own, with `port` as its only inherited
/// descriptor besides standard input, output and error.
///
/// Between fork and exec, in this order: every descriptor from 3 on is marked close-on-exec, the port
/// is not, the process gets a session, and its soft descriptor limit is raised to the hard one. The
/// standard library reports an exec that fails over a descriptor that is close-on-exec already.
pub(crate) fn spawn(command: &mut Command, port: BorrowedFd<'_>) -> io::Result<Started> {
    let port = port.as_raw_fd();
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let prepare = move || {
        close_on_exec_from(3)?;
        keep_on_exec(port)?;
        rustix::process::setsid()?;
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        // The limit stays as it is where the system forbids it.
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls;
    // it captures plain numbers and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    let pid = Pid::from_child(&child);
    // Not yet reaped, so the number still means this process.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Started { pid, pidfd })
}

fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: marks descriptors; none is closed, so no owner is affected.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn keep_on_exec(descriptor: libc::c_int) -> io::Result<()> {
    // SAFETY: changes a flag of a descriptor that the parent holds open across the fork.
    let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal to the one process.
pub(crate) fn signal(process: &Started, signal: Signal) -> Result<(), Errno> {
    rustix::process::pidfd_send_signal(&process.pidfd, signal)
}

/// Kills the whole process group. The leader is not reaped yet, so the group's number is still its
/// own; that a group is empty is no error.
pub(crate) fn kill_group(process: &Started) -> Result<(), Errno> {
    match rustix::process::kill_process_group(process.pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes the exit status of a process that has ended.
pub(crate) fn reap(process: &Started) -> Result<Option<Exit>, Errno> {
    use std::os::fd::AsFd;
    let which = WaitId::PidFd(process.pidfd.as_fd());
    let status = rustix::process::waitid(which, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(status.map(|status| match status.exit_status() {
        Some(code) => Exit::Code(code),
        None => Exit::Signal(status.terminating_signal().unwrap_or_default()),
    }))
}
