//! A message with its transfer list: what `post_message` takes and what arrives.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::connection_info::ConnectionInfo;
use crate::message::{self, ItemKind};
use crate::port::{MessagePort, PortDescriptor};
use crate::sys::ClientSocket;
use crate::tlv::TooLong;

/// A client's connection on its way: the descriptor and what is known about it. It cannot be read.
#[derive(Debug)]
pub struct PassedConnection {
    /// The connection. Dropped, it is closed without waiting.
    pub descriptor: ClientSocket,
    /// Its facts.
    pub info: ConnectionInfo,
    /// What was read of it and not answered: it comes before anything from the socket.
    pub prefix: Box<[u8]>,
}

/// A thing that a message can carry. It is moved: the caller cannot use it afterwards.
///
/// ```compile_fail,E0382
/// # use vestibule_protocol::{MessagePort, Transferable};
/// fn twice(port: &MessagePort, descriptor: std::os::fd::OwnedFd) {
///     // The same descriptor twice in one list is a use after move.
///     let list = vec![Transferable::from(descriptor), Transferable::from(descriptor)];
///     let _ = port.post_message(&1, list);
/// }
/// ```
///
/// ```compile_fail,E0505
/// # use vestibule_protocol::MessagePort;
/// fn itself(port: MessagePort) {
///     // A port in its own transfer list is a move while it is borrowed.
///     let _ = port.post_message(&1, port);
/// }
/// ```
#[derive(Debug)]
pub enum Transferable {
    /// A client's connection.
    Connection(PassedConnection),
    /// A message port; what is queued in it travels with it.
    Port(PortDescriptor),
    /// A listening socket.
    Listener(OwnedFd),
    /// Any other descriptor.
    Descriptor(OwnedFd),
}

impl Transferable {
    /// What the receiver is told that it is.
    pub fn kind(&self) -> ItemKind {
        match self {
            Self::Connection(connection) => ItemKind::Connection(connection.info.clone()),
            Self::Port(_) => ItemKind::Port,
            Self::Listener(_) => ItemKind::Listener,
            Self::Descriptor(_) => ItemKind::Descriptor,
        }
    }

    /// A received descriptor as what the sender said that it is.
    pub fn from_received(kind: ItemKind, descriptor: OwnedFd) -> Self {
        match kind {
            ItemKind::Connection(info) => {
                let (descriptor, prefix) = (descriptor.into(), Box::default());
                Self::Connection(PassedConnection { descriptor, info, prefix })
            }
            ItemKind::Port => Self::Port(PortDescriptor::from(descriptor)),
            ItemKind::Listener => Self::Listener(descriptor),
            ItemKind::Descriptor => Self::Descriptor(descriptor),
        }
    }
}

impl AsFd for Transferable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Connection(connection) => connection.descriptor.as_fd(),
            Self::Port(port) => port.as_fd(),
            Self::Listener(descriptor) | Self::Descriptor(descriptor) => descriptor.as_fd(),
        }
    }
}

impl From<PassedConnection> for Transferable {
    fn from(connection: PassedConnection) -> Self {
        Self::Connection(connection)
    }
}

impl From<MessagePort> for Transferable {
    fn from(port: MessagePort) -> Self {
        Self::Port(port.into())
    }
}

impl From<PortDescriptor> for Transferable {
    fn from(port: PortDescriptor) -> Self {
        Self::Port(port)
    }
}

impl From<OwnedFd> for Transferable {
    fn from(descriptor: OwnedFd) -> Self {
        Self::Descriptor(descriptor)
    }
}

/// A transfer list: `()` for none, one thing, an array or a `Vec`.
pub trait Transfer {
    /// The list.
    fn into_list(self) -> Vec<Transferable>;
}

impl Transfer for () {
    fn into_list(self) -> Vec<Transferable> {
        Vec::new()
    }
}

impl Transfer for Vec<Transferable> {
    fn into_list(self) -> Vec<Transferable> {
        self
    }
}

impl<T: Into<Transferable>, const N: usize> Transfer for [T; N] {
    fn into_list(self) -> Vec<Transferable> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<T: Into<Transferable>> Transfer for T {
    fn into_list(self) -> Vec<Transferable> {
        vec![self.into()]
    }
}

/// Appends a transfer list and the message: the body of `MESSAGE` and `PORT_MESSAGE`.
///
/// # Errors
/// The facts of a connection do not fit a field.
pub fn encode(out: &mut Vec<u8>, transfer: &[Transferable], message: &[u8]) -> Result<(), TooLong> {
    for item in transfer {
        message::put_item(out, &item.kind())?;
    }
    message::put_message(out, message);
    Ok(())
}

/// Pairs the descriptors that arrived with what the sender said they are.
///
/// Stops at the shorter list; the caller has compared the counts.
pub fn pair(kinds: Vec<ItemKind>, descriptors: &mut Vec<OwnedFd>) -> Vec<Transferable> {
    kinds
        .into_iter()
        .zip(descriptors.drain(..))
        .map(|(kind, descriptor)| Transferable::from_received(kind, descriptor))
        .collect()
}
