//! The router's end of a worker's port: packets out of entries, and messages out of packets.
//!
//! `pool` and `handoff` know of a link only how much it takes at once ([`Limits`]) and what became of
//! a flush; what a packet looks like stays here.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use vestibule_protocol::Data;
use vestibule_protocol::handshake::{Abilities, Acks, Attach, Hello};
use vestibule_protocol::header::{HEADER_LEN, Header};
use vestibule_protocol::limits::{INLINE_MESSAGE, MAX_DESCRIPTORS};
use vestibule_protocol::message::{self, Beside, Refusal, kind};
use vestibule_protocol::socket::{PacketSocket, SendError, Sent};
use vestibule_protocol::tlv::TooLong;
use vestibule_protocol::{envelope, sys};

use crate::connection::Connection;
use crate::handoff::{Cargo, Entry, Handoff};
use crate::ticket::Tickets;

/// What a worker's `Hello` allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Largest packet, in bytes.
    pub(crate) packet: usize,
    /// Most connections in one packet.
    pub(crate) batch: usize,
    /// Whether one number acknowledges everything before it.
    pub(crate) acks: Acks,
    /// Most connections that the worker wants to hold; `u32::MAX` if it names none.
    pub(crate) connections: u32,
    /// What else it can do.
    pub(crate) abilities: Abilities,
}

impl From<&Hello> for Limits {
    fn from(hello: &Hello) -> Self {
        Self {
            packet: hello.max_packet as usize,
            batch: usize::from(hello.batch),
            acks: hello.acks,
            connections: if hello.max_connections == 0 { u32::MAX } else { hello.max_connections },
            abilities: hello.abilities,
        }
    }
}

impl Limits {
    /// Whether the worker keeps to what the decision about this connection rests on. One that does not
    /// would answer a later request that is another rule's.
    fn keep_to_scope_of(&self, entry: &Entry) -> bool {
        let scoped = |connection: &Connection| connection.scope().is_some();
        let Cargo::Connection(connection) = &entry.cargo else { return true };
        self.abilities.has(Abilities::SCOPE) || !scoped(connection)
    }
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything that the window allows is sent.
    Done,
    /// The worker's queue in the kernel is full: wait until the port is writable.
    Blocked,
    /// The system is short of something: try again a little later.
    Later,
    /// The first waiting entry can never be sent to this worker.
    Unsendable,
    /// Nor can this one: it has a scope, and the worker does not keep to it.
    Unscoped,
}

/// The packet under construction, used again for each.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    body: Vec<u8>,
}

/// One worker's port.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: PacketSocket,
    epoch: u16,
    /// For connections that it may hand back.
    tickets: Tickets,
}

impl Link {
    /// Takes the router's end. A worker's large message comes in a memfd, so descriptors cannot be
    /// refused in the kernel; what comes unasked is closed on a thread of its own.
    pub(crate) fn new(socket: PacketSocket, epoch: u16, tickets: Tickets) -> Self {
        Self { socket, epoch, tickets }
    }

    /// The tickets that connections from here come back with.
    pub(crate) fn tickets(&self) -> Tickets {
        self.tickets
    }

