//! Server processes: started so that they end with the benchmark however it ends, and measured by pid.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;
use std::{env, fs};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, kill_process, pidfd_open,
    set_child_subreaper, set_parent_process_death_signal, waitpid,
};
use rustix::time::Timespec;
use thiserror::Error;

use crate::sys;

/// How long a server that was asked to stop may take before it is killed with its descendants.
const STOP_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

#[derive(Debug, Error)]
pub(crate) enum ProcessError {
    #[error("cannot start {program}")]
    Spawn { program: String, source: io::Error },
    #[error("cannot tie this process to its parent")]
    Tie { source: io::Error },
    #[error("the parent is gone")]
    Orphaned,
    #[error("cannot execute {program}")]
    Execute { program: String, source: io::Error },
    #[error("cannot read the CPU clock of process {pid}: it has probably died")]
    Clock { pid: i32, source: io::Error },
}

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// One of ours: it has nothing to put in order, and its children are tied to it.
    Kill,
    /// Somebody else's: it knows its children, and SIGTERM makes it end them.
    Terminate,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Terminate => Signal::TERM,
        }
    }
}

/// A started server with its descendants; dropping it ends all of them.
pub(crate) struct Server {
    child: Child,
    pid: Pid,
    stop: Stop,
}

impl Server {
    /// # Errors
    /// [`ProcessError::Spawn`].
    pub(crate) fn spawn(mut command: Command, stop: Stop) -> Result<Self, ProcessError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|source| ProcessError::Spawn { program, source })?;
        let pid = Pid::from_child(&child);
        Ok(Self { child, pid, stop })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The process and all its descendants as they are now.
    pub(crate) fn tree(&self) -> Vec<Pid> {
        let mut tree = vec![self.pid];
        let mut next = 0;
        while let Some(&pid) = tree.get(next) {
            tree.extend(children(pid));
            next += 1;
        }
        tree
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let tree = self.tree();
        // Not reaped yet, so the pid is still this process's; it may have ended, which is what is wanted.
        let _ = kill_process(self.pid, self.stop.signal());
        if let Ok(handle) = pidfd_open(self.pid, PidfdFlags::empty()) {
            let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&STOP_TIMEOUT));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in tree.into_iter().skip(1) {
            // Whatever is left has become this process's child (see `adopt_orphans`), and only such can be waited for: a pid that
            // is gone or means another process by now is not touched.
            if waitpid(Some(pid), WaitOptions::NOHANG).is_ok_and(|ended| ended.is_none()) {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}

/// Makes descendants whose parents end children of this process, which then can end and reap them.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

fn children(pid: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|word| word.parse().ok().and_then(Pid::from_raw))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// CPU time of several processes together.
///
/// # Errors
/// [`ProcessError::Clock`] when one of them is gone.
pub(crate) fn cpu_time(pids: &[Pid]) -> Result<Duration, ProcessError> {
    pids.iter()
        .map(|&pid| {
            sys::cpu_time(pid)
                .map_err(|source| ProcessError::Clock { pid: pid.as_raw_nonzero().get(), source })
        })
        .sum()
}

/// The command that runs this executable again in one of its server roles, tied to the calling process.
///
/// # Errors
/// [`ProcessError::Spawn`] when the executable's own path cannot be found.
pub(crate) fn own_role<S: AsRef<OsStr>>(
    role: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Command, ProcessError> {
    let program = env::current_exe().map_err(|source| ProcessError::Spawn {
        program: "the benchmark's own executable".into(),
        source,
    })?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--parent").arg(getpid().to_string()).arg(role).args(arguments);
    Ok(command)
}

/// The command that runs another program, tied to the calling process: through our own `execute` role, which ties itself and
/// then becomes the program, so that nothing has to be done between fork and exec.
///
/// # Errors
/// As [`own_role`].
pub(crate) fn tied<S: AsRef<OsStr>>(
    program: &OsStr,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Command, ProcessError> {
    let mut command = own_role("execute", ["--"])?;
    command.arg(program).args(arguments);
    Ok(command)
}

/// Has the kernel signal this process when its parent's main thread ends. The setting outlives an exec.
///
/// # Errors
/// [`ProcessError::Orphaned`] when that has happened already.
pub(crate) fn tie_to(parent: i32, stop: Stop) -> Result<(), ProcessError> {
    set_parent_process_death_signal(Some(stop.signal()))
        .map_err(|source| ProcessError::Tie { source: source.into() })?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) == Some(parent) {
        Ok(())
    } else {
        Err(ProcessError::Orphaned)
    }
}

/// Becomes another program. Returns only when that fails.
pub(crate) fn execute(program: &OsStr, arguments: &[std::ffi::OsString]) -> ProcessError {
    let source = Command::new(program).args(arguments).exec();
    ProcessError::Execute { program: program.to_string_lossy().into_owned(), source }
}

/// Where `name` is on PATH.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = env::var_os("PATH")?;
    let system = ["/usr/sbin", "/usr/local/sbin"].map(std::path::PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|p| p.is_file())
}
