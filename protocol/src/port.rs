//! `MessageChannel` and `MessagePort`, as on the web, between processes.
//!
//! Differences from the web: a port delivers when [`MessagePort::recv`] is called, not by events; the
//! queue before a slow receiver is bounded ([`QUEUE_MESSAGES`], [`QUEUE_BYTES`]), and a full queue is
//! an error that hands everything back.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::codec::{Codec, Data, EncodeError};
use crate::connection_info::Names;
use crate::envelope::{self, Transfer, Transferable};
use crate::header::{HEADER_LEN, Header};
use crate::limits::{INLINE_MESSAGE, MAX_DESCRIPTORS, MAX_MESSAGE, QUEUE_BYTES, QUEUE_MESSAGES};
use crate::message::{MessageError, decode_message, kind};
pub use crate::socket::SocketError;
use crate::socket::{PacketBuffer, PacketSocket, Readiness, ReceiveError, SendError, Sent};
use crate::sys;

/// How long to wait before a send that failed for want of something no event announces: the other
/// side needs about this long to take descriptors out of its queue.
const RETRY: Duration = Duration::from_millis(2);

/// Makes pairs of connected ports.
#[derive(Debug)]
pub struct MessageChannel {
    /// One end.
    pub port1: MessagePort,
    /// The other.
    pub port2: MessagePort,
}

impl MessageChannel {
    /// Two ports; what is posted to one is received from the other.
    ///
    /// # Errors
    /// Out of descriptors, or outside a tokio runtime.
    pub fn new() -> Result<Self, SocketError> {
        let (one, two) =
            sys::seqpacket_pair().map_err(|error| SocketError::System(error.into()))?;
        Ok(Self { port1: MessagePort::new(one)?, port2: MessagePort::new(two)? })
    }
}

/// One end of a channel. Cloning is explicit: [`try_clone`](Self::try_clone).
#[derive(Debug)]
pub struct MessagePort {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PacketSocket,
    outbox: Mutex<Outbox>,
    inbox: tokio::sync::Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Outbox {
    waiting: VecDeque<Packed>,
    bytes: usize,
    sequence: u64,
    /// A task waits for room and will send what waits.
    flushing: bool,
    closed: bool,
}

#[derive(Debug)]
struct Inbox {
    buffer: PacketBuffer,
    names: Names,
    over: bool,
}

/// A packet that is ready to go, with everything it carries.
#[derive(Debug)]
struct Packed {
    header: Header,
    body: Vec<u8>,
    memory: Option<OwnedFd>,
    data: Data,
    transfer: Vec<Transferable>,
}

/// What a port brings.
#[derive(Debug)]
pub enum PortEvent {
    /// A message with what was transferred with it.
    Message {
        /// The message.
        data: Data,
        /// The transfer list, in order.
        transfer: Vec<Transferable>,
    },
    /// Something arrived that cannot be read; its descriptors are closed and the port goes on.
    MessageError(PortMessageError),
}

/// Why an arrived message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortMessageError {
    /// The packet is malformed.
    #[error("message is malformed")]
    Malformed(#[from] MessageError),
    /// The large body is unusable.
    #[error("message cannot be received")]
    Receive(#[from] ReceiveError),
    /// Descriptors were lost on the way: the receiver is at its limit, or its policy forbids them.
    #[error("{0} of the message's descriptors did not arrive")]
    MissingDescriptors(usize),
}

/// Why a message was not posted. Everything is handed back.
#[derive(Debug, thiserror::Error)]
#[error("message was not posted")]
pub struct PostMessageError {
    /// Why.
    #[source]
    pub reason: PostError,
    /// The message, if it could be written.
    pub message: Data,
    /// The transfer list, untouched.
    pub transfer: Vec<Transferable>,
}

/// Why a message was not posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The port is closed, on this side or the other.
    #[error("the port is closed")]
    Closed,
    /// [`QUEUE_MESSAGES`] or [`QUEUE_BYTES`] wait before a slow receiver.
    #[error("{QUEUE_MESSAGES} messages or {QUEUE_BYTES} bytes wait before a slow receiver")]
    QueueFull,
    /// The message cannot be written (the web's `DataCloneError`).
    #[error("the message cannot be cloned")]
    DataClone(#[from] EncodeError),
    /// More descriptors than a packet carries.
    #[error("{0} things in the transfer list, at most {MAX_DESCRIPTORS} fit")]
    TooManyTransferred(usize),
    /// A port in the transfer list still has messages that its receiver has no room for.
    #[error("a transferred port still has messages waiting to be sent")]
    PortBusy,
    /// The system refused.
    #[error("the system refused the message")]
    System(#[from] SendError),
}

/// A port on its way to or from another process.
#[derive(Debug)]
pub struct PortDescriptor(Holder);

#[derive(Debug)]
enum Holder {
    /// It arrived and is in no runtime yet.
    Bare(OwnedFd),
    /// It was a port here. Dropping it takes it out of the runtime first, then closes it: a
    /// descriptor that is closed while registered would keep firing.
    Port(Arc<Shared>),
}

impl From<OwnedFd> for PortDescriptor {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Holder::Bare(descriptor))
    }
}

impl From<MessagePort> for PortDescriptor {
    fn from(port: MessagePort) -> Self {
        Self(Holder::Port(port.shared))
    }
}

impl AsFd for PortDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Holder::Bare(descriptor) => descriptor.as_fd(),
            Holder::Port(shared) => shared.socket.as_fd(),
        }
    }
}

