//! What a worker says to a router.

use super::refusal::decode_refusals;
use super::{
    HandBack, MessageError, Refusal, TAG_COLUMN, TAG_EACH, TAG_FILE, TAG_LINE, TAG_OPEN, TAG_TEXT,
    TAG_UP_TO, kind, without_descriptors,
};
use crate::handshake::Hello;
use crate::header::Header;
use crate::tlv::{self, Fields, TlvError};

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
    /// A connection comes back.
    HandBack(HandBack<'a>),
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

impl<'a> FromWorker<'a> {
    /// Reads a packet's body. For a large packet, `body` is the memfd's content.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn decode(header: &Header, body: &'a [u8]) -> Result<Self, MessageError> {
        if header.kind == kind::HAND_BACK {
            return HandBack::decode(header, body).map(Self::HandBack);
        }
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

/// Appends an error report; texts are cut to [`MAX_TEXT`](crate::limits::MAX_TEXT).
pub fn put_error(out: &mut Vec<u8>, report: &ErrorReport) {
    tlv::put_text(out, TAG_TEXT, &report.message);
    tlv::put_text(out, TAG_FILE, &report.file);
    tlv::put_array(out, TAG_LINE, report.line.to_le_bytes());
    tlv::put_array(out, TAG_COLUMN, report.column.to_le_bytes());
}
