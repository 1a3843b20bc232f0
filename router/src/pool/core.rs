//! The decisions of a pool. Nothing here waits; the clock is read where a duration starts.
//!
//! One value, [`Core`], under one lock, with an `impl` a subject: [`placing`] who gets a connection,
//! [`waiting`] who waits for a worker, [`sending`] packets to workers, [`inbound`] what workers say, [`handing_back`] connections that they
//! hand back,
//! [`lifecycle`] workers that are told to end, [`processes`] those that started and ended,
//! [`succession`] what goes from one router to the next, [`events`] what the pool's owner is told.

mod events;
mod handing_back;
mod inbound;
mod lifecycle;
mod placing;
mod processes;
mod sending;
pub(crate) mod succession;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use vestibule_protocol::supervision::{FromRouter, WorkerId};

use crate::event::WorkerEvent;
use crate::link::Scratch;
use crate::pool::Settings;
use crate::pool::pick::Picker;
use crate::pool::slot::{Slot, State};
use crate::queue::Queue;

/// Why something was not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The worker was terminated, drains, or is gone for good.
    #[error("the worker takes nothing any more")]
    Closed,
    /// 1,024 messages or 1 MiB wait before this worker, or the pool's queue is full.
    #[error("the queue before the worker is full")]
    QueueFull,
    /// There is no worker that could take it, now or later.
    #[error("no worker can take it")]
    NoWorker,
}

/// What a step has to tell the tasks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signals {
    pub(crate) changed: bool,
    pub(crate) queued: bool,
}

/// What the router counts, for tables and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that a worker acknowledged.
    pub delivered: u64,
    /// Connections that went to another worker after a refusal or a death.
    pub moved: u64,
    /// Connections closed because a dead worker may have read from them.
    pub touched: u64,
    /// Connections closed because their client went away while they waited.
    pub client_gone: u64,
    /// Messages that came back.
    pub undelivered: u64,
    /// Workers that broke the protocol.
    pub faults: u64,
    /// Descriptors that workers sent and nobody was to have: they were closed.
    pub discarded: u64,
    /// Connections that workers handed back.
    pub handed_back: u64,
}

#[derive(Debug)]
pub(crate) struct Core {
    settings: Settings,
    slots: Vec<Slot>,
    picker: Picker,
    queue: Queue,
    events: VecDeque<(u32, WorkerEvent)>,
    supervisor: mpsc::UnboundedSender<FromRouter>,
    scratch: Scratch,
    dirty: Vec<u32>,
    signals: Signals,
    counters: Counters,
    closing: bool,
    /// Every worker finishes once nobody waits any more.
    #[cfg(feature = "cli")]
    last_calls: bool,
    /// It was taken out of the configuration.
    #[cfg(feature = "cli")]
    removed: bool,
    /// Rules about requests lead to it, so that its connections have scopes.
    scoped: bool,
    /// Another router listens to the workers.
    deaf: bool,
    /// The pool is no more.
    forgotten: bool,
    /// Every worker ends, and nobody takes over.
    ending: bool,
    /// Nothing is offered: another router takes over.
    stopped_offering: bool,
    /// The time, while a burst is placed.
    burst: Option<Instant>,
}

impl Core {
    pub(crate) fn new(
        pool: u32,
        settings: Settings,
        names: Vec<Arc<str>>,
        supervisor: mpsc::UnboundedSender<FromRouter>,
    ) -> Self {
        let picker = Picker::new(&settings.balance, settings.otherwise, names.len());
        let queue = Queue::new(settings.queue_max, settings.queue_timeout);
        let slots = (0u32..).zip(names).map(|(slot, name)| Slot::new(name, pool, slot)).collect();
        Self {
            settings,
            slots,
            picker,
            queue,
            events: VecDeque::new(),
            supervisor,
            scratch: Scratch::default(),
            dirty: Vec::new(),
            signals: Signals::default(),
            counters: Counters::default(),
            closing: false,
            #[cfg(feature = "cli")]
            last_calls: false,
            #[cfg(feature = "cli")]
            removed: false,
            scoped: false,
            deaf: false,
            forgotten: false,
            ending: false,
            stopped_offering: false,
            burst: None,
        }
    }

    pub(crate) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// What a step has to tell, at its end.
    pub(crate) fn take_signals(&mut self) -> Signals {
        self.burst = None;
        // What goes to another router waits there.
        #[cfg(feature = "cli")]
        if self.last_calls && !self.stopped_offering {
            self.finish_if_idle();
        }
        std::mem::take(&mut self.signals)
    }

    /// Wakes the tasks of slots that have something to send.
    pub(crate) fn wake_dirty(&self) {
        for place in self.dirty.iter().filter_map(|slot| self.slot(*slot)) {
            place.wake.notify_one();
        }
    }

    /// Whether the pool is no more: its tasks end.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// Whether the pool was removed and every slot of it is over.
    #[cfg(feature = "cli")]
    pub(crate) fn is_done(&self) -> bool {
        self.removed && self.slots.iter().all(Slot::is_over)
    }

    /// Nobody waits, every slot is over: its tasks may end.
    #[cfg(feature = "cli")]
    pub(crate) fn forget(&mut self) {
        self.forgotten = true;
        self.signals.queued = true;
        self.signals.changed = true;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.closing && self.slots.iter().all(Slot::is_over)
    }

    /// The slot of a process, until it is buried: what is heard of it later changes nothing.
    fn current(&mut self, worker: WorkerId) -> Option<&mut Slot> {
        let place = self.slots.get_mut(worker.slot as usize)?;
        let buried = matches!(place.state, State::Vacant { .. });
        (place.id == worker && !buried).then_some(place)
    }

    fn tell(&self, message: FromRouter) {
        // Without a supervisor there is nobody to be told: its end ends the pool.
        let _ = self.supervisor.send(message);
    }
}
