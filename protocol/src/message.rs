//! What router and worker say to each other: one enum a direction, and how each is written.
//!
//! A peer that says what its direction does not have, or in a state that does not take it, loses its
//! port; the process goes on. Lists are walked, never allocated by a count that the peer names.

use std::time::Duration;

use crate::connection_info::{Builder, ConnectionInfo, Names};
use crate::handshake::{Attach, Hello};
use crate::header::Header;
use crate::tlv::{self, Field, Fields, TlvError, TooLong};

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
    /// A kind whose body always fits its packet comes with a body in a memfd.
    #[error("kind {0:#04x} never has a large body")]
    Large(u8),
}

/// Why one side does not take what the other sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefusalReason {
    /// The worker finishes what it has and takes nothing new.
    Draining = 1,
    /// The program called `close()`.
    Closing = 2,
    /// The descriptor did not arrive: the receiver is at its limit, or its policy forbids it.
    MissingDescriptor = 3,
    /// It stood behind a missing descriptor in the same packet and was lost with it.
    BehindMissing = 4,
    /// The message is not what the program expects.
    Undecodable = 5,
    /// The message is in a format that the receiver cannot read.
    Format = 6,
    /// The receiver holds as much as it may.
    Full = 7,
    /// The receiver's program does not take such a thing.
    Unsupported = 8,
}

impl RefusalReason {
    /// The reason of a number on the wire. An unknown one, from a newer peer, is `Unsupported`.
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Draining,
            2 => Self::Closing,
            3 => Self::MissingDescriptor,
            4 => Self::BehindMissing,
            5 => Self::Undecodable,
            6 => Self::Format,
            7 => Self::Full,
            _ => Self::Unsupported,
        }
    }

    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Closing => "closing",
            Self::MissingDescriptor => "missing-descriptor",
            Self::BehindMissing => "behind-missing",
            Self::Undecodable => "undecodable",
            Self::Format => "format",
            Self::Full => "full",
            Self::Unsupported => "unsupported",
        }
    }

    /// Whether this refusal counts as an attempt of the connection's `max-attempts`.
    ///
    /// A worker that leaves, or a descriptor that was lost because of the one before it, says
    /// nothing against the connection.
    pub const fn counts_as_attempt(self) -> bool {
        !matches!(self, Self::Draining | Self::Closing | Self::BehindMissing)
    }
}

/// One refused sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is refused.
    pub sequence: u64,
    /// Why.
    pub reason: RefusalReason,
}

/// An error that a program reports: a panic, an uncaught exception.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorReport {
    /// What happened.
    pub message: String,
    /// Source file, empty if unknown.
    pub file: String,
    /// Line, from 1; 0 if unknown.
    pub line: u32,
    /// Column, from 1; 0 if unknown.
    pub column: u32,
}

/// What a descriptor of a transfer list is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// A client's connection.
    Connection(ConnectionInfo),
    /// A message port.
    Port,
    /// A listening socket.
    Listener,
    /// Any other descriptor.
    Descriptor,
}

/// One message with what its descriptors are, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageBody<'a> {
    /// What each descriptor is.
    pub items: Vec<ItemKind>,
    /// The user's message.
    pub message: &'a [u8],
}

/// One connection of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferEntry<'a> {
    /// Its facts.
    pub info: ConnectionInfo,
    /// The user's message posted with it; empty if none.
    pub message: &'a [u8],
}

/// Walks over the connections of an offer. The entry's place in the packet is its descriptor's.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    fields: Fields<'a>,
}

impl<'a> Entries<'a> {
    /// The next connection, or `None` at the end.
    ///
    /// # Errors
    /// Malformed fields; the walk cannot go on.
    pub fn next_entry(&mut self, names: &mut Names) -> Result<Option<OfferEntry<'a>>, TlvError> {
        loop {
            match self.fields.next_field()? {
                None => return Ok(None),
                Some(field) if field.tag == TAG_ENTRY => return entry(&field, names).map(Some),
                Some(_) => {}
            }
        }
    }
}

