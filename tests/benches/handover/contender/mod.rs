//! What is measured: each contender starts its server processes, says on which port they answer and which of them are the
//! router. To add one: a file beside this one, a [`Kind`], a line in [`start`].

mod direct;
mod node;
mod program;
mod proxy;
mod routed;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, getpid};
use thiserror::Error;

pub(crate) use self::routed::{Routed, start_counted};
use crate::cli::Scenario;
use crate::hello::BODY;
use crate::load::Asking;
use crate::processes::{ProcessError, Server};

/// As many as can be complete and not accepted; the default of `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How long a contender may take until it answers its first request.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// The contenders, in the order in which they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// SO_REUSEPORT hyper workers, no router: the floor
    Direct,
    /// The bare hand-over to the same workers: the yardstick
    Bare,
    /// The router and the worker runtime of this workspace
    Vestibule,
    /// The same as the installed program: supervisor, router and workers, with one route, which asks nothing
    Program,
    /// nginx `stream` in front of direct workers
    Nginx,
    /// HAProxy in TCP mode in front of direct workers
    Haproxy,
    /// Node's cluster, round robin
    NodeCluster,
    /// The program with routes by the client's network
    ProgramNetwork,
    /// The program with routes by the host of the request, which it looks at
    ProgramHost,
    /// The program with ten routes by network, any of which is a connection's
    ProgramFewNetworks,
    /// The same with 10,000
    ProgramManyNetworks,
    /// The program with ten routes by host, any of which is a connection's
    ProgramFewHosts,
    /// The same with 10,000
    ProgramManyHosts,
}

/// Routes, any of which is a connection's.
const FEW: u32 = 10;
const MANY: u32 = 10_000;

impl Kind {
    /// Whether it is there only to be compared with the program without rules, or with few.
    pub(crate) fn has_rules(self) -> bool {
        self.asking() != Asking::Alike || matches!(self, Self::ProgramNetwork | Self::ProgramHost)
    }

    /// Whether it takes part in a kind of load.
    pub(crate) fn joins(self, scenario: Scenario) -> bool {
        match scenario {
            Scenario::Short | Scenario::Offered | Scenario::Keepalive => !self.has_rules(),
            Scenario::FirstRead => self.can_be_timed(),
            Scenario::Rules => self.has_rules() || self == Self::Program,
        }
    }

    /// In what its connections differ.
    pub(crate) fn asking(self) -> Asking {
        match self {
            Self::ProgramFewNetworks => Asking::Networks(FEW),
            Self::ProgramManyNetworks => Asking::Networks(MANY),
            Self::ProgramFewHosts => Asking::Hosts(FEW),
            Self::ProgramManyHosts => Asking::Hosts(MANY),
            _ => Asking::Alike,
        }
    }

    /// Whether its servers can say when a request was first read.
    fn can_be_timed(self) -> bool {
        matches!(self, Self::Direct | Self::Vestibule | Self::NodeCluster)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bare => "bare",
            Self::Vestibule => "vestibule",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::NodeCluster => "node-cluster",
            Self::Program => "program",
            Self::ProgramNetwork => "program-network",
            Self::ProgramHost => "program-host",
            Self::ProgramFewNetworks => "program-few-networks",
            Self::ProgramManyNetworks => "program-many-networks",
            Self::ProgramFewHosts => "program-few-hosts",
            Self::ProgramManyHosts => "program-many-hosts",
        }
    }
}

