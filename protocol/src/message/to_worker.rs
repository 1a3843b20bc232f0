//! What a router says to a worker.

use std::time::Duration;

use super::refusal::decode_refusals;
use super::transfer_list::decode_message;
use super::{
    MessageBody, MessageError, Refusal, TAG_ENTRY, TAG_LAST, TAG_MESSAGE, TAG_TIMEOUT, kind,
    transferred, without_descriptors,
};
use crate::connection_info::{Builder, ConnectionInfo, Names, TAG_SCOPE, TAG_TICKET, Ticket};
use crate::handshake::Attach;
use crate::header::Header;
use crate::tlv::{self, Field, Fields, TlvError, TooLong};

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
    /// Finish what is open.
    Drain {
        /// Within this time.
        timeout: Duration,
        /// Nobody takes over, as everything ends: what is idle need not be kept.
        last: bool,
    },
    /// End.
    Close,
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
            kind::DRAIN => {
                let (timeout, last) = decode_drain(body)?;
                Ok(Self::Drain { timeout, last })
            }
            kind::CLOSE => Ok(Self::Close),
            other => Err(MessageError::Kind(other)),
        }
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

fn decode_drain(body: &[u8]) -> Result<(Duration, bool), TlvError> {
    let (mut timeout, mut last) = (None, false);
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        match field.tag {
            TAG_TIMEOUT if timeout.is_none() => timeout = Some(field.u32()?),
            TAG_LAST => last = true,
            _ => {}
        }
    }
    let timeout = timeout.ok_or(TlvError::Missing(TAG_TIMEOUT))?;
    Ok((Duration::from_millis(timeout.into()), last))
}

/// Appends one connection of an offer.
///
/// # Errors
/// [`TooLong`] if facts and message exceed 65,535 bytes; nothing is appended then.
pub fn put_entry(out: &mut Vec<u8>, info: &ConnectionInfo, message: &[u8]) -> Result<(), TooLong> {
    put_entry_with(out, info, Beside::default(), message)
}

/// What a router says of a connection that its facts do not hold themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// With what it can be handed back.
    pub ticket: Option<Ticket>,
    /// For which later requests the decision holds; `None`: for all.
    pub scope: Option<&'a [u8]>,
}

impl Beside<'_> {
    /// Appends it to the facts.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Some(ticket) = self.ticket {
            tlv::put_array(out, TAG_TICKET, ticket.to_bytes());
        }
        if let Some(scope) = self.scope {
            // Longer ones are not made: see [`scope::encode`](crate::scope::encode).
            let _ = tlv::put(out, TAG_SCOPE, scope);
        }
    }
}

/// As [`put_entry`], with what the facts do not hold themselves.
///
/// # Errors
/// As [`put_entry`].
pub fn put_entry_with(
    out: &mut Vec<u8>,
    info: &ConnectionInfo,
    beside: Beside<'_>,
    message: &[u8],
) -> Result<(), TooLong> {
    let mut whole = Ok(());
    let before = out.len();
    tlv::nested(out, TAG_ENTRY, |out| {
        info.encode(out);
        beside.encode(out);
        if !message.is_empty() {
            whole = tlv::put(out, TAG_MESSAGE, message);
        }
    })?;
    if whole.is_err() {
        out.truncate(before);
    }
    whole
}

/// Appends to a `DRAIN` that nobody takes over.
pub fn put_last(out: &mut Vec<u8>) {
    tlv::put_array(out, TAG_LAST, []);
}

/// Appends the time of a `DRAIN`, at most 49 days.
pub fn put_timeout(out: &mut Vec<u8>, timeout: Duration) {
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    tlv::put_array(out, TAG_TIMEOUT, milliseconds.to_le_bytes());
}
