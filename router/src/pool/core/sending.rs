//! What is sent to workers, and how long their answers may take.

use std::time::Instant;

use vestibule_protocol::message::RefusalReason;
use vestibule_protocol::socket::{SendError, Sent};
use vestibule_protocol::supervision::WorkerId;

use super::Core;
use crate::event::UndeliveredReason;
use crate::link::{Flushed, Link};
use crate::pool::Settings;
use crate::pool::slot::{Control, Obstruction, Slot, State};

impl Core {
    /// Sends what waits in every slot that has something new.
    pub(crate) fn flush(&mut self) {
        let now = Instant::now();
        while let Some(slot) = self.dirty.pop() {
            if let Some(place) = self.slots.get_mut(slot as usize) {
                place.marked = false;
            }
            self.flush_slot(slot, now);
        }
    }

    /// The port was blocked and may not be any more.
    pub(crate) fn unblock(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.obstruction = Obstruction::None;
        }
        self.flush_slot(slot, Instant::now());
    }

    pub(super) fn flush_slot(&mut self, slot: u32, now: Instant) {
        self.send_waiting(slot, now);
        if let Some(place) = self.slot(slot)
            && (place.obstruction != Obstruction::None
                || (!place.watched && place.oldest_wait().is_some()))
        {
            // Its task may wait for nothing but packets: somebody has to try again, or to notice
            // that no answer comes. Once for many offers: the task watches on while there are some.
            place.wake.notify_one();
        }
    }

    pub(super) fn send_waiting(&mut self, slot: u32, now: Instant) {
        loop {
            let Some(place) = self.slots.get_mut(slot as usize) else { return };
            let Some(link) = place.link.clone() else { return };
            if place.obstruction != Obstruction::None || place.ended {
                return;
            }
            let result = match send_control(place, &link, &self.settings, self.ending) {
                Ok(Sent::Whole) if place.state == State::Ready && !self.stopped_offering => link
                    .flush(
                        &mut place.handoff,
                        &place.limits,
                        self.settings.window,
                        &mut self.scratch,
                        now,
                        &place.name,
                    ),
                Ok(Sent::Whole) => Ok(Flushed::Done),
                Ok(Sent::Blocked) => Ok(Flushed::Blocked),
                Ok(Sent::Later) => Ok(Flushed::Later),
                Err(error) => Err(error),
            };
            match result {
                Ok(Flushed::Done) => {
                    place.blocked_since = None;
                    return;
                }
                Ok(Flushed::Blocked) => {
                    place.obstruction = Obstruction::Blocked;
                    place.blocked_since.get_or_insert(now);
                }
                Ok(Flushed::Later) => place.obstruction = Obstruction::Later,
                Ok(Flushed::Unsendable) => {
                    if let Some(entry) = place.handoff.take_unsendable() {
                        self.undelivered(slot, entry, UndeliveredReason::TooLarge);
                    }
                    continue;
                }
                Ok(Flushed::Unscoped) => {
                    if let Some(entry) = place.handoff.take_unsendable() {
                        // The pool's other workers run the same program.
                        let reason = UndeliveredReason::Refused(RefusalReason::Unsupported);
                        self.undelivered(slot, entry, reason);
                    }
                    continue;
                }
                // The worker reads nothing more. It may still speak, and a port that is half closed
                // would never end; closed by us it does, once read dry: its task knows what to do.
                Err(SendError::Closed) => {
                    link.socket.shutdown();
                    if place.state != State::Leaving {
                        place.state = State::Condemned;
                    }
                    self.picker.remove(slot);
                }
                Err(SendError::System(error)) => {
                    let id = place.id;
                    let reason = format!("cannot be written to: {error}");
                    self.condemn(id, &reason, false);
                }
            }
            return;
        }
    }

    /// When the worker's oldest offer is too old, if there are offers that nobody watches yet; from
    /// here on the caller does.
    pub(crate) fn watch_offers(&mut self, worker: WorkerId) -> Option<Instant> {
        let bound = self.settings.stuck_timeout;
        let place = self.current(worker).filter(|place| !place.watched)?;
        let oldest = place.oldest_wait()?;
        place.watched = true;
        // Without a bound that the clock can name there is nothing to wait for.
        oldest.checked_add(bound)
    }

    /// Whether the worker's oldest offer is older than the bound; if not, when to look again. `None`:
    /// nothing is left to be watched.
    pub(crate) fn stuck(&mut self, worker: WorkerId, now: Instant) -> Option<Instant> {
        let bound = self.settings.stuck_timeout;
        let place = self.current(worker)?;
        let Some(oldest) = place.oldest_wait() else {
            place.watched = false;
            return None;
        };
        let due = oldest.checked_add(bound)?;
        if due > now {
            return Some(due);
        }
        self.condemn(worker, "has not answered an offer in time", false);
        None
    }
}

fn send_control(
    place: &mut Slot,
    link: &Link,
    settings: &Settings,
    last: bool,
) -> Result<Sent, SendError> {
    while let Some(&control) = place.control.first() {
        let sent = match control {
            Control::Attach => link.attach(settings.drain_timeout, settings.max_connections)?,
            Control::Drain => link.drain(settings.drain_timeout, last)?,
            Control::Close => link.close()?,
            Control::Refuse(refusal) => link.refuse(refusal)?,
        };
        if sent != Sent::Whole {
            return Ok(sent);
        }
        place.control.remove(0);
    }
    Ok(Sent::Whole)
}
