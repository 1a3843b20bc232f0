//! What workers say, and what becomes of what they refuse.

use std::os::fd::OwnedFd;

use vestibule_protocol::codec::Data;
use vestibule_protocol::handshake::{Abilities, Acks, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::{MAX_MESSAGE, QUEUE_MESSAGES};
use vestibule_protocol::message::{FromWorker, Refusal, RefusalReason};
use vestibule_protocol::supervision::{FromRouter, WorkerId};

use super::Core;
use crate::event::{UndeliveredReason, WorkerError, WorkerEvent};
use crate::handoff::{Cargo, Entry, Fault};
use crate::inspect::Touched;
use crate::link::Limits;
use crate::pool::slot::{Control, State};

/// Bytes of one worker's messages that nobody has fetched, besides the first of them.
const UNFETCHED_BYTES: usize = MAX_MESSAGE;

impl Core {
    /// A packet of a worker.
    ///
    /// # Errors
    /// It broke the protocol: the caller stops listening to it.
    pub(crate) fn packet(
        &mut self,
        worker: WorkerId,
        header: &Header,
        message: FromWorker<'_>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), ProtocolFault> {
        let slot = worker.slot;
        let Some(place) = self.current(worker) else { return Ok(()) };
        if place.faulty {
            // It is about to die, and is not believed.
            return Ok(());
        }
        let epoch = place.link.as_ref().map_or(0, |link| link.epoch());
        let current = header.epoch == epoch;
        let greeted = place.greeted;
        match message {
            FromWorker::Hello(hello) if current && !greeted => self.hello(slot, &hello)?,
            FromWorker::Hello(_) if !current => {}
            FromWorker::Hello(_) => return Err(ProtocolFault::State("a second hello")),
            FromWorker::Acknowledge(acknowledge) => {
                place.handoff.report(acknowledge.open);
                place.choked = false;
                if !current && !place.handoff.awaits(header.epoch) {
                    self.touch(slot);
                    self.pump(slot);
                    return Ok(());
                }
                if current && !greeted {
                    return Err(ProtocolFault::State("an acknowledgement before hello"));
                }
                let mut settled = 0;
                if place.limits.acks == Acks::Cumulative {
                    settled += place.handoff.acknowledge_up_to(acknowledge.up_to)?;
                }
                for sequence in acknowledge.each() {
                    place.handoff.acknowledge(sequence)?;
                    settled += 1;
                }
                place.given += settled as u64;
                self.delivered(slot, settled);
                self.settled(slot);
            }
            FromWorker::Refuse(refusals) => {
                if !current && !place.handoff.awaits(header.epoch) {
                    return Ok(());
                }
                if current && !greeted {
                    return Err(ProtocolFault::State("a refusal before hello"));
                }
                for refusal in refusals {
                    self.refused(slot, refusal)?;
                }
                self.settled(slot);
            }
            FromWorker::Message(bytes) => {
                let data = Data::from_parts(header.codec, bytes.to_vec());
                self.message(slot, header.sequence, data);
            }
            FromWorker::HandBack(back) => {
                self.handed_back(slot, header, back, descriptors)?;
            }
            FromWorker::Error(report) => {
                self.event(slot, WorkerEvent::Error(WorkerError::Reported(report)));
                if self.settings.restart_on_error {
                    self.drain(slot, false);
                }
            }
            FromWorker::Draining | FromWorker::Closing => {
                if matches!(place.state, State::Starting | State::Ready) {
                    let closes = matches!(message, FromWorker::Closing);
                    let why = if closes { RefusalReason::Closing } else { RefusalReason::Draining };
                    self.leaves_by_itself(slot, why);
                }
            }
        }
        Ok(())
    }

    /// Descriptors came from a worker, and were closed.
    pub(crate) fn discarded(&mut self, descriptors: u64) {
        self.counters.discarded += descriptors;
    }

    /// Something arrived that cannot be read, but the port goes on.
    pub(crate) fn unreadable(&mut self, worker: WorkerId, sequence: u64, why: String) {
        if self.current(worker).is_none() {
            return;
        }
        self.event(worker.slot, WorkerEvent::MessageError(why));
        self.give_back(worker.slot, sequence, RefusalReason::Undecodable);
    }

    pub(super) fn hello(&mut self, slot: u32, hello: &Hello) -> Result<(), Fault> {
        let Some(place) = self.slots.get_mut(slot as usize) else { return Ok(()) };
        let settled = place.handoff.begin(hello.received, hello.open, hello.acks)?;
        place.greeted = true;
        place.limits = Limits::from(hello);
        // What it has just taken among it.
        place.given = hello.open.into();
        let worker = place.id;
        let drains = place.state == State::Starting && !hello.ready;
        if place.state == State::Starting {
            place.state = if hello.ready { State::Ready } else { State::Leaving };
        }
        self.tell_of_scope(slot);
        self.tell(FromRouter::Ready { worker });
        if drains {
            self.leaves_by_itself(slot, RefusalReason::Draining);
        }
        self.delivered(slot, settled);
        self.touch(slot);
        self.move_lane(slot);
        self.pump(slot);
        self.signals.changed = true;
        Ok(())
    }

    /// A worker takes no more. What waits to be sent to it is answered as it would answer itself.
    fn leaves_by_itself(&mut self, slot: u32, why: RefusalReason) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.state = State::Leaving;
        let worker = place.id;
        self.tell(FromRouter::Draining { worker });
        self.leave(slot, UndeliveredReason::Refused(why));
    }

    /// A worker has taken so many connections.
    fn delivered(&mut self, slot: u32, count: usize) {
        self.counters.delivered += count as u64;
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.served += count as u64;
        }
    }

    /// Rules about requests lead to this pool, or do not any more.
    #[cfg(feature = "cli")]
    pub(crate) fn expect_scopes(&mut self, scoped: bool) {
        if !std::mem::replace(&mut self.scoped, scoped) {
            (0..self.slots.len() as u32).for_each(|slot| self.tell_of_scope(slot));
        }
    }

    /// Says at once what would otherwise be found out by the first client.
    fn tell_of_scope(&self, slot: u32) {
        let Some(place) = self.slot(slot) else { return };
        if self.scoped && place.greeted && !place.limits.abilities.has(Abilities::SCOPE) {
            tracing::error!(
                worker = &*place.name,
                "does not look at later requests of a connection, and rules by host, path, query, header \
                 or cookie lead here: connections by these rules are rejected (503, no-worker). Serve \
                 with `scope.serve` or `scope.guard`, say `scope.keeps_scope(true)` if the program looks \
                 itself, or write `reuse = \"connection\"` in the listener",
            );
        }
    }

    pub(super) fn message(&mut self, slot: u32, sequence: u64, data: Data) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.received = place.received.max(sequence);
        if place.silenced {
            return;
        }
        let full = place.unfetched >= QUEUE_MESSAGES
            || (place.unfetched > 0 && place.unfetched_bytes + data.len() > UNFETCHED_BYTES);
        if full {
            return self.give_back(slot, sequence, RefusalReason::Full);
        }
        place.unfetched += 1;
        place.unfetched_bytes += data.len();
        self.event(slot, WorkerEvent::Message(data));
    }

    pub(super) fn give_back(&mut self, slot: u32, sequence: u64, reason: RefusalReason) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        // A worker that floods and does not read loses the answers, not its neighbours their time.
        if place.control.len() < QUEUE_MESSAGES {
            place.control.push(Control::Refuse(Refusal { sequence, reason }));
            self.mark(slot);
        }
    }

    pub(super) fn refused(&mut self, slot: u32, refusal: Refusal) -> Result<(), Fault> {
        let Some(place) = self.slots.get_mut(slot as usize) else { return Ok(()) };
        let mut entry = place.handoff.refuse(refusal.sequence, refusal.reason)?;
        match refusal.reason {
            RefusalReason::Undecodable | RefusalReason::Format | RefusalReason::Unsupported => {
                // The pool's other workers run the same program: their answer would be the same.
                let reason = UndeliveredReason::Refused(refusal.reason);
                if let Some(entry) = self.prove(slot, entry, false) {
                    self.undelivered(slot, entry, reason);
                }
                return Ok(());
            }
            RefusalReason::Draining | RefusalReason::Closing => {
                if place.state == State::Ready {
                    self.leaves_by_itself(slot, refusal.reason);
                }
            }
            // It will report when a connection ends; if it holds none, nothing would be reported.
            RefusalReason::Full => place.choked = place.handoff.reported() > 0,
            RefusalReason::MissingDescriptor => {
                place.choked = place.handoff.reported() > 0;
                entry.alone = true;
            }
            RefusalReason::BehindMissing => {}
        }
        if refusal.reason != RefusalReason::BehindMissing {
            entry.tried.push(slot);
        }
        let counts = u32::from(refusal.reason.counts_as_attempt());
        entry.attempts = entry.attempts.saturating_add(counts);
        self.refresh(slot);
        self.move_on(slot, entry, UndeliveredReason::Refused(refusal.reason), false);
        Ok(())
    }

    /// An offered entry that its worker did not take goes to another, if nobody touched it.
    pub(super) fn move_on(
        &mut self,
        from: u32,
        entry: Entry,
        reason: UndeliveredReason,
        died: bool,
    ) {
        if !entry.is_connection() {
            return self.undelivered(from, entry, reason);
        }
        let Some(entry) = self.prove(from, entry, died) else { return };
        if entry.attempts >= self.settings.max_attempts {
            return self.undelivered(from, entry, UndeliveredReason::MaxAttempts);
        }
        let trace = match &entry.cargo {
            Cargo::Connection(connection) => Some(connection.trace().clone()),
            Cargo::List(_) => None,
        };
        match self.place_again(entry) {
            Ok(()) => {
                self.counters.moved += 1;
                if let Some(trace) = trace {
                    trace.moved(reason.cause());
                }
            }
            Err((_, entry)) => self.undelivered(from, entry, reason),
        }
    }

    /// An entry as it was before it was offered. A connection that somebody read from or wrote to
    /// is closed instead.
    pub(super) fn prove(&mut self, from: u32, entry: Entry, died: bool) -> Option<Entry> {
        let Cargo::Connection(connection) = &entry.cargo else { return Some(entry) };
        let untouched = match connection.touched() {
            Touched::No => true,
            Touched::Yes => false,
            Touched::Unknown => !died,
        };
        if untouched && connection.restore().is_ok() {
            return Some(entry);
        }
        self.counters.touched += 1;
        self.close_silently(from, entry, UndeliveredReason::Touched);
        None
    }
}

/// What a worker said that it cannot have meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolFault {
    /// About sequences.
    #[error(transparent)]
    Sequence(#[from] Fault),
    /// In this state.
    #[error("worker said {0}")]
    State(&'static str),
    /// No router gave what it hands back, or gave it with other facts.
    #[error("worker handed back what it was never given")]
    NotGiven,
    /// It hands back more than it was given.
    #[error("worker handed back more connections than it was given")]
    TooManyBack,
}
