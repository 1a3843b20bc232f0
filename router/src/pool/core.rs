//! The decisions of a pool. Nothing here waits; the clock is read where a duration starts.

#[cfg(test)]
mod tests;
mod waiting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use vestibule_protocol::codec::Data;
use vestibule_protocol::handshake::{Acks, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::{MAX_MESSAGE, QUEUE_MESSAGES};
use vestibule_protocol::message::{FromWorker, Refusal, RefusalReason};
use vestibule_protocol::socket::{SendError, Sent};
use vestibule_protocol::supervision::{Exit, FromRouter, WorkerId};

use super::pick::{self, Picker};
use super::slot::{Control, Obstruction, Slot, State};
use super::{Balance, Settings};
use crate::event::{Undelivered, UndeliveredReason, WorkerError, WorkerEvent};
use crate::handoff::{Cargo, Entry, Fault};
use crate::inspect::Touched;
use crate::link::{Flushed, Limits, Link, Scratch};
use crate::queue::Queue;

/// A worker whose oldest offer is unanswered for this long is picked only when no other can be: it
/// hangs or is overloaded, and the acknowledgement of a healthy one takes well under a millisecond.
const SLUGGISH: Duration = Duration::from_millis(100);

/// Bytes of one worker's messages that nobody has fetched, besides the first of them.
const UNFETCHED_BYTES: usize = MAX_MESSAGE;

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
}

impl Core {
    pub(crate) fn new(
        pool: u32,
        settings: Settings,
        names: Vec<Arc<str>>,
        supervisor: mpsc::UnboundedSender<FromRouter>,
    ) -> Self {
        let picker = Picker::new(settings.balance, names.len());
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

    pub(crate) fn take_signals(&mut self) -> Signals {
        std::mem::take(&mut self.signals)
    }

    /// Wakes the tasks of slots that have something to send.
    pub(crate) fn wake_dirty(&self) {
        for place in self.dirty.iter().filter_map(|slot| self.slot(*slot)) {
            place.wake.notify_one();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.closing && self.slots.iter().all(Slot::is_over)
    }

    // --- from the pool's owner -------------------------------------------------------------

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
        self.leave(slot);
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
        self.leave(slot);
    }

    /// Keeps a worker out of the choice, or takes it back in. It serves what it has.
    pub(crate) fn hold(&mut self, slot: u32, held: bool) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.held = held;
        if held {
            let waiting = self.take_waiting(slot);
            self.picker.remove(slot);
            self.redistribute(waiting);
            self.move_lane(slot);
            self.pump(slot);
        } else {
            self.touch(slot);
            self.pump(slot);
        }
        self.signals.changed = true;
    }

    /// One more slot, whose first process will be named by the supervisor.
    pub(crate) fn add_slot(&mut self, name: Arc<str>) {
        let pool = self.slots.first().map_or(0, |place| place.id.pool);
        let slot = Slot::new(name, pool, self.slots.len() as u32);
        self.slots.push(slot);
        self.picker.grow(self.slots.len());
    }

