//! What a configuration is once it is read: whole, valid, and in units that cannot be mistaken.

mod route;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

pub use self::route::{Conditions, Named, Route};
use super::source::{Place, Sourced};
use crate::pool::{Balance, Otherwise, WhenFull};
use crate::route::Table;
use crate::route::imagine::Imagined;

/// A whole and valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The main file, as it was named.
    pub path: PathBuf,
    /// The filter of the log: `--log`, `VESTIBULE_LOG` or `info`. No key of the file.
    pub log: Sourced<String>,
    /// `[router]`.
    pub router: Router,
    /// `[admin]`.
    pub admin: Admin,
    /// Every `[[listener]]`, at least one. Rules name them by their index.
    pub listeners: Vec<Listener>,
    /// Every `[[pool]]`, at least one. Targets name them by their index.
    pub pools: Vec<Pool>,
    /// Every `[[route]]`, in order. None: everything goes to the one pool.
    pub routes: Vec<Route>,
    /// The same routes, compiled.
    pub table: Arc<Table>,
    /// Every `[[test]]`.
    pub tests: Vec<Test>,
}

/// `[router]`: what concerns every connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router {
    /// Who the router runs as. None: `vestibule` if it exists, else an unused number, as root; else
    /// whoever started it.
    pub user: Sourced<Option<Account>>,
    /// Workers tried for one connection.
    pub max_attempts: Sourced<u32>,
    /// Age of an unanswered offer at which its worker is killed. None: never.
    pub stuck_timeout: Sourced<Option<Duration>>,
    /// What is asked before the routes.
    pub script: Sourced<Option<Script>>,
    /// Time for one of its decisions.
    pub script_timeout: Sourced<Duration>,
    /// Memory that it may use, in bytes.
    pub script_memory: Sourced<u64>,
    /// How long a client may take to show what a route must see.
    pub inspect_timeout: Sourced<Duration>,
    /// How many of its first bytes are looked at.
    pub peek_max: Sourced<u64>,
}

/// A routing script, read and not run.
#[derive(Clone, PartialEq, Eq)]
pub struct Script {
    /// Its file, as a person would name it.
    pub path: PathBuf,
    /// Its text.
    pub text: Arc<str>,
}

impl fmt::Debug for Script {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Script").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Default for Router {
    fn default() -> Self {
        Self {
            user: Sourced::default(None),
            max_attempts: Sourced::default(3),
            stuck_timeout: Sourced::default(Some(Duration::from_secs(60))),
            script: Sourced::default(None),
            script_timeout: Sourced::default(Duration::from_millis(5)),
            script_memory: Sourced::default(16 << 20),
            inspect_timeout: Sourced::default(Duration::from_secs(3)),
            peek_max: Sourced::default(16 * 1024),
        }
    }
}

/// `[admin]`: the socket that the other commands talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Absolute path. None: `admin.sock` in the first folder of the documented list that is there.
    pub socket: Sourced<Option<PathBuf>>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: Sourced::default(None) }
    }
}

/// `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique among listeners.
    pub name: Sourced<String>,
    /// Where connections come in.
    pub address: Sourced<Address>,
    /// Length of the kernel's queue of connections that nobody accepted yet.
    pub backlog: Sourced<u32>,
    /// Mode of a socket's path: who may connect.
    pub mode: Sourced<u32>,
    /// Networks of senders that must begin with a PROXY header.
    pub proxies: Sourced<Vec<ipnet::IpNet>>,
    /// Whether the name in the outer of two hellos is believed, where workers have no key for the
    /// inner one.
    pub outer_hello: Sourced<bool>,
    /// How much one client may have of the router.
    pub limits: Limits,
    /// Index of the pool for connections of which a route had to know what was not to be seen. None:
    /// they are rejected.
    pub unknown: Sourced<Option<usize>>,
    /// What a later request on the same connection may be.
    pub reuse: Sourced<Reuse>,
}
/// What a later request on a connection may be that was routed by its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// One that the same route is for; any other goes back to the router.
    Checked,
    /// Any.
    Connection,
}

