//! What one router says to the next in a planned change, over a channel of the two.
//!
//! The old one says everything, a connection a message, and keeps it all. The new one says that it has
//! it, and, with all else that it needs, that it acts: from then on only that one does. A router that
//! dies before has answered nobody, whatever it had, and the old one says everything again to another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::supervision::Setup;
use vestibule_protocol::{ConnectionInfo, Data};

use crate::connection::{Connection, Orders};
use crate::dispatch::{Before, Used};
use crate::handoff::{Cargo, Entry};
use crate::inspect::PausedConnection;
use crate::inspect::proxy_header::Announced;
use crate::route::Affinity;

/// What the old router says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Passed {
    /// A connection that waits; the packet's descriptor.
    Waiting {
        /// Its pool.
        pool: u32,
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
        }
    }

    /// The connection and its message; nothing if the other router is another program.
    fn with(self, socket: OwnedFd, names: &mut Names) -> Option<(Connection, Data)> {
        let info = ConnectionInfo::decode(&self.info, names).ok()?;
        // Nobody but its router had it while it waited.
        let paused = PausedConnection::from_passed(socket.into(), true);
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
    let Cargo::Connection(connection) = &entry.cargo else { return None };
    let passed = Passed::Waiting {
        pool,
        what: Known::of(connection, entry.data.clone()),
        attempts: entry.attempts,
        tried: entry.tried.clone(),
        alone: entry.alone,
        affinity: connection.affinity().cloned(),
        scope: connection.scope().map(<[u8]>::to_vec),
    };
    Some((passed, connection.as_fd()))
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
            (
                Passed::Waiting { pool, what, attempts, tried, alone, affinity, scope },
                Some(socket),
            ) => {
                let (mut connection, data) = what.with(socket, names)?;
                let scope = scope.map(Into::into);
                connection.order(Orders { affinity, scope, message: None });
                let cargo = Cargo::Connection(connection);
                Some(Self::Waiting(pool, Entry { data, cargo, attempts, tried, alone }))
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
            (Passed::Waiting { .. } | Passed::Inspected { .. }, None) => {
                tracing::error!("a connection that was passed on did not arrive");
                None
            }
            (Passed::Former(setup), _) => Some(Self::Former(setup)),
            (Passed::Used(used), _) => Some(Self::Used(used)),
            (Passed::All, _) => None,
        }
    }
}
