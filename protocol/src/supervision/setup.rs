//! What a router is to be: listeners, pools and rules, as the supervisor says them.

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

impl PoolSettings {
    /// Largest window: what every worker of a large machine answers in a second, a descriptor each.
    pub const MOST_WINDOW: u32 = 65_536;
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
    /// Counts the configurations of a supervisor: one router names them to the next.
    pub number: u64,
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

impl ScriptSetup {
    /// Longest text, in bytes: a map of some ten thousand names fits several times.
    pub const MOST_TEXT: usize = 1 << 20;
    /// Longest time of one decision: every connection waits while a script runs.
    pub const MOST_TIME: Duration = Duration::from_secs(1);
    /// Most memory, in bytes.
    pub const MOST_MEMORY: u64 = 1 << 30;
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

impl InspectSetup {
    /// Longest time: who shows nothing for a minute has a connection that is open, and nothing to say.
    pub const MOST_TIME: Duration = Duration::from_secs(60);
    /// Most bytes: no server takes a larger head.
    pub const MOST_BYTES: usize = 64 * 1024;
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