/// `limits`: how much one peer, and all together, may have of the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one peer that the router holds at one time. None: any number.
    pub per_peer: Sourced<Option<u32>>,
    /// Lengths of the prefixes, of IPv4 and of IPv6, that make a peer.
    pub prefix: Sourced<(u8, u8)>,
    /// How often one peer may come. None: as often as it likes.
    pub rate: Sourced<Option<Rate>>,
    /// How many connections of one peer may come at once.
    pub burst: Sourced<u32>,
    /// Connections of all peers that are looked at at one time. None: as many as descriptors allow.
    pub inspecting: Sourced<Option<u32>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_peer: Sourced::default(None),
            prefix: Sourced::default((32, 64)),
            rate: Sourced::default(None),
            burst: Sourced::default(1),
            inspecting: Sourced::default(None),
        }
    }
}

impl Limits {
    /// Those that are written and know peers by their addresses, and where.
    pub fn by_address(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        let Self { per_peer, prefix, rate, burst, inspecting: _ } = self;
        let places = [
            ("per-peer", per_peer.place()),
            ("prefix", prefix.place()),
            ("rate", rate.place()),
            // Without a rate it is none.
            ("burst", rate.place().and(burst.place())),
        ];
        places.into_iter().filter_map(|(key, place)| Some((key, place?)))
    }
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So often,
    pub connections: u32,
    /// in such a time.
    pub unit: RateUnit,
}

/// What a rate counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    /// `/s`.
    Second,
    /// `/m`.
    Minute,
    /// `/h`.
    Hour,
}

impl RateUnit {
    /// How long it is.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            RateUnit::Second => "s",
            RateUnit::Minute => "m",
            RateUnit::Hour => "h",
        };
        write!(out, "{}/{unit}", self.connections)
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `127.0.0.1:80`, or `[::]:80` for IPv6 only.
    Inet(SocketAddr),
    /// `*:80`: one socket for IPv4 and IPv6.
    Both(u16),
    /// `unix:PATH`: a socket's absolute path.
    Path(PathBuf),
    /// `unix:@NAME`: a name in no file system (unix(7), "abstract").
    Name(String),
    /// `fd:NAME`: a listening socket from whoever started this (`sd_listen_fds_with_names(3)`).
    Inherited(String),
}

impl Address {
    /// The port, if it is known before the socket is.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Inet(address) => Some(address.port()),
            Self::Both(port) => Some(*port),
            Self::Path(_) | Self::Name(_) | Self::Inherited(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => write!(out, "{address}"),
            Self::Both(port) => write!(out, "*:{port}"),
            Self::Path(path) => write!(out, "unix:{}", path.display()),
            Self::Name(name) => write!(out, "unix:@{name}"),
            Self::Inherited(name) => write!(out, "fd:{name}"),
        }
    }
}

