//! The reading half of the worker's port: packets in the order of the protocol, a burst at a time.
//!
//! Whoever holds the inbox reads: `scope.recv`, `scope.serve`, a listener, or the task that runs a
//! listener's port down. Packets are received, judged and settled without a pause in between, so
//! dropping the future that waits for them loses nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use vestibule_protocol::connection_info::Names;
use vestibule_protocol::handshake::Attach;
use vestibule_protocol::message::{
    MessageError as Malformed, Refusal, RefusalReason, ToWorker, kind, transferred,
};
use vestibule_protocol::socket::{Packet, PacketBuffer, Readiness as _, ReceiveError};

use crate::adopt::{Adopter, Arrival};
use crate::drain::{Cause, Ending, Phase};
use crate::event::{Event, MessageError};
use crate::link::Link;

/// Most numbers (or packets without) that are received before they are acknowledged: the router's default window, so that
/// it never waits for a worker that has more to receive.
const BURST: u64 = 64;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The program's own loop: it gets everything.
    Own,
    /// A server: connections are served, the rest goes to the program's handler or back.
    Served,
}

/// What the router did that the protocol does not have. The port is closed, the worker finishes
/// what it has.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A packet could not be received.
    #[error("the router sent what is no packet")]
    Packet(#[from] ReceiveError),
    /// A packet means nothing.
    #[error("the router sent a malformed packet")]
    Malformed(#[from] Malformed),
    /// A packet without its number, or out of order.
    #[error("the router sent packet {got} where {expected} was expected")]
    Sequence {
        /// The number that would have been right.
        expected: u64,
        /// The one that came.
        got: u64,
    },
    /// Something came before `Attach`.
    #[error("the router sent kind {0:#04x} before it attached")]
    NotAttached(u8),
    /// The router speaks other versions of the protocol only.
    #[error("the router speaks protocol versions {} to {}, not {}", .0, .1, vestibule_protocol::header::VERSION)]
    Version(u8, u8),
}

/// The reading half of the port.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: PacketBuffer,
    state: State,
    over: bool,
    fault: Option<Fault>,
}

#[derive(Debug, Default)]
struct State {
    names: Names,
    /// The router that speaks.
    epoch: Option<u16>,
    /// Highest number received from any router.
    received: u64,
    /// Highest number that was acknowledged.
    settled: u64,
    arrived: VecDeque<Arrival>,
    refusals: Vec<Refusal>,
}

impl Inbox {
    /// What arrived, in order.
    pub(crate) fn pop(&mut self) -> Option<Arrival> {
        self.state.arrived.pop_front()
    }

    /// What the router did wrong, once.
    pub(crate) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Receives what has come and settles it, or notes that the port is over. After that it never
    /// becomes ready again.
    ///
    /// One acknowledgement covers all packets of a burst, and goes out before anything of them can
    /// be read.
    ///
    /// # Cancel safety
    /// Packets are received only when this is ready.
    pub(crate) async fn turn(&mut self, link: &Arc<Link>, mode: Mode) {
        let Some(bound) = link.bound().filter(|_| !self.over) else {
            return std::future::pending().await;
        };
        let Ok(mut ready) = bound.socket.readable().await else { return self.end(link) };
        let before = self.state.received;
        let mut packets = 0;
        let outcome = loop {
            packets += 1;
            let taken = match bound.socket.try_receive(&mut self.buffer) {
                Ok(Some(packet)) => self.state.take(link, packet, mode),
                Ok(None) => {
                    ready.clear_ready();
                    break Ok(());
                }
                Err(error) if !error.is_fatal() => self.state.unreadable(error),
                Err(error) => Err(error.into()),
            };
            let numbers = self.state.received - before;
            // What the program does with an event may be to close: what is queued behind it then
            // goes back, so it must not be acknowledged before.
            let for_program = matches!(self.state.arrived.back(), Some(Arrival::Event(_)));
            if taken.is_err() || for_program || numbers.max(packets) >= BURST {
                break taken;
            }
        };
        self.state.settle(link);
        match outcome {
            Ok(()) => {}
            Err(Fault::Packet(ReceiveError::Closed)) => self.end(link),
            Err(fault) => {
                tracing::error!(error = %Chain(&fault), "the router broke the protocol: its port is closed");
                self.fault = Some(fault);
                link.shut();
                self.end(link);
            }
        }
    }

    fn end(&mut self, link: &Arc<Link>) {
        self.over = true;
        if !link.connections().is_ending() {
            let timeout = link.drain_timeout();
            self.state.arrived.push_back(Arrival::Event(Event::Draining { timeout }));
        }
        link.over();
    }
}

