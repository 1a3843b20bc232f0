//! What becomes of what arrives: each connection and message is taken or refused, with a reason,
//! before anything of the packet is acknowledged.
//!
//! Called by `inbox` for one packet at a time. Nothing of a connection is read here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use vestibule_protocol::codec::{Codec, DecodeError};
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::message::{
    Entries, ItemKind, MessageBody, MessageError as Malformed, Refusal, RefusalReason,
};
use vestibule_protocol::{ConnectionInfo as Facts, Data, MessagePort};

use crate::connection_info::ConnectionInfo;
use crate::drain::{Cause, Ending, Phase};
use crate::event::{Connection, Event, MessageError, Transferred};
use crate::inbox::Mode;
use crate::link::Link;
use crate::message::Typed;
use crate::settings::Settings;
use crate::stream::{Socket, Stream};

/// What arrived and was taken.
#[derive(Debug)]
pub(crate) enum Arrival {
    Connection(Connection),
    Event(Event),
}

/// Takes what one packet brought, or refuses it.
pub(crate) struct Adopter<'a> {
    pub(crate) link: &'a Arc<Link>,
    pub(crate) settings: &'a Settings,
    pub(crate) names: &'a mut Names,
    pub(crate) mode: Mode,
    pub(crate) codec: Codec,
    pub(crate) arrived: &'a mut VecDeque<Arrival>,
    pub(crate) refusals: &'a mut Vec<Refusal>,
}

/// Why one thing is not taken.
struct Refused {
    reason: RefusalReason,
    /// What the program is told, if it is the sender's or this machine's fault.
    event: Option<MessageError>,
}

impl From<RefusalReason> for Refused {
    fn from(reason: RefusalReason) -> Self {
        Self { reason, event: None }
    }
}

/// A connection that can be taken, and is nobody's yet: dropping it closes it without a shutdown.
struct Prepared {
    socket: Socket,
    info: ConnectionInfo,
    /// What an earlier worker has read of it.
    prefix: Vec<u8>,
}

