//! What one router says to the next in a planned change, over a channel of the two.
//!
//! The old one says everything, a connection a message, and keeps it all. The new one says that it has
//! it, and, with all else that it needs, that it acts: from then on only that one does. A router that
//! dies before has answered nobody, whatever it had, and the old one says everything again to another.
//!
//! None of it is more than the old one has: each connection is one of its descriptors, and the channel
//! holds some 280 messages at a time. But the old one has clients before it, and no rights: what it says
//! is judged here by itself, and in `estate` together with all else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{SocketType, sockopt};
use serde::{Deserialize, Serialize};
use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::discard::discard;
use vestibule_protocol::handshake::Acks;
use vestibule_protocol::limits::{MAX_PACKET, MAX_PREFIX, MAX_SCOPE};
use vestibule_protocol::scope::Scope;
use vestibule_protocol::supervision::{InspectSetup, WorkerId};
use vestibule_protocol::sys::ClientSocket;
use vestibule_protocol::tlv::TlvError;
use vestibule_protocol::{ConnectionInfo, Data};

use crate::connection::{Connection, Orders};
use crate::control::ControlError;
use crate::dispatch::{Before, Used};
use crate::handoff::unanswered::{Misnumbered, Unanswered, Unsettled};
use crate::handoff::{Cargo, Entry};
use crate::inspect::PausedConnection;
use crate::inspect::proxy_header::{self, Announced};
use crate::pool::core::succession::Legacy;
use crate::route::Affinity;

/// Slots that are remembered of those that did not take a connection: as many as a pool may have. Each is
/// looked for among them whenever it is offered.
const MOST_TRIED: usize = 4096;

/// What the old router says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
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
    /// decided by the configuration of this number. The supervisor says what that was: nobody else
    /// may say how clients are looked at.
    Former {
        /// Its number.
        number: u64,
    },
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

impl Passed {
    /// Bytes that are kept of it besides its own place.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Waiting { what, .. } | Self::Offered { what, .. } => what.weight(),
            Self::Inspected { what, announced, .. } => {
                what.weight() + announced.as_ref().map_or(0, Announced::length)
            }
            Self::Worker { .. } | Self::Former { .. } | Self::Used(_) | Self::All => 0,
        }
    }
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
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Decided {
    /// What is known about it.
    what: Known,
    /// Workers that did not take it.
    attempts: u32,
    /// Their slots.
    pub(super) tried: Vec<u32>,
    /// Its descriptor is to travel alone.
    alone: bool,
    /// The worker that it belongs to.
    affinity: Option<Affinity>,
    /// For which later requests the decision holds.
    pub(super) scope: Option<Vec<u8>>,
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

    fn with(self, socket: ClientSocket, names: &mut Names) -> Result<Entry, Wrong> {
        let Self { what, attempts, mut tried, alone, affinity, scope } = self;
        let key = match &affinity {
            Some(Affinity::Key(key)) => key.len(),
            Some(Affinity::Worker(name)) => name.len(),
            None => 0,
        };
        // It was found in what a client has said.
        Wrong::if_longer("the key of its worker", key, InspectSetup::MOST_BYTES)?;
        if let Some(scope) = &scope {
            Wrong::if_longer("its scope", scope.len(), MAX_SCOPE)?;
            Scope::decode(scope)?;
        }
        tried.truncate(MOST_TRIED);
        let (mut connection, data) = what.with(socket, names)?;
        let scope = scope.map(Into::into);
        connection.order(Orders { affinity, scope, message: None });
        Ok(Entry { data, cargo: Cargo::Connection(connection), attempts, tried, alone })
    }

    fn weight(&self) -> usize {
        let affinity = match &self.affinity {
            Some(Affinity::Key(key)) => key.len(),
            Some(Affinity::Worker(name)) => name.len(),
            None => 0,
        };
        let scope = self.scope.as_ref().map_or(0, Vec::len);
        self.what.weight() + affinity + scope + size_of_val(&*self.tried)
    }
}