fn entry<'a>(field: &Field<'a>, names: &mut Names) -> Result<OfferEntry<'a>, TlvError> {
    let mut message: &[u8] = &[];
    let mut info = Builder::default();
    let mut fields = Fields::new(field.value);
    while let Some(field) = fields.next_field()? {
        if field.tag == TAG_MESSAGE {
            message = field.value;
        } else {
            info.take(&field, names)?;
        }
    }
    Ok(OfferEntry { info: info.finish(names)?, message })
}

/// What a router says to a worker.
#[derive(Clone, Debug)]
pub enum ToWorker<'a> {
    /// A router begins.
    Attach(Attach),
    /// Connections.
    Offer(Entries<'a>),
    /// A message with its transfer list.
    Message(MessageBody<'a>),
    /// Messages of the worker that could not be taken.
    Refused(Vec<Refusal>),
    /// Finish what is open within this time.
    Drain(Duration),
    /// End.
    Close,
}

/// What a worker says to a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromWorker<'a> {
    /// The answer to `Attach`.
    Hello(Hello),
    /// What it has taken.
    Acknowledge(Acknowledge<'a>),
    /// What it does not take.
    Refuse(Vec<Refusal>),
    /// A message.
    Message(&'a [u8]),
    /// An error in the program.
    Error(ErrorReport),
    /// It drains by itself.
    Draining,
    /// Its program called `close()`.
    Closing,
}

/// An acknowledgement: everything up to a number, or single numbers, and the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge<'a> {
    /// Everything up to here is taken; 0: nothing.
    pub up_to: u64,
    /// Open connections of the worker now.
    pub open: u32,
    fields: &'a [u8],
}

impl<'a> Acknowledge<'a> {
    /// Single sequences that are taken, in the order in which they were said.
    pub fn each(&self) -> impl Iterator<Item = u64> + 'a {
        let mut fields = Fields::new(self.fields);
        std::iter::from_fn(move || {
            loop {
                // The fields were checked when the packet was decoded.
                let field = fields.next_field().ok()??;
                if field.tag == TAG_EACH {
                    return field.u64().ok();
                }
            }
        })
    }
}

impl<'a> ToWorker<'a> {
    /// Reads a packet's body. For a large packet, `body` is the memfd's content.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn decode(
        header: &Header,
        body: &'a [u8],
        names: &mut Names,
    ) -> Result<Self, MessageError> {
        if !matches!(header.kind, kind::OFFER | kind::MESSAGE) {
            without_descriptors(header)?;
        }
        match header.kind {
            kind::ATTACH..=kind::CLOSE if header.large && header.kind != kind::MESSAGE => {
                Err(MessageError::Large(header.kind))
            }
            kind::ATTACH => Ok(Self::Attach(Attach::decode(body)?)),
            kind::OFFER => Ok(Self::Offer(decode_offer(header, body)?)),
            kind::MESSAGE => Ok(Self::Message(decode_message(header, body, names)?)),
            kind::REFUSED => Ok(Self::Refused(decode_refusals(body)?)),
            kind::DRAIN => Ok(Self::Drain(decode_timeout(body)?)),
            kind::CLOSE => Ok(Self::Close),
            other => Err(MessageError::Kind(other)),
        }
    }
}

impl<'a> FromWorker<'a> {
    /// Reads a packet's body. For a large packet, `body` is the memfd's content.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn decode(header: &Header, body: &'a [u8]) -> Result<Self, MessageError> {
        without_descriptors(header)?;
        match header.kind {
            kind::HELLO..=kind::CLOSING if header.large && header.kind != kind::WORKER_MESSAGE => {
                Err(MessageError::Large(header.kind))
            }
            kind::HELLO => Ok(Self::Hello(Hello::decode(body)?)),
            kind::ACKNOWLEDGE => Ok(Self::Acknowledge(decode_acknowledge(body)?)),
            kind::REFUSE => Ok(Self::Refuse(decode_refusals(body)?)),
            kind::WORKER_MESSAGE => Ok(Self::Message(body)),
            kind::ERROR => Ok(Self::Error(decode_error(body)?)),
            kind::DRAINING => Ok(Self::Draining),
            kind::CLOSING => Ok(Self::Closing),
            other => Err(MessageError::Kind(other)),
        }
    }
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

