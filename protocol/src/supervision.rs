//! What supervisor and router say to each other, as bincode.
//!
//! Both are the same program, so the format need not outlive a version. A worker is named by slot
//! and generation, never by a process id that the router says: the supervisor signals only what it
//! itself started under that name.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a pool spreads its connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Balance {
    /// To the worker with the fewest open and offered connections; among equals, to the one that
    /// waited longest.
    #[default]
    LeastConnections,
    /// To each in turn.
    RoundRobin,
    /// Always the same worker for one address (IPv6: for one /64), by rendezvous hashing; so are all
    /// that follow, each for one value.
    HashPeerIp,
    /// For one security context of the peer.
    HashPeerContext,
    /// For one name that a TLS client asks for.
    HashServerName,
    /// For one host of the first request.
    HashHost,
    /// For one value of this parameter of the first request.
    HashQuery(String),
    /// For one value of this field of the first request.
    HashHeader(String),
    /// For one value of this cookie of the first request.
    HashCookie(String),
    /// The worker that this cookie of the first request names, after its last dot.
    Sticky(String),
}

impl std::fmt::Display for Balance {
    /// As it is written in a configuration.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeastConnections => out.write_str("least-connections"),
            Self::RoundRobin => out.write_str("round-robin"),
            Self::HashPeerIp => out.write_str("hash:peer-ip"),
            Self::HashPeerContext => out.write_str("hash:peer-context"),
            Self::HashServerName => out.write_str("hash:sni"),
            Self::HashHost => out.write_str("hash:host"),
            Self::HashQuery(name) => write!(out, "hash:query:{name}"),
            Self::HashHeader(name) => write!(out, "hash:header:{name}"),
            Self::HashCookie(name) => write!(out, "hash:cookie:{name}"),
            Self::Sticky(name) => write!(out, "sticky:{name}"),
        }
    }
}

/// The text is no balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no balance")]
pub struct NoBalance;

impl std::str::FromStr for Balance {
    type Err = NoBalance;

    /// Reads what a configuration says.
    fn from_str(text: &str) -> Result<Self, NoBalance> {
        let named = |prefix: &str| {
            let name = text.strip_prefix(prefix).filter(|name| !name.is_empty());
            name.map(str::to_owned)
        };
        // The name of a field or a cookie (RFC 9110 5.6.2, RFC 6265 4.1.1).
        let token = |name: &String| {
            let other = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || other(byte))
        };
        match text {
            "least-connections" => return Ok(Self::LeastConnections),
            "round-robin" => return Ok(Self::RoundRobin),
            "hash:peer-ip" => return Ok(Self::HashPeerIp),
            "hash:peer-context" => return Ok(Self::HashPeerContext),
            "hash:sni" => return Ok(Self::HashServerName),
            "hash:host" => return Ok(Self::HashHost),
            _ => {}
        }
        let query = named("hash:query:").map(Self::HashQuery);
        query
            .or_else(|| named("hash:header:").filter(token).map(Self::HashHeader))
            .or_else(|| named("hash:cookie:").filter(token).map(Self::HashCookie))
            .or_else(|| named("sticky:").filter(token).map(Self::Sticky))
            .ok_or(NoBalance)
    }
}

/// What takes the place of a key that a connection does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Otherwise {
    /// As [`Balance::LeastConnections`].
    #[default]
    LeastConnections,
    /// As [`Balance::RoundRobin`].
    RoundRobin,
    /// As [`Balance::HashPeerIp`].
    HashPeerIp,
}

/// What happens where a key's worker is full or not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WhenFull {
    /// The connection waits for it.
    #[default]
    Wait,
    /// The connection goes to another one.
    Spill,
}

/// How the router treats a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSettings {
    /// How connections are spread.
    pub balance: Balance,
    /// How those are spread that have no key.
    pub otherwise: Otherwise,
    /// What happens where a key's worker is full or not ready.
    pub when_full: WhenFull,
    /// Offers that a worker may leave unacknowledged.
    pub window: usize,
    /// Workers tried for one connection.
    pub max_attempts: u32,
    /// Connections that wait for a free worker.
    pub queue_max: usize,
    /// How long they wait.
    pub queue_timeout: Duration,
    /// Oldest offer without an answer: then the worker is killed.
    pub stuck_timeout: Duration,
    /// How long a worker may finish what it has.
    pub drain_timeout: Duration,
    /// Open connections of one worker.
    pub max_connections: u32,
    /// Whether a worker that reports an error is drained and replaced.
    pub restart_on_error: bool,
    /// Names of the pools that its workers may hand a connection to; without a name the rules decide.
    pub hand_back_to: Vec<String>,
}

