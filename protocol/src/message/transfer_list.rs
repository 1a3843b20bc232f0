//! A message with what its descriptors are.

use std::borrow::Cow;

use super::{
    Beside, MessageError, TAG_CONNECTION, TAG_DESCRIPTOR, TAG_LISTENER, TAG_MESSAGE_FOLLOWS,
    TAG_PORT, TAG_PREFIX, transferred,
};
use crate::connection_info::{ConnectionInfo, Names};
use crate::header::Header;
use crate::limits::MAX_PREFIX;
use crate::tlv::{self, Fields, TlvError, TooLong};

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
    /// What an earlier worker has read of the only connection and not answered: it comes before
    /// anything from the socket. Empty, unless the list is one connection.
    pub prefix: Cow<'a, [u8]>,
    /// The user's message.
    pub message: &'a [u8],
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
    let mut prefix = Prefix::default();
    while let Some(field) = fields.next_field()? {
        match field.tag {
            TAG_CONNECTION => {
                items.push(ItemKind::Connection(ConnectionInfo::decode(field.value, names)?));
            }
            TAG_PORT => items.push(ItemKind::Port),
            TAG_LISTENER => items.push(ItemKind::Listener),
            TAG_DESCRIPTOR => items.push(ItemKind::Descriptor),
            TAG_PREFIX => prefix.take(field.value)?,
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
    if !prefix.0.is_empty() && !matches!(*items, [ItemKind::Connection(_)]) {
        return Err(MessageError::StrayPrefix);
    }
    let message = message.ok_or(TlvError::Missing(TAG_MESSAGE_FOLLOWS))?;
    Ok(MessageBody { items, prefix: prefix.0, message })
}

/// What was read of a connection, put together again from its fields.
#[derive(Debug, Default)]
pub(super) struct Prefix<'a>(pub(super) Cow<'a, [u8]>);

impl<'a> Prefix<'a> {
    /// Copies nothing where one field holds all.
    pub(super) fn take(&mut self, part: &'a [u8]) -> Result<(), MessageError> {
        let whole = self.0.len() + part.len();
        if whole > MAX_PREFIX {
            return Err(MessageError::Prefix(whole));
        }
        if self.0.is_empty() {
            self.0 = Cow::Borrowed(part);
        } else {
            self.0.to_mut().extend_from_slice(part);
        }
        Ok(())
    }
}

/// Appends what was read of the connection whose item stands before it.
pub fn put_prefix(out: &mut Vec<u8>, prefix: &[u8]) {
    for part in prefix.chunks(usize::from(u16::MAX)) {
        // It fits: no part is longer than a field.
        let _ = tlv::put(out, TAG_PREFIX, part);
    }
}

/// Appends what the next descriptor of a transfer list is.
///
/// # Errors
/// [`TooLong`] if a connection's facts exceed 65,535 bytes; nothing is appended then.
pub fn put_item(out: &mut Vec<u8>, item: &ItemKind) -> Result<(), TooLong> {
    match item {
        ItemKind::Connection(info) => put_connection(out, info, Beside::default()),
        ItemKind::Port => tlv::put(out, TAG_PORT, &[]),
        ItemKind::Listener => tlv::put(out, TAG_LISTENER, &[]),
        ItemKind::Descriptor => tlv::put(out, TAG_DESCRIPTOR, &[]),
    }
}

/// Appends that the next descriptor is a connection with these facts, and what they do not hold.
///
/// # Errors
/// [`TooLong`] if they exceed 65,535 bytes; nothing is appended then.
pub fn put_connection(
    out: &mut Vec<u8>,
    info: &ConnectionInfo,
    beside: Beside<'_>,
) -> Result<(), TooLong> {
    tlv::nested(out, TAG_CONNECTION, |out| {
        info.encode(out);
        beside.encode(out);
    })
}

/// Appends the user's message of a `MESSAGE` or `PORT_MESSAGE`: always last.
pub fn put_message(out: &mut Vec<u8>, message: &[u8]) {
    tlv::put_array(out, TAG_MESSAGE_FOLLOWS, []);
    out.extend_from_slice(message);
}
