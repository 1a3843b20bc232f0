//! What supervisor and router say to each other, as bincode.
//!
//! Both are the same program, so the format need not outlive a version. A worker is named by slot
//! and generation, never by a process id that the router says: the supervisor signals only what it
//! itself started under that name.

mod setup;

use serde::{Deserialize, Serialize};

pub use self::setup::{
    Balance, InspectSetup, LimitSetup, ListenerSetup, NoBalance, Otherwise, PoolSettings,
    PoolSetup, RateSetup, RuleSetup, ScriptSetup, Setup, SlotMode, SlotSetup, TargetSetup,
    WhenFull,
};

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
        /// The number of the one that has had this socket so far, and accepts nothing more.
        before: Option<u32>,
    },
    /// The socket of a listener that a reload has removed, the packet's descriptor. Nobody has said yet
    /// that nothing is left of it: accept what is there, say [`FromRouter::Dry`].
    Removed {
        /// Its number.
        listener: u32,
        /// By which its clients are decided about.
        by: Box<Setup>,
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
    /// Another router takes over; the packet's descriptor leads to it. Accept nothing more, pass on what
    /// waits and what workers have not answered, say [`FromRouter::HandedOver`], and end when that one acts.
    /// Said again, with another number, when it has died: what was passed on is for the next one.
    HandOver {
        /// Which router takes over.
        number: u64,
    },
    /// What another router passes on comes from the packet's descriptor. `Begin` follows when that is
    /// all, or the other one has ended: until then workers are not spoken to and nobody is accepted.
    TakeOver {
        /// So many ports of workers may follow: descriptors for them are not to be used up by what is
        /// passed on.
        ports: u32,
    },
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
    /// A configuration that another has replaced, with listeners that it does not have: clients of theirs
    /// may still be looked at, and go by this. For a router that takes over, before `Begin`.
    Former(Setup),
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
    /// Everything is accepted of a listener that was removed.
    Dry {
        /// Which.
        listener: u32,
    },
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
    /// The next router has everything. This one does nothing any more, and keeps a copy.
    HandedOver {
        /// Which router it is.
        number: u64,
    },
    /// The next router has ended, or does not understand, and has not acted: everything is still here,
    /// for another [`ToRouter::HandOver`].
    Kept {
        /// Which router it was.
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
