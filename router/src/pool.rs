//! The workers of one pool: who can take a connection, who gets it, and where it goes if that one
//! does not take it.
//!
//! [`Core`] decides, under one lock, without waiting; [`drive`] holds the tasks that read and write
//! ports and call it.

pub(crate) mod core;
pub(crate) mod drive;
pub(crate) mod pick;
pub(crate) mod slot;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use vestibule_protocol::supervision::FromRouter;

pub(crate) use self::core::Core;
pub use self::pick::Balance;

/// What a pool is told once. Durations and bounds have the defaults of the documentation.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) balance: Balance,
    /// Offers that a worker may leave unacknowledged.
    pub(crate) window: usize,
    /// Workers tried for one connection.
    pub(crate) max_attempts: u32,
    /// Connections that wait for a free worker, and for how long.
    pub(crate) queue_max: usize,
    pub(crate) queue_timeout: Duration,
    /// Oldest offer without an answer: then the worker is killed.
    pub(crate) stuck_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    /// Open connections of one worker.
    pub(crate) max_connections: u32,
}

/// What the tasks of a pool and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// One a slot: its task has something to send.
    wake: Vec<Notify>,
    /// An event is there, or the state of a worker changed.
    pub(crate) changed: Notify,
    /// The queue has a first entry.
    pub(crate) queued: Notify,
    /// The last handle is gone.
    pub(crate) closing: Notify,
}

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        names: Vec<Arc<str>>,
        supervisor: mpsc::UnboundedSender<FromRouter>,
    ) -> Self {
        let wake = names.iter().map(|_| Notify::new()).collect();
        Self {
            core: Mutex::new(Core::new(settings, names, supervisor)),
            wake,
            changed: Notify::new(),
            queued: Notify::new(),
            closing: Notify::new(),
        }
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
        for slot in core.dirty() {
            if let Some(wake) = self.wake.get(*slot as usize) {
                wake.notify_one();
            }
        }
        drop(core);
        if signals.changed {
            self.changed.notify_waiters();
        }
        if signals.queued {
            self.queued.notify_one();
        }
        result
    }

    /// Sends everything that waits, at once: after a burst, from the task that accepted it.
    pub(crate) fn flush(&self) {
        self.step(Core::flush);
    }

    pub(crate) fn wake(&self, slot: u32) -> Option<&Notify> {
        self.wake.get(slot as usize)
    }
}
