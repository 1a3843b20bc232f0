//! Who can take a connection, and who gets it.

use std::time::{Duration, Instant};

#[cfg(feature = "script")]
use super::waiting::Room;
use super::{Core, Refused};
use crate::handoff::Entry;
use crate::pool::pick;
use crate::pool::slot::{Slot, State};
use crate::pool::{Balance, Otherwise, WhenFull};
use crate::route::Affinity;

/// A worker whose oldest offer is unanswered for this long is picked only when no other can be: it
/// hangs or is overloaded, and the acknowledgement of a healthy one takes well under a millisecond.
const SLUGGISH: Duration = Duration::from_millis(100);

impl Core {
    /// Posts to this very worker. What it carries may move within the pool later.
    pub(crate) fn post(&mut self, slot: u32, entry: Entry) -> Result<(), (Refused, Entry)> {
        let Some(place) = self.slots.get_mut(slot as usize) else {
            return Err((Refused::Closed, entry));
        };
        if !place.accepts_posts() {
            return Err((Refused::Closed, entry));
        }
        if place.handoff.is_full(&entry) {
            return Err((Refused::QueueFull, entry));
        }
        place.handoff.push(entry);
        self.touch(slot);
        Ok(())
    }

    /// Gives a connection to whom the pool's balance says, or lets it wait.
    pub(crate) fn offer(&mut self, entry: Entry) -> Result<(), (Refused, Entry)> {
        self.place(entry)
    }

    /// Gives a connection to the worker of this slot, now or when it has room: a slot that is empty for
    /// a while, or whose worker is on its way out, gets another. Where none will come, the balance
    /// decides.
    #[cfg(feature = "script")]
    pub(crate) fn offer_to(&mut self, slot: u32, entry: Entry) -> Result<(), (Refused, Entry)> {
        let stays = |place: &Slot| !place.held && !place.is_unwanted() && !place.is_over();
        match self.slot(slot) {
            Some(_) if self.is_free_for_key(slot) => {
                self.put(Choice::Now(slot), entry, Room::Bounded)
            }
            Some(place) if stays(place) => self.put(Choice::ItsQueue(slot), entry, Room::Bounded),
            Some(_) | None => self.place(entry),
        }
    }

    /// Whether a worker could take a connection now.
    #[cfg(feature = "script")]
    pub(crate) fn is_ready(&self, slot: u32) -> bool {
        self.slot(slot).is_some_and(|place| self.can_take(place))
    }

    /// The slot that a key leads to, whether it has room or not.
    #[cfg(feature = "script")]
    pub(crate) fn slot_for(&self, key: &[u8]) -> Option<u32> {
        let slots = (0u32..).zip(&self.slots).filter(|(_, place)| place.may_take_later());
        let best = slots.max_by_key(|(_, place)| pick::score(key, &place.name));
        best.map(|(slot, _)| slot)
    }

    /// The choice of what the pool's balance looks at; nothing for an entry without a key, or where
    /// anybody will do.
    pub(super) fn choose_by_balance(&self, entry: &Entry) -> Option<Choice> {
        let by_address = || {
            let (key, length) = pick::address_key(entry.key()?);
            Some(self.choose_by_key(entry, key.get(..length).unwrap_or_default()))
        };
        match self.settings.balance {
            Balance::LeastConnections | Balance::RoundRobin => return None,
            Balance::HashPeerIp => return by_address(),
            _ => {}
        }
        let chosen = match entry.affinity() {
            Some(Affinity::Key(key)) => Some(self.choose_by_key(entry, key)),
            Some(Affinity::Worker(name)) => self.choose_by_name(entry, name),
            None => None,
        };
        match self.settings.otherwise {
            Otherwise::HashPeerIp => chosen.or_else(by_address),
            Otherwise::LeastConnections | Otherwise::RoundRobin => chosen,
        }
    }

