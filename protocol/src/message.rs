//! What router and worker say to each other: one enum a direction, and how each is written.
//!
//! A peer that says what its direction does not have, or in a state that does not take it, loses its
//! port; the process goes on. Lists are walked, never allocated by a count that the peer names.

mod from_worker;
mod hand_back;
mod refusal;
mod to_worker;
mod transfer_list;

pub use self::from_worker::{
    Acknowledge, ErrorReport, FromWorker, put_acknowledge, put_acknowledge_each, put_error,
};
pub use self::hand_back::HandBack;
pub use self::refusal::{Refusal, RefusalReason, put_refusal};
pub use self::to_worker::{
    Beside, Entries, OfferEntry, ToWorker, put_entry, put_entry_with, put_last, put_timeout,
};
pub use self::transfer_list::{
    ItemKind, MessageBody, decode_message, put_connection, put_item, put_message, put_prefix,
};
use crate::header::Header;
use crate::limits::MAX_PREFIX;
use crate::tlv::TlvError;

/// Kind bytes of the header. Bit 7 is [`LARGE`](crate::header::LARGE).
pub mod kind {
    /// Router → worker: a router begins.
    pub const ATTACH: u8 = 0x01;
    /// Router → worker: connections, one descriptor each.
    pub const OFFER: u8 = 0x02;
    /// Router → worker: one message with its transfer list.
    pub const MESSAGE: u8 = 0x03;
    /// Router → worker: messages of the worker that could not be taken.
    pub const REFUSED: u8 = 0x04;
    /// Router → worker: finish what is open, nothing new comes.
    pub const DRAIN: u8 = 0x05;
    /// Router → worker: end.
    pub const CLOSE: u8 = 0x06;

    /// Worker → router: the answer to `ATTACH`, when the worker is ready.
    pub const HELLO: u8 = 0x41;
    /// Worker → router: what it has taken, and how much it holds.
    pub const ACKNOWLEDGE: u8 = 0x42;
    /// Worker → router: what it does not take, and why.
    pub const REFUSE: u8 = 0x43;
    /// Worker → router: a message. Carries no descriptors but a large body's.
    pub const WORKER_MESSAGE: u8 = 0x44;
    /// Worker → router: an error in the program.
    pub const ERROR: u8 = 0x45;
    /// Worker → router: it drains by itself and wants a replacement.
    pub const DRAINING: u8 = 0x46;
    /// Worker → router: its program called `close()`.
    pub const CLOSING: u8 = 0x47;
    /// Worker → router: a connection comes back, with its descriptor.
    pub const HAND_BACK: u8 = 0x48;

    /// Either way on a port of the user's own: one message with its transfer list.
    pub const PORT_MESSAGE: u8 = 0x60;

    /// Supervisor ↔ router, either way: bincode.
    pub const SUPERVISION: u8 = 0x70;
}

/// An offer's entry: facts and message of one connection.
pub const TAG_ENTRY: u16 = 0x0001;
/// Within an entry: the user's message.
pub const TAG_MESSAGE: u16 = 0x0002;
/// The rest of the body, after this field of length 0, is the user's message.
pub const TAG_MESSAGE_FOLLOWS: u16 = 0x0003;
/// The next descriptor is a connection with these facts.
pub const TAG_CONNECTION: u16 = 0x0004;
/// The next descriptor is a port.
pub const TAG_PORT: u16 = 0x0005;
/// The next descriptor is a listening socket.
pub const TAG_LISTENER: u16 = 0x0006;
/// The next descriptor is any other.
pub const TAG_DESCRIPTOR: u16 = 0x0007;
/// What was read of the connection before it, up to 65,535 bytes of it; as often as needed.
pub const TAG_PREFIX: u16 = 0x0008;
/// Pool or worker that a connection handed back is for.
pub const TAG_TO: u16 = 0x0009;
/// Everything up to this sequence is taken (u64).
pub const TAG_UP_TO: u16 = 0x0010;
/// This sequence is taken (u64); as often as needed.
pub const TAG_EACH: u16 = 0x0011;
/// Open connections of the worker (u32).
pub const TAG_OPEN: u16 = 0x0012;
/// A refused sequence (u64) and the reason (u16).
pub const TAG_REFUSAL: u16 = 0x0013;
/// Milliseconds (u32).
pub const TAG_TIMEOUT: u16 = 0x0014;
/// In a `DRAIN`: everything ends, nobody takes over. Empty.
pub const TAG_LAST: u16 = 0x0015;
/// An error's message.
pub const TAG_TEXT: u16 = 0x0020;
/// An error's file.
pub const TAG_FILE: u16 = 0x0021;
/// An error's line (u32).
pub const TAG_LINE: u16 = 0x0022;
/// An error's column (u32).
pub const TAG_COLUMN: u16 = 0x0023;

/// Why a packet's body means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No kind that this direction has.
    #[error("kind {0:#04x} does not belong here")]
    Kind(u8),
    /// The fields are malformed.
    #[error(transparent)]
    Field(#[from] TlvError),
    /// The body describes another number of descriptors than the header announces.
    #[error("body describes {described} descriptors, header announces {announced}")]
    Descriptors {
        /// As many as the body tells what they are.
        described: usize,
        /// As many as the header says.
        announced: usize,
    },
    /// A kind that carries no descriptors announces some.
    #[error("kind {kind:#04x} carries no descriptors, but announces {announced}")]
    Unasked {
        /// The kind.
        kind: u8,
        /// As many as the header says.
        announced: usize,
    },
    /// More was read of a connection than can travel with it.
    #[error("{0} bytes were read of a connection, at most {MAX_PREFIX} can travel with it")]
    Prefix(usize),
    /// Bytes that were read of a connection, and no connection, or several.
    #[error("bytes that were read of a connection come without it")]
    StrayPrefix,
    /// A kind whose body always fits its packet comes with a body in a memfd.
    #[error("kind {0:#04x} never has a large body")]
    Large(u8),
}

/// Descriptors of a packet that belong to its transfer list: all but a large body's memfd.
pub fn transferred(header: &Header) -> usize {
    usize::from(header.descriptors).saturating_sub(usize::from(header.large))
}

fn without_descriptors(header: &Header) -> Result<(), MessageError> {
    match transferred(header) {
        0 => Ok(()),
        announced => Err(MessageError::Unasked { kind: header.kind, announced }),
    }
}
