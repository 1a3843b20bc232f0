//! Who waits for a worker, and what becomes of it: the part of the decisions that has to do with the
//! pool's queue.

use std::sync::Arc;
use std::time::Instant;

use super::placing::Choice;
use super::{Core, Refused};
use crate::event::{Undelivered, UndeliveredReason};
use crate::handoff::{Cargo, Entry};
use crate::pool::slot::Slot;
use crate::queue::watch::{Sign, Watch};
use crate::queue::{Lane, Token};

/// How many that wait for a worker which did not refuse them yet may stand before one that is
/// served first: a bound on the work of one turn, far above what refusals leave in a queue.
const PASSED_OVER: usize = 64;

/// Whether the queue's bound holds for an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// It is new.
    Bounded,
    /// It had a place.
    Kept,
}

/// What the pool's lane has for a worker with room.
enum Next {
    /// This entry goes to this slot.
    Goes(Token, u32),
    /// Nobody will ever take this entry.
    Stranded(Token),
}

impl Core {
    /// Many entries are placed in this step: the clock is read once for all of them.
    pub(crate) fn begin_burst(&mut self) {
        self.burst = Some(self.now());
    }

    fn now(&self) -> Instant {
        self.burst.unwrap_or_else(now)
    }

    /// Finds a worker for a new entry, or a place in the queue.
    pub(super) fn place(&mut self, entry: Entry) -> Result<(), (Refused, Entry)> {
        let choice = self.choose(&entry);
        self.put(choice, entry, Room::Bounded)
    }

    /// Finds another worker, or a place in the queue, for an entry that had either: it keeps its place,
    /// however many wait. What all windows hold may come back at once, and no more.
    pub(super) fn place_again(&mut self, entry: Entry) -> Result<(), (Refused, Entry)> {
        let choice = self.choose(&entry);
        self.put(choice, entry, Room::Kept)
    }

    /// Does with an entry what was chosen.
    pub(super) fn put(
        &mut self,
        choice: Choice,
        entry: Entry,
        room: Room,
    ) -> Result<(), (Refused, Entry)> {
        let lane = match choice {
            Choice::Now(slot) => return self.give(slot, entry),
            Choice::ItsQueue(slot) => Lane::Worker(slot),
            Choice::Wait => Lane::Pool,
            Choice::Nobody if self.is_ending() => return Err((Refused::Closed, entry)),
            Choice::Nobody => return Err((Refused::NoWorker, entry)),
        };
        if let Cargo::Connection(connection) = &entry.cargo {
            connection.trace().queued();
        }
        let now = self.now();
        let pushed = match room {
            Room::Bounded => self.queue.push(lane, entry, now),
            Room::Kept => self.queue.push_again(lane, entry, now),
        };
        match pushed {
            Ok(first) => {
                self.signals.queued |= first;
                Ok(())
            }
            Err(entry) => Err((Refused::QueueFull, entry)),
        }
    }

    fn give(&mut self, slot: u32, entry: Entry) -> Result<(), (Refused, Entry)> {
        let Some(place) = self.slots.get_mut(slot as usize) else {
            return Err((Refused::NoWorker, entry));
        };
        if place.handoff.is_full(&entry) {
            return Err((Refused::QueueFull, entry));
        }
        place.handoff.push(entry);
        self.picker.chosen(slot);
        self.touch(slot);
        Ok(())
    }

    /// Whether a key's entry can go to its worker now: there is room, and nobody waits before it.
    pub(super) fn is_free_for_key(&self, slot: u32) -> bool {
        self.queue.order().first(Lane::Worker(slot)).is_none()
            && self.slot(slot).is_some_and(|place| self.can_take(place))
    }

    /// A slot has room, or will never have any again: who waits gets what there is, whoever waits
    /// longest first, whether for this very worker or for any.
    pub(super) fn pump(&mut self, slot: u32) {
        while !self.queue.is_empty() {
            let keyed = match self.slot(slot) {
                Some(place) if self.can_take(place) => self.queue.order().first(Lane::Worker(slot)),
                _ => None,
            };
            let (token, to) = match (keyed, self.next_of_pool()) {
                (_, Some(Next::Stranded(token))) => {
                    self.strand(token);
                    continue;
                }
                (Some(keyed), Some(Next::Goes(any, to))) => {
                    if self.queue.order().since(any) < self.queue.order().since(keyed) {
                        (any, to)
                    } else {
                        (keyed, slot)
                    }
                }
                (Some(keyed), None) => (keyed, slot),
                (None, Some(Next::Goes(any, to))) => (any, to),
                (None, None) => return self.give_up_hope(),
            };
            let Some(entry) = self.queue.take(token) else { return };
            if let Err((_, entry)) = self.give(to, entry) {
                self.undelivered(to, entry, UndeliveredReason::NoWorker);
            }
        }
    }

    /// The first of the pool's lane that a worker with room did not refuse before.
    fn next_of_pool(&mut self) -> Option<Next> {
        self.picker.best()?;
        let mut at = self.queue.order().first(Lane::Pool);
        for _ in 0..PASSED_OVER {
            let token = at?;
            let mut tried = Vec::new();
            self.queue.swap_tried(token, &mut tried);
            let choice = self.choose_any(&tried);
            self.queue.swap_tried(token, &mut tried);
            match choice {
                Choice::Now(slot) | Choice::ItsQueue(slot) => return Some(Next::Goes(token, slot)),
                Choice::Nobody => return Some(Next::Stranded(token)),
                Choice::Wait => at = self.queue.order().after(token),
            }
        }
        None
    }

