//! One seqpacket socket: whole packets in and out, never waiting inside a system call.
//!
//! [`PacketSocket`] knows the traps of the transport (a reset before the last packets, an empty
//! packet that looks like the end, descriptors lost without an error) and nothing of what is said.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio_seqpacket::UnixSeqpacket;

use crate::codec::Codec;
use crate::discard::discard;
use crate::header::{HEADER_LEN, Header, HeaderError};
use crate::limits::{MAX_DESCRIPTORS, MAX_MESSAGE, MAX_PACKET, MAX_TRANSFER_LIST};
use crate::message::transferred;
use crate::sys::{self, MemoryError};

/// How long to wait for room without an event where there is no descriptor left to wait with.
const RETRY: Duration = Duration::from_millis(2);

/// A connected seqpacket socket, registered with the runtime it was made in.
///
/// It is watched for reading only. Watched for writing too, it would wake this process each time
/// the other side receives a packet, though there is nearly always room to send; so who has to wait
/// for room does it with a duplicate ([`writable`](Self::writable)).
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
}

/// A descriptor that is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Not a Unix seqpacket socket.
    #[error("descriptor is not a Unix seqpacket socket")]
    NotSeqpacket,
    /// It has no other side.
    #[error("seqpacket socket is not connected")]
    NotConnected,
    /// There is no runtime to register it with.
    #[error("ports need a running tokio runtime with I/O enabled")]
    NoRuntime(#[source] tokio::runtime::TryCurrentError),
    /// The system refused.
    #[error("cannot set up a port")]
    System(#[source] io::Error),
}

/// What became of a packet that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It is with the receiver, whole.
    Whole,
    /// The receiver's queue is full: wait until the socket is writable.
    Blocked,
    /// The system is short of something that no event announces (descriptors of this user under way,
    /// buffers): try again a little later.
    Later,
}

/// Why nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The other side is closed.
    #[error("the other side of the port is closed")]
    Closed,
    /// The system refused this packet.
    #[error("packet cannot be sent")]
    System(#[source] Errno),
}

/// Why a packet could not be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The other side is closed, and all it had sent has been received.
    #[error("the other side of the port is closed")]
    Closed,
    /// The packet was longer than [`MAX_PACKET`].
    #[error("packet is longer than {MAX_PACKET} bytes")]
    Truncated,
    /// It does not begin with a header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// More descriptors came than were announced; all were closed.
    #[error("{received} descriptors came, {announced} were announced")]
    Unannounced {
        /// As many as arrived.
        received: usize,
        /// As many as the header says.
        announced: usize,
    },
    /// The message is in a format that this version does not know; all its descriptors were closed.
    /// The port goes on.
    #[error("message {sequence} is in the unknown format {format}")]
    Format {
        /// Its kind.
        kind: u8,
        /// Its number, to be refused; an offer's first.
        sequence: u64,
        /// Descriptors that it announced: as many connections if it was an offer.
        announced: usize,
        /// The codec byte.
        format: u8,
    },
    /// The large body is unusable; all its descriptors were closed. The port goes on.
    #[error("large message {sequence} is unusable")]
    Body {
        /// Its number, to be refused.
        sequence: u64,
        /// What is wrong; `None` if its memory did not arrive at all.
        #[source]
        reason: Option<MemoryError>,
    },
    /// The system refused.
    #[error("packet cannot be received")]
    System(#[source] Errno),
}

impl ReceiveError {
    /// Whether the port can go on after this.
    pub const fn is_fatal(self) -> bool {
        !matches!(self, Self::Body { .. } | Self::Format { .. })
    }
}

/// Where packets are received into, used again for each.
#[derive(Debug)]
pub struct PacketBuffer {
    bytes: Box<[u8]>,
    large: Vec<u8>,
    max_message: usize,
    descriptors: Vec<OwnedFd>,
    discarded: u64,
}

/// A received packet: header, body, and what came with it.
#[derive(Debug)]
pub struct Packet<'b> {
    /// Its header.
    pub header: Header,
    /// Its body, from the packet or from its memfd.
    pub body: &'b [u8],
    /// The descriptors of its transfer list, in order: a clean beginning of what was announced.
    /// What is left here at the next receive is closed.
    pub descriptors: &'b mut Vec<OwnedFd>,
    /// How many of the announced descriptors did not arrive.
    pub missing: usize,
}

impl Default for PacketBuffer {
    fn default() -> Self {
        Self::new(MAX_MESSAGE)
    }
}