/// One entry a descriptor, counted before the first is used: the entries' place is all that tells
/// which descriptor is whose.
fn decode_offer<'a>(header: &Header, body: &'a [u8]) -> Result<Entries<'a>, MessageError> {
    let announced = transferred(header);
    let mut described = 0;
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        described += usize::from(field.tag == TAG_ENTRY);
    }
    if described != announced {
        return Err(MessageError::Descriptors { described, announced });
    }
    Ok(Entries { fields: Fields::new(body) })
}

/// Reads a message with its transfer list: `MESSAGE` and `PORT_MESSAGE`.
///
/// # Errors
/// Malformed fields, another number of descriptors than announced, or no message: a body that was
/// cut off is not an empty message.
pub fn decode_message<'a>(
    header: &Header,
    body: &'a [u8],
    names: &mut Names,
) -> Result<MessageBody<'a>, MessageError> {
    let announced = transferred(header);
    let mut items = Vec::new();
    let mut fields = Fields::new(body);
    let mut message = None;
    while let Some(field) = fields.next_field()? {
        match field.tag {
            TAG_CONNECTION => {
                items.push(ItemKind::Connection(ConnectionInfo::decode(field.value, names)?));
            }
            TAG_PORT => items.push(ItemKind::Port),
            TAG_LISTENER => items.push(ItemKind::Listener),
            TAG_DESCRIPTOR => items.push(ItemKind::Descriptor),
            TAG_MESSAGE_FOLLOWS => {
                let length = field.value.len();
                if length != 0 {
                    return Err(TlvError::Length { tag: field.tag, length }.into());
                }
                message = Some(fields.rest());
                break;
            }
            _ => {}
        }
        if items.len() > announced {
            return Err(MessageError::Descriptors { described: items.len(), announced });
        }
    }
    if items.len() != announced {
        return Err(MessageError::Descriptors { described: items.len(), announced });
    }
    let message = message.ok_or(TlvError::Missing(TAG_MESSAGE_FOLLOWS))?;
    Ok(MessageBody { items, message })
}

fn decode_acknowledge(body: &[u8]) -> Result<Acknowledge<'_>, TlvError> {
    let mut acknowledge = Acknowledge { up_to: 0, open: 0, fields: body };
    let mut open = None;
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        match field.tag {
            TAG_UP_TO => acknowledge.up_to = field.u64()?,
            TAG_EACH => {
                field.u64()?;
            }
            TAG_OPEN => open = Some(field.u32()?),
            _ => {}
        }
    }
    // A load that is not said must not look like a worker with nothing to do.
    acknowledge.open = open.ok_or(TlvError::Missing(TAG_OPEN))?;
    Ok(acknowledge)
}

fn decode_refusals(body: &[u8]) -> Result<Vec<Refusal>, TlvError> {
    let mut refusals = Vec::new();
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        if field.tag != TAG_REFUSAL {
            continue;
        }
        let wrong = TlvError::Length { tag: field.tag, length: field.value.len() };
        let Some((sequence, reason)) = field.value.split_first_chunk::<8>() else {
            return Err(wrong);
        };
        let Ok(reason) = <[u8; 2]>::try_from(reason) else { return Err(wrong) };
        refusals.push(Refusal {
            sequence: u64::from_le_bytes(*sequence),
            reason: RefusalReason::from_number(u16::from_le_bytes(reason)),
        });
    }
    Ok(refusals)
}

fn decode_timeout(body: &[u8]) -> Result<Duration, TlvError> {
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        if field.tag == TAG_TIMEOUT {
            return Ok(Duration::from_millis(field.u32()?.into()));
        }
    }
    Err(TlvError::Missing(TAG_TIMEOUT))
}