    /// What is said of a connection besides its facts: the ticket only to who has a use for it.
    fn beside<'c>(&self, connection: &'c Connection, limits: &Limits) -> Beside<'c> {
        let wanted = limits.abilities.has(Abilities::HAND_BACK);
        let ticket = if wanted { self.tickets.issue(connection) } else { None };
        Beside { ticket, scope: connection.scope() }
    }

    /// The epoch that this router speaks in.
    pub(crate) fn epoch(&self) -> u16 {
        self.epoch
    }

    /// Begins the conversation. The port is empty then, so the packet fits.
    pub(crate) fn attach(
        &self,
        drain_timeout: Duration,
        max_connections: u32,
    ) -> Result<Sent, SendError> {
        let mut body = Vec::new();
        Attach { drain_timeout, max_connections, ..Attach::default() }.encode(&mut body);
        self.control(kind::ATTACH, &body)
    }

    /// Tells the worker to finish what it has.
    /// `last`: nobody takes over.
    pub(crate) fn drain(&self, timeout: Duration, last: bool) -> Result<Sent, SendError> {
        let mut body = Vec::new();
        message::put_timeout(&mut body, timeout);
        if last {
            message::put_last(&mut body);
        }
        self.control(kind::DRAIN, &body)
    }

    /// Tells the worker to end.
    pub(crate) fn close(&self) -> Result<Sent, SendError> {
        self.control(kind::CLOSE, &[])
    }

    /// Gives a message back to the worker.
    pub(crate) fn refuse(&self, refusal: Refusal) -> Result<Sent, SendError> {
        let mut body = Vec::new();
        message::put_refusal(&mut body, refusal);
        self.control(kind::REFUSED, &body)
    }

    fn control(&self, kind: u8, body: &[u8]) -> Result<Sent, SendError> {
        let head = Header::new(kind, self.epoch).encode();
        self.socket.try_send(&[IoSlice::new(&head), IoSlice::new(body)], &[])
    }

    /// Sends what waits, as far as the window and the worker's queue allow. `worker` is its name.
    ///
    /// # Errors
    /// The port is closed, or the system refuses for good. What was not sent still waits.
    pub(crate) fn flush(
        &self,
        handoff: &mut Handoff,
        limits: &Limits,
        window: usize,
        scratch: &mut Scratch,
        now: Instant,
        worker: &str,
    ) -> Result<Flushed, SendError> {
        loop {
            let room = window.saturating_sub(handoff.in_flight());
            let Some(first) = handoff.waiting_entries().next().filter(|_| room > 0) else {
                return Ok(Flushed::Done);
            };
            if !limits.keep_to_scope_of(first) {
                return Ok(Flushed::Unscoped);
            }
            let sent = if is_batched(first) {
                self.send_batch(handoff, limits, room, scratch)?
            } else {
                None
            };
            let (sent, count) = match sent {
                Some(outcome) => outcome,
                None => match self.send_single(handoff, limits, scratch)? {
                    Some(sent) => (sent, 1),
                    None => return Ok(Flushed::Unsendable),
                },
            };
            match sent {
                Sent::Whole => handoff.sent(count, now, worker, self.epoch),
                Sent::Blocked => return Ok(Flushed::Blocked),
                Sent::Later => return Ok(Flushed::Later),
            }
        }
    }

    /// Sends connections that stand first, in one packet. `None` if not even one fits.
    fn send_batch(
        &self,
        handoff: &Handoff,
        limits: &Limits,
        room: usize,
        scratch: &mut Scratch,
    ) -> Result<Option<(Sent, usize)>, SendError> {
        let body = &mut scratch.body;
        body.clear();
        let most = limits.batch.min(room).min(MAX_DESCRIPTORS);
        let bytes = limits.packet - HEADER_LEN;
        let mut codec = None;
        let mut count = 0;
        let mut descriptors = [self.socket.as_fd(); MAX_DESCRIPTORS];
        for (entry, place) in handoff.waiting_entries().zip(descriptors.iter_mut()).take(most) {
            let Cargo::Connection(connection) = &entry.cargo else { break };
            if !is_batched(entry) || codec.is_some_and(|codec| codec != entry.data.codec()) {
                break;
            }
            if !limits.keep_to_scope_of(entry) {
                break;
            }
            if entry.alone && count > 0 {
                break;
            }
            let before = body.len();
            let (info, data) = (connection.info(), entry.data.as_bytes());
            let beside = self.beside(connection, limits);
            let fits = message::put_entry_with(body, info, beside, data).is_ok();
            if !fits || body.len() > bytes {
                body.truncate(before);
                break;
            }
            *place = connection.as_fd();
            codec = Some(entry.data.codec());
            count += 1;
            if entry.alone {
                break;
            }
        }
        let (Some(codec), Some(descriptors)) = (codec, descriptors.get(..count)) else {
            return Ok(None);
        };
        let header = Header {
            codec,
            // At most MAX_DESCRIPTORS.
            descriptors: count as u8,
            sequence: handoff.next_sequence(),
            ..Header::new(kind::OFFER, self.epoch)
        };
        let head = header.encode();
        let sent = self.socket.try_send(&[IoSlice::new(&head), IoSlice::new(body)], descriptors)?;
        Ok(Some((sent, count)))
    }

    /// Sends the first entry in a packet of its own, its body in memory where it has no room.
    /// `None` if it can never be sent.
    fn send_single(
        &self,
        handoff: &Handoff,
        limits: &Limits,
        scratch: &mut Scratch,
    ) -> Result<Option<Sent>, SendError> {
        let Some(entry) = handoff.waiting_entries().next() else { return Ok(None) };
        if !entry.prefix().is_empty() && !limits.abilities.has(Abilities::PREFIX) {
            return Ok(None);
        }
        let body = &mut scratch.body;
        body.clear();
        let Ok(mut descriptors) = self.encode_single(entry, limits, body) else { return Ok(None) };
        let memory: OwnedFd;
        let large = is_large(&entry.data, body.len(), limits);
        if large {
            memory = match sys::sealed_memory(body) {
                Ok(memory) => memory,
                // Out of descriptors or memory: neither is for ever.
                Err(_) => return Ok(Some(Sent::Later)),
            };
            descriptors.insert(0, memory.as_fd());
            body.clear();
        }
        // A list that leaves no room for the memfd of its own long facts.
        if descriptors.len() > MAX_DESCRIPTORS {
            return Ok(None);
        }
        let count = descriptors.len() as u8;
        let header = Header {
            codec: entry.data.codec(),
            large,
            descriptors: count,
            sequence: handoff.next_sequence(),
            ..Header::new(kind::MESSAGE, self.epoch)
        };
        let head = header.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(body)];
        self.socket.try_send(&parts, &descriptors).map(Some)
    }

    fn encode_single<'e>(
        &self,
        entry: &'e Entry,
        limits: &Limits,
        body: &mut Vec<u8>,
    ) -> Result<Vec<BorrowedFd<'e>>, TooLong> {
        match &entry.cargo {
            Cargo::Connection(connection) => {
                let beside = self.beside(connection, limits);
                message::put_connection(body, connection.info(), beside)?;
                message::put_prefix(body, connection.prefix());
                message::put_message(body, entry.data.as_bytes());
                Ok(vec![connection.as_fd()])
            }
            Cargo::List(list) => {
                envelope::encode(body, list, entry.data.as_bytes())?;
                Ok(list.iter().map(AsFd::as_fd).collect())
            }
        }
    }
}