/// What a router needs to know before it drops its privileges and accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Which router this is, from 1.
    pub epoch: u16,
    /// The supervisor's process: if it is not the router's parent, the router ends.
    pub parent: u32,
    /// User and group to become; `None` where the router stays who it is.
    pub identity: Option<(u32, u32)>,
    /// With what connections are known again that workers hand back: the same for every router of a
    /// supervisor.
    pub ticket_key: [u8; 16],
    /// The pools.
    pub pools: Vec<PoolSetup>,
    /// The listeners; their sockets come one by one.
    pub listeners: Vec<ListenerSetup>,
    /// How connections are looked at.
    pub inspect: InspectSetup,
    /// Which connection goes where, first match first.
    pub rules: Vec<RuleSetup>,
    /// What is asked before the rules.
    pub script: Option<ScriptSetup>,
}

/// A routing script, as text: who sends it never runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptSetup {
    /// How it is called in messages.
    pub name: String,
    /// The text.
    pub text: String,
    /// How long one decision may take.
    pub timeout: Duration,
    /// How much memory it may use, in bytes.
    pub memory: u64,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSetup {
    /// Its number, which no other pool ever has.
    pub id: u32,
    /// Its place among the counters.
    pub counters: u32,
    /// Its name.
    pub name: String,
    /// How it is treated.
    pub settings: PoolSettings,
    /// Its slots, those that are not used any more included: a slot's place never changes.
    pub slots: Vec<SlotSetup>,
    /// It is no more: no rule names it, and its workers finish once nobody waits for them.
    pub leaving: bool,
}

/// One place of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSetup {
    /// Name of its workers, one after the other.
    pub name: String,
    /// What it is for.
    pub mode: SlotMode,
}

/// What an administrator made of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotMode {
    /// Its worker takes connections.
    #[default]
    Wanted,
    /// Its worker stays and takes nothing new, until it is wanted again.
    Held,
    /// Its worker finishes what it has, and nobody takes its place.
    Retired,
}

/// One listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerSetup {
    /// Its number, which no other listener ever has. With another name it is another one, which may
    /// have the same socket.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Numbers and names of those that had the same socket before it, the last one first.
    pub former: Vec<(u32, String)>,
    /// The pool for connections of which a rule had to know what was not to be seen; `None`: they
    /// are rejected.
    pub unknown: Option<u32>,
    /// A decision holds for all requests of a connection, whatever they ask for.
    pub unchecked: bool,
    /// Networks of senders that must begin with a PROXY header, as text.
    pub proxies: Vec<String>,
    /// Whether workers have no keys for encrypted hellos: the outer one is believed then.
    pub outer_hello: bool,
    /// How much one peer may have of the router.
    pub limits: LimitSetup,
}

/// How much one peer, and all of a listener together, may have of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitSetup {
    /// Connections of one peer that the router holds at one time.
    pub per_peer: Option<u32>,
    /// How many first bits of an IPv4 and of an IPv6 address make a peer.
    pub prefix: (u8, u8),
    /// How often one peer may come.
    pub rate: Option<RateSetup>,
    /// Connections of all peers that are looked at at one time.
    pub inspecting: Option<u32>,
}

impl Default for LimitSetup {
    /// Nothing is limited; an IPv6 peer has a /64.
    fn default() -> Self {
        Self { per_peer: None, prefix: (32, 64), rate: None, inspecting: None }
    }
}

/// How often one peer may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateSetup {
    /// So many connections,
    pub connections: u32,
    /// in this time.
    pub per: Duration,
    /// So many at once, after a pause.
    pub burst: u32,
}

/// How connections are looked at whose rules ask for what their client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectSetup {
    /// How long a client may take to show it.
    pub timeout: Duration,
    /// How many bytes are looked at.
    pub most: usize,
}

impl Default for InspectSetup {
    /// What a configuration without these keys says.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(3), most: 16 * 1024 }
    }
}