impl PacketBuffer {
    /// A buffer for packets, and for large messages of up to `max_message` bytes.
    pub fn new(max_message: usize) -> Self {
        Self {
            bytes: vec![0; MAX_PACKET].into_boxed_slice(),
            large: Vec::new(),
            max_message,
            descriptors: Vec::with_capacity(MAX_DESCRIPTORS + 2),
            discarded: 0,
        }
    }

    /// Largest message that is taken from here on, in bytes.
    pub fn set_max_message(&mut self, bytes: usize) {
        self.max_message = bytes;
    }

    /// How many received descriptors were closed because nobody was to have them.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Closes what is left of the last packet, and frees a large body.
    pub fn clear(&mut self) {
        self.large = Vec::new();
        if !self.descriptors.is_empty() {
            self.discarded += self.descriptors.len() as u64;
            discard(self.descriptors.drain(..).collect());
        }
    }
}

impl Drop for PacketBuffer {
    fn drop(&mut self) {
        self.clear();
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl PacketSocket {
    /// Takes a connected seqpacket socket; sets close-on-exec and non-blocking.
    ///
    /// # Errors
    /// It is another kind of descriptor, or there is no runtime.
    pub fn new(descriptor: OwnedFd) -> Result<Self, SocketError> {
        tokio::runtime::Handle::try_current().map_err(SocketError::NoRuntime)?;
        if !sys::is_seqpacket(descriptor.as_fd()).unwrap_or(false) {
            return Err(SocketError::NotSeqpacket);
        }
        if !sys::is_connected(descriptor.as_fd()).unwrap_or(false) {
            return Err(SocketError::NotConnected);
        }
        sys::set_port_flags(descriptor.as_fd())
            .map_err(|error| SocketError::System(error.into()))?;
        let socket = sys::watch_for_reading(descriptor).map_err(SocketError::System)?;
        Ok(Self { socket })
    }

    /// Takes the socket out of the runtime.
    pub fn into_descriptor(self) -> OwnedFd {
        self.socket.into_inner()
    }

    /// Receives the next packet if there is one; `None` if not.
    ///
    /// # Errors
    /// See [`ReceiveError`]; whatever descriptors came are closed.
    pub fn try_receive<'b>(
        &self,
        buffer: &'b mut PacketBuffer,
    ) -> Result<Option<Packet<'b>>, ReceiveError> {
        match self.receive_raw(buffer)? {
            Some(received) => self.finish(buffer, received).map(Some),
            None => Ok(None),
        }
    }