fn decode_error(body: &[u8]) -> Result<ErrorReport, TlvError> {
    let mut report = ErrorReport::default();
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        match field.tag {
            TAG_TEXT => field.text()?.clone_into(&mut report.message),
            TAG_FILE => field.text()?.clone_into(&mut report.file),
            TAG_LINE => report.line = field.u32()?,
            TAG_COLUMN => report.column = field.u32()?,
            _ => {}
        }
    }
    Ok(report)
}

/// Appends one connection of an offer.
///
/// # Errors
/// [`TooLong`] if facts and message exceed 65,535 bytes; nothing is appended then.
pub fn put_entry(out: &mut Vec<u8>, info: &ConnectionInfo, message: &[u8]) -> Result<(), TooLong> {
    let mut whole = Ok(());
    let before = out.len();
    tlv::nested(out, TAG_ENTRY, |out| {
        info.encode(out);
        if !message.is_empty() {
            whole = tlv::put(out, TAG_MESSAGE, message);
        }
    })?;
    if whole.is_err() {
        out.truncate(before);
    }
    whole
}

/// Appends what the next descriptor of a transfer list is.
///
/// # Errors
/// [`TooLong`] if a connection's facts exceed 65,535 bytes; nothing is appended then.
pub fn put_item(out: &mut Vec<u8>, item: &ItemKind) -> Result<(), TooLong> {
    match item {
        ItemKind::Connection(info) => tlv::nested(out, TAG_CONNECTION, |out| info.encode(out)),
        ItemKind::Port => tlv::put(out, TAG_PORT, &[]),
        ItemKind::Listener => tlv::put(out, TAG_LISTENER, &[]),
        ItemKind::Descriptor => tlv::put(out, TAG_DESCRIPTOR, &[]),
    }
}

/// Appends the user's message of a `MESSAGE` or `PORT_MESSAGE`: always last.
pub fn put_message(out: &mut Vec<u8>, message: &[u8]) {
    tlv::put_array(out, TAG_MESSAGE_FOLLOWS, []);
    out.extend_from_slice(message);
}

/// Appends an acknowledgement of everything up to a number, with the load.
pub fn put_acknowledge(out: &mut Vec<u8>, up_to: u64, open: u32) {
    tlv::put_array(out, TAG_UP_TO, up_to.to_le_bytes());
    tlv::put_array(out, TAG_OPEN, open.to_le_bytes());
}

/// Appends the acknowledgement of one number, with the load.
pub fn put_acknowledge_each(out: &mut Vec<u8>, sequences: &[u64], open: u32) {
    for sequence in sequences {
        tlv::put_array(out, TAG_EACH, sequence.to_le_bytes());
    }
    tlv::put_array(out, TAG_OPEN, open.to_le_bytes());
}

/// Appends a refusal.
pub fn put_refusal(out: &mut Vec<u8>, refusal: Refusal) {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = refusal.sequence.to_le_bytes();
    let [r0, r1] = (refusal.reason as u16).to_le_bytes();
    tlv::put_array(out, TAG_REFUSAL, [s0, s1, s2, s3, s4, s5, s6, s7, r0, r1]);
}

/// Appends the time of a `DRAIN`, at most 49 days.
pub fn put_timeout(out: &mut Vec<u8>, timeout: Duration) {
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    tlv::put_array(out, TAG_TIMEOUT, milliseconds.to_le_bytes());
}

/// Appends an error report; texts are cut to [`MAX_TEXT`](crate::limits::MAX_TEXT).
pub fn put_error(out: &mut Vec<u8>, report: &ErrorReport) {
    tlv::put_text(out, TAG_TEXT, &report.message);
    tlv::put_text(out, TAG_FILE, &report.file);
    tlv::put_array(out, TAG_LINE, report.line.to_le_bytes());
    tlv::put_array(out, TAG_COLUMN, report.column.to_le_bytes());
}
