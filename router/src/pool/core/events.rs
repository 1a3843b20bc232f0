//! What the pool's owner is told, and the bounds of what it has not fetched.

use vestibule_protocol::limits::QUEUE_MESSAGES;
use vestibule_protocol::message::RefusalReason;

use super::Core;
use crate::event::{Undelivered, UndeliveredReason, WorkerError, WorkerEvent};
use crate::handoff::Entry;

impl Core {
    pub(crate) fn next_event(&mut self, of: Option<u32>) -> Option<(u32, WorkerEvent)> {
        let at = match of {
            None => 0,
            Some(slot) => self.events.iter().position(|(of, _)| *of == slot)?,
        };
        let (slot, event) = self.events.remove(at)?;
        if let (WorkerEvent::Message(data), Some(place)) =
            (&event, self.slots.get_mut(slot as usize))
        {
            place.unfetched = place.unfetched.saturating_sub(1);
            place.unfetched_bytes = place.unfetched_bytes.saturating_sub(data.len());
        }
        Some((slot, event))
    }

    /// Whether there is anything to be fetched.
    #[cfg(feature = "cli")]
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The error that is waiting to be fetched for this slot, if any.
    pub(crate) fn error_of(&self, slot: u32) -> Option<&WorkerError> {
        self.events.iter().find_map(|(of, event)| match event {
            WorkerEvent::Error(error) if *of == slot => Some(error),
            _ => None,
        })
    }

    pub(super) fn undelivered(&mut self, slot: u32, entry: Entry, reason: UndeliveredReason) {
        self.counters.undelivered += 1;
        let ends = matches!(
            reason,
            UndeliveredReason::WorkerGone
                | UndeliveredReason::Refused(RefusalReason::Draining | RefusalReason::Closing)
        );
        let reason = match reason {
            // Its worker ends because all do.
            _ if ends && entry.is_connection() && self.is_ending() => {
                UndeliveredReason::ShuttingDown
            }
            UndeliveredReason::NoWorker if self.is_ending() => UndeliveredReason::ShuttingDown,
            UndeliveredReason::WorkerGone if self.closing => UndeliveredReason::ShuttingDown,
            reason => reason,
        };
        let (message, transfer) = entry.into_parts();
        self.come_back(slot, Undelivered { message, transfer, reason });
    }

    /// Tells the owner what came back, or, where nobody fetches events, the client at least.
    pub(super) fn come_back(&mut self, slot: u32, undelivered: Undelivered) {
        let unfetched = self.events.len() >= QUEUE_MESSAGES
            && self
                .events
                .iter()
                .filter(|(_, event)| matches!(event, WorkerEvent::Undelivered(_)))
                .count()
                >= QUEUE_MESSAGES;
        if self.closing || unfetched {
            undelivered.reject();
            return;
        }
        self.event(slot, WorkerEvent::Undelivered(undelivered));
    }

    pub(super) fn event(&mut self, slot: u32, event: WorkerEvent) {
        let Some(place) = self.slot(slot) else { return };
        let said_by_it = matches!(
            event,
            WorkerEvent::Message(_) | WorkerEvent::Error(_) | WorkerEvent::MessageError(_)
        );
        if place.silenced && said_by_it {
            return;
        }
        // Errors that nobody fetches are bounded as messages are; the oldest stay, as they explain
        // the rest.
        let bounded = matches!(event, WorkerEvent::Error(_) | WorkerEvent::MessageError(_));
        if bounded && self.events.len() >= 2 * QUEUE_MESSAGES {
            return;
        }
        // A pool that restarts its workers for weeks: of ends that nobody fetches the last ones stay.
        let exit = |(_, event): &(u32, WorkerEvent)| matches!(event, WorkerEvent::Exit(_));
        if matches!(event, WorkerEvent::Exit(_))
            && self.events.len() >= 4 * QUEUE_MESSAGES
            && let Some(oldest) = self.events.iter().position(exit)
        {
            self.events.remove(oldest);
        }
        self.events.push_back((slot, event));
        self.signals.changed = true;
    }
}
