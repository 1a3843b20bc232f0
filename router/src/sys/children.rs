//! Whose child is whose: a process that reaps orphans must not take the exit status of a child that
//! somebody here waits for.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions};
use tokio::sync::Notify;

/// Children that this process started and has not reaped yet. Children belong to the process, and so
/// does the list.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// One of them was reaped.
static REAPED: Notify = Notify::const_new();

/// Orphans reaped in one turn: others get theirs in between, however fast orphans come.
const TURN: usize = 64;

fn own() -> MutexGuard<'static, BTreeSet<i32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process started a child, and somebody waits for it.
pub(super) fn started(child: Pid) {
    own().insert(child.as_raw_nonzero().get());
}

/// A child was reaped by who waited for it: its number may come to mean another process.
pub(super) fn reaped(child: Pid) {
    own().remove(&child.as_raw_nonzero().get());
    REAPED.notify_one();
}

/// Waits until a child was reaped by who waited for it. One caller at a time.
///
/// # Cancel safety
/// Safe.
pub(crate) async fn own_child_reaped() {
    REAPED.notified().await;
}

/// How a look at ended children went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// No orphan is left that could be seen.
    Done,
    /// There may be more.
    More,
}

/// Reaps ended children that nobody here waits for, and calls `each` with them.
///
/// The kernel shows one ended child at a time (`waitid(2)`, `WNOWAIT`) and the same one until it is
/// reaped: behind a child that somebody waits for nothing is to be seen until
/// [`own_child_reaped`]. To be called where children are started: a child that is started and ended
/// before it is noted would be taken for an orphan.
///
/// # Errors
/// As `waitid(2)`; that there are no children is none.
pub(crate) fn reap_orphans(each: impl FnMut(Pid)) -> io::Result<Look> {
    reap_all_but(|child| own().contains(&child.as_raw_nonzero().get()), each)
}

fn reap_all_but(is_own: impl Fn(Pid) -> bool, mut each: impl FnMut(Pid)) -> io::Result<Look> {
    for _ in 0..TURN {
        let Some(child) = ended_child()? else { return Ok(Look::Done) };
        if is_own(child) {
            return Ok(Look::Done);
        }
        // By its number, which is its own until this.
        rustix::process::waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
        each(child);
    }
    Ok(Look::More)
}

/// Some child that has ended and is not reaped, which it stays. rustix does not tell its number.
fn ended_child() -> io::Result<Option<Pid>> {
    // SAFETY: all fields are numbers or pointers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: the structure is this function's own and lives across the call.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, how) };
        if result == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            Some(Errno::CHILD) => return Ok(None),
            _ => return Err(error),
        }
    }
    // SAFETY: waitid filled in the fields of SIGCHLD, or left the zeros.
    let pid = unsafe { info.si_pid() };
    Ok(Pid::from_raw(pid))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::sys::process;

    fn is_own(child: Pid) -> bool {
        own().contains(&child.as_raw_nonzero().get())
    }

    #[test]
    fn a_child_is_its_starters_until_it_is_reaped() {
        let (port, _other) = vestibule_protocol::sys::seqpacket_pair().unwrap();
        let child = process::spawn(&mut Command::new("true"), port.as_fd()).unwrap();
        assert!(is_own(child.pid));
        while !process::has_ended(&child) {
            std::thread::yield_now();
        }
        // It may be shown, or another test's child: nobody takes either.
        let looked = reap_all_but(|_| true, |child| panic!("{child:?} is taken")).unwrap();
        assert_eq!(looked, Look::Done);
        assert!(is_own(child.pid), "it has ended, and somebody waits for how");
        assert!(process::reap(&child).unwrap().is_some());
        assert!(!is_own(child.pid), "the number may be another's from here on");
    }
}
