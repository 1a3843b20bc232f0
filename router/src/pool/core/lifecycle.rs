//! Workers that are told to drain, to end, or to take nothing for a while.

#[cfg(feature = "cli")]
use std::sync::Arc;

use vestibule_protocol::supervision::FromRouter;
#[cfg(feature = "cli")]
use vestibule_protocol::supervision::SlotMode;

use super::Core;
use crate::event::{UndeliveredReason, WorkerEvent};
use crate::handoff::Entry;
#[cfg(feature = "cli")]
use crate::pool::Settings;
#[cfg(feature = "cli")]
use crate::pool::pick::Picker;
#[cfg(feature = "cli")]
use crate::pool::slot::Slot;
use crate::pool::slot::{Control, State};

impl Core {
    /// Begins the end of a worker: nothing of it is delivered any more.
    pub(crate) fn terminate(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        if place.silenced || place.is_over() {
            return;
        }
        place.silenced = true;
        place.unfetched = 0;
        place.unfetched_bytes = 0;
        place.control.push(Control::Close);
        let id = place.id;
        if matches!(place.state, State::Starting | State::Ready) {
            place.state = State::Leaving;
        }
        self.events.retain(|(of, event)| {
            *of != slot || matches!(event, WorkerEvent::Undelivered(_) | WorkerEvent::Exit(_))
        });
        self.tell(FromRouter::Ending { worker: id });
        self.leave(slot, UndeliveredReason::WorkerGone);
    }

    /// Lets a worker finish what it has. `last`: nobody takes its place.
    pub(crate) fn drain(&mut self, slot: u32, last: bool) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        let worker = place.id;
        place.finishing |= last;
        self.tell(if last {
            FromRouter::Finishing { worker }
        } else {
            FromRouter::Draining { worker }
        });
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        if matches!(place.state, State::Starting | State::Ready) {
            place.state = State::Leaving;
            place.control.push(Control::Drain);
        }
        self.leave(slot, UndeliveredReason::WorkerGone);
    }

    /// Keeps a worker out of the choice, or takes it back in. It serves what it has.
    #[cfg(feature = "cli")]
    pub(crate) fn hold(&mut self, slot: u32, held: bool) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.held = held;
        if held {
            let waiting = self.take_waiting(slot);
            self.picker.remove(slot);
            self.redistribute(waiting, UndeliveredReason::WorkerGone);
            self.move_lane(slot);
            self.pump(slot);
        } else {
            self.touch(slot);
            self.pump(slot);
        }
        self.signals.changed = true;
    }

    /// One more slot, whose first process will be named by the supervisor; or a retired one is used
    /// again, under this name. Any other place is none.
    #[cfg(feature = "cli")]
    pub(crate) fn add_slot(&mut self, slot: u32, name: Arc<str>, held: bool) {
        if slot as usize == self.slots.len() {
            let pool = self.slots.first().map_or(0, |place| place.id.pool);
            self.slots.push(Slot::new(name, pool, slot));
            self.picker.grow(self.slots.len());
        } else if let Some(place) = self.slots.get_mut(slot as usize) {
            place.name = name;
            place.finishing = false;
            if let Some((_, _, again)) = &mut place.gone {
                *again = true;
            }
            if place.is_over() {
                place.state = State::Vacant { last: false };
            }
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.held = held;
        }
        self.signals.changed = true;
    }

    /// Other settings, from now on. Who waits goes on waiting, by the new bound.
    #[cfg(feature = "cli")]
    pub(crate) fn configure(&mut self, settings: Settings) {
        if settings == self.settings {
            return;
        }
        let balance = settings.balance != self.settings.balance
            || settings.otherwise != self.settings.otherwise;
        self.queue.set_bounds(settings.queue_max, settings.queue_timeout);
        self.settings = settings;
        if balance {
            self.picker =
                Picker::new(&self.settings.balance, self.settings.otherwise, self.slots.len());
        }
        for slot in 0..self.slots.len() as u32 {
            self.refresh(slot);
        }
        if balance {
            // By the old one they may wait for one worker where any would do, or the reverse.
            let mut waiting = Vec::new();
            while let Some(entry) = self.queue.take_oldest() {
                waiting.push((0, entry));
            }
            self.redistribute(waiting, UndeliveredReason::WorkerGone);
        }
        for slot in 0..self.slots.len() as u32 {
            self.settled(slot);
        }
        // Deadlines may have become earlier.
        self.signals.queued = true;
        self.signals.changed = true;
    }

    /// The pool goes: once nobody waits for its workers any more, they finish what they have.
    #[cfg(feature = "cli")]
    pub(crate) fn finish_when_idle(&mut self) {
        if self.removed {
            return;
        }
        self.last_calls = true;
        self.removed = true;
        self.signals.changed = true;
    }

    #[cfg(feature = "cli")]
    pub(super) fn finish_if_idle(&mut self) {
        let waits = self.slots.iter().any(|place| place.handoff.waiting() > 0);
        if self.queue.is_empty() && !waits {
            self.last_calls = false;
            self.finish_all();
            self.flush();
        }
    }

    /// What earlier routers were told of a slot.
    #[cfg(feature = "cli")]
    pub(crate) fn begin_as(&mut self, slot: u32, mode: SlotMode) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        match mode {
            SlotMode::Wanted => {}
            SlotMode::Held => place.held = true,
            SlotMode::Retired => {
                place.finishing = true;
                // Unless a process is named that still finishes what it has.
                place.state = State::Vacant { last: true };
            }
        }
    }

    /// Every worker finishes what it has; what waits for a free one is given up.
    #[cfg(feature = "cli")]
    pub(crate) fn finish_all(&mut self) {
        self.ending = true;
        for slot in 0..self.slots.len() {
            self.drain(slot as u32, true);
        }
    }

    /// Ends a worker's process group now; nobody takes its place.
    pub(crate) fn kill(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        let worker = place.id;
        place.finishing = true;
        if matches!(place.state, State::Starting | State::Ready) {
            place.state = State::Leaving;
        }
        self.tell(FromRouter::Finishing { worker });
        self.tell(FromRouter::Kill { worker, reason: "was told to end at once".to_owned() });
        self.leave(slot, UndeliveredReason::WorkerGone);
    }

    /// The last handle is gone: every worker ends.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        while let Some(entry) = self.queue.take_oldest() {
            self.undelivered(0, entry, UndeliveredReason::ShuttingDown);
        }
        for slot in 0..self.slots.len() {
            self.terminate(slot as u32);
        }
    }

    /// A worker takes nothing new: what it was not sent goes to others.
    pub(super) fn leave(&mut self, slot: u32, why: UndeliveredReason) {
        self.picker.remove(slot);
        let waiting = self.take_waiting(slot);
        self.redistribute(waiting, why);
        self.move_lane(slot);
        self.pump(slot);
        self.mark(slot);
        self.signals.changed = true;
    }

    pub(super) fn take_waiting(&mut self, slot: u32) -> Vec<(u32, Entry)> {
        let Some(place) = self.slots.get_mut(slot as usize) else { return Vec::new() };
        place.handoff.abandon_waiting().into_iter().map(|entry| (slot, entry)).collect()
    }

    /// Entries that were never sent: no proof is needed, and no attempt counts.
    /// `why`: what those are told that nobody else can take.
    pub(super) fn redistribute(&mut self, waiting: Vec<(u32, Entry)>, why: UndeliveredReason) {
        for (slot, entry) in waiting {
            if !entry.is_connection() {
                self.undelivered(slot, entry, why);
            } else if let Err((_, entry)) = self.place_again(entry) {
                self.undelivered(slot, entry, why);
            }
        }
    }
}