    fn strand(&mut self, token: Token) {
        if let Some(entry) = self.queue.take(token) {
            self.undelivered(0, entry, UndeliveredReason::NoWorker);
        }
    }

    /// Nobody waits for workers that never come.
    pub(super) fn give_up_hope(&mut self) {
        if self.queue.is_empty() || self.somebody_comes() {
            return;
        }
        while let Some(entry) = self.queue.take_oldest() {
            self.undelivered(0, entry, UndeliveredReason::NoWorker);
        }
    }

    /// Whether there is, or will be, a worker that can take connections.
    pub(super) fn somebody_comes(&self) -> bool {
        self.slots.iter().any(|place| place.may_take_later() || place.will_be_followed())
    }

    /// Who waits for a slot that takes nothing more goes to whom the key leads next, to wait there
    /// anew.
    pub(super) fn move_lane(&mut self, slot: u32) {
        if self.slot(slot).is_none_or(Slot::may_take_later) {
            return;
        }
        // What is moved goes to the lanes of others, so this ends.
        while let Some(entry) = self.queue.take_first(Lane::Worker(slot)) {
            if let Err((_, entry)) = self.place_again(entry) {
                self.undelivered(slot, entry, UndeliveredReason::NoWorker);
            }
        }
    }

    /// Gives back what waited too long; returns when to look again.
    pub(crate) fn sweep(&mut self, now: Instant) -> Option<Instant> {
        while let Some((lane, entry)) = self.queue.take_expired(now) {
            self.undelivered(slot_of(lane), entry, UndeliveredReason::QueueTimeout);
        }
        self.queue.order().next_deadline()
    }

    /// Whether somebody waits for long and there is nothing to watch clients with.
    pub(crate) fn wants_watch(&self, now: Instant) -> bool {
        self.queue.wants_watch(now)
    }

    /// Whoever waits for long from now on is watched with this.
    pub(crate) fn watch_with(&mut self, watch: Arc<Watch>) {
        self.queue.watch_with(watch);
    }

    /// Watches the clients of those who wait for long; returns when to do so again.
    pub(crate) fn watch(&mut self, now: Instant) -> Option<Instant> {
        self.queue.watch(now)
    }

    /// Something happened to a client that waits: if it is gone, so is its place in the queue.
    pub(crate) fn client_sign(&mut self, sign: Sign) {
        let Some((lane, entry)) = self.queue.take_gone(sign) else { return };
        self.counters.client_gone += 1;
        self.close_silently(slot_of(lane), entry, UndeliveredReason::ClientGone);
    }

    /// Closes a connection whose client must not, or can not, be told anything.
    pub(super) fn close_silently(&mut self, from: u32, entry: Entry, reason: UndeliveredReason) {
        let Entry { data, cargo, .. } = entry;
        if let Cargo::Connection(connection) = cargo {
            connection.trace().rejected(reason.reason());
            connection.release();
        }
        self.counters.undelivered += 1;
        self.come_back(from, Undelivered { message: data, transfer: Vec::new(), reason });
    }

    /// Whether every worker was told to end: then who comes, or waits, is told so.
    pub(super) fn is_ending(&self) -> bool {
        self.closing || self.slots.iter().all(Slot::is_unwanted)
    }

    /// The balance's choice for what has no key.
    fn choose_any(&mut self, tried: &[u32]) -> Choice {
        while let Some(slot) = self.picker.best() {
            if !self.picker.is_sluggish(slot) && self.is_sluggish(slot, || self.now()) {
                self.refresh_as(slot, true);
                continue;
            }
            if tried.is_empty() || !tried.contains(&slot) {
                return Choice::Now(slot);
            }
            break;
        }
        // The best one was tried already: a rare case, so a look at all is good enough.
        let untried = (0u32..).zip(&self.slots).filter(|(slot, _)| !tried.contains(slot));
        let mut later = false;
        let mut best: Option<(u32, u32)> = None;
        for (slot, place) in untried {
            later |= place.may_take_later();
            if self.can_take(place) {
                let load = place.handoff.load();
                if best.is_none_or(|(least, _)| load < least) {
                    best = Some((load, slot));
                }
            }
        }
        match best {
            Some((_, slot)) => Choice::Now(slot),
            None if later => Choice::Wait,
            // Nobody is left but those that refused it. Each try counts, so this ends.
            None if !tried.is_empty() => self.choose_any(&[]),
            None if self.somebody_comes() => Choice::Wait,
            None => Choice::Nobody,
        }
    }

    fn choose(&mut self, entry: &Entry) -> Choice {
        match self.choose_by_balance(entry) {
            Some(choice) => choice,
            None => self.choose_any(&entry.tried),
        }
    }
}

/// Events of the queue belong to the worker that was waited for; the pool's lane has none.
fn slot_of(lane: Lane) -> u32 {
    match lane {
        Lane::Pool => 0,
        Lane::Worker(slot) => slot,
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
