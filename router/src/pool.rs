//! The workers of one pool: who can take a connection, who gets it, and where it goes if that one
//! does not take it.
//!
//! [`Core`] decides, under one lock, without waiting; [`drive`] holds the tasks that read and write
//! ports and call it, [`ports`] hears the supervisor.

pub(crate) mod core;
mod drive;
pub(crate) mod pick;
pub(crate) mod ports;
pub(crate) mod slot;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use vestibule_protocol::supervision::FromRouter;
pub(crate) use vestibule_protocol::supervision::PoolSettings as Settings;
pub use vestibule_protocol::supervision::{Balance, Otherwise, WhenFull};

pub(crate) use self::core::Core;
use self::core::Refused;
use crate::connection::Connection;
use crate::handoff::{Cargo, Entry};
#[cfg(feature = "cli")]
use vestibule_protocol::Data;

/// What the tasks of a pool and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// An event is there, or the state of a worker changed.
    pub(crate) changed: Notify,
    /// The queue has a first entry.
    pub(crate) queued: Notify,
    /// Where the counts go that outlive this process.
    #[cfg(feature = "cli")]
    mirror: Option<Mirror>,
}

/// A pool's place among the counters that the supervisor keeps.
#[cfg(feature = "cli")]
#[derive(Debug)]
struct Mirror {
    metrics: Arc<crate::metrics::Metrics>,
    pool: u32,
    /// What earlier routers counted.
    before: self::core::Counters,
}

impl Shared {
    pub(crate) fn new(
        pool: u32,
        settings: Settings,
        names: Vec<Arc<str>>,
        supervisor: mpsc::UnboundedSender<FromRouter>,
    ) -> Self {
        Self {
            core: Mutex::new(Core::new(pool, settings, names, supervisor)),
            changed: Notify::new(),
            queued: Notify::new(),
            #[cfg(feature = "cli")]
            mirror: None,
        }
    }

    /// Counts on where earlier routers stopped.
    #[cfg(feature = "cli")]
    pub(crate) fn counting_in(mut self, metrics: Arc<crate::metrics::Metrics>, pool: u32) -> Self {
        let before = metrics.pool(pool);
        self.mirror = Some(Mirror { metrics, pool, before });
        self
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        // Every step under the lock keeps the state whole, a panic in between included.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a step, then wakes whoever it concerns.
    pub(crate) fn step<R>(&self, step: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core();
        let result = step(&mut core);
        let signals = core.take_signals();
        #[cfg(feature = "cli")]
        if let Some(Mirror { metrics, pool, before }) = &self.mirror {
            metrics.note_pool(*pool, *before, core.counters());
        }
        core.wake_dirty();
        drop(core);
        if signals.changed {
            self.changed.notify_waiters();
        }
        if signals.queued {
            self.queued.notify_one();
        }
        result
    }

    /// Hands over what one burst brought, each connection to whom the balance says, in as few
    /// packets as workers allow. What cannot be taken, now or later, comes back.
    pub(crate) fn hand_over(&self, burst: &mut Vec<Connection>) -> Vec<(Refused, Connection)> {
        let mut refused = Vec::new();
        self.step(|core| {
            core.begin_burst();
            for connection in burst.drain(..) {
                let entry = Entry::new(connection.message(), Cargo::Connection(connection));
                if let Err((reason, entry)) = core.offer(entry)
                    && let Cargo::Connection(connection) = entry.cargo
                {
                    refused.push((reason, connection));
                }
            }
            core.flush();
        });
        refused
    }

    /// Hands a connection with a message over to this worker, or to whom the balance says if none is
    /// named, or the named one takes nothing.
    #[cfg(feature = "cli")]
    pub(crate) fn hand_to(
        &self,
        slot: Option<u32>,
        connection: Connection,
        message: Data,
    ) -> Result<(), (Refused, Connection)> {
        let entry = Entry::new(message, Cargo::Connection(connection));
        let refused = self.step(|core| {
            let taken = match slot {
                Some(slot) => core.post(slot, entry).or_else(|(_, entry)| core.offer(entry)),
                None => core.offer(entry),
            };
            core.flush();
            taken
        });
        match refused {
            Err((reason, Entry { cargo: Cargo::Connection(connection), .. })) => {
                Err((reason, connection))
            }
            _ => Ok(()),
        }
    }

    /// Sends everything that waits, at once: after a burst, from the task that accepted it.
    pub(crate) fn flush(&self) {
        self.step(Core::flush);
    }
}
