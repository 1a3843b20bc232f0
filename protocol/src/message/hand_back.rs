//! A connection that a worker hands back.

use std::borrow::Cow;

use super::transfer_list::Prefix;
use super::{
    MessageError, TAG_CONNECTION, TAG_MESSAGE_FOLLOWS, TAG_PREFIX, TAG_TO, put_message, put_prefix,
    transferred,
};
use crate::connection_info::{ConnectionInfo, Names};
use crate::header::Header;
use crate::limits::MAX_PREFIX;
use crate::tlv::{self, Fields, TlvError, TooLong};

/// What a worker says of a connection that it hands back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandBack<'a> {
    /// Its facts, as they came, the ticket above all.
    pub info: ConnectionInfo,
    /// What was read of it and not answered.
    pub prefix: Cow<'a, [u8]>,
    /// The pool or worker that it is for; empty: whom the rules say.
    pub to: &'a str,
    /// The message that is to be posted with it.
    pub message: &'a [u8],
}

impl<'a> HandBack<'a> {
    /// Appends the body.
    ///
    /// # Errors
    /// The facts or the destination do not fit a field.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        tlv::nested(out, TAG_CONNECTION, |out| self.info.encode(out))?;
        put_prefix(out, &self.prefix);
        if !self.to.is_empty() {
            tlv::put(out, TAG_TO, self.to.as_bytes())?;
        }
        put_message(out, self.message);
        Ok(())
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Malformed or missing fields, another number of descriptors than one, more than
    /// [`MAX_PREFIX`] bytes.
    pub fn decode(header: &Header, body: &'a [u8]) -> Result<Self, MessageError> {
        let announced = transferred(header);
        if announced != 1 {
            return Err(MessageError::Descriptors { described: 1, announced });
        }
        let mut info = None;
        let mut prefix = Prefix::default();
        let mut to = "";
        let mut fields = Fields::new(body);
        while let Some(field) = fields.next_field()? {
            match field.tag {
                // Names are not shared: a connection that comes back is the exception.
                TAG_CONNECTION => {
                    info = Some(ConnectionInfo::decode(field.value, &mut Names::default())?);
                }
                TAG_PREFIX => prefix.take(field.value)?,
                TAG_TO => to = field.text()?,
                TAG_MESSAGE_FOLLOWS => {
                    let length = field.value.len();
                    if length != 0 {
                        return Err(TlvError::Length { tag: field.tag, length }.into());
                    }
                    let info = info.ok_or(TlvError::Missing(TAG_CONNECTION))?;
                    return Ok(Self { info, prefix: prefix.0, to, message: fields.rest() });
                }
                _ => {}
            }
        }
        Err(TlvError::Missing(TAG_MESSAGE_FOLLOWS).into())
    }

    /// Whether what was read can travel.
    pub fn fits(&self) -> bool {
        self.prefix.len() <= MAX_PREFIX
    }
}