impl State {
    fn take(&mut self, link: &Arc<Link>, packet: Packet<'_>, mode: Mode) -> Result<(), Fault> {
        let header = packet.header;
        if header.kind != kind::ATTACH {
            match self.epoch {
                None => return Err(Fault::NotAttached(header.kind)),
                Some(epoch) if epoch != header.epoch => {
                    tracing::debug!(epoch = header.epoch, "packet of a router that is gone");
                    return Ok(());
                }
                Some(_) => self.check_number(header.kind, header.sequence)?,
            }
        }
        let settings = link.settings();
        let decoded = ToWorker::decode(&header, packet.body, &mut self.names);
        let mut adopter = Adopter {
            link,
            settings: &settings,
            names: &mut self.names,
            mode,
            codec: header.codec,
            arrived: &mut self.arrived,
            refusals: &mut self.refusals,
        };
        let numbers = match header.kind {
            kind::OFFER => transferred(&header),
            _ => 1,
        };
        match decoded {
            Ok(ToWorker::Attach(attach)) => return self.attach(link, header.epoch, attach),
            Ok(ToWorker::Offer(entries)) => {
                adopter.offer(header.sequence, numbers, entries, packet.descriptors);
            }
            Ok(ToWorker::Message(body)) => {
                adopter.message(header.sequence, body, packet.descriptors, packet.missing);
            }
            Ok(ToWorker::Refused(refusals)) => self.undelivered(&refusals),
            Ok(ToWorker::Drain { timeout, last }) => {
                let cause = if last { Cause::Finish } else { Cause::Drain };
                link.end(cause, timeout, Duration::ZERO);
                self.arrived.push_back(Arrival::Event(Event::Draining { timeout }));
            }
            Ok(ToWorker::Close) => link.end(Cause::Close, Duration::ZERO, Duration::ZERO),
            Err(source) if is_numbered(header.kind) => {
                let sequence = header.sequence;
                let error = MessageError::Malformed { sequence, source };
                adopter.unreadable(sequence, numbers, RefusalReason::Undecodable, error);
            }
            Err(error) => return Err(error.into()),
        }
        if header.sequence > 0 {
            self.received += numbers as u64;
        }
        Ok(())
    }

    /// Says what was refused and that the rest is taken.
    fn settle(&mut self, link: &Arc<Link>) {
        if self.received > self.settled {
            self.settled = self.received;
            link.settle(self.received, &mut self.refusals);
        }
    }

    /// Offers and messages are numbered without a gap; what is not numbered settles nothing.
    fn check_number(&self, kind: u8, got: u64) -> Result<(), Fault> {
        let expected = self.received + 1;
        if got == expected || (got == 0 && !is_numbered(kind)) {
            return Ok(());
        }
        Err(Fault::Sequence { expected, got })
    }

    fn attach(&mut self, link: &Arc<Link>, epoch: u16, attach: Attach) -> Result<(), Fault> {
        if attach.choose_version().is_none() {
            return Err(Fault::Version(attach.versions.0, attach.versions.1));
        }
        // What an earlier router sent is answered first: the next one may know of it.
        self.settle(link);
        self.epoch = Some(epoch);
        link.attached(epoch, attach, self.received);
        Ok(())
    }

    /// A message whose format or large body is unusable: it is refused, the port goes on.
    fn unreadable(&mut self, source: ReceiveError) -> Result<(), Fault> {
        let (kind, sequence, numbers, reason) = match source {
            ReceiveError::Format { kind: kind::OFFER, sequence, announced, .. } => {
                (kind::OFFER, sequence, announced, RefusalReason::Format)
            }
            ReceiveError::Format { kind, sequence, .. } => {
                (kind, sequence, 1, RefusalReason::Format)
            }
            ReceiveError::Body { sequence, reason: None } => {
                (kind::MESSAGE, sequence, 1, RefusalReason::MissingDescriptor)
            }
            ReceiveError::Body { sequence, reason: Some(_) } => {
                (kind::MESSAGE, sequence, 1, RefusalReason::Undecodable)
            }
            other => return Err(other.into()),
        };
        if self.epoch.is_none() {
            return Err(Fault::NotAttached(kind));
        }
        self.check_number(kind, sequence)?;
        if !is_numbered(kind) {
            return Err(source.into());
        }
        let end = sequence + numbers as u64;
        self.refusals.extend((sequence..end).map(|sequence| Refusal { sequence, reason }));
        let error = MessageError::Unreadable { sequence, source };
        self.arrived.push_back(Arrival::Event(Event::MessageError(error)));
        self.received = end - 1;
        Ok(())
    }

    fn undelivered(&mut self, refusals: &[Refusal]) {
        self.arrived.extend(refusals.iter().map(|refusal| {
            let Refusal { sequence, reason } = *refusal;
            Arrival::Event(Event::Undelivered { sequence, reason })
        }));
    }
}

/// What the router numbers, and gets settled.
fn is_numbered(kind: u8) -> bool {
    matches!(kind, kind::OFFER | kind::MESSAGE)
}

/// Reads the port until the worker has ended, and refuses what arrives.
#[cfg(feature = "axum")]
pub(crate) async fn run_down(link: &Arc<Link>) {
    let mut inbox = link.inbox().lock().await;
    let finished = link.connections().finished();
    tokio::pin!(finished);
    loop {
        while let Some(arrival) = inbox.pop() {
            match arrival {
                // Taken before the end began and asked for by nobody: it cannot be given back.
                Arrival::Connection(connection) => drop(connection),
                Arrival::Event(event) => hand_over(link, event),
            }
        }
        tokio::select! {
            biased;
            () = &mut finished => break,
            () = inbox.turn(link, Mode::Served) => {}
        }
    }
    end(link).await;
}

/// Gives an event to the program's handler while connections are being served.
pub(crate) fn hand_over(link: &Link, event: Event) {
    if let Some(handler) = &link.settings().handler {
        return handler(event);
    }
    match event {
        Event::MessageError(error) => {
            tracing::warn!(error = %Chain(&error), "the router's message cannot be taken");
        }
        Event::Undelivered { sequence, reason } => {
            tracing::warn!(sequence, reason = reason.as_str(), "the router did not take a message");
        }
        Event::Draining { timeout } => tracing::debug!(?timeout, "draining"),
        Event::Connection { .. } | Event::Message { .. } => {}
    }
}

/// The last step of a worker: what it still has to say goes out, and a closed scope's port ends.
pub(crate) async fn end(link: &Arc<Link>) {
    link.last_words().await;
    if let Phase::Ending(Ending { cause: Cause::Close, .. }) = link.connections().phase() {
        link.shut();
    }
}

/// An error with its causes, for the log.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
