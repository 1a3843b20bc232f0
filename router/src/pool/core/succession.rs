//! From one router to the next: what this one gives away, and what it takes over.

#[cfg(feature = "cli")]
use vestibule_protocol::handshake::Acks;
#[cfg(feature = "cli")]
use vestibule_protocol::supervision::WorkerId;

use super::Core;
#[cfg(feature = "cli")]
use super::Refused;
#[cfg(feature = "cli")]
use crate::handoff::Entry;
#[cfg(feature = "cli")]
use crate::handoff::unanswered::Unanswered;

/// What a worker was sent by this router and those before it, and has not answered.
#[cfg(feature = "cli")]
#[derive(Debug)]
pub(crate) struct Legacy {
    pub(crate) worker: WorkerId,
    /// How it acknowledges.
    pub(crate) acks: Acks,
    /// It broke the protocol, and nothing that it still says is believed.
    pub(crate) faulty: bool,
    pub(crate) unanswered: Unanswered,
}

impl Core {
    /// Whether another router reads what workers say.
    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf
    }
}

#[cfg(feature = "cli")]
impl Core {
    /// Another router takes over: nothing is offered any more, and whoever comes back waits.
    pub(crate) fn stop_offering(&mut self) {
        self.stopped_offering = true;
        self.queue.set_bounds(usize::MAX, self.settings.queue_timeout);
        for slot in 0..self.slots.len() as u32 {
            self.refresh(slot);
        }
    }

    /// Another router reads what workers say from now on: a port has one reader.
    pub(crate) fn stop_listening(&mut self) {
        self.deaf = true;
    }

    /// Everything that waits, in the order in which it is to go on.
    pub(crate) fn take_everything(&mut self) -> Vec<Entry> {
        let mut all = Vec::new();
        for slot in 0..self.slots.len() as u32 {
            all.extend(self.take_waiting(slot).into_iter().map(|(_, entry)| entry));
        }
        while let Some(entry) = self.queue.take_oldest() {
            all.push(entry);
        }
        all
    }

    /// What workers were sent and have not answered: their answers are for the next router.
    pub(crate) fn take_unanswered(&mut self) -> Vec<Legacy> {
        let with = self.slots.iter_mut().filter_map(|place| {
            let unanswered = place.handoff.take_unanswered()?;
            let (worker, acks, faulty) = (place.id, place.limits.acks, place.faulty);
            Some(Legacy { worker, acks, faulty, unanswered })
        });
        with.collect()
    }

    /// Lets somebody wait who waited at the router before this one, however many do: whoever has a place
    /// keeps it.
    pub(crate) fn offer_again(&mut self, entry: Entry) -> Result<(), (Refused, Entry)> {
        self.place_again(entry)
    }

    /// Takes what the router before this one has sent to a worker. Its process was named just now, and
    /// nothing that it says is read yet.
    pub(crate) fn inherit(&mut self, legacy: Legacy) {
        let Legacy { worker, acks, faulty, unanswered } = legacy;
        let Some(place) = self.current(worker) else { return self.give_up(unanswered) };
        place.limits.acks = acks;
        place.handoff.inherit(unanswered);
        if faulty {
            self.condemn(worker, "broke the protocol", true);
        }
        // Its task is to notice if no answer comes.
        self.mark(worker.slot);
        self.signals.changed = true;
    }

    /// Closes what was sent to a worker of which nobody knows: it may have read it.
    pub(crate) fn give_up(&mut self, unanswered: Unanswered) {
        for entry in unanswered.into_entries() {
            self.end_touched(0, entry);
        }
    }
}
