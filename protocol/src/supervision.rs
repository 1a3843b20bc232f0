//! What supervisor and router say to each other, as bincode.
//!
//! Both are the same program, so the format need not outlive a version. A worker is named by slot
//! and generation, never by a process id that the router says: the supervisor signals only what it
//! itself started under that name.

use serde::{Deserialize, Serialize};

/// One process in one slot of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId {
    /// Which pool, in the order of the configuration.
    pub pool: u32,
    /// Which slot of the pool, from 0.
    pub slot: u32,
    /// How many processes the slot had before.
    pub generation: u32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What the supervisor tells the router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRouter {
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