/// One rule of the route table. Every condition that is there has to hold, of a list one; the texts
/// are those of a configuration, which has checked them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSetup {
    /// Its name.
    pub name: String,
    /// Only connections of these listeners, by their places in the setup; `None`: of any.
    pub listeners: Option<Vec<u32>>,
    /// Only peers in one of these networks, as text (`10.0.0.0/8`); `None`: any.
    pub peers: Option<Vec<String>>,
    /// Users at the other end of a Unix-domain socket, by name or number.
    pub users: Option<Vec<String>>,
    /// Security contexts (`*:*:staff_client_t:*`, `none`).
    pub contexts: Option<Vec<String>>,
    /// Ranges of levels (`s0-s0:c0.c5`).
    pub levels: Option<Vec<String>>,
    /// Names that TLS clients ask for (`*.example.org`).
    pub server_names: Option<Vec<String>>,
    /// Protocols that TLS clients offer.
    pub alpn: Option<Vec<String>>,
    /// Whether the client begins with HTTP/2 in clear.
    pub http2: Option<bool>,
    /// Hosts of the first request (`*.example.org`).
    pub hosts: Option<Vec<String>>,
    /// Its paths (`/api/*`).
    pub paths: Option<Vec<String>>,
    /// Its parameters: a name and any of its values (`gold`, `gold*`, `*`).
    pub query: Vec<(String, Vec<String>)>,
    /// Its fields, likewise.
    pub headers: Vec<(String, Vec<String>)>,
    /// Its cookies, likewise.
    pub cookies: Vec<(String, Vec<String>)>,
    /// What happens.
    pub target: TargetSetup,
    /// What is posted with the connection, as JSON.
    pub message: Option<String>,
}

impl RuleSetup {
    /// A rule that is about every connection.
    pub fn new(name: impl Into<String>, target: TargetSetup) -> Self {
        Self {
            name: name.into(),
            listeners: None,
            peers: None,
            users: None,
            contexts: None,
            levels: None,
            server_names: None,
            alpn: None,
            http2: None,
            hosts: None,
            paths: None,
            query: Vec::new(),
            headers: Vec::new(),
            cookies: Vec::new(),
            target,
            message: None,
        }
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetSetup {
    /// A pool, by its place in the setup.
    Pool(u32),
    /// An HTTP status.
    Status(u16),
    /// A TCP reset.
    Reset,
    /// A close without a word.
    Close,
    /// To come again with TLS.
    Redirect,
}

/// One process in one slot of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId {
    /// Which pool, by its number.
    pub pool: u32,
    /// Which slot of the pool, from 0.
    pub slot: u32,
    /// How many processes the slot had before.
    pub generation: u32,
}

/// What a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerLoad {
    /// Which.
    pub worker: WorkerId,
    /// Connections that it holds, by its last report, and those on their way.
    pub open: u32,
    /// Connections that it took from this router.
    pub served: u64,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Somebody else in the process took its exit status, or SIGCHLD is ignored.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("an unknown status"),
        }
    }
}

/// What was decided about one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEntry {
    /// Counts entries of one router.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub time: u64,
    /// The connection's number.
    pub id: u64,
    /// Its peer's address, if it has one.
    pub peer: Option<String>,
    /// Name of its listener.
    pub listener: String,
    /// Name of the route.
    pub route: String,
    /// The pool, or the reason why it was turned away.
    pub outcome: String,
    /// What each rule says of it, in order, up to the one that decided; none where the rules did not.
    pub rules: Vec<(String, String)>,
}

