//! The channel between supervisor and router: typed messages over a real port, one direction each
//! way.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vestibule_protocol::codec::{Codec, Data, DecodeError, EncodeError};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::kind;
use vestibule_protocol::port::SocketError;
use vestibule_protocol::socket::{
    PacketBuffer, PacketSocket, Readiness, ReceiveError, SendError, Sent,
};
use vestibule_protocol::supervision::{FromRouter, ToRouter};
use vestibule_protocol::sys;

/// The supervisor's end: says [`ToRouter`], hears [`FromRouter`].
pub(crate) type SupervisorEnd = ControlPort<ToRouter, FromRouter>;
/// The router's end.
pub(crate) type RouterEnd = ControlPort<FromRouter, ToRouter>;

/// How long a message that cannot be sent for want of buffers waits before it is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct ControlPort<Out, In> {
    socket: PacketSocket,
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
}

/// Both ends.
pub(crate) fn channel() -> Result<(SupervisorEnd, RouterEnd), SocketError> {
    let (one, two) = sys::seqpacket_pair().map_err(|error| SocketError::System(error.into()))?;
    Ok((ControlPort::new(one)?, ControlPort::new(two)?))
}

impl<Out: Serialize, In: DeserializeOwned> ControlPort<Out, In> {
    fn new(descriptor: OwnedFd) -> Result<Self, SocketError> {
        let socket = PacketSocket::new(descriptor)?;
        Ok(Self { socket, buffer: PacketBuffer::default(), types: PhantomData })
    }

    /// Sends one message, with at most one descriptor.
    ///
    /// # Errors
    /// The other side is gone.
    ///
    /// # Cancel safety
    /// The message is sent whole or not at all; cancelled, it is not.
    pub(crate) async fn send(
        &self,
        message: &Out,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ControlError> {
        let body = Data::encode(Codec::Bincode, message)?;
        let header = Header {
            codec: Codec::Bincode,
            descriptors: descriptor.is_some().into(),
            ..Header::new(kind::SUPERVISION, 0)
        };
        let head = header.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(body.as_bytes())];
        loop {
            let mut ready = self.socket.writable().await?;
            match self.socket.try_send(&parts, descriptor.as_slice())? {
                Sent::Whole => return Ok(()),
                Sent::Blocked => ready.clear_ready(),
                Sent::Later => {
                    drop(ready);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// The next message, with its descriptor; `None` at the end.
    ///
    /// # Errors
    /// What arrived is no message of the other side.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn recv(&mut self) -> Result<Option<(In, Option<OwnedFd>)>, ControlError> {
        let packet = match self.socket.receive(&mut self.buffer).await {
            Ok(packet) => packet,
            Err(ReceiveError::Closed) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if packet.header.kind != kind::SUPERVISION {
            return Err(ControlError::Kind(packet.header.kind));
        }
        let message = vestibule_protocol::codec::decode(packet.header.codec, packet.body)?;
        Ok(Some((message, packet.descriptors.pop())))
    }
}

impl<Out, In> AsFd for ControlPort<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