/// `[[pool]]`: workers that do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique among pools; its workers are `NAME-1`, `NAME-2` …
    pub name: Sourced<String>,
    /// What its workers run.
    pub command: Sourced<Command>,
    /// How the router speaks with them.
    pub protocol: Sourced<Protocol>,
    /// How many there are.
    pub workers: Sourced<Workers>,
    /// Who gets the next connection.
    pub balance: Sourced<Balance>,
    /// Who gets it where it has no key.
    pub otherwise: Sourced<Otherwise>,
    /// What happens where the key's worker is full or not ready.
    pub when_full: Sourced<WhenFull>,
    /// What an error that a worker reports means.
    pub on_error: Sourced<OnError>,
    /// Names of the pools that its workers may name when they hand a connection back. None:
    /// no pool.
    pub hand_back_to: Sourced<Option<Vec<String>>>,
    /// Open connections of one worker. None: its descriptor limit less 64.
    pub max_connections: Sourced<Option<u32>>,
    /// Offers that a worker may leave unacknowledged.
    pub handoff_window: Sourced<u32>,
    /// Connections that wait for a free worker.
    pub queue: Queue,
    /// How long a worker may take to be ready.
    pub start_timeout: Sourced<Duration>,
    /// How long a draining worker may finish what it has; then `stop_signal`.
    pub drain_timeout: Sourced<Duration>,
    /// How long after `stop_signal` its process group is killed.
    pub stop_timeout: Sourced<Duration>,
    /// What a worker is told that has not ended in time.
    pub stop_signal: Sourced<Signal>,
    /// When a worker that ended starts again.
    pub restart: Restart,
    /// Who its workers run as. None: nobody with euid 0, else whoever started this.
    pub user: Sourced<Option<Account>>,
    /// Their group. None: the user's.
    pub group: Sourced<Option<Account>>,
    /// Their supplementary groups. None: the user's.
    pub groups: Sourced<Option<Vec<Account>>>,
    /// Their file mode creation mask. None: inherited.
    pub umask: Sourced<Option<u32>>,
    /// Their working directory, absolute (with `root`: inside it).
    pub directory: Sourced<PathBuf>,
    /// Their root directory, absolute.
    pub root: Sourced<Option<PathBuf>>,
    /// Their niceness. None: inherited.
    pub nice: Sourced<Option<i32>>,
    /// Their descriptor limit, soft and hard. None: the hard one that is inherited.
    pub nofile: Sourced<Option<u64>>,
    /// Age at which a worker is replaced. None: never.
    pub max_age: Sourced<Option<Duration>>,
    /// Connections after which a worker is replaced. None: never.
    pub max_served: Sourced<Option<u64>>,
    /// Bytes in memory at which a worker is replaced. None: never.
    pub max_memory: Sourced<Option<u64>>,
    /// Variables beside those that they inherit, sorted by name.
    pub env: Vec<(String, Sourced<String>)>,
}

/// What a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The built-in demonstration worker.
    Demo,
    /// A program of the user's.
    Program {
        /// With a slash in it: absolute (with `root`: inside it). Else to be found in `PATH`.
        program: PathBuf,
        /// The program as written (its argument 0), and its arguments.
        argv: Vec<String>,
    },
}

/// How the router speaks with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// What fits the program.
    Auto,
    /// The project's own, spoken by its worker runtimes.
    Vestibule,
}

/// How many workers a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each CPU that this process may use.
    Auto,
    /// So many.
    Number(NonZeroU32),
}

/// What an error that a worker reports means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The worker goes on.
    Continue,
    /// It is drained and replaced.
    Restart,
}

/// `queue`: connections that wait, paused, for a free worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// So many at once; 0: none waits.
    pub max: Sourced<u32>,
    /// For so long.
    pub timeout: Sourced<Duration>,
}

/// `restart`: when a worker that ended starts again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Before the first restart; it doubles with each that follows soon.
    pub delay: Sourced<Duration>,
    /// The longest delay, at least `delay`.
    pub max_delay: Sourced<Duration>,
    /// Failed starts in a row before it is given up. None: never.
    pub attempts: Sourced<Option<NonZeroU32>>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// By name.
    Name(String),
    /// By number.
    Number(u32),
}

impl fmt::Display for Account {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => out.write_str(name),
            Self::Number(number) => write!(out, "{number}"),
        }
    }
}

/// `[[test]]`: a connection, and the route that it must take.
#[derive(Clone, Debug)]
pub struct Test {
    /// The client's address; none on a Unix-domain socket.
    pub peer: Sourced<Option<IpAddr>>,
    /// The client, its address included.
    pub client: Imagined,
    /// Index of the listener; the first one unless written.
    pub listener: Sourced<usize>,
    /// Name of a route, `default` or `no-route`.
    pub expect: Sourced<String>,
    /// Where the test begins.
    pub place: Place,
}