/// What the supervisor tells the router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRouter {
    /// The first message.
    Setup(Setup),
    /// A listening socket, the packet's descriptor.
    Listener {
        /// Its number.
        listener: u32,
    },
    /// Everything that there is has been said: accept.
    Begin,
    /// Another configuration: this router becomes as if it had been set up with it, and nothing
    /// that it has is lost. Sockets of new listeners have come before. Epoch, parent and identity
    /// stay; slots of pools that are there already are not looked at.
    Change(Setup),
    /// Say [`FromRouter::Tried`]: whether this setup could be used. Pools that there are not yet have
    /// numbers that none has.
    Try(Setup),
    /// Another router takes over; the packet's descriptor leads to it. Accept nothing more, settle
    /// what is offered, pass on what waits, and end.
    HandOver,
    /// What another router passes on comes from the packet's descriptor; `Begin` follows when it
    /// has ended.
    TakeOver,
    /// Accept what is there, then nothing more; let every worker finish.
    Stop,
    /// Say [`FromRouter::Pong`].
    Ping {
        /// To be said again.
        number: u64,
    },
    /// Nothing new to this worker.
    Drain {
        /// Which.
        worker: WorkerId,
        /// It stays, and gets nothing, until `Undrain`, and so does whoever follows it in its slot;
        /// else it ends and is replaced.
        hold: bool,
    },
    /// A held worker takes connections again.
    Undrain {
        /// Which; whoever is in its slot.
        worker: WorkerId,
    },
    /// A pool has one more slot, or one again that was retired and is empty.
    AddSlot {
        /// Which pool.
        pool: u32,
        /// Its place: the next one, or that of a retired slot.
        slot: u32,
        /// Name of the new worker. Another slot may have the same: its worker takes over from that
        /// one.
        name: String,
        /// It takes nothing until `Undrain`.
        held: bool,
    },
    /// A slot goes: its worker finishes, and nobody takes its place.
    RetireSlot {
        /// Which; whoever is in its slot.
        worker: WorkerId,
    },
    /// Say [`FromRouter::Trace`].
    AskTrace {
        /// To be said again.
        number: u64,
        /// The last rejections; else what is decided, which is noted from then on for a while.
        rejected: bool,
        /// Only what came after the entry of this number.
        since: u64,
        /// Only peers of this network, as text.
        peer: Option<String>,
    },
    /// Say [`FromRouter::Loads`].
    AskLoads {
        /// To be said again.
        number: u64,
    },
    /// A worker runs; its port is the packet's descriptor.
    Started {
        /// Which.
        worker: WorkerId,
        /// Its process, for logs and tables only.
        pid: u32,
    },
    /// A worker could not be started.
    NotStarted {
        /// Which.
        worker: WorkerId,
        /// What went wrong, with the path and the remedy.
        reason: String,
        /// Whether another process will be tried in this slot.
        again: bool,
    },
    /// Certain death: its process group was killed and its process reaped.
    Gone {
        /// Which.
        worker: WorkerId,
        /// How it ended.
        exit: Exit,
        /// Why the supervisor ended it, if it did so by itself: it was not ready in time.
        reason: Option<String>,
        /// Whether another process will take this slot.
        again: bool,
    },
    /// A kill was asked for and failed: nothing moves.
    KillFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
}

/// What the router tells the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRouter {
    /// It is set up, has dropped its privileges, and waits for what there is.
    Prepared,
    /// It accepts connections.
    Accepting,
    /// The script cannot be used: before it accepts, so it will not; after a change, so the script
    /// before it goes on.
    Unusable {
        /// Where and why.
        reason: String,
    },
    /// The change is made.
    Changed,
    /// A setup was tried, and nothing was changed.
    Tried {
        /// Where and why it cannot be used, if it cannot.
        problem: Option<String>,
    },
    /// It is alive.
    Pong {
        /// As in the ping.
        number: u64,
    },
    /// Nothing is accepted any more, and every worker was told to finish.
    Stopped,
    /// What was decided about the last connections.
    Trace {
        /// As in the question.
        number: u64,
        /// Oldest first.
        entries: Vec<TraceEntry>,
    },
    /// What workers hold and what waits.
    Loads {
        /// As in the question.
        number: u64,
        /// Every worker.
        workers: Vec<WorkerLoad>,
        /// Connections that wait in each pool's queue, by the pool's number.
        queued: Vec<(u32, u32)>,
    },
    /// The worker said `Hello`.
    Ready {
        /// Which.
        worker: WorkerId,
    },
    /// The worker drains, because it said so or was told to; another takes its place afterwards.
    Draining {
        /// Which.
        worker: WorkerId,
    },
    /// The worker was told to finish what it has; nobody takes its place.
    Finishing {
        /// Which.
        worker: WorkerId,
    },
    /// The worker was told to end: SIGTERM and SIGKILL follow if it does not.
    Ending {
        /// Which.
        worker: WorkerId,
    },
    /// The worker's port ended. It may be about to exit; if it lives on, kill its group.
    Ended {
        /// Which.
        worker: WorkerId,
    },
    /// The worker broke the protocol, or it is stuck: kill its group.
    Kill {
        /// Which.
        worker: WorkerId,
        /// Why, for the log.
        reason: String,
    },
}