#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot listen on {port}")]
    Listen { port: u16, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{name} did not answer a request within {START_TIMEOUT:?}")]
    NotReady { name: &'static str, source: io::Error },
    #[error("a socket pair")]
    SocketPair(#[source] io::Error),
}

/// What came of starting a contender.
pub(crate) enum Started {
    Running(Contender),
    /// A program that it needs is not here; the text says which.
    Skipped(String),
}

/// Starts the servers of `kind` with `workers` worker processes and waits for their first answer. With `timed`
/// (direct, vestibule and node-cluster only) each answer says when its request was first read.
///
/// # Errors
/// [`StartError`]; what had been started is ended.
pub(crate) fn start(kind: Kind, workers: usize, timed: bool) -> Result<Started, StartError> {
    let started = match kind {
        Kind::Direct => Started::Running(direct::start(workers, timed)?),
        Kind::Bare => Started::Running(routed::start(Routed::Bare, workers, false)?),
        Kind::Vestibule => Started::Running(routed::start(Routed::Vestibule, workers, timed)?),
        Kind::Nginx => proxy::start_nginx(workers)?,
        Kind::Haproxy => proxy::start_haproxy(workers)?,
        Kind::NodeCluster => node::start(workers, timed)?,
        Kind::Program
        | Kind::ProgramNetwork
        | Kind::ProgramHost
        | Kind::ProgramFewNetworks
        | Kind::ProgramManyNetworks
        | Kind::ProgramFewHosts
        | Kind::ProgramManyHosts => program::start(kind, workers)?,
    };
    if let Started::Running(contender) = &started {
        contender.wait_until_ready()?;
    }
    Ok(started)
}

/// Which processes of a server are the router.
#[derive(Clone, Copy)]
enum Router {
    /// None: a worker that listens itself.
    None,
    /// The one that was started; its descendants are workers.
    First,
    /// The one that was started and all its descendants.
    All,
    /// All descendants that run the same program, but not the one that was started: it watches them.
    Below,
}

/// A contender whose servers run. Dropping it ends them.
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    pub(crate) port: u16,
    servers: Vec<(Server, Router)>,
    _folder: Option<Folder>,
}

/// The processes of a contender as they are at one moment.
pub(crate) struct Processes {
    pub(crate) all: Vec<Pid>,
    /// Those of `all` that only bring connections to others. Empty where there are none.
    pub(crate) router: Vec<Pid>,
}

impl Contender {
    pub(crate) fn processes(&self) -> Processes {
        let mut processes = Processes { all: Vec::new(), router: Vec::new() };
        for (server, router) in &self.servers {
            let tree = server.tree();
            match router {
                Router::None => {}
                Router::First => processes.router.push(server.pid()),
                Router::All => processes.router.extend(&tree),
                Router::Below => {
                    let own = program(server.pid());
                    let below =
                        tree.iter().skip(1).filter(|pid| own.is_some() && program(**pid) == own);
                    processes.router.extend(below);
                }
            }
            processes.all.extend(tree);
        }
        processes
    }

    fn wait_until_ready(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match request(self.port) {
                Ok(()) => return Ok(()),
                Err(source) if Instant::now() > deadline => {
                    return Err(StartError::NotReady { name: self.kind.name(), source });
                }
                // Programs of others say in no common way when they listen.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// The file that a process runs; `None` where that cannot be seen.
fn program(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok()
}

/// One request of the kind that is measured.
fn request(port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.example\r\nConnection: close\r\n\r\n")?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    if response.ends_with(BODY) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not the expected answer"))
    }
}

/// A listener on all addresses; with port 0 on a free one. All listeners of a port form one SO_REUSEPORT group.
fn listen(port: u16) -> Result<(OwnedFd, u16), StartError> {
    let bound = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        net::listen(&socket, BACKLOG)?;
        let address = SocketAddrV4::try_from(net::getsockname(&socket)?)?;
        Ok((socket, address.port()))
    };
    bound().map_err(|source: rustix::io::Errno| StartError::Listen { port, source: source.into() })
}

/// A port that is free now, for programs that listen themselves.
fn free_port() -> Result<u16, StartError> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| StartError::Listen { port: 0, source })
}

/// A folder for a program's configuration, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self, StartError> {
        // In the build's own folder for such things: what a killed benchmark leaves behind goes with the build.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", getpid()));
        // Not create_dir_all: a folder that is already there is not ours.
        fs::create_dir(&path).map_err(|source| StartError::Write { path: path.clone(), source })?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, content: &str) -> Result<PathBuf, StartError> {
        let path = self.0.join(name);
        match fs::write(&path, content) {
            Ok(()) => Ok(path),
            Err(source) => Err(StartError::Write { path, source }),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
