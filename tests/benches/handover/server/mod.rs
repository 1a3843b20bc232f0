//! The server roles of this executable: what runs in the processes that are measured.
//!
//! `main` comes here when the first argument is `serve`; [`crate::contender`] writes those command lines. A role gets
//! its socket (a listener or a port) as standard input.

mod bare_router;
mod bare_worker;
mod direct;
mod port;
mod vestibule;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};

use crate::counting;
use crate::processes::{ProcessError, Stop, execute, tie_to};

#[derive(clap::Args, Debug)]
pub(crate) struct Serve {
    /// The process whose end is this one's end; none for a worker of the program, which ends its workers itself
    #[arg(long)]
    parent: Option<i32>,
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand, Debug)]
enum Role {
    /// Accepts and serves
    DirectWorker(WorkerArguments),
    /// Accepts and hands over
    BareRouter(RouterArguments),
    /// Receives and serves
    BareWorker,
    /// Accepts and hands over
    VestibuleRouter(RouterArguments),
    /// Receives and serves
    VestibuleWorker(WorkerArguments),
    /// The program's router process, for whoever counts its instructions
    CountedRouter,
    /// Becomes another program
    Execute { program: OsString, arguments: Vec<OsString> },
}

#[derive(clap::Args, Debug)]
struct RouterArguments {
    #[arg(long)]
    workers: usize,
    /// Count allocations; standard output is the socket over which to tell
    #[arg(long)]
    counted: bool,
    #[command(flatten)]
    worker: WorkerArguments,
}

#[derive(clap::Args, Clone, Copy, Debug)]
struct WorkerArguments {
    /// Say in each answer when its request was first read
    #[arg(long)]
    timed: bool,
}

impl RouterArguments {
    fn count_if_asked(&self) -> Result<(), ServeError> {
        if self.counted {
            counting::answer_on(standard_output()?.into()).map_err(ServeError::Counting)?;
        }
        Ok(())
    }
}

/// Why a server process ended; printed at its end.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("standard input or output cannot be taken over as a socket")]
    Socket(#[source] io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("accept")]
    Accept(#[source] io::Error),
    #[error("epoll")]
    Epoll(#[source] Errno),
    #[error("a port between router and worker")]
    Port(#[source] Errno),
    #[error("a packet between router and worker is not what was agreed")]
    Packet,
    #[error("the other end of the port is gone")]
    PortClosed,
    #[error("vestibule's workers")]
    Pool(#[from] vestibule_router::SpawnError),
    #[error("a worker of vestibule's is not what it was: {0:?}")]
    Event(Box<vestibule_router::WorkerEvent>),
    #[error("vestibule's worker was not started as one")]
    Scope(#[from] vestibule_worker::ScopeError),
    #[error("vestibule's worker")]
    Worker(#[from] vestibule_worker::ServeError),
    #[error("the router process")]
    Router(#[from] vestibule_router::role::RoleError),
    #[error("cannot count allocations")]
    Counting(#[source] io::Error),
}

/// Runs a role until its parent or its peer ends.
///
/// # Errors
/// [`ServeError`]; only a worker whose router has ended ends without.
pub(crate) fn run(serve: Serve) -> Result<(), ServeError> {
    if let Some(parent) = serve.parent {
        tie_to(parent, serve.role.stop())?;
    }
    own_session();
    match serve.role {
        Role::DirectWorker(worker) => direct::run(standard_input()?, worker.timed),
        Role::BareRouter(arguments) => bare_router::run(&standard_input()?, &arguments),
        Role::BareWorker => bare_worker::run(standard_input()?),
        Role::VestibuleRouter(arguments) => vestibule::route(standard_input()?, &arguments),
        Role::VestibuleWorker(worker) => vestibule::work(worker.timed),
        Role::CountedRouter => Ok(vestibule_router::role::run(standard_input()?)?),
        Role::Execute { program, arguments } => Err(execute(&program, &arguments).into()),
    }
}

impl Role {
    fn stop(&self) -> Stop {
        match self {
            Self::Execute { .. } => Stop::Terminate,
            Self::CountedRouter
            | Self::DirectWorker(_)
            | Self::BareRouter(_)
            | Self::BareWorker
            | Self::VestibuleRouter(_)
            | Self::VestibuleWorker(_) => Stop::Kill,
        }
    }
}

/// The socket that was given as standard input (a duplicate: descriptor 0 stays what it is).
fn standard_input() -> Result<OwnedFd, ServeError> {
    io::stdin().as_fd().try_clone_to_owned().map_err(ServeError::Socket)
}

/// The socket that was given as standard output.
fn standard_output() -> Result<OwnedFd, ServeError> {
    io::stdout().as_fd().try_clone_to_owned().map_err(ServeError::Socket)
}

/// Gives this process a session of its own, as a service has, and as vestibule gives to each worker: where the kernel groups
/// processes by session to share the CPU among them (`sched_autogroup_enabled`, sched(7)), a contender would otherwise share the
/// load generator's part, and vestibule would not.
fn own_session() {
    // Refused to who has one already.
    let _ = rustix::process::setsid();
}

/// Lets this process have as many descriptors as it may: a router has one for each connection that is not acknowledged.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Raising the soft limit to the hard one needs no right; where it fails all the same, the old limit holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// One thread, as every worker here has.
fn runtime() -> Result<Runtime, ServeError> {
    Builder::new_current_thread().enable_io().build().map_err(ServeError::Runtime)
}
