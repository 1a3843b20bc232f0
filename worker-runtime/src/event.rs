//! What the port brings to the program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use vestibule_protocol::codec::DecodeError;
use vestibule_protocol::message::RefusalReason;
use vestibule_protocol::{Data, MessagePort};

use crate::connection_info::ConnectionInfo;
use crate::stream::Stream;

/// A connection that is this worker's: acknowledged, and nothing of it read.
#[derive(Debug)]
pub struct Connection {
    /// The connection. It counts as open until it is dropped.
    pub stream: Stream,
    /// What is known about it, with the message posted with it.
    pub info: ConnectionInfo,
}

/// One event of the worker's scope.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection, with the message that was posted with it.
    Connection {
        /// The connection. It counts as open until it is dropped.
        stream: Stream,
        /// What is known about it.
        info: ConnectionInfo,
        /// The message posted with it; [`Data::NONE`] if there was none.
        message: Data,
    },
    /// A message, with what was transferred with it: nothing, or anything but a single connection.
    Message {
        /// The message.
        data: Data,
        /// The transfer list, in order.
        transfer: Vec<Transferred>,
    },
    /// Something arrived that this program cannot take. The sender got it back; descriptors that
    /// came with it are closed.
    MessageError(MessageError),
    /// A message of this worker that the router did not take.
    Undelivered {
        /// The number that posting it returned.
        sequence: u64,
        /// Why.
        reason: RefusalReason,
    },
    /// Finish: no new connections come. What is open after this time is closed.
    Draining {
        /// How long the program has.
        timeout: Duration,
    },
}

/// A thing that came with a message, usable in this process.
#[derive(Debug)]
#[non_exhaustive]
pub enum Transferred {
    /// A client's connection.
    Connection(Connection),
    /// A message port; what was queued in it came with it.
    Port(MessagePort),
    /// A listening socket.
    Listener(OwnedFd),
    /// Any other descriptor.
    Descriptor(OwnedFd),
}

/// Why something that arrived could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The message is not of the type that the program decodes every message as.
    #[error("message {sequence} is not what the program expects")]
    Undecodable {
        /// Its number.
        sequence: u64,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// The packet's fields are malformed, or describe other descriptors than came.
    #[error("message {sequence} is malformed")]
    Malformed {
        /// Its number.
        sequence: u64,
        /// What is wrong.
        #[source]
        source: vestibule_protocol::message::MessageError,
    },
    /// Its format is unknown, or its large body is unusable.
    #[error("message {sequence} cannot be received")]
    Unreadable {
        /// Its number.
        sequence: u64,
        /// What is wrong.
        #[source]
        source: vestibule_protocol::socket::ReceiveError,
    },
    /// Descriptors were lost on the way: this process is at its limit, or a policy forbids them.
    #[error("{missing} descriptors of message {sequence} did not arrive")]
    MissingDescriptors {
        /// Number of the message, or of the first connection whose descriptor is missing.
        sequence: u64,
        /// How many.
        missing: usize,
    },
    /// A descriptor is not what the sender said: no port, no connection that can be waited for.
    #[error("a descriptor of message {sequence} is unusable")]
    Descriptor {
        /// Its number.
        sequence: u64,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}
