//! Starting, watching and ending processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions};
use vestibule_protocol::supervision::Exit;

use super::prepare::Preparation;

/// A started process, known by a descriptor that cannot come to mean another one.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// Starts a program as [`spawn_as`] does, as who this process is.
#[cfg(feature = "cli")]
pub(crate) fn spawn(command: &mut Command, port: BorrowedFd<'_>) -> io::Result<Started> {
    spawn_as(command, port, Preparation::default())
}

/// Starts a program as the leader of a session of its own, with `port` as its only inherited
/// descriptor besides standard input, output and error, and as whom `preparation` says.
///
/// # Errors
/// [`Failed::from_error`] names the step between fork and exec that failed; an error that names none
/// is exec's (or fork's, for want of processes or memory).
///
/// [`Failed::from_error`]: super::prepare::Failed::from_error
pub(crate) fn spawn_as(
    command: &mut Command,
    port: BorrowedFd<'_>,
    preparation: Preparation,
) -> io::Result<Started> {
    let port = port.as_raw_fd();
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let prepare = move || preparation.carry_out(port, limit).map_err(io::Error::from);
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls;
    // what it captures was allocated before the fork, and it allocates nothing.
    unsafe { command.pre_exec(prepare) };
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    #[cfg(feature = "cli")]
    super::children::started(pid);
    // Not yet reaped, so the number still means this process.
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            // Nobody could watch it: it must not live on unknown.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = child.wait();
            #[cfg(feature = "cli")]
            super::children::reaped(pid);
            return Err(error.into());
        }
    };
    Ok(Started { pid, pidfd })
}

/// Takes a descriptor that this process inherited and nobody owns yet; `None` if it is not open.
#[cfg(feature = "cli")]
pub(crate) fn take_inherited(number: i32) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: fails with EBADF for what is not open, and changes nothing else.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result != 0 || number < 3 {
        return None;
    }
    // SAFETY: it is open, and the supervisor put it there for this process alone: called once, at
    // the start, before anything else could own it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
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

/// Whether a process has ended. It stays to be reaped.
pub(crate) fn has_ended(process: &Started) -> bool {
    use std::os::fd::AsFd;
    let which = WaitId::PidFd(process.pidfd.as_fd());
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error (nobody to wait for) is an end, too.
    !matches!(rustix::process::waitid(which, look), Ok(None))
}

/// Takes the exit status of a process that has ended.
pub(crate) fn reap(process: &Started) -> Result<Option<Exit>, Errno> {
    use std::os::fd::AsFd;
    let which = WaitId::PidFd(process.pidfd.as_fd());
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = match rustix::process::waitid(which, options) {
        Err(Errno::CHILD) => return Ok(Some(Exit::Unknown)),
        other => other?,
    };
    #[cfg(feature = "cli")]
    if status.is_some() {
        super::children::reaped(process.pid);
    }
    Ok(status.map(|status| match status.exit_status() {
        Some(code) => Exit::Code(code),
        None => Exit::Signal(status.terminating_signal().unwrap_or_default()),
    }))
}

/// Whether a process's main thread has ended, whatever others of its threads do (proc_pid_stat(5): its
/// state is `Z`). To be asked while it is not reaped; without `/proc` it has not.
#[cfg(feature = "cli")]
pub(crate) fn main_thread_has_ended(process: &Started) -> bool {
    let path = format!("/proc/{}/stat", process.pid.as_raw_nonzero());
    // Its name, before that, can have any bytes.
    std::fs::read(path).is_ok_and(|stat| {
        let name_ends = stat.iter().rposition(|byte| *byte == b')');
        name_ends.is_some_and(|at| stat.get(at..).is_some_and(|rest| rest.starts_with(b") Z")))
    })
}

/// Bytes of a process in memory: its resident set (`/proc/PID/statm`, proc_pid_statm(5)). `None` if it
/// is gone.
#[cfg(feature = "cli")]
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_main_thread_has_ended_from_its_end_until_the_process_is_reaped() {
        let (port, _other) = vestibule_protocol::sys::seqpacket_pair().unwrap();
        let mut command = Command::new("sleep");
        let child = spawn(command.arg("1000"), port.as_fd()).unwrap();
        assert!(!main_thread_has_ended(&child));
        signal(&child, Signal::KILL).unwrap();
        while !has_ended(&child) {
            std::thread::yield_now();
        }
        assert!(main_thread_has_ended(&child));
        assert_eq!(reap(&child), Ok(Some(Exit::Signal(libc::SIGKILL))));
        assert!(!main_thread_has_ended(&child));
    }
}
