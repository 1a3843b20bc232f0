//! TLV: every packet of the worker's link and of a user's port, in both directions, from its first
//! byte; what is no packet is read as bare fields and as a connection's facts.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::{prefixes, within};
use vestibule_protocol::connection_info::{ConnectionInfo, Names};
use vestibule_protocol::handshake::{Attach, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::MAX_TEXT;
use vestibule_protocol::message::{
    ErrorReport, FromWorker, ItemKind, MessageError, Refusal, ToWorker, decode_message, kind,
    put_acknowledge, put_acknowledge_each, put_entry, put_error, put_item, put_message,
    put_refusal, put_timeout,
};
use vestibule_protocol::tlv::{self, FIELD_HEAD, Fields, TlvError};

fuzz_target!(|input: &[u8]| {
    let Ok((header, body)) = Header::decode(input) else {
        check_fields(input);
        check_facts(input);
        return;
    };
    check_fields(body);
    within(bound(body), || walk(&header, body));
    let Ok(said) = Said::decode(&header, body) else { return };
    let again = said.encode();
    let read = Said::decode(&header, &again).expect("what was encoded can be decoded");
    if said.is_short() {
        assert_eq!(read, said, "what was encoded comes back");
    }
    assert_eq!(read.encode(), again, "a value has one form");
    assert_cut_is_seen(&header, &again);
});

/// Reads a body as a router, a worker and a port's owner would, and keeps nothing.
fn walk(header: &Header, body: &[u8]) {
    let names = &mut Names::default();
    drop(decode_message(header, body, names));
    drop(FromWorker::decode(header, body));
    if let Ok(ToWorker::Offer(mut entries)) = ToWorker::decode(header, body, names) {
        while let Ok(Some(_)) = entries.next_entry(names) {}
    }
}

/// A packet's meaning, owned, so that what was read twice can be compared.
#[derive(Debug, PartialEq)]
enum Said {
    Attach(Attach),
    Offer(Vec<(ConnectionInfo, Vec<u8>)>),
    Message(Vec<ItemKind>, Vec<u8>),
    Refused(Vec<Refusal>),
    Drain(Duration),
    Hello(Hello),
    Acknowledge {
        up_to: u64,
        open: u32,
        each: Vec<u64>,
    },
    WorkerMessage(Vec<u8>),
    Error(ErrorReport),
    /// A kind whose body says nothing.
    Bare,
}

impl Said {
    fn decode(header: &Header, body: &[u8]) -> Result<Self, MessageError> {
        let names = &mut Names::default();
        if header.kind == kind::PORT_MESSAGE {
            let message = decode_message(header, body, names)?;
            return Ok(Self::Message(message.items, message.message.to_vec()));
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
            ToWorker::Message(body) => Self::Message(body.items, body.message.to_vec()),
            ToWorker::Refused(refusals) => Self::Refused(refusals),
            ToWorker::Drain(timeout) => Self::Drain(timeout),
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
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Attach(attach) => attach.encode(&mut out),
            Self::Offer(entries) => {
                for (info, message) in entries {
                    put_entry(&mut out, info, message).expect("an entry that came fits");
                }
            }
            Self::Message(items, message) => {
                for item in items {
                    put_item(&mut out, item).expect("an item that came fits");
                }
                put_message(&mut out, message);
            }
            Self::Refused(refusals) => {
                refusals.iter().for_each(|refusal| put_refusal(&mut out, *refusal));
            }
            Self::Drain(timeout) => put_timeout(&mut out, *timeout),
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
    fn is_short(&self) -> bool {
        match self {
            Self::Offer(entries) => entries.iter().all(|(info, _)| names_are_short(info)),
            Self::Message(items, _) => items.iter().all(|item| match item {
                ItemKind::Connection(info) => names_are_short(info),
                ItemKind::Port | ItemKind::Listener | ItemKind::Descriptor => true,
            }),
            Self::Error(report) => report.message.len().max(report.file.len()) <= MAX_TEXT,
            _ => true,
        }
    }
}

fn names_are_short(info: &ConnectionInfo) -> bool {
    let context = info.peer_context.as_deref().unwrap_or_default();
    info.listener.len().max(info.route.len()).max(context.len()) <= MAX_TEXT
}

/// A body that ends inside a field is an error, whatever the kind. A body that ends between two
/// fields may be whole: fields are optional. Text after "the rest is the message" is no field.
fn assert_cut_is_seen(header: &Header, body: &[u8]) {
    if matches!(header.kind, kind::WORKER_MESSAGE | kind::CLOSE | kind::DRAINING | kind::CLOSING) {
        return;
    }
    let follows = matches!(header.kind, kind::MESSAGE | kind::PORT_MESSAGE);
    let ends = field_ends(body, follows);
    let last = ends.last().copied().unwrap_or(0);
    for length in prefixes(last) {
        let read = Said::decode(header, &body[..length]);
        if length != 0 && !ends.contains(&length) {
            assert!(read.is_err(), "cut at {length} inside a field: {read:?}");
        }
    }
}

/// Where each field of a body that was encoded here ends.
fn field_ends(body: &[u8], message_follows: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field().expect("what was encoded is fields") {
        ends.push(body.len() - fields.rest().len());
        if message_follows && field.tag == vestibule_protocol::message::TAG_MESSAGE_FOLLOWS {
            break;
        }
    }
    ends
}

/// The fields of any bytes, against a second reading by offsets.
fn check_fields(bytes: &[u8]) {
    let mut written = Vec::new();
    let mut fields = Fields::new(bytes);
    let mut at = 0;
    loop {
        let read = within(0, || fields.next_field());
        let rest = &bytes[at..];
        match read {
            Ok(None) => {
                assert!(rest.is_empty());
                assert_eq!(written, bytes, "fields come back as they were");
                return;
            }
            Ok(Some(field)) => {
                assert_eq!(&rest[..2], field.tag.to_le_bytes());
                assert_eq!(usize::from(rest[2]) | usize::from(rest[3]) << 8, field.value.len());
                assert_eq!(&rest[FIELD_HEAD..FIELD_HEAD + field.value.len()], field.value);
                tlv::put(&mut written, field.tag, field.value).expect("a value that came fits");
                at += FIELD_HEAD + field.value.len();
                assert_eq!(fields.rest(), &bytes[at..]);
            }
            Err(error) => {
                match error {
                    TlvError::Head => assert!((1..FIELD_HEAD).contains(&rest.len())),
                    TlvError::Value { length, left, .. } => {
                        assert_eq!(left, rest.len() - FIELD_HEAD);
                        assert!(left < usize::from(length));
                    }
                    other => panic!("no field was looked into, yet: {other}"),
                }
                assert_eq!(fields.next_field(), Ok(None), "the walk is over");
                assert_eq!(&bytes[..at], written);
                return;
            }
        }
    }
}

/// Facts come back as they were read, and a second reading shares the first one's names.
fn check_facts(bytes: &[u8]) {
    let names = &mut Names::default();
    let Ok(info) = within(bound(bytes), || ConnectionInfo::decode(bytes, names)) else { return };
    if !names_are_short(&info) {
        return;
    }
    let mut written = Vec::new();
    info.encode(&mut written);
    // Fewer names than are kept: reading them again costs nothing, and nothing else is allocated.
    let names = &mut Names::default();
    assert_eq!(ConnectionInfo::decode(&written, names).as_ref(), Ok(&info));
    let again = within(0, || ConnectionInfo::decode(&written, names));
    assert_eq!(again, Ok(info));
}

/// What reading a body may allocate: its own size a few times over (names, texts, messages), and
/// what 64 descriptors are.
fn bound(body: &[u8]) -> usize {
    (64 << 10) + 8 * body.len()
}