    /// A peer that closes with unread data makes the first receive fail with `CONNRESET`; what it
    /// had sent before is still there, and then the end.
    fn receive_raw(
        &self,
        buffer: &mut PacketBuffer,
    ) -> Result<Option<sys::Received>, ReceiveError> {
        buffer.clear();
        let mut resets = 0;
        loop {
            match sys::receive(self.as_fd(), &mut buffer.bytes, &mut buffer.descriptors) {
                Ok(received) => return Ok(Some(received)),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) if resets == 0 => resets += 1,
                Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
                Err(error) => return Err(ReceiveError::System(error)),
            }
        }
    }

    fn finish<'b>(
        &self,
        buffer: &'b mut PacketBuffer,
        received: sys::Received,
    ) -> Result<Packet<'b>, ReceiveError> {
        match self.check(buffer, received) {
            Ok((header, missing)) => {
                let body = if header.large {
                    buffer.large.as_slice()
                } else {
                    buffer.bytes.get(HEADER_LEN..received.length).unwrap_or_default()
                };
                let descriptors = &mut buffer.descriptors;
                Ok(Packet { header, body, descriptors, missing })
            }
            Err(error) => {
                buffer.clear();
                Err(error)
            }
        }
    }

    fn check(
        &self,
        buffer: &mut PacketBuffer,
        received: sys::Received,
    ) -> Result<(Header, usize), ReceiveError> {
        if received.length == 0 {
            return Err(ReceiveError::Closed);
        }
        if received.truncated {
            return Err(ReceiveError::Truncated);
        }
        let packet = buffer.bytes.get(..received.length).unwrap_or_default();
        let (header, unknown_format) = read_header(packet)?;
        let announced = usize::from(header.descriptors);
        let arrived = buffer.descriptors.len();
        // As many as announced and still some lost: the sender attached more than it said.
        if arrived > announced || (arrived == announced && received.descriptors_lost) {
            return Err(ReceiveError::Unannounced { received: arrived, announced });
        }
        if let Some(format) = unknown_format {
            let Header { kind, sequence, .. } = header;
            let announced = transferred(&header);
            return Err(ReceiveError::Format { kind, sequence, announced, format });
        }
        if header.large {
            let sequence = header.sequence;
            let Some(memory) = buffer.descriptors.first() else {
                return Err(ReceiveError::Body { sequence, reason: None });
            };
            // What is no sealed memory may be slow to close: it stays with the others then.
            let bound = buffer.max_message.saturating_add(MAX_TRANSFER_LIST);
            buffer.large = sys::read_sealed_memory(memory, bound)
                .map_err(|reason| ReceiveError::Body { sequence, reason: Some(reason) })?;
            drop(buffer.descriptors.remove(0));
        }
        Ok((header, announced - arrived))
    }

    /// Waits for the next packet and receives it.
    ///
    /// # Errors
    /// As [`try_receive`](Self::try_receive).
    ///
    /// # Cancel safety
    /// Nothing is received before this is ready.
    pub async fn receive<'b>(
        &self,
        buffer: &'b mut PacketBuffer,
    ) -> Result<Packet<'b>, ReceiveError> {
        loop {
            let mut guard = self.readable().await?;
            match self.receive_raw(buffer)? {
                Some(received) => return self.finish(buffer, received),
                None => guard.clear_ready(),
            }
        }
    }

    /// Waits until [`try_receive`](Self::try_receive) may find something. After it found nothing,
    /// `clear_ready` of the guard makes the next wait a real one.
    ///
    /// # Errors
    /// The runtime is shutting down.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn readable(&self) -> Result<impl Readiness + '_, ReceiveError> {
        self.socket.readable().await.map_err(|_| ReceiveError::Closed)
    }

    /// Waits until [`try_send`](Self::try_send) may succeed. Each wait looks anew: call it again
    /// when the send was [`Blocked`](Sent::Blocked) all the same.
    ///
    /// # Errors
    /// The runtime is shutting down.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn writable(&self) -> Result<(), SendError> {
        match self.as_fd().try_clone_to_owned().and_then(UnixSeqpacket::try_from) {
            Ok(socket) => {
                let ready = socket.as_async_fd().writable().await.map_err(|_| SendError::Closed)?;
                drop(ready);
            }
            // Out of descriptors or memory: neither is for ever.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
        Ok(())
    }

    /// Sends one packet now or not at all.
    ///
    /// # Errors
    /// The other side is closed, or the system refuses this packet for good.
    pub fn try_send(
        &self,
        parts: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Sent, SendError> {
        loop {
            match sys::send(self.as_fd(), parts, descriptors) {
                Ok(()) => return Ok(Sent::Whole),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Sent::Blocked),
                Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => return Ok(Sent::Later),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    return Err(SendError::Closed);
                }
                Err(error) => return Err(SendError::System(error)),
            }
        }
    }

    /// Closes the conversation for every holder of this end: what was sent is still delivered, then
    /// the other side sees the end. A plain close would not do while a duplicate exists.
    pub fn shutdown(&self) {
        // Fails only if the other side was first.
        let _ = rustix::net::shutdown(self.as_fd(), rustix::net::Shutdown::Both);
    }

    /// Stops the other side from sending, for every holder of this end. What waits here can still
    /// be sent.
    pub fn shutdown_receive(&self) {
        let _ = rustix::net::shutdown(self.as_fd(), rustix::net::Shutdown::Read);
    }
}

/// A header, and its codec byte if that has no meaning here: such a message alone is refused, the
/// port goes on.
fn read_header(packet: &[u8]) -> Result<(Header, Option<u8>), HeaderError> {
    match (Header::decode(packet), packet.first_chunk::<HEADER_LEN>()) {
        (Err(HeaderError::Codec(format)), Some(head)) => {
            let mut known = *head;
            known[3] = Codec::None as u8;
            Header::decode(&known).map(|(header, _)| (header, Some(format)))
        }
        (decoded, _) => decoded.map(|(header, _)| (header, None)),
    }
}

/// A socket that was ready when last looked at.
pub trait Readiness: Send {
    /// Notes that the socket was not ready after all, so that the next wait is a real one.
    fn clear_ready(&mut self);
}

impl Readiness for AsyncFdReadyGuard<'_, OwnedFd> {
    fn clear_ready(&mut self) {
        AsyncFdReadyGuard::clear_ready(self);
    }
}
