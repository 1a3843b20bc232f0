//! What one router says to the next in a planned change, over a channel of the two.
//!
//! The old one says everything, a connection a message, and keeps it all. The new one says that it has
//! it, and, with all else that it needs, that it acts: from then on only that one does. A router that
//! dies before has answered nobody, whatever it had, and the old one says everything again to another.
//!
//! None of it is more than the old one has: each connection is one of its descriptors, and the channel
//! holds some 280 messages at a time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::handshake::Acks;
use vestibule_protocol::supervision::{Setup, WorkerId};
use vestibule_protocol::{ConnectionInfo, Data};

use crate::connection::{Connection, Orders};
use crate::dispatch::{Before, Used};
use crate::handoff::unanswered::{Unanswered, Unsettled};
use crate::handoff::{Cargo, Entry};
use crate::inspect::PausedConnection;
use crate::inspect::proxy_header::Announced;
use crate::pool::core::succession::Legacy;
use crate::route::Affinity;

/// What the old router says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Passed {
    /// A connection that waits; the packet's descriptor.
    Waiting {
        /// Its pool.
        pool: u32,
        /// The connection.
        what: Decided,
    },
    /// A worker that has not answered everything. What it has not is in the next messages.
    Worker {
        /// Which.
        worker: WorkerId,
        /// It acknowledges each by itself.
        each: bool,
        /// It broke the protocol.
        faulty: bool,
        /// Sequence of the next offer.
        next: u64,
        /// Sequence whose descriptor was the last to be missed.
        missed: u64,
    },
    /// A connection that this worker was sent and has not answered; the packet's descriptor.
    Offered {
        /// Its sequence.
        sequence: u64,
        /// How long it has been without an answer.
        age: Duration,
        /// Another stands before it in the same packet.
        follows: bool,
        /// Of the router that sent it.
        epoch: u16,
        /// The connection.
        what: Decided,
    },
    /// What follows up to the next one of these is about listeners that a reload has removed, and is
    /// decided by what was said then.
    Former(Box<Setup>),
    /// A connection that is looked at; the packet's descriptor.
    Inspected {
        /// The number of its listener.
        listener: u32,
        /// What is known about it.
        what: Known,
        /// Its PROXY header is taken off, if it had to have one, and its peer's limits have let it in.
        admitted: bool,
        /// What that header said.
        announced: Option<Announced>,
        /// How long it may still take.
        left: Duration,
    },
    /// What peers have used up of their rates.
    Used(Vec<Used>),
    /// This was all.
    All,
}

/// What the new router says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Heard {
    /// It has everything, and touches nothing of it yet.
    Taken,
    /// It acts from now on.
    Acts,
}

/// A connection whose pool is decided.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Decided {
    /// What is known about it.
    what: Known,
    /// Workers that did not take it.
    attempts: u32,
    /// Their slots.
    tried: Vec<u32>,
    /// Its descriptor is to travel alone.
    alone: bool,
    /// The worker that it belongs to.
    affinity: Option<Affinity>,
    /// For which later requests the decision holds.
    scope: Option<Vec<u8>>,
}

impl Decided {
    /// Nothing for what is no connection.
    fn of(entry: &Entry) -> Option<(Self, BorrowedFd<'_>)> {
        let Cargo::Connection(connection) = &entry.cargo else { return None };
        let this = Self {
            what: Known::of(connection, entry.data.clone()),
            attempts: entry.attempts,
            tried: entry.tried.clone(),
            alone: entry.alone,
            affinity: connection.affinity().cloned(),
            scope: connection.scope().map(<[u8]>::to_vec),
        };
        Some((this, connection.as_fd()))
    }

    fn with(self, socket: OwnedFd, names: &mut Names) -> Option<Entry> {
        let Self { what, attempts, tried, alone, affinity, scope } = self;
        let (mut connection, data) = what.with(socket, names)?;
        let scope = scope.map(Into::into);
        connection.order(Orders { affinity, scope, message: None });
        Some(Entry { data, cargo: Cargo::Connection(connection), attempts, tried, alone })
    }
}

/// What is known about a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Known {
    /// As on a worker's port.
    info: Vec<u8>,
    /// The format of the message that goes with it.
    codec: u8,
    /// That message.
    message: Vec<u8>,
    /// What a worker that handed it back had read of it.
    prefix: Vec<u8>,
    /// How often it was handed back before its client got anything.
    hops: u8,
    /// Bytes that were read, of a PROXY header or by a worker that handed it back.
    consumed: u64,
    /// Bytes that such a worker had written.
    written: u64,
}

impl Known {
    fn of(connection: &Connection, message: Data) -> Self {
        let mut info = Vec::new();
        connection.info().encode(&mut info);
        let codec = message.codec() as u8;
        Self {
            info,
            codec,
            message: message.into_bytes(),
            prefix: connection.prefix().to_vec(),
            hops: connection.stamp().hops,
            consumed: connection.paused().consumed(),
            written: connection.paused().written(),
        }
    }

