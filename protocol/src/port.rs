//! `MessageChannel` and `MessagePort`, as on the web, between processes.
//!
//! Differences from the web: a port delivers when [`MessagePort::recv`] is called, not by events; the
//! queue before a slow receiver is bounded ([`QUEUE_MESSAGES`], [`QUEUE_BYTES`]), and a full queue is
//! an error that hands everything back; a port cannot be transferred while messages posted to it wait
//! on this side ([`PostError::PortBusy`]); a message that cannot be read is told to its receiver only
//! (between router and worker its sender gets a refusal).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use self::outbox::{Outbox, pack};
use crate::codec::{Codec, Data, EncodeError};
use crate::connection_info::Names;
use crate::envelope::{self, Transfer, Transferable};
use crate::limits::{MAX_DESCRIPTORS, MAX_MESSAGE, QUEUE_BYTES, QUEUE_MESSAGES};
use crate::message::{MessageError, decode_message, kind, transferred};
pub use crate::socket::SocketError;
use crate::socket::{Packet, PacketBuffer, PacketSocket, ReceiveError, SendError};
use crate::sys::{self, MemoryError};

mod outbox;

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
    /// Where the task runs that sends what waits: a message may be posted from any thread.
    runtime: tokio::runtime::Handle,
    outbox: Mutex<Outbox>,
    /// `close()` was called while messages wait.
    closing: tokio::sync::Notify,
    max_message: AtomicUsize,
    takes_transfers: AtomicBool,
    inbox: tokio::sync::Mutex<Inbox>,
}

#[derive(Debug)]
struct Inbox {
    buffer: PacketBuffer,
    names: Names,
    over: bool,
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
    /// Something arrived that cannot be read; its descriptors are closed. The port goes on, unless
    /// what arrived breaks the protocol: then the next event is the end.
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
            Holder::Port(shared) => shared.outbox().is_idle(),
        }
    }

    /// The port, usable in this process.
    ///
    /// # Errors
    /// It is no connected seqpacket socket, or there is no runtime.
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
            runtime: tokio::runtime::Handle::try_current().map_err(SocketError::NoRuntime)?,
            outbox: Mutex::default(),
            closing: tokio::sync::Notify::new(),
            max_message: AtomicUsize::new(MAX_MESSAGE),
            takes_transfers: AtomicBool::new(true),
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

    /// Sets the largest message in bytes that this side sends and takes; [`MAX_MESSAGE`] at most,
    /// and by default.
    pub fn set_max_message(&self, bytes: usize) {
        self.shared.max_message.store(bytes.min(MAX_MESSAGE), Ordering::Relaxed);
    }

    /// Takes no transfer lists from here on: descriptors that come all the same are closed and the
    /// port with them. For the side that does not trust the other: things are transferred from parent
    /// to worker only.
    pub fn refuse_transfers(&self) {
        self.shared.takes_transfers.store(false, Ordering::Relaxed);
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
        let max_message = self.shared.max_message.load(Ordering::Relaxed);
        pack(&data, transfer, max_message)
            .and_then(|packed| self.shared.post(packed))
            .map_err(|(reason, transfer)| PostMessageError { reason, message: data, transfer })
    }

    /// The next message, or `None` once the other side is closed and everything it sent was
    /// received, or this side is closed: the web's `close` event.
    ///
    /// # Cancel safety
    /// A message is taken from the port only when this is ready.
    pub async fn recv(&self) -> Option<PortEvent> {
        let shared = &*self.shared;
        let mut inbox = shared.inbox.lock().await;
        let Inbox { buffer, names, over } = &mut *inbox;
        if *over || shared.outbox().is_closed() {
            return None;
        }
        buffer.set_max_message(shared.max_message.load(Ordering::Relaxed));
        let received = shared.socket.receive(buffer).await;
        let read = match received {
            // Closed here while this waited.
            _ if shared.outbox().is_closed() => Err(Unread::End),
            Ok(packet) => shared.read(packet, names),
            Err(ReceiveError::Closed) => Err(Unread::End),
            Err(error) if error.is_fatal() => Err(Unread::Fault(error.into())),
            Err(error) => Err(Unread::Message(error.into())),
        };
        buffer.clear();
        *over = matches!(read, Err(Unread::End | Unread::Fault(_)));
        if *over && !shared.outbox().is_closed() {
            shared.abort();
        }
        match read {
            Ok(event) => Some(event),
            Err(Unread::End) => None,
            Err(Unread::Message(error) | Unread::Fault(error)) => {
                Some(PortEvent::MessageError(error))
            }
        }
    }

    /// Closes the port. Nothing more is delivered to this side or from it: the other side gets what
    /// was posted before, then the end. If it is slow, what still waits here has 60 seconds. Any
    /// number of times.
    pub fn close(&self) {
        self.shared.close();
    }
}

/// Why a receive brought no message.
enum Unread {
    /// The port is closed, there or here.
    End,
    /// This message cannot be read.
    Message(PortMessageError),
    /// The other side breaks the protocol.
    Fault(PortMessageError),
}

impl From<MessageError> for Unread {
    /// A body that does not fit its descriptors is not a mistake of a program but of a peer.
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Descriptors { .. } | MessageError::Unasked { .. } => {
                Self::Fault(error.into())
            }
            _ => Self::Message(error.into()),
        }
    }
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // A panic while the queue is locked leaves it whole: every step keeps its invariants.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, packet: Packet<'_>, names: &mut Names) -> Result<PortEvent, Unread> {
        let Packet { header, body, descriptors, missing } = packet;
        let announced = transferred(&header);
        if header.kind != kind::PORT_MESSAGE && announced == 0 {
            return Err(MessageError::Kind(header.kind).into());
        }
        if header.kind != kind::PORT_MESSAGE
            || (announced > 0 && !self.takes_transfers.load(Ordering::Relaxed))
        {
            return Err(MessageError::Unasked { kind: header.kind, announced }.into());
        }
        let body = decode_message(&header, body, names)?;
        if missing > 0 {
            return Err(Unread::Message(PortMessageError::MissingDescriptors(missing)));
        }
        let bound = self.max_message.load(Ordering::Relaxed);
        if body.message.len() > bound {
            let length = body.message.len() as u64;
            let reason = Some(MemoryError::TooLarge { length, bound });
            let error = ReceiveError::Body { sequence: header.sequence, reason };
            return Err(Unread::Message(error.into()));
        }
        Ok(PortEvent::Message {
            data: Data::from_parts(header.codec, body.message.to_vec()),
            transfer: envelope::pair(body.items, descriptors),
        })
    }
}