impl PortDescriptor {
    /// Whether it can be transferred: nothing that was posted waits on this side.
    pub fn is_idle(&self) -> bool {
        match &self.0 {
            Holder::Bare(_) => true,
            Holder::Port(shared) => shared.outbox().waiting.is_empty(),
        }
    }

    /// The port, usable in this process.
    ///
    /// # Errors
    /// It is no seqpacket socket, or there is no runtime.
    pub fn into_port(self) -> Result<MessagePort, SocketError> {
        match self.0 {
            Holder::Bare(descriptor) => MessagePort::new(descriptor),
            Holder::Port(shared) => Ok(MessagePort { shared }),
        }
    }
}

impl MessagePort {
    /// Takes a connected seqpacket socket.
    ///
    /// # Errors
    /// It is another kind of descriptor, or there is no tokio runtime.
    pub fn new(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let shared = Shared {
            socket: PacketSocket::new(descriptor)?,
            outbox: Mutex::default(),
            inbox: tokio::sync::Mutex::new(Inbox {
                buffer: PacketBuffer::default(),
                names: Names::default(),
                over: false,
            }),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Another handle of the same end, for keeping one while transferring the other. Two readers of
    /// one end take messages from each other.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        let copy = self.shared.socket.as_fd().try_clone_to_owned().map_err(SocketError::System)?;
        Self::new(copy)
    }

    /// Posts a value as bincode: between Rust programs of one release. Never waits.
    ///
    /// # Errors
    /// See [`PostError`]; message and transfer list come back.
    pub fn post_message<T: Serialize + ?Sized>(
        &self,
        message: &T,
        transfer: impl Transfer,
    ) -> Result<(), PostMessageError> {
        self.post_as(Codec::Bincode, message, transfer)
    }

    /// Posts a value in the named format; JSON is what other languages read.
    ///
    /// # Errors
    /// See [`PostError`]; message and transfer list come back.
    pub fn post_as<T: Serialize + ?Sized>(
        &self,
        codec: Codec,
        message: &T,
        transfer: impl Transfer,
    ) -> Result<(), PostMessageError> {
        let transfer = transfer.into_list();
        match Data::encode(codec, message) {
            Ok(data) => self.post(data, transfer),
            Err(error) => {
                Err(PostMessageError { reason: error.into(), message: Data::NONE, transfer })
            }
        }
    }

    /// Posts a message that is already written.
    ///
    /// # Errors
    /// See [`PostError`]; message and transfer list come back.
    pub fn post(&self, data: Data, transfer: Vec<Transferable>) -> Result<(), PostMessageError> {
        let packed = pack(data, transfer)?;
        let mut outbox = self.shared.outbox();
        if outbox.closed {
            return Err(packed.give_back(PostError::Closed));
        }
        if outbox.is_full(packed.weight()) {
            return Err(packed.give_back(PostError::QueueFull));
        }
        outbox.bytes += packed.weight();
        outbox.waiting.push_back(packed);
        if outbox.flushing {
            return Ok(());
        }
        match self.shared.flush(&mut outbox) {
            Ok(Sent::Whole) => Ok(()),
            Ok(Sent::Blocked | Sent::Later) => {
                self.shared.start_flush(&mut outbox);
                Ok(())
            }
            Err(error) => {
                let reason = match error {
                    SendError::Closed => PostError::Closed,
                    SendError::System(_) => PostError::System(error),
                };
                outbox.closed = true;
                match outbox.take_last() {
                    Some(packed) => Err(packed.give_back(reason)),
                    None => Ok(()),
                }
            }
        }
    }

    /// The next message, or `None` once the other side is closed and everything it sent was
    /// received: the web's `close` event.
    ///
    /// # Cancel safety
    /// A message is taken from the port only when this is ready.
    pub async fn recv(&self) -> Option<PortEvent> {
        let mut inbox = self.shared.inbox.lock().await;
        let inbox = &mut *inbox;
        if inbox.over {
            return None;
        }
        match self.shared.socket.receive(&mut inbox.buffer).await {
            Ok(packet) => {
                if packet.header.kind != kind::PORT_MESSAGE {
                    let wrong = MessageError::Kind(packet.header.kind);
                    return Some(PortEvent::MessageError(wrong.into()));
                }
                Some(match decode_message(&packet.header, packet.body, &mut inbox.names) {
                    Err(error) => PortEvent::MessageError(error.into()),
                    Ok(_) if packet.missing > 0 => PortEvent::MessageError(
                        PortMessageError::MissingDescriptors(packet.missing),
                    ),
                    Ok(body) => PortEvent::Message {
                        data: Data::from_parts(packet.header.codec, body.message.to_vec()),
                        transfer: envelope::pair(body.items, packet.descriptors),
                    },
                })
            }
            Err(error) if !error.is_fatal() => Some(PortEvent::MessageError(error.into())),
            Err(ReceiveError::Closed) => {
                inbox.over = true;
                None
            }
            Err(error) => {
                inbox.over = true;
                self.close();
                Some(PortEvent::MessageError(error.into()))
            }
        }
    }

    /// Closes the port for both sides: the other side gets what was sent, then the end. What still
    /// waits here is dropped. Any number of times.
    pub fn close(&self) {
        let mut outbox = self.shared.outbox();
        outbox.closed = true;
        outbox.waiting.clear();
        outbox.bytes = 0;
        self.shared.socket.shutdown();
    }
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // A panic while the queue is locked leaves it whole: every step keeps its invariants.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, until the receiver is slow.
    fn flush(&self, outbox: &mut Outbox) -> Result<Sent, SendError> {
        while let Some(packed) = outbox.waiting.front() {
            let sequence = outbox.sequence + 1;
            match packed.send(&self.socket, sequence)? {
                Sent::Whole => {
                    outbox.sequence = sequence;
                    if let Some(packed) = outbox.waiting.pop_front() {
                        outbox.bytes -= packed.weight();
                    }
                }
                other => return Ok(other),
            }
        }
        Ok(Sent::Whole)
    }

    /// Leaves a task behind that sends what waits. It ends with the queue, or with the other side.
    fn start_flush(self: &Arc<Self>, outbox: &mut Outbox) {
        outbox.flushing = true;
        let shared = Arc::clone(self);
        tokio::spawn(async move { shared.flush_all().await });
    }

    async fn flush_all(&self) {
        loop {
            let Ok(mut ready) = self.socket.writable().await else { return };
            let sent = {
                let mut outbox = self.outbox();
                let sent = self.flush(&mut outbox);
                if matches!(sent, Ok(Sent::Whole)) {
                    outbox.flushing = false;
                }
                if sent.is_err() {
                    outbox.closed = true;
                    outbox.flushing = false;
                    outbox.waiting.clear();
                    outbox.bytes = 0;
                }
                sent
            };
            match sent {
                Ok(Sent::Blocked) => ready.clear_ready(),
                Ok(Sent::Later) => {
                    drop(ready);
                    tokio::time::sleep(RETRY).await;
                }
                Ok(Sent::Whole) | Err(_) => return,
            }
        }
    }
}

impl Outbox {
    fn is_full(&self, weight: usize) -> bool {
        !self.waiting.is_empty()
            && (self.waiting.len() >= QUEUE_MESSAGES || self.bytes + weight > QUEUE_BYTES)
    }

