//! Processes that start and end: what the supervisor says of them, and what their ports show.

use std::sync::Arc;

use vestibule_protocol::supervision::{Exit, FromRouter, WorkerId};

use super::Core;
use crate::event::{UndeliveredReason, WorkerError, WorkerEvent};
use crate::handoff::{Cargo, Entry};
use crate::link::Link;
use crate::pool::slot::{Control, State};

impl Core {
    pub(crate) fn started(&mut self, worker: WorkerId, pid: u32, link: Arc<Link>) {
        let Some(place) = self.slots.get_mut(worker.slot as usize) else { return };
        // Told to drain before there was anybody to be told.
        let drains = place.state == State::Leaving;
        place.occupy(worker, pid, Some(link));
        if place.silenced {
            place.control.push(Control::Close);
            place.state = State::Leaving;
            self.tell(FromRouter::Ending { worker });
        } else if place.finishing {
            place.control.push(Control::Drain);
            place.state = State::Leaving;
            self.tell(FromRouter::Finishing { worker });
        } else if drains {
            place.control.push(Control::Drain);
            place.state = State::Leaving;
            self.tell(FromRouter::Draining { worker });
        }
        self.touch(worker.slot);
        self.signals.changed = true;
    }

    /// A process runs whose port did not arrive: this process is out of descriptors. It is killed,
    /// and what waits for it goes the way of what waits for the dead.
    pub(crate) fn started_without_port(&mut self, worker: WorkerId, pid: u32) {
        let Some(place) = self.slots.get_mut(worker.slot as usize) else { return };
        place.occupy(worker, pid, None);
        place.control.clear();
        place.ended = true;
        place.kill_asked = true;
        if place.state != State::Leaving {
            place.state = State::Condemned;
        }
        let reason = "cannot be spoken to: its port did not arrive".to_owned();
        self.tell(FromRouter::Kill { worker, reason });
        self.signals.changed = true;
    }

    /// The supervisor is gone: it kills every process, but nobody says when. What was offered may be
    /// read until then and is closed; the rest comes back, and nothing more is taken.
    pub(crate) fn orphaned(&mut self) {
        let mut left = Vec::new();
        for (slot, place) in (0u32..).zip(&mut self.slots).filter(|(_, place)| !place.is_over()) {
            left.push((slot, place.handoff.abandon()));
            place.state = State::Vacant { last: true };
            place.pid = None;
            place.gone = None;
            if let Some(link) = place.link.take() {
                link.socket.shutdown();
            }
            self.picker.remove(slot);
        }
        for (slot, (offered, waiting)) in left {
            for entry in offered {
                self.counters.touched += u64::from(entry.is_connection());
                self.close_silently(slot, entry, UndeliveredReason::Touched);
            }
            for entry in waiting {
                self.undelivered(slot, entry, UndeliveredReason::WorkerGone);
            }
        }
        self.give_up_hope();
        self.signals.changed = true;
    }

    pub(crate) fn not_started(&mut self, worker: WorkerId, reason: String, again: bool) {
        let Some(place) = self.slots.get_mut(worker.slot as usize) else { return };
        let again = again && !place.is_unwanted();
        place.state = State::Vacant { last: !again };
        place.pid = None;
        place.link = None;
        self.picker.remove(worker.slot);
        self.event(worker.slot, WorkerEvent::Error(WorkerError::NotStarted(reason)));
        let waiting = self.take_waiting(worker.slot);
        self.redistribute(waiting, UndeliveredReason::WorkerGone);
        self.move_lane(worker.slot);
        self.pump(worker.slot);
        self.signals.changed = true;
    }

    pub(crate) fn gone(
        &mut self,
        worker: WorkerId,
        exit: Exit,
        reason: Option<String>,
        again: bool,
    ) {
        let Some(place) = self.current(worker) else { return };
        place.gone = Some((exit, reason, again && !place.is_unwanted()));
        if place.state != State::Leaving {
            place.state = State::Condemned;
        }
        self.picker.remove(worker.slot);
        self.bury(worker, false);
    }

    /// The worker broke the protocol, or it is stuck: its death is asked for.
    pub(crate) fn condemn(&mut self, worker: WorkerId, reason: &str, faulty: bool) {
        self.counters.faults += u64::from(faulty);
        let Some(place) = self.current(worker) else { return };
        if place.state != State::Leaving {
            place.state = State::Condemned;
        }
        place.faulty |= faulty;
        let asked = std::mem::replace(&mut place.kill_asked, true);
        self.picker.remove(worker.slot);
        if !asked {
            self.tell(FromRouter::Kill { worker, reason: reason.to_owned() });
        }
    }

    /// The worker's port was read to its end.
    pub(crate) fn ended(&mut self, worker: WorkerId) {
        let Some(place) = self.current(worker) else { return };
        if matches!(place.state, State::Vacant { .. }) {
            // Its port was given up before: nothing of it is left here.
            return;
        }
        place.ended = true;
        if place.state != State::Leaving {
            place.state = State::Condemned;
        }
        let asked = std::mem::replace(&mut place.kill_asked, true);
        self.picker.remove(worker.slot);
        if !asked {
            self.tell(FromRouter::Ended { worker });
        }
        self.bury(worker, false);
    }

    /// The dead worker's port did not end: somebody else holds it, and may read what it was offered.
    pub(crate) fn give_up_on(&mut self, worker: WorkerId) {
        self.bury(worker, true);
    }

    /// Moves what a worker left, once it is certainly dead and its port read to the end. `shared`:
    /// the port did not end, so that somebody else may still read what was offered.
    pub(super) fn bury(&mut self, worker: WorkerId, shared: bool) {
        let slot = worker.slot;
        let Some(place) = self.current(worker) else { return };
        if place.gone.is_none() || !(place.ended || shared) {
            return;
        }
        let Some((exit, reason, again)) = place.gone.take() else { return };
        let greeted = place.greeted;
        let (offered, waiting) = place.handoff.abandon();
        place.state = State::Vacant { last: !again };
        place.pid = None;
        place.control.clear();
        if let Some(link) = place.link.take() {
            link.socket.shutdown();
        }
        // What it said is over: the next process of the slot is another worker.
        place.ended = true;
        self.picker.remove(slot);
        if !greeted {
            let error = reason.map_or(WorkerError::EndedBeforeReady(exit), WorkerError::NotReady);
            self.event(slot, WorkerEvent::Error(error));
        }
        for mut entry in offered {
            entry.attempts = entry.attempts.saturating_add(1);
            if shared {
                self.end_touched(slot, entry);
            } else {
                self.move_on(slot, entry, UndeliveredReason::WorkerGone, true);
            }
        }
        let waiting = waiting.into_iter().map(|entry| (slot, entry)).collect();
        self.redistribute(waiting, UndeliveredReason::WorkerGone);
        self.move_lane(slot);
        self.pump(slot);
        self.event(slot, WorkerEvent::Exit(exit));
        self.signals.changed = true;
    }

    /// Whoever still holds the port of the dead may hold a copy of what it was offered, too: a close
    /// here would tell the client nothing.
    pub(super) fn end_touched(&mut self, slot: u32, entry: Entry) {
        if let Cargo::Connection(connection) = &entry.cargo {
            connection.end();
        }
        self.counters.touched += u64::from(entry.is_connection());
        self.close_silently(slot, entry, UndeliveredReason::Touched);
    }
}
