//! A packet of any kind, decoded by the protocol crate and encoded again.

use std::borrow::Cow;
use std::time::Duration;

use vestibule_protocol::connection_info::{ConnectionInfo, Names};
use vestibule_protocol::handshake::{Attach, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::MAX_TEXT;
use vestibule_protocol::message::{
    ErrorReport, FromWorker, HandBack, ItemKind, MessageBody, MessageError, Refusal, ToWorker,
    decode_message, kind, put_acknowledge, put_acknowledge_each, put_entry, put_error, put_item,
    put_last, put_message, put_prefix, put_refusal, put_timeout,
};

/// A packet's meaning, owned, so that what was read twice can be compared.
#[derive(Debug, PartialEq)]
#[expect(missing_docs, reason = "the kinds are described in the protocol crate")]
pub enum Said {
    Attach(Attach),
    Offer(Vec<(ConnectionInfo, Vec<u8>)>),
    Message(Vec<ItemKind>, Vec<u8>, Vec<u8>),
    HandBack { info: Box<ConnectionInfo>, prefix: Vec<u8>, to: String, message: Vec<u8> },
    Refused(Vec<Refusal>),
    Drain(Duration, bool),
    Hello(Hello),
    Acknowledge { up_to: u64, open: u32, each: Vec<u64> },
    WorkerMessage(Vec<u8>),
    Error(ErrorReport),
    Bare,
}

impl Said {
    /// Reads a packet's body as the side that receives this kind.
    ///
    /// # Errors
    /// As the protocol crate's decoders.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, MessageError> {
        let names = &mut Names::default();
        if header.kind == kind::PORT_MESSAGE {
            let message = decode_message(header, body, names)?;
            return Ok(Self::message(message));
        }
        match ToWorker::decode(header, body, names) {
            Ok(said) => {
                assert!(FromWorker::decode(header, body).is_err(), "a kind has one direction");
                return Self::from_router(said, names);
            }
            Err(MessageError::Kind(_) | MessageError::Unasked { .. }) => {}
            Err(error) => return Err(error),
        }
        FromWorker::decode(header, body).map(Self::from_worker)
    }

    fn message(body: MessageBody<'_>) -> Self {
        Self::Message(body.items, body.prefix.into_owned(), body.message.to_vec())
    }

    fn from_router(said: ToWorker<'_>, names: &mut Names) -> Result<Self, MessageError> {
        Ok(match said {
            ToWorker::Attach(attach) => Self::Attach(attach),
            ToWorker::Offer(mut entries) => {
                let mut offered = Vec::new();
                while let Some(entry) = entries.next_entry(names)? {
                    offered.push((entry.info, entry.message.to_vec()));
                }
                Self::Offer(offered)
            }
            ToWorker::Message(body) => Self::message(body),
            ToWorker::Refused(refusals) => Self::Refused(refusals),
            ToWorker::Drain { timeout, last } => Self::Drain(timeout, last),
            ToWorker::Close => Self::Bare,
        })
    }

    fn from_worker(said: FromWorker<'_>) -> Self {
        match said {
            FromWorker::Hello(hello) => Self::Hello(hello),
            FromWorker::Acknowledge(taken) => Self::Acknowledge {
                up_to: taken.up_to,
                open: taken.open,
                each: taken.each().collect(),
            },
            FromWorker::Refuse(refusals) => Self::Refused(refusals),
            FromWorker::Message(message) => Self::WorkerMessage(message.to_vec()),
            FromWorker::Error(report) => Self::Error(report),
            FromWorker::Draining | FromWorker::Closing => Self::Bare,
            FromWorker::HandBack(back) => Self::HandBack {
                info: Box::new(back.info),
                prefix: back.prefix.into_owned(),
                to: back.to.to_owned(),
                message: back.message.to_vec(),
            },
        }
    }

    /// Writes the body again.
    ///
    /// # Panics
    /// It does not fit, though it came in a packet: a finding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Attach(attach) => attach.encode(&mut out),
            Self::Offer(entries) => {
                for (info, message) in entries {
                    put_entry(&mut out, info, message).expect("an entry that came fits");
                }
            }
            Self::Message(items, prefix, message) => {
                for item in items {
                    put_item(&mut out, item).expect("an item that came fits");
                }
                put_prefix(&mut out, prefix);
                put_message(&mut out, message);
            }
            Self::HandBack { info, prefix, to, message } => {
                let (info, prefix) = (ConnectionInfo::clone(info), Cow::Borrowed(&**prefix));
                HandBack { info, prefix, to, message }.encode(&mut out).expect("what came fits");
            }
            Self::Refused(refusals) => {
                refusals.iter().for_each(|refusal| put_refusal(&mut out, *refusal));
            }
            Self::Drain(timeout, last) => {
                put_timeout(&mut out, *timeout);
                if *last {
                    put_last(&mut out);
                }
            }
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Acknowledge { up_to, open, each } => {
                put_acknowledge_each(&mut out, each, *open);
                put_acknowledge(&mut out, *up_to, *open);
            }
            Self::WorkerMessage(message) => out.extend_from_slice(message),
            Self::Error(report) => put_error(&mut out, report),
            Self::Bare => {}
        }
        out
    }

    /// Whether no text is longer than we would send: a longer one from a peer is cut on its way on.
    pub fn is_short(&self) -> bool {
        match self {
            Self::Offer(entries) => entries.iter().all(|(info, _)| names_are_short(info)),
            Self::HandBack { info, .. } => names_are_short(info),
            Self::Message(items, ..) => items.iter().all(|item| match item {
                ItemKind::Connection(info) => names_are_short(info),
                ItemKind::Port | ItemKind::Listener | ItemKind::Descriptor => true,
            }),
            Self::Error(report) => report.message.len().max(report.file.len()) <= MAX_TEXT,
            _ => true,
        }
    }
}

/// Whether the names of a connection are no longer than we would send.
pub fn names_are_short(info: &ConnectionInfo) -> bool {
    let context = info.peer_context.as_deref().unwrap_or_default();
    let by = info.handed_back_by.as_deref().map_or("", |by| &**by);
    info.listener.len().max(info.route.len()).max(context.len()).max(by.len()) <= MAX_TEXT
}