    fn take_last(&mut self) -> Option<Packed> {
        let packed = self.waiting.pop_back()?;
        self.bytes -= packed.weight();
        Some(packed)
    }
}

impl Packed {
    fn weight(&self) -> usize {
        HEADER_LEN + self.data.len()
    }

    fn send(&self, socket: &PacketSocket, sequence: u64) -> Result<Sent, SendError> {
        let header = Header { sequence, ..self.header };
        let head = header.encode();
        let mut descriptors = Vec::with_capacity(self.transfer.len() + 1);
        descriptors.extend(self.memory.as_ref().map(AsFd::as_fd));
        descriptors.extend(self.transfer.iter().map(AsFd::as_fd));
        socket.try_send(&[IoSlice::new(&head), IoSlice::new(&self.body)], &descriptors)
    }

    fn give_back(self, reason: PostError) -> PostMessageError {
        PostMessageError { reason, message: self.data, transfer: self.transfer }
    }
}

fn pack(data: Data, transfer: Vec<Transferable>) -> Result<Packed, PostMessageError> {
    let fail = |reason: PostError, message: Data, transfer: Vec<Transferable>| {
        Err(PostMessageError { reason, message, transfer })
    };
    let large = data.len() > INLINE_MESSAGE;
    let count = transfer.len() + usize::from(large);
    if data.len() > MAX_MESSAGE {
        let error = EncodeError::TooLarge { length: data.len(), bound: MAX_MESSAGE };
        return fail(error.into(), data, transfer);
    }
    if count > MAX_DESCRIPTORS {
        return fail(PostError::TooManyTransferred(transfer.len()), data, transfer);
    }
    if transfer.iter().any(|item| matches!(item, Transferable::Port(port) if !port.is_idle())) {
        return fail(PostError::PortBusy, data, transfer);
    }
    let mut body = Vec::with_capacity(data.len() + 8 * transfer.len() + 8);
    if let Err(too_long) = envelope::encode(&mut body, &transfer, data.as_bytes()) {
        let error = EncodeError::TooLarge { length: too_long.0, bound: usize::from(u16::MAX) };
        return fail(error.into(), data, transfer);
    }
    let mut memory = None;
    if large {
        match sys::sealed_memory(&body) {
            Ok(sealed) => memory = Some(sealed),
            Err(error) => return fail(SendError::System(error).into(), data, transfer),
        }
        body = Vec::new();
    }
    let header = Header {
        codec: data.codec(),
        large,
        // At most MAX_DESCRIPTORS, checked above.
        descriptors: count as u8,
        ..Header::new(kind::PORT_MESSAGE, 0)
    };
    Ok(Packed { header, body, memory, data, transfer })
}
