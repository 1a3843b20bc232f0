//! Processes of the tests' own: looking at them, freezing them, ending them.

use std::os::fd::AsFd;

use rustix::process::{Pid, Signal};

/// What the kernel says about a process.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// `R`, `S`, `T` (stopped), `Z` (not reaped) …
    pub state: char,
    /// Its parent.
    pub parent: u32,
    /// Its session.
    pub session: u32,
    /// When it started, in ticks since the boot: with its number, what no other process has.
    pub started: u64,
}

/// Looks at a process (`proc_pid_stat(5)`); `None` if there is none.
pub fn status(pid: u32) -> Option<Status> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let mut fields = tail.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Status { name: name.to_owned(), state, parent, session, started })
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(number(pid), signal).unwrap();
}

/// Stops a process, and returns when it is.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
    crate::world::until("the process is stopped", || {
        status(pid).is_some_and(|status| status.state == 'T')
    });
}

/// Lets a stopped process go on.
pub fn thaw(pid: u32) {
    signal(pid, Signal::CONT);
}

/// A process that stands still until this is dropped, by a test that fails too: it would never end.
#[derive(Debug)]
pub struct Frozen(u32);

impl Frozen {
    /// As [`freeze`].
    pub fn new(pid: u32) -> Self {
        let frozen = Self(pid);
        freeze(pid);
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = rustix::process::kill_process(number(self.0), Signal::CONT);
    }
}

/// Lets a process open so many descriptors more, and no others.
pub fn limit_descriptors(pid: u32, more: usize) {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let current = Some((open + more) as u64);
    let limits = rustix::process::Rlimit { current, ..limits };
    let resource = rustix::process::Resource::Nofile;
    rustix::process::prlimit(Some(number(pid)), resource, limits).unwrap();
}

/// Whether a process is gone, reaped included.
pub fn is_gone(pid: u32) -> bool {
    status(pid).is_none()
}

/// How many sockets a process has open.
pub fn sockets(pid: u32) -> usize {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// How many descriptors of this socket a process has.
pub fn descriptors_of(pid: u32, socket: impl AsFd) -> usize {
    let this = rustix::fs::fstat(socket).unwrap().st_ino;
    let this = format!("socket:[{this}]");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy() == this)
        .count()
}

pub(crate) fn number(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).expect("0 is no process")
}
