//! How it goes: all that `status` shows, as the supervisor sees it. The JSON of these types is the
//! schema in `docs/status.md`; names are a contract.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use vestibule_protocol::supervision::Exit;

use super::Loads;

/// Changes when a name is taken away or means something else; more names can come at any time.
pub const VERSION: u32 = 1;

/// Whether everything is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// A router accepts, and every worker that is wanted is ready.
    Healthy,
    /// Something is not; [`Status::problems`] says what.
    Degraded,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Of this schema.
    pub version: u32,
    /// In a word.
    pub health: Health,
    /// What is not as it should be, for a person; empty if healthy.
    pub problems: Vec<String>,
    /// The supervisor.
    pub supervisor: Supervisor,
    /// The router.
    pub router: Router,
    /// What is listened on.
    pub listeners: Vec<Listener>,
    /// What became of connections, since the supervisor's start, in all routers together.
    pub connections: Connections,
    /// The pools.
    pub pools: Vec<Pool>,
}

/// The supervisor's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Supervisor {
    /// Its process.
    pub pid: u32,
    /// The program's version.
    pub program: String,
    /// When it started: seconds since 1970.
    pub since: u64,
    /// It was told to end.
    pub stopping: bool,
}

/// What the router does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterState {
    /// A process runs that does not accept yet.
    Starting,
    /// It accepts connections.
    Accepting,
    /// It should accept, and did not answer within a second.
    Silent,
    /// It was told to accept nothing any more.
    Stopping,
    /// There is no process.
    None,
}

/// The router's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Router {
    /// What it does.
    pub state: RouterState,
    /// Its process, if there is one.
    pub pid: Option<u32>,
    /// Which router it is, from 1.
    pub epoch: u16,
    /// Routers before it.
    pub restarts: u64,
    /// When it started: seconds since 1970.
    pub since: Option<u64>,
    /// How the one before it ended.
    pub last_exit: Option<LastExit>,
    /// Routers before it that were killed and cannot end.
    #[serde(default)]
    pub unburied: u32,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its address, with the port that it really has; none where it has none.
    pub address: Option<String>,
}

/// Counters of the whole router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Connections {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away, by reason: every reason, those that did not occur with 0.
    pub rejected: BTreeMap<String, u64>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Workers that there should be.
    pub wanted: u32,
    /// Workers that take connections.
    pub ready: u32,
    /// Connections that wait for a worker; none if the router did not say.
    pub queued: Option<u32>,
    /// Connections that a worker acknowledged.
    pub delivered: u64,
    /// Connections that went to another worker after a refusal or a death.
    pub moved: u64,
    /// Connections closed because a dead worker may have read from them.
    pub touched: u64,
    /// Connections closed because their clients went away while they waited.
    pub client_gone: u64,
    /// Messages and connections that no worker took.
    pub undelivered: u64,
    /// Times that a worker broke the protocol.
    pub faults: u64,
    /// Connections that its workers handed back.
    #[serde(default)]
    pub handed_back: u64,
    /// How far replacing its workers is; none if nobody is to be replaced.
    pub roll: Option<Roll>,
    /// Its number, to find its queue.
    #[serde(skip)]
    pub(crate) id: u32,
    /// Its workers, by name; where one takes over from another of its name both are here, first who
    /// was there first. Those that nobody wants any more are left out once they are empty.
    pub workers: Vec<Worker>,
}

/// How far replacing a pool's workers is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Roll {
    /// Whether it goes on.
    pub state: RollState,
    /// Workers that are still to be replaced.
    pub left: u32,
    /// If it stopped: whose successor did not become ready.
    pub worker: Option<String>,
    /// If it stopped: why.
    pub reason: Option<String>,
    /// If it stopped: what that successor wrote last, at most ten lines.
    pub last_lines: Vec<String>,
}