    /// Every worker finishes what it has; what waits for a free one is given up.
    pub(crate) fn finish_all(&mut self) {
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
        self.leave(slot);
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

    /// The error that is waiting to be fetched for this slot, if any.
    pub(crate) fn error_of(&self, slot: u32) -> Option<&WorkerError> {
        self.events.iter().find_map(|(of, event)| match event {
            WorkerEvent::Error(error) if *of == slot => Some(error),
            _ => None,
        })
    }

    // --- from the supervisor ---------------------------------------------------------------

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
        self.redistribute(waiting);
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

    // --- from the worker -------------------------------------------------------------------

    /// A packet of a worker.
    ///
    /// # Errors
    /// It broke the protocol: the caller stops listening to it.
    pub(crate) fn packet(
        &mut self,
        worker: WorkerId,
        header: &Header,
        message: FromWorker<'_>,
    ) -> Result<(), ProtocolFault> {
        let slot = worker.slot;
        let Some(place) = self.current(worker) else { return Ok(()) };
        let epoch = place.link.as_ref().map_or(0, |link| link.epoch());
        let current = header.epoch == epoch;
        let greeted = place.greeted;
        match message {
            FromWorker::Hello(hello) if current && !greeted => self.hello(slot, &hello),
            FromWorker::Hello(_) if !current => {}
            FromWorker::Hello(_) => return Err(ProtocolFault::State("a second hello")),
            FromWorker::Acknowledge(acknowledge) => {
                place.handoff.report(acknowledge.open);
                place.choked = false;
                if !current {
                    self.touch(slot);
                    self.pump(slot);
                    return Ok(());
                }
                if !greeted {
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
                self.counters.delivered += settled as u64;
                self.settled(slot);
            }
            FromWorker::Refuse(refusals) => {
                if !current {
                    return Ok(());
                }
                if !greeted {
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
            FromWorker::Error(report) => {
                self.event(slot, WorkerEvent::Error(WorkerError::Reported(report)));
                if self.settings.restart_on_error {
                    self.drain(slot, false);
                }
            }
            FromWorker::Draining | FromWorker::Closing => {
                if matches!(place.state, State::Starting | State::Ready) {
                    place.state = State::Leaving;
                    self.tell(FromRouter::Draining { worker });
                    self.leave(slot);
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

    /// The worker broke the protocol, or it is stuck: its death is asked for.
    pub(crate) fn condemn(&mut self, worker: WorkerId, reason: &str, faulty: bool) {
        self.counters.faults += u64::from(faulty);
        let Some(place) = self.current(worker) else { return };
        if place.state != State::Leaving {
            place.state = State::Condemned;
        }
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

    // --- time ------------------------------------------------------------------------------

    /// When the worker's oldest offer is too old, if there are offers that nobody watches yet; from
    /// here on the caller does.
    pub(crate) fn watch_offers(&mut self, worker: WorkerId) -> Option<Instant> {
        let bound = self.settings.stuck_timeout;
        let place = self.current(worker).filter(|place| !place.watched)?;
        let oldest = place.handoff.oldest_offer()?;
        place.watched = true;
        // Without a bound that the clock can name there is nothing to wait for.
        oldest.checked_add(bound)
    }

    /// Whether the worker's oldest offer is older than the bound; if not, when to look again. `None`:
    /// nothing is left to be watched.
    pub(crate) fn stuck(&mut self, worker: WorkerId, now: Instant) -> Option<Instant> {
        let bound = self.settings.stuck_timeout;
        let place = self.current(worker)?;
        let Some(oldest) = place.handoff.oldest_offer() else {
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

    // --- sending ---------------------------------------------------------------------------

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

    fn flush_slot(&mut self, slot: u32, now: Instant) {
        self.send_waiting(slot, now);
        if let Some(place) = self.slot(slot)
            && (place.obstruction != Obstruction::None
                || (!place.watched && place.handoff.oldest_offer().is_some()))
        {
            // Its task may wait for nothing but packets: somebody has to try again, or to notice
            // that no answer comes. Once for many offers: the task watches on while there are some.
            place.wake.notify_one();
        }
    }

    fn send_waiting(&mut self, slot: u32, now: Instant) {
        loop {
            let Some(place) = self.slots.get_mut(slot as usize) else { return };
            let Some(link) = place.link.clone() else { return };
            if place.obstruction != Obstruction::None || place.ended {
                return;
            }
            let drain_timeout = self.settings.drain_timeout;
            let result = match send_control(place, &link, drain_timeout) {
                Ok(Sent::Whole) if place.state == State::Ready => link.flush(
                    &mut place.handoff,
                    &place.limits,
                    self.settings.window,
                    &mut self.scratch,
                    now,
                ),
                Ok(Sent::Whole) => Ok(Flushed::Done),
                Ok(Sent::Blocked) => Ok(Flushed::Blocked),
                Ok(Sent::Later) => Ok(Flushed::Later),
                Err(error) => Err(error),
            };
            match result {
                Ok(Flushed::Done) => return,
                Ok(Flushed::Blocked) => place.obstruction = Obstruction::Blocked,
                Ok(Flushed::Later) => place.obstruction = Obstruction::Later,
                Ok(Flushed::Unsendable) => {
                    if let Some(entry) = place.handoff.take_unsendable() {
                        self.undelivered(slot, entry, UndeliveredReason::TooLarge);
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

    // --- within ----------------------------------------------------------------------------

    /// The slot of a process, until it is buried: what is heard of it later changes nothing.
    fn current(&mut self, worker: WorkerId) -> Option<&mut Slot> {
        let place = self.slots.get_mut(worker.slot as usize)?;
        let buried = matches!(place.state, State::Vacant { .. });
        (place.id == worker && !buried).then_some(place)
    }

    fn hello(&mut self, slot: u32, hello: &Hello) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.greeted = true;
        place.limits = Limits::from(hello);
        place.handoff.begin(hello.received, hello.open);
        let worker = place.id;
        let drains = place.state == State::Starting && !hello.ready;
        if place.state == State::Starting {
            place.state = if hello.ready { State::Ready } else { State::Leaving };
        }
        self.tell(FromRouter::Ready { worker });
        if drains {
            self.tell(FromRouter::Draining { worker });
            self.leave(slot);
        }
        self.touch(slot);
        self.move_lane(slot);
        self.pump(slot);
        self.signals.changed = true;
    }

    fn message(&mut self, slot: u32, sequence: u64, data: Data) {
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

    fn give_back(&mut self, slot: u32, sequence: u64, reason: RefusalReason) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        // A worker that floods and does not read loses the answers, not its neighbours their time.
        if place.control.len() < QUEUE_MESSAGES {
            place.control.push(Control::Refuse(Refusal { sequence, reason }));
            self.mark(slot);
        }
    }

    fn refused(&mut self, slot: u32, refusal: Refusal) -> Result<(), Fault> {
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
                let id = place.id;
                if place.state == State::Ready {
                    place.state = State::Leaving;
                    self.tell(FromRouter::Draining { worker: id });
                    self.leave(slot);
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
        entry.attempts += u32::from(refusal.reason.counts_as_attempt());
        self.refresh(slot);
        self.move_on(slot, entry, UndeliveredReason::Refused(refusal.reason), false);
        Ok(())
    }

    /// An offered entry that its worker did not take goes to another, if nobody touched it.
    fn move_on(&mut self, from: u32, entry: Entry, reason: UndeliveredReason, died: bool) {
        if !entry.is_connection() {
            return self.undelivered(from, entry, reason);
        }
        let Some(entry) = self.prove(from, entry, died) else { return };
        if entry.attempts >= self.settings.max_attempts {
            return self.undelivered(from, entry, UndeliveredReason::MaxAttempts);
        }
        match self.place(entry) {
            Ok(()) => self.counters.moved += 1,
            Err((_, entry)) => self.undelivered(from, entry, reason),
        }
    }

    /// An entry as it was before it was offered. A connection that somebody read from or wrote to
    /// is closed instead.
    fn prove(&mut self, from: u32, entry: Entry, died: bool) -> Option<Entry> {
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

    fn choose_by_key(&self, entry: &Entry, key: std::net::IpAddr) -> Choice {
        let (key, length) = pick::address_key(key);
        let key = key.get(..length).unwrap_or_default();
        (0u32..)
            .zip(&self.slots)
            .filter(|(_, place)| place.may_take_later())
            // Who refused it before is asked again where nobody else is left: attempts are counted.
            .max_by_key(|(slot, place)| {
                (!entry.tried.contains(slot), pick::score(key, &place.name))
            })
            .map_or(Choice::Nobody, |(slot, _)| {
                if self.is_free_for_key(slot) { Choice::Now(slot) } else { Choice::ItsQueue(slot) }
            })
    }

    fn is_sluggish(&self, slot: u32, now: impl FnOnce() -> Instant) -> bool {
        let oldest = self.slot(slot).and_then(|place| place.handoff.oldest_offer());
        oldest.is_some_and(|oldest| now().saturating_duration_since(oldest) >= SLUGGISH)
    }

    fn can_take(&self, place: &Slot) -> bool {
        place.state == State::Ready
            && !place.held
            && !place.choked
            && place.handoff.in_flight() + place.handoff.waiting() < self.settings.window
            && place.handoff.load() < place.limits.connections.min(self.settings.max_connections)
    }

    fn refresh(&mut self, slot: u32) {
        self.refresh_as(slot, false);
    }

    fn refresh_as(&mut self, slot: u32, sluggish: bool) {
        let Some(place) = self.slot(slot) else { return };
        if self.can_take(place) {
            let load = place.handoff.load();
            self.picker.set(slot, load, sluggish);
        } else {
            self.picker.remove(slot);
        }
    }

    /// Offers were settled: what waits behind the window may go, and who waits for a worker.
    fn settled(&mut self, slot: u32) {
        self.refresh(slot);
        if self.slot(slot).is_some_and(|place| place.handoff.waiting() > 0) {
            self.mark(slot);
        }
        self.pump(slot);
    }

    /// The slot has something to send, and its load changed.
    fn touch(&mut self, slot: u32) {
        let sluggish = self.picker.is_sluggish(slot);
        self.refresh_as(slot, sluggish);
        self.mark(slot);
    }

    fn mark(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut place.marked, true)
        {
            self.dirty.push(slot);
        }
    }

    /// A worker takes nothing new: what it was not sent goes to others.
    fn leave(&mut self, slot: u32) {
        self.picker.remove(slot);
        let waiting = self.take_waiting(slot);
        self.redistribute(waiting);
        self.move_lane(slot);
        self.pump(slot);
        self.mark(slot);
        self.signals.changed = true;
    }

    fn take_waiting(&mut self, slot: u32) -> Vec<(u32, Entry)> {
        let Some(place) = self.slots.get_mut(slot as usize) else { return Vec::new() };
        place.handoff.abandon_waiting().into_iter().map(|entry| (slot, entry)).collect()
    }

    /// Entries that were never sent: no proof is needed, and no attempt counts.
    fn redistribute(&mut self, waiting: Vec<(u32, Entry)>) {
        for (slot, entry) in waiting {
            if !entry.is_connection() {
                self.undelivered(slot, entry, UndeliveredReason::WorkerGone);
            } else if let Err((_, entry)) = self.place(entry) {
                self.undelivered(slot, entry, UndeliveredReason::WorkerGone);
            }
        }
    }

    /// Moves what a worker left, once it is certainly dead and its port read to the end. `shared`:
    /// the port did not end, so that somebody else may still read what was offered.
    fn bury(&mut self, worker: WorkerId, shared: bool) {
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
            entry.attempts += 1;
            if shared {
                self.counters.touched += u64::from(entry.is_connection());
                self.close_silently(slot, entry, UndeliveredReason::Touched);
            } else {
                self.move_on(slot, entry, UndeliveredReason::WorkerGone, true);
            }
        }
        self.redistribute(waiting.into_iter().map(|entry| (slot, entry)).collect());
        self.move_lane(slot);
        self.pump(slot);
        self.event(slot, WorkerEvent::Exit(exit));
        self.signals.changed = true;
    }

    fn undelivered(&mut self, slot: u32, entry: Entry, reason: UndeliveredReason) {
        self.counters.undelivered += 1;
        let reason = match reason {
            UndeliveredReason::NoWorker if self.is_ending() => UndeliveredReason::ShuttingDown,
            UndeliveredReason::WorkerGone if self.closing => UndeliveredReason::ShuttingDown,
            reason => reason,
        };
        let (message, transfer) = entry.into_parts();
        self.come_back(slot, Undelivered { message, transfer, reason });
    }

    /// Tells the owner what came back, or, where nobody fetches events, the client at least.
    fn come_back(&mut self, slot: u32, undelivered: Undelivered) {
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

    fn event(&mut self, slot: u32, event: WorkerEvent) {
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

    fn tell(&self, message: FromRouter) {
        // Without a supervisor there is nobody to be told: its end ends the pool.
        let _ = self.supervisor.send(message);
    }
}

/// What can be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// This worker has room.
    Now(u32),
    /// This worker only: its queue, whether it has room or not.
    ItsQueue(u32),
    /// Somebody will have room.
    Wait,
    /// Nobody ever.
    Nobody,
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
}

fn send_control(place: &mut Slot, link: &Link, drain: Duration) -> Result<Sent, SendError> {
    while let Some(&control) = place.control.first() {
        let sent = match control {
            Control::Attach => link.attach(drain)?,
            Control::Drain => link.drain(drain)?,
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
