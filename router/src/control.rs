//! The channel between supervisor and router: typed messages over a real port, one direction each
//! way.
//!
//! Sending is a task of its own, fed by a queue: two sides that both wait for room would wait for
//! ever. The queues hold a few messages a process, so they need no other bound.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use vestibule_protocol::codec::{Codec, Data, DecodeError, EncodeError};
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::INLINE_MESSAGE;
use vestibule_protocol::message::kind;
use vestibule_protocol::port::SocketError;
use vestibule_protocol::socket::{
    Packet, PacketBuffer, PacketSocket, ReceiveError, SendError, Sent,
};
use vestibule_protocol::sys;

/// How long a message that cannot be sent for want of buffers waits before it is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// A message, with the descriptor that it carries.
pub(crate) type Parcel<T> = (T, Option<OwnedFd>);

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct ControlPort<Out, In> {
    socket: Arc<PacketSocket>,
    buffer: PacketBuffer,
    types: PhantomData<fn(Out) -> In>,
}

/// Why the channel is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("message cannot be written")]
    Encode(#[from] EncodeError),
    #[error("message cannot be read")]
    Decode(#[from] DecodeError),
    #[error("message cannot be sent")]
    Send(#[from] SendError),
    #[error("message cannot be received")]
    Receive(#[from] ReceiveError),
    #[error("packet of kind {0:#04x} does not belong here")]
    Kind(u8),
    #[cfg(feature = "cli")]
    #[error("the descriptor of a message did not arrive")]
    MissingDescriptor,
}

#[cfg(feature = "cli")]
impl ControlError {
    /// Whether it is about one message, and the next one may be read.
    pub(crate) fn is_of_one_message(&self) -> bool {
        match self {
            Self::Decode(_) | Self::Kind(_) | Self::MissingDescriptor => true,
            Self::Receive(error) => {
                !matches!(error, ReceiveError::Closed | ReceiveError::System(_))
            }
            Self::Encode(_) | Self::Send(_) => false,
        }
    }
}

impl<Out: Serialize + Send + Sync + 'static, In: DeserializeOwned> ControlPort<Out, In> {
    /// Takes one end of a pair.
    ///
    /// # Errors
    /// It is no seqpacket socket, or there is no runtime.
    pub(crate) fn new(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let socket = Arc::new(PacketSocket::new(descriptor)?);
        Ok(Self { socket, buffer: PacketBuffer::default(), types: PhantomData })
    }

    /// Ends the conversation for both sides, whoever else holds this end.
    #[cfg(feature = "cli")]
    pub(crate) fn shutdown(&self) {
        self.socket.shutdown();
    }

    /// Starts the task that sends. It ends when every sender is dropped or the other side is gone.
    pub(crate) fn sender(&self) -> mpsc::UnboundedSender<Parcel<Out>> {
        let (sender, queue) = mpsc::unbounded_channel();
        tokio::spawn(send_all(Arc::clone(&self.socket), queue));
        sender
    }

    /// Says one thing, and returns when it is sent; the descriptor stays the caller's, too. Not beside a
    /// [`sender`](Self::sender): which of the two is first is left open.
    ///
    /// # Errors
    /// It cannot be written, or the other side is gone.
    ///
    /// # Cancel safety
    /// It was sent whole or not at all; which of the two is not known.
    #[cfg(feature = "cli")]
    pub(crate) async fn say(
        &self,
        message: &Out,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ControlError> {
        send(&self.socket, message, descriptor).await
    }

    /// The next message; `None` at the end. At this process's descriptor limit a message comes
    /// without the descriptor that it had: what that means is for whoever knows the message.
    ///
    /// # Errors
    /// What arrived is no message of the other side.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn recv(&mut self) -> Result<Option<Parcel<In>>, ControlError> {
        let Some(packet) = self.packet().await? else { return Ok(None) };
        let message = vestibule_protocol::codec::decode(packet.header.codec, packet.body)?;
        Ok(Some((message, packet.descriptors.pop())))
    }

    /// As [`recv`](Self::recv), from a side that sends no descriptors: what comes all the same is
    /// closed on a thread of its own, as a close can block.
    ///
    /// # Errors
    /// What arrived is no message of the other side.
    ///
    /// # Cancel safety
    /// Safe.
    #[cfg(feature = "cli")]
    pub(crate) async fn recv_bare(&mut self) -> Result<Option<In>, ControlError> {
        let Some(packet) = self.packet().await? else { return Ok(None) };
        let message = vestibule_protocol::codec::decode(packet.header.codec, packet.body)?;
        self.buffer.clear();
        Ok(Some(message))
    }

    async fn packet(&mut self) -> Result<Option<Packet<'_>>, ControlError> {
        let packet = match self.socket.receive(&mut self.buffer).await {
            Ok(packet) => packet,
            Err(ReceiveError::Closed) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if packet.header.kind != kind::SUPERVISION {
            return Err(ControlError::Kind(packet.header.kind));
        }
        Ok(Some(packet))
    }
}

async fn send_all<Out: Serialize>(
    socket: Arc<PacketSocket>,
    mut queue: mpsc::UnboundedReceiver<Parcel<Out>>,
) {
    while let Some((message, descriptor)) = queue.recv().await {
        if let Err(error) = send(&socket, &message, descriptor.as_ref().map(AsFd::as_fd)).await {
            tracing::debug!(%error, "the other side of the control channel is gone");
            return;
        }
    }
}

async fn send<Out: Serialize>(
    socket: &PacketSocket,
    message: &Out,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), ControlError> {
    let body = Data::encode(Codec::Bincode, message)?;
    let large = body.len() > INLINE_MESSAGE;
    let memory = if large {
        Some(sys::sealed_memory(body.as_bytes()).map_err(SendError::System)?)
    } else {
        None
    };
    let descriptors: Vec<_> = memory.iter().map(AsFd::as_fd).chain(descriptor).collect();
    let header = Header {
        codec: Codec::Bincode,
        large,
        // One or two.
        descriptors: descriptors.len() as u8,
        ..Header::new(kind::SUPERVISION, 0)
    };
    let head = header.encode();
    let body = if large { &[] } else { body.as_bytes() };
    let parts = [IoSlice::new(&head), IoSlice::new(body)];
    loop {
        match socket.try_send(&parts, &descriptors)? {
            Sent::Whole => return Ok(()),
            Sent::Blocked => socket.writable().await?,
            Sent::Later => tokio::time::sleep(RETRY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_whose_descriptor_was_lost_arrives_all_the_same_and_the_next_too() {
        let (one, two) = sys::seqpacket_pair().unwrap();
        let mut port = ControlPort::<u32, u32>::new(one).unwrap();
        let other = PacketSocket::new(two).unwrap();
        for (number, descriptors) in [(7u32, 1), (8, 0)] {
            let body = Data::encode(Codec::Bincode, &number).unwrap();
            let header =
                Header { codec: Codec::Bincode, descriptors, ..Header::new(kind::SUPERVISION, 0) };
            let head = header.encode();
            // As it arrives at the descriptor limit: announced, and not there.
            let parts = [IoSlice::new(&head), IoSlice::new(body.as_bytes())];
            assert_eq!(other.try_send(&parts, &[]), Ok(Sent::Whole));
            let (message, descriptor) = port.recv().await.unwrap().unwrap();
            assert_eq!((message, descriptor.is_none()), (number, true));
        }
    }
}