/// Whether workers are being replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollState {
    /// One at a time.
    Running,
    /// A successor did not become ready; who is there stays.
    Stopped,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// A process runs that is not ready.
    Starting,
    /// It takes connections.
    Ready,
    /// It finishes what it has, and will end.
    Draining,
    /// It is ready and kept out of the choice until `ready`.
    Held,
    /// There is no process; one will be started.
    Backoff,
    /// There is no process and none will be started.
    Ended,
}

impl WorkerState {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Held => "held",
            Self::Backoff => "backoff",
            Self::Ended => "ended",
        }
    }
}

/// One slot of a pool, and the process in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Worker {
    /// Its name, the same for every process of the slot.
    pub name: String,
    /// What it does.
    pub state: WorkerState,
    /// Whether the slot is kept out of the choice, whatever the state of its process.
    pub held: bool,
    /// Its process, if there is one.
    pub pid: Option<u32>,
    /// Connections that it holds, those on their way to it included; none if the router did not
    /// say.
    pub connections: Option<u32>,
    /// Processes that the slot had before.
    pub restarts: u32,
    /// Since when it is in this state: seconds since 1970.
    pub since: u64,
    /// How the last process that ended did.
    pub last_exit: Option<LastExit>,
    /// Why the last start failed.
    pub last_error: Option<String>,
    /// The last lines that the slot's last process wrote, at most ten; where it is in `backoff` or
    /// `ended` only.
    pub last_lines: Vec<String>,
    /// Pool, slot and generation, to find its load.
    #[serde(skip)]
    pub(crate) id: Option<vestibule_protocol::supervision::WorkerId>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastExit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody knows: its status was taken by somebody else.
    Unknown,
}

impl From<Exit> for LastExit {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self::Code(code),
            Exit::Signal(signal) => Self::Signal(signal),
            Exit::Unknown => Self::Unknown,
        }
    }
}

impl std::fmt::Display for LastExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl Status {
    /// Adds what the router says.
    pub(crate) fn add_loads(&mut self, loads: &Loads) {
        let queued: HashMap<_, _> = loads.queued.iter().copied().collect();
        for pool in &mut self.pools {
            pool.queued = queued.get(&pool.id).copied();
        }
        let open: HashMap<_, _> =
            loads.workers.iter().map(|load| (load.worker, load.open)).collect();
        for worker in self.pools.iter_mut().flat_map(|pool| &mut pool.workers) {
            worker.connections = worker.id.and_then(|id| open.get(&id).copied());
        }
        self.judge();
    }

    /// The router did not say anything in time, or is gone.
    pub(crate) fn without_loads(&mut self) {
        if self.router.state == RouterState::Accepting {
            self.router.state = RouterState::Silent;
        }
        self.judge();
    }

    /// Finds out what is not as it should be.
    pub(crate) fn judge(&mut self) {
        self.problems.clear();
        let router = match self.router.state {
            _ if self.supervisor.stopping => Some("it is stopping".to_owned()),
            RouterState::Accepting => None,
            RouterState::Starting => Some("the router does not accept yet".to_owned()),
            RouterState::Silent => Some("the router did not answer within a second".to_owned()),
            RouterState::Stopping => Some("the router accepts nothing any more".to_owned()),
            RouterState::None => Some("there is no router".to_owned()),
        };
        self.problems.extend(router);
        if let count @ 1.. = self.router.unburied {
            self.problems.push(format!(
                "{count} of the routers before were killed and cannot end: a file that a worker sent \
                 does not let itself be closed"
            ));
        }
        for Pool { name, wanted, ready, roll, .. } in &self.pools {
            if let Some(Roll { state: RollState::Stopped, worker, reason, .. }) = roll {
                let worker = worker.as_deref().unwrap_or_default();
                let reason = reason.as_deref().unwrap_or_default();
                self.problems.push(format!(
                    "pool {name}: a new {worker} did not become ready ({reason}); the old workers stay"
                ));
            }
            if *ready < *wanted || *ready == 0 {
                self.problems.push(format!("pool {name}: {ready} of {wanted} workers are ready"));
            }
        }
        self.health = if self.problems.is_empty() { Health::Healthy } else { Health::Degraded };
    }
}