impl Adopter<'_> {
    /// Takes the connections of an offer: `count` of them, numbered from `first`, as far as their
    /// descriptors arrived.
    pub(crate) fn offer(
        &mut self,
        first: u64,
        count: usize,
        mut entries: Entries<'_>,
        descriptors: &mut Vec<OwnedFd>,
    ) {
        let end = first + count as u64;
        if let Phase::Ending(ending) = self.link.connections().phase() {
            // The router has its copies: closing these is neither the end nor slow.
            descriptors.clear();
            return self.refuse_all(first..end, ending.refusal());
        }
        let missing = count - descriptors.len();
        let arrived = end - missing as u64;
        for (sequence, descriptor) in (first..).zip(descriptors.drain(..)) {
            // The packet has as many entries as descriptors were announced.
            let Some(entry) = entries.next_entry(self.names).transpose() else { break };
            let taken = entry
                .map_err(|source| malformed(sequence, source.into()))
                .and_then(|entry| self.prepare(sequence, entry.info, entry.message, descriptor));
            match taken {
                Ok(prepared) => self.take(prepared),
                Err(refused) => self.refuse(sequence, refused),
            }
        }
        if missing > 0 {
            self.tell(MessageError::MissingDescriptors { sequence: arrived, missing });
            self.refuse(arrived, RefusalReason::MissingDescriptor.into());
            self.refuse_all(arrived + 1..end, RefusalReason::BehindMissing);
        }
    }

    /// Refuses a packet of `count` numbers that cannot be read.
    pub(crate) fn unreadable(
        &mut self,
        first: u64,
        count: usize,
        reason: RefusalReason,
        error: MessageError,
    ) {
        self.tell(error);
        self.refuse_all(first..first + count as u64, reason);
    }

    /// Takes a message with its transfer list, whole or not at all.
    pub(crate) fn message(
        &mut self,
        sequence: u64,
        body: MessageBody<'_>,
        descriptors: &mut Vec<OwnedFd>,
        missing: usize,
    ) {
        if let Err(refused) = self.take_message(sequence, body, descriptors, missing) {
            descriptors.clear();
            self.refuse(sequence, refused);
        }
    }

    fn take_message(
        &mut self,
        sequence: u64,
        body: MessageBody<'_>,
        descriptors: &mut Vec<OwnedFd>,
        missing: usize,
    ) -> Result<(), Refused> {
        let connections =
            body.items.iter().filter(|item| matches!(item, ItemKind::Connection(_))).count();
        self.may_take(connections)?;
        if missing > 0 {
            return Err(Refused {
                reason: RefusalReason::MissingDescriptor,
                event: Some(MessageError::MissingDescriptors { sequence, missing }),
            });
        }
        let only_connections = connections > 0 && connections == body.items.len();
        if only_connections && (connections == 1 || self.mode == Mode::Served) {
            let mut prepared = Vec::with_capacity(connections);
            for (item, descriptor) in body.items.into_iter().zip(descriptors.drain(..)) {
                if let ItemKind::Connection(facts) = item {
                    let mut one = self.prepare(sequence, facts, body.message, descriptor)?;
                    // Only one connection alone has a prefix.
                    one.prefix = body.prefix.to_vec();
                    prepared.push(one);
                }
            }
            prepared.into_iter().for_each(|prepared| self.take(prepared));
            return Ok(());
        }
        if self.mode == Mode::Served && self.settings.handler.is_none() {
            return Err(RefusalReason::Unsupported.into());
        }
        self.decode(sequence, body.message)?;
        let mut transfer = Vec::with_capacity(body.items.len());
        for (item, descriptor) in body.items.into_iter().zip(descriptors.drain(..)) {
            transfer.push(self.item(sequence, item, descriptor)?);
        }
        let transfer = transfer.into_iter().map(|item| item.finish(self.link)).collect();
        let data = Data::from_parts(self.codec, body.message.to_vec());
        self.arrived.push_back(Arrival::Event(Event::Message { data, transfer }));
        Ok(())
    }

    /// Whether a worker in this state takes a message with so many connections.
    fn may_take(&self, connections: usize) -> Result<(), Refused> {
        match self.link.connections().phase() {
            Phase::Ending(ending @ Ending { cause: Cause::Close, .. }) => {
                Err(ending.refusal().into())
            }
            Phase::Ending(ending) if connections > 0 => Err(ending.refusal().into()),
            _ => Ok(()),
        }
    }

    fn item(&self, sequence: u64, item: ItemKind, descriptor: OwnedFd) -> Result<Item, Refused> {
        match item {
            ItemKind::Connection(facts) => {
                // The message is the event's, not this connection's.
                let socket = self.register(sequence, &facts, descriptor)?;
                let info = ConnectionInfo::new(facts, Data::NONE, None);
                Ok(Item::Connection(Prepared { socket, info, prefix: Vec::new() }))
            }
            ItemKind::Port => MessagePort::new(descriptor)
                .map(|port| Item::Other(Transferred::Port(port)))
                .map_err(|error| unusable(sequence, io::Error::other(error))),
            ItemKind::Listener => Ok(Item::Other(Transferred::Listener(descriptor))),
            ItemKind::Descriptor => Ok(Item::Other(Transferred::Descriptor(descriptor))),
        }
    }

    fn prepare(
        &self,
        sequence: u64,
        mut facts: Facts,
        message: &[u8],
        descriptor: OwnedFd,
    ) -> Result<Prepared, Refused> {
        let typed = self.decode(sequence, message)?;
        let socket = self.register(sequence, &facts, descriptor)?;
        // A client whom a proxy has named is not at the other end of the socket.
        if self.settings.peer_context
            && facts.peer_context.is_none()
            && facts.is_from(socket.other_end())
        {
            facts.peer_context = socket.peer_context().map(Into::into);
        }
        let data = Data::from_parts(self.codec, message.to_vec());
        let info = ConnectionInfo::new(facts, data, typed);
        Ok(Prepared { socket, info, prefix: Vec::new() })
    }

    fn register(
        &self,
        sequence: u64,
        facts: &Facts,
        descriptor: OwnedFd,
    ) -> Result<Socket, Refused> {
        let most = self.settings.max_connections;
        if most > 0 && self.link.connections().open() >= most {
            return Err(RefusalReason::Full.into());
        }
        // Behind a proxy the facts say nothing about the socket itself.
        let tcp = facts.peer.is_some() && facts.destination.is_none();
        Socket::register(descriptor, tcp).map_err(|error| unusable(sequence, error))
    }

    fn decode(&self, sequence: u64, message: &[u8]) -> Result<Option<Box<dyn Typed>>, Refused> {
        let Some(decode) = &self.settings.decoder else { return Ok(None) };
        decode(self.codec, message).map(Some).map_err(|source| Refused {
            reason: match source {
                DecodeError::Untyped(_) => RefusalReason::Format,
                _ => RefusalReason::Undecodable,
            },
            event: Some(MessageError::Undecodable { sequence, source }),
        })
    }

    fn take(&mut self, prepared: Prepared) {
        let connection = prepared.finish(self.link);
        if self.settings.nodelay
            && let Err(error) = connection.stream.set_nodelay(true)
        {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        self.arrived.push_back(Arrival::Connection(connection));
    }

    fn tell(&mut self, error: MessageError) {
        self.arrived.push_back(Arrival::Event(Event::MessageError(error)));
    }

    fn refuse(&mut self, sequence: u64, refused: Refused) {
        self.refusals.push(Refusal { sequence, reason: refused.reason });
        if let Some(error) = refused.event {
            self.tell(error);
        }
    }

    fn refuse_all(&mut self, sequences: impl Iterator<Item = u64>, reason: RefusalReason) {
        self.refusals.extend(sequences.map(|sequence| Refusal { sequence, reason }));
    }
}

impl Prepared {
    fn finish(self, link: &Arc<Link>) -> Connection {
        Connection { stream: Stream::adopt(self.socket, link, self.prefix), info: self.info }
    }
}

/// One thing of a transfer list that can be taken.
enum Item {
    Connection(Prepared),
    Other(Transferred),
}

impl Item {
    fn finish(self, link: &Arc<Link>) -> Transferred {
        match self {
            Self::Connection(prepared) => Transferred::Connection(prepared.finish(link)),
            Self::Other(other) => other,
        }
    }
}

fn malformed(sequence: u64, source: Malformed) -> Refused {
    Refused {
        reason: RefusalReason::Undecodable,
        event: Some(MessageError::Malformed { sequence, source }),
    }
}

/// What cannot be watched is no connection (`EPERM`: a plain file); anything else is a shortage of
/// this process.
fn unusable(sequence: u64, source: io::Error) -> Refused {
    let reason = match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::NOTSOCK) => RefusalReason::Unsupported,
        Some(_) => RefusalReason::Full,
        None => RefusalReason::Undecodable,
    };
    Refused { reason, event: Some(MessageError::Descriptor { sequence, source }) }
}