    /// The connection and its message; nothing if the other router is another program.
    fn with(self, socket: OwnedFd, names: &mut Names) -> Option<(Connection, Data)> {
        let info = ConnectionInfo::decode(&self.info, names).ok()?;
        let paused = PausedConnection::from_router(socket.into(), self.consumed, self.written);
        let connection = match info.handed_back_by {
            Some(_) => Connection::handed_back(paused, info, self.prefix.into(), self.hops),
            None => Connection::new(paused, info),
        };
        let codec = Codec::from_byte(self.codec)?;
        Some((connection, Data::from_parts(codec, self.message)))
    }
}

/// How one that waits for a worker of this pool is said; nothing for what is no connection.
pub(super) fn waiting(pool: u32, entry: &Entry) -> Option<(Passed, BorrowedFd<'_>)> {
    let (what, socket) = Decided::of(entry)?;
    Some((Passed::Waiting { pool, what }, socket))
}

/// How it is said that a worker has not answered everything.
pub(super) fn worker(legacy: &Legacy) -> Passed {
    let Legacy { worker, acks, faulty, unanswered } = legacy;
    Passed::Worker {
        worker: *worker,
        each: *acks == Acks::Each,
        faulty: *faulty,
        next: unanswered.next,
        missed: unanswered.missed,
    }
}

/// How one that it has not answered is said; nothing for what is no connection.
pub(super) fn offered(offer: &Unsettled, now: Instant) -> Option<(Passed, BorrowedFd<'_>)> {
    let Unsettled { sequence, entry, since, follows, epoch } = offer;
    let (what, socket) = Decided::of(entry)?;
    let age = now.saturating_duration_since(*since);
    let passed =
        Passed::Offered { sequence: *sequence, age, follows: *follows, epoch: *epoch, what };
    Some((passed, socket))
}

/// How one that is looked at, of this listener, is said.
pub(super) fn inspected(listener: u32, before: &Before, now: Instant) -> (Passed, BorrowedFd<'_>) {
    let connection = &before.connection;
    let passed = Passed::Inspected {
        listener,
        what: Known::of(connection, connection.message()),
        admitted: before.admitted,
        announced: before.announced.as_deref().cloned(),
        left: before.deadline.saturating_duration_since(now),
    };
    (passed, connection.as_fd())
}

/// What came from the router before this one.
pub(super) enum Inherited {
    /// It waits for a worker of this pool.
    Waiting(u32, Entry),
    /// This worker has not answered what follows.
    Worker(Legacy),
    /// It is one of those.
    Offered(Unsettled),
    /// What follows is decided by this.
    Former(Box<Setup>),
    /// It is looked at, of this listener.
    Inspected(u32, Before),
    /// What peers have used up.
    Used(Vec<Used>),
}

impl Inherited {
    /// What is said, with the descriptor that came along; nothing if that is of no use.
    pub(super) fn new(
        passed: Passed,
        descriptor: Option<OwnedFd>,
        names: &mut Names,
    ) -> Option<Self> {
        match (passed, descriptor) {
            (Passed::Waiting { pool, what }, Some(socket)) => {
                Some(Self::Waiting(pool, what.with(socket, names)?))
            }
            (Passed::Worker { worker, each, faulty, next, missed }, _) => {
                let acks = if each { Acks::Each } else { Acks::Cumulative };
                let unanswered = Unanswered { offers: Vec::new(), next, missed };
                Some(Self::Worker(Legacy { worker, acks, faulty, unanswered }))
            }
            (Passed::Offered { sequence, age, follows, epoch, what }, Some(socket)) => {
                let entry = what.with(socket, names)?;
                let now = Instant::now();
                let since = now.checked_sub(age).unwrap_or(now);
                Some(Self::Offered(Unsettled { sequence, entry, since, follows, epoch }))
            }
            (Passed::Inspected { listener, what, admitted, announced, left }, Some(socket)) => {
                let (mut connection, message) = what.with(socket, names)?;
                if message != Data::NONE {
                    connection = connection.with_message(message);
                }
                let now = Instant::now();
                let deadline = now.checked_add(left).unwrap_or(now);
                let announced = announced.map(Box::new);
                let before = Before { connection, admitted, announced, deadline };
                Some(Self::Inspected(listener, before))
            }
            (Passed::Waiting { .. } | Passed::Offered { .. } | Passed::Inspected { .. }, None) => {
                tracing::error!("a connection that was passed on did not arrive");
                None
            }
            (Passed::Former(setup), _) => Some(Self::Former(setup)),
            (Passed::Used(used), _) => Some(Self::Used(used)),
            (Passed::All, _) => None,
        }
    }
}