    fn choose_by_key(&self, entry: &Entry, key: &[u8]) -> Choice {
        // Who refused it before is asked again where nobody else is left: attempts are counted.
        let best = |free: bool| {
            let slots = (0u32..).zip(&self.slots);
            slots
                .filter(
                    |(slot, place)| {
                        if free { self.is_free_for_key(*slot) } else { place.may_take_later() }
                    },
                )
                .max_by_key(|(slot, place)| {
                    // Of two of one name the one that serves: the other has yet to take over.
                    let serves = place.state == State::Ready;
                    (!entry.tried.contains(slot), pick::score(key, &place.name), serves)
                })
                .map(|(slot, _)| slot)
        };
        match best(false) {
            // Whoever comes first in a leaving worker's place.
            None if self.somebody_comes() => Choice::Wait,
            None => Choice::Nobody,
            Some(slot) if self.is_free_for_key(slot) => Choice::Now(slot),
            Some(slot) => match self.settings.when_full {
                WhenFull::Wait => Choice::ItsQueue(slot),
                // The next one of the key; where all are full, whoever has room first.
                WhenFull::Spill => best(true).map_or(Choice::Wait, Choice::Now),
            },
        }
    }

    /// The worker of this name, unless it is gone for good or refused the entry before.
    fn choose_by_name(&self, entry: &Entry, name: &str) -> Option<Choice> {
        // Of two of one name the one that serves: the other has yet to take over, or leaves.
        let named = (0u32..).zip(&self.slots).filter(|(_, place)| *place.name == *name);
        let (slot, place) =
            named.max_by_key(|(_, place)| (place.may_take_later(), place.state == State::Ready))?;
        if !place.may_take_later() || entry.tried.contains(&slot) {
            return None;
        }
        if self.is_free_for_key(slot) {
            return Some(Choice::Now(slot));
        }
        match self.settings.when_full {
            WhenFull::Wait => Some(Choice::ItsQueue(slot)),
            WhenFull::Spill => None,
        }
    }

    pub(super) fn is_sluggish(&self, slot: u32, now: impl FnOnce() -> Instant) -> bool {
        let oldest = self.slot(slot).and_then(|place| place.handoff.oldest_offer());
        oldest.is_some_and(|oldest| now().saturating_duration_since(oldest) >= SLUGGISH)
    }

    pub(super) fn can_take(&self, place: &Slot) -> bool {
        place.state == State::Ready
            && !place.held
            && !self.stopped_offering
            && !place.choked
            && place.handoff.in_flight() + place.handoff.waiting() < self.settings.window
            && place.handoff.load() < place.limits.connections.min(self.settings.max_connections)
    }

    pub(super) fn refresh(&mut self, slot: u32) {
        self.refresh_as(slot, false);
    }

    pub(super) fn refresh_as(&mut self, slot: u32, sluggish: bool) {
        let Some(place) = self.slot(slot) else { return };
        if self.can_take(place) {
            let load = place.handoff.load();
            self.picker.set(slot, load, sluggish);
        } else {
            self.picker.remove(slot);
        }
    }

    /// Offers were settled: what waits behind the window may go, and who waits for a worker.
    pub(super) fn settled(&mut self, slot: u32) {
        self.refresh(slot);
        if self.slot(slot).is_some_and(|place| place.handoff.waiting() > 0) {
            self.mark(slot);
        }
        self.pump(slot);
    }

    /// The slot has something to send, and its load changed.
    pub(super) fn touch(&mut self, slot: u32) {
        let sluggish = self.picker.is_sluggish(slot);
        self.refresh_as(slot, sluggish);
        self.mark(slot);
    }

    pub(super) fn mark(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut place.marked, true)
        {
            self.dirty.push(slot);
        }
    }
}

/// What can be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This worker has room.
    Now(u32),
    /// This worker only: its queue, whether it has room or not.
    ItsQueue(u32),
    /// Somebody will have room.
    Wait,
    /// Nobody ever.
    Nobody,
}