/// Whether a message leaves its packet: for its own length, as was counted when it was posted, or
/// because this worker takes only smaller packets.
fn is_large(data: &Data, body: usize, limits: &Limits) -> bool {
    data.len() > INLINE_MESSAGE || HEADER_LEN + body > limits.packet
}

/// Whether an entry may share a packet with others: what was read of a connection has no place in an
/// offer.
fn is_batched(entry: &Entry) -> bool {
    matches!(&entry.cargo, Cargo::Connection(connection) if connection.prefix().is_empty())
        && entry.data.len() <= INLINE_MESSAGE
}

/// Descriptors that a message with this list needs in its packet.
pub(crate) fn packet_descriptors(data: &Data, listed: usize) -> usize {
    listed + usize::from(data.len() > INLINE_MESSAGE)
}

#[cfg(test)]
mod tests {
    use vestibule_protocol::connection_info::Names;
    use vestibule_protocol::envelope::Transferable;
    use vestibule_protocol::message::{MessageBody, ToWorker};
    use vestibule_protocol::socket::PacketBuffer;

    use super::*;

    fn limits(packet: usize) -> Limits {
        Limits {
            packet,
            batch: MAX_DESCRIPTORS,
            acks: Acks::Cumulative,
            connections: u32::MAX,
            abilities: Abilities::default(),
        }
    }

    fn pipes(count: usize) -> Vec<Transferable> {
        (0..count).map(|_| OwnedFd::from(std::io::pipe().unwrap().0).into()).collect()
    }

    /// How a list with a message of so many bytes arrives at a worker that takes such packets:
    /// whether in memory, the length of its packet at least, and the message.
    fn arrives(list: Vec<Transferable>, bytes: usize, packet: usize) -> Option<(bool, usize)> {
        let (ours, theirs) = sys::seqpacket_pair().unwrap();
        let link = Link::new(PacketSocket::new(ours).unwrap(), 1, Tickets::new([0; 16]));
        let worker = PacketSocket::new(theirs).unwrap();
        let count = list.len();
        let mut handoff = Handoff::default();
        handoff.push(Entry::new(Data::bytes(vec![7; bytes]), Cargo::List(list)));
        let limits = limits(packet);
        let now = Instant::now();
        match link.flush(&mut handoff, &limits, 64, &mut Scratch::default(), now, "app-1").unwrap()
        {
            Flushed::Done => {}
            Flushed::Unsendable => return None,
            other => panic!("not sent: {other:?}"),
        }
        let mut buffer = PacketBuffer::default();
        let packet = worker.try_receive(&mut buffer).unwrap().unwrap();
        assert_eq!((packet.descriptors.len(), packet.missing), (count, 0));
        let said = ToWorker::decode(&packet.header, packet.body, &mut Names::default()).unwrap();
        let ToWorker::Message(MessageBody { message, .. }) = said else { panic!("{said:?}") };
        assert_eq!(message, vec![7; bytes]);
        Some((packet.header.large, HEADER_LEN + packet.body.len()))
    }

    #[tokio::test]
    async fn a_full_list_with_a_message_that_fits_its_packet_stays_in_it() {
        // The list's own bytes bring the body over what one message alone may take.
        let arrived = arrives(pipes(MAX_DESCRIPTORS), INLINE_MESSAGE - 100, 32 * 1024);
        assert!(matches!(arrived, Some((false, length)) if length > INLINE_MESSAGE), "{arrived:?}");
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_for_this_worker_leaves_its_packet() {
        let (large, _) = arrives(pipes(3), 5_000, 1024).unwrap();
        assert!(large);
        let (large, length) = arrives(pipes(3), 100, 1024).unwrap();
        assert!(!large && length <= 1024, "{length}");
    }

    #[tokio::test]
    async fn a_full_list_leaves_no_room_for_the_memory_of_its_message() {
        assert_eq!(arrives(pipes(MAX_DESCRIPTORS), 5_000, 1024), None);
    }
}