/// What is known about a connection.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    /// As on a worker's port.
    pub(super) info: Vec<u8>,
    /// The format of the message that goes with it.
    pub(super) codec: u8,
    /// That message.
    pub(super) message: Vec<u8>,
    /// What a worker that handed it back had read of it.
    pub(super) prefix: Vec<u8>,
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

    /// The connection and its message.
    fn with(self, socket: ClientSocket, names: &mut Names) -> Result<(Connection, Data), Wrong> {
        Wrong::if_longer("what is known of it", self.info.len(), MAX_PACKET)?;
        Wrong::if_longer("what was read of it", self.prefix.len(), MAX_PREFIX)?;
        let codec = Codec::from_byte(self.codec).ok_or(Wrong::Codec(self.codec))?;
        let info = ConnectionInfo::decode(&self.info, names)?;
        // These go beside it, and are this router's to say.
        let info = ConnectionInfo { ticket: None, scope: None, ..info };
        let paused = PausedConnection::from_router(socket, self.consumed, self.written);
        let connection = match info.handed_back_by {
            Some(_) => Connection::handed_back(paused, info, self.prefix.into(), self.hops),
            None if self.prefix.is_empty() => Connection::new(paused, info),
            None => return Err(Wrong::Prefix),
        };
        Ok((connection, Data::from_parts(codec, self.message)))
    }

    fn weight(&self) -> usize {
        self.info.len() + self.message.len() + self.prefix.len()
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
    let (next, missed) = unanswered.numbers();
    Passed::Worker { worker: *worker, each: *acks == Acks::Each, faulty: *faulty, next, missed }
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
#[derive(Debug)]
pub(super) enum Inherited {
    /// It waits for a worker of this pool.
    Waiting(u32, Entry),
    /// This worker has not answered what follows.
    Worker(Legacy),
    /// It is one of those.
    Offered(Unsettled),
    /// What follows is decided by this.
    Former(u64),
    /// It is looked at, of this listener.
    Inspected(u32, Before),
    /// What peers have used up.
    Used(Vec<Used>),
}

impl Inherited {
    /// What is said, with the descriptor that came along.
    ///
    /// # Errors
    /// [`Wrong`]: by itself it cannot be. A connection is closed here then; the router before this one
    /// has it still, until it ends.
    pub(super) fn new(
        passed: Passed,
        descriptor: Option<OwnedFd>,
        names: &mut Names,
    ) -> Result<Self, Wrong> {
        match passed {
            Passed::Waiting { pool, what } => {
                Ok(Self::Waiting(pool, what.with(client(descriptor)?, names)?))
            }
            Passed::Offered { sequence, age, follows, epoch, what } => {
                let entry = what.with(client(descriptor)?, names)?;
                let now = Instant::now();
                let since = now.checked_sub(age).unwrap_or(now);
                Ok(Self::Offered(Unsettled { sequence, entry, since, follows, epoch }))
            }
            Passed::Inspected { listener, what, admitted, announced, left } => {
                let announced = announced.map(Box::new);
                let said = announced.as_deref().map_or(0, Announced::length);
                let (mut connection, message) = what.with(client(descriptor)?, names)?;
                Wrong::if_longer("what a proxy said of it", said, proxy_header::LONGEST)?;
                if message != Data::NONE {
                    connection = connection.with_message(message);
                }
                let now = Instant::now();
                // Nobody has been given more.
                let left = left.min(InspectSetup::MOST_TIME);
                let deadline = now.checked_add(left).unwrap_or(now);
                let before = Before { connection, admitted, announced, deadline };
                Ok(Self::Inspected(listener, before))
            }
            Passed::Worker { worker, each, faulty, next, missed } => {
                nothing(descriptor)?;
                let acks = if each { Acks::Each } else { Acks::Cumulative };
                let unanswered = Unanswered::new(next, missed)?;
                Ok(Self::Worker(Legacy { worker, acks, faulty, unanswered }))
            }
            Passed::Former { number } => nothing(descriptor).map(|()| Self::Former(number)),
            Passed::Used(used) => nothing(descriptor).map(|()| Self::Used(used)),
            Passed::All => nothing(descriptor).and(Err(Wrong::Late)),
        }
    }
}

/// What came as a client's connection. What is none is closed where a slow close hurts nobody.
fn client(descriptor: Option<OwnedFd>) -> Result<ClientSocket, Wrong> {
    let descriptor = descriptor.ok_or(Wrong::NotArrived)?;
    if sockopt::socket_type(&descriptor) == Ok(SocketType::STREAM) {
        return Ok(descriptor.into());
    }
    discard(vec![descriptor]);
    Err(Wrong::NoStream)
}

fn nothing(descriptor: Option<OwnedFd>) -> Result<(), Wrong> {
    let Some(descriptor) = descriptor else { return Ok(()) };
    discard(vec![descriptor]);
    Err(Wrong::Unasked)
}

/// What the old router cannot have meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("a message cannot be read")]
    Unreadable(#[source] ControlError),
    #[error("a connection did not arrive")]
    NotArrived,
    #[error("what came as a connection is no stream socket")]
    NoStream,
    #[error("a descriptor came with what has none")]
    Unasked,
    #[error("something came after the last word")]
    Late,
    #[error("what is said of a connection cannot be read")]
    Facts(#[from] TlvError),
    #[error("a connection's message is in the unknown format {0}")]
    Codec(u8),
    #[error("of a connection that nobody handed back something was read")]
    Prefix,
    #[error("a connection: {what} has {length} bytes, and {most} at most are taken")]
    Long { what: &'static str, length: usize, most: usize },
    #[error(transparent)]
    Number(#[from] Misnumbered),
    #[error("a connection came before the worker that it was sent to")]
    NoWorker,
    #[error("{0:?} came twice")]
    Twice(WorkerId),
    #[error("this router, {0}, is said to have sent something")]
    OwnEpoch(u16),
    #[error("what is left of descriptors is for workers' ports")]
    Descriptors,
    #[error("connections have more with them than the {0} bytes that are taken of all")]
    Bytes(usize),
    #[error("more than {0} peers have used up something")]
    Rates(usize),
    #[error("there are more than {0} configurations of removed listeners")]
    Former(usize),
}

impl Wrong {
    fn if_longer(what: &'static str, length: usize, most: usize) -> Result<(), Self> {
        if length > most { Err(Self::Long { what, length, most }) } else { Ok(()) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::role) use super::Known;

    /// What is known about somebody.
    pub(in crate::role) fn known() -> Known {
        let mut info = Vec::new();
        ConnectionInfo { id: 1, ..ConnectionInfo::default() }.encode(&mut info);
        Known {
            info,
            codec: 0,
            message: Vec::new(),
            prefix: Vec::new(),
            hops: 0,
            consumed: 0,
            written: 0,
        }
    }

    pub(in crate::role) fn decided(what: Known) -> Decided {
        Decided { what, attempts: 0, tried: Vec::new(), alone: false, affinity: None, scope: None }
    }
}
