//! The wire format, byte for byte: what is written down is what is sent and what is read, in every
//! kind and both directions. A change that breaks one of these needs a new protocol version.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod document;
mod reading;
mod vectors;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::{self, ConnectionInfo, Names, PeerCredentials, Ticket};
use vestibule_protocol::handshake::{Abilities, Acks, Attach, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{
    self, ErrorReport, FromWorker, HandBack, ItemKind, MessageBody, MessageError, Refusal,
    RefusalReason, ToWorker, decode_message, kind,
};
use vestibule_protocol::tlv;

const EPOCH: u16 = 7;

fn header(kind: u8, codec: Codec, descriptors: u8, sequence: u64) -> Header {
    Header { codec, descriptors, sequence, ..Header::new(kind, EPOCH) }
}

fn bare(kind: u8) -> Header {
    header(kind, Codec::None, 0, 0)
}

fn packet(header: Header, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = header.encode().to_vec();
    write(&mut packet);
    packet
}

/// Header and body of a golden packet, after checking that the header comes back.
#[track_caller]
fn parts(golden: &'static [u8], expected: Header) -> &'static [u8] {
    let (header, body) = Header::decode(golden).unwrap();
    assert_eq!(header, expected);
    body
}

#[track_caller]
fn to_worker(golden: &'static [u8], expected: Header) -> ToWorker<'static> {
    let body = parts(golden, expected);
    ToWorker::decode(&expected, body, &mut Names::default()).unwrap()
}

#[track_caller]
fn from_worker(golden: &'static [u8], expected: Header) -> FromWorker<'static> {
    FromWorker::decode(&expected, parts(golden, expected)).unwrap()
}

fn address(text: &str) -> Option<SocketAddr> {
    Some(text.parse().unwrap())
}

fn first_connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 2,
        peer: address("127.0.0.1:51234"),
        peer_credentials: None,
        destination: None,
        listener: "web".into(),
        route: "default".into(),
        peer_context: None,
        accepted: 12_345,
        ..ConnectionInfo::default()
    }
}

fn second_connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 3,
        peer: address("[fe80::1%3]:443"),
        peer_credentials: None,
        destination: address("192.0.2.1:80"),
        listener: "web".into(),
        route: "default".into(),
        peer_context: Some("u:r:t:s0".into()),
        accepted: 0,
        ..ConnectionInfo::default()
    }
}

fn bare_connection() -> ConnectionInfo {
    ConnectionInfo {
        id: 4,
        peer: None,
        peer_credentials: Some(PeerCredentials { pid: 4321, uid: 1000, gid: 100 }),
        destination: None,
        listener: "web".into(),
        route: "".into(),
        peer_context: None,
        accepted: 0,
        ..ConnectionInfo::default()
    }
}

#[test]
fn attach_is_these_bytes() {
    let attach = Attach {
        versions: (1, 1),
        drain_timeout: Duration::from_secs(60),
        max_packet: 32_768,
        max_connections: 0,
        abilities: Abilities::HAND_BACK,
    };
    let expected = bare(kind::ATTACH);
    assert_eq!(packet(expected, |out| attach.encode(out)), vectors::ATTACH);
    let ToWorker::Attach(read) = to_worker(vectors::ATTACH, expected) else { panic!("kind") };
    assert_eq!(read, attach);
}

#[test]
fn hello_is_these_bytes() {
    let hello = Hello {
        version: 1,
        max_packet: 32_768,
        batch: 64,
        acks: Acks::Cumulative,
        ready: true,
        open: 0,
        max_connections: 1000,
        received: 0,
        abilities: Abilities::HAND_BACK.and(Abilities::PREFIX),
    };
    let expected = bare(kind::HELLO);
    assert_eq!(packet(expected, |out| hello.encode(out)), vectors::HELLO);
    assert_eq!(from_worker(vectors::HELLO, expected), FromWorker::Hello(hello));
}

#[test]
fn offer_is_these_bytes() {
    let expected = header(kind::OFFER, Codec::Json, 2, 1);
    let written = packet(expected, |out| {
        message::put_entry(out, &first_connection(), br#"{"reqno":2}"#).unwrap();
        message::put_entry(out, &second_connection(), b"").unwrap();
    });
    assert_eq!(written, vectors::OFFER);
    let ToWorker::Offer(mut entries) = to_worker(vectors::OFFER, expected) else { panic!("kind") };
    let names = &mut Names::default();
    let first = entries.next_entry(names).unwrap().unwrap();
    assert_eq!((first.info, first.message), (first_connection(), &br#"{"reqno":2}"#[..]));
    let second = entries.next_entry(names).unwrap().unwrap();
    assert_eq!((second.info, second.message), (second_connection(), &b""[..]));
    assert_eq!(entries.next_entry(names), Ok(None));
}

#[test]
fn acknowledge_is_these_bytes_cumulative_and_each() {
    let expected = bare(kind::ACKNOWLEDGE);
    let written = packet(expected, |out| message::put_acknowledge(out, 2, 2));
    assert_eq!(written, vectors::ACKNOWLEDGE);
    let FromWorker::Acknowledge(read) = from_worker(vectors::ACKNOWLEDGE, expected) else {
        panic!("kind")
    };
    assert_eq!((read.up_to, read.open, read.each().count()), (2, 2, 0));

    let written = packet(expected, |out| message::put_acknowledge_each(out, &[1, 2], 2));
    assert_eq!(written, vectors::ACKNOWLEDGE_EACH);
    let FromWorker::Acknowledge(read) = from_worker(vectors::ACKNOWLEDGE_EACH, expected) else {
        panic!("kind")
    };
    assert_eq!((read.up_to, read.open), (0, 2));
    assert_eq!(read.each().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn refusals_are_these_bytes_in_both_directions() {
    let lost = [
        Refusal { sequence: 1, reason: RefusalReason::MissingDescriptor },
        Refusal { sequence: 2, reason: RefusalReason::BehindMissing },
    ];
    let expected = bare(kind::REFUSE);
    let written = packet(expected, |out| lost.iter().for_each(|r| message::put_refusal(out, *r)));
    assert_eq!(written, vectors::REFUSE);
    assert_eq!(from_worker(vectors::REFUSE, expected), FromWorker::Refuse(lost.to_vec()));

    let full = Refusal { sequence: 1, reason: RefusalReason::Full };
    let expected = bare(kind::REFUSED);
    let written = packet(expected, |out| message::put_refusal(out, full));
    assert_eq!(written, vectors::REFUSED);
    let ToWorker::Refused(read) = to_worker(vectors::REFUSED, expected) else { panic!("kind") };
    assert_eq!(read, [full]);
}

#[test]
fn message_with_every_transferable_thing_is_these_bytes() {
    let expected = header(kind::MESSAGE, Codec::Json, 4, 3);
    let items = [
        ItemKind::Port,
        ItemKind::Listener,
        ItemKind::Descriptor,
        ItemKind::Connection(bare_connection()),
    ];
    let written = packet(expected, |out| {
        items.iter().for_each(|item| message::put_item(out, item).unwrap());
        message::put_message(out, br#""hello""#);
    });
    assert_eq!(written, vectors::MESSAGE);
    let ToWorker::Message(read) = to_worker(vectors::MESSAGE, expected) else { panic!("kind") };
    let prefix = Cow::Borrowed(&b""[..]);
    assert_eq!(read, MessageBody { items: items.to_vec(), prefix, message: br#""hello""# });
}

#[test]
fn a_connection_that_is_handed_back_is_these_bytes() {
    let expected = header(kind::HAND_BACK, Codec::Json, 1, 2);
    let ticket = Some(Ticket::from(*b"ticket of 4 web."));
    let back = HandBack {
        info: ConnectionInfo { ticket, ..bare_connection() },
        prefix: Cow::Borrowed(b"GET "),
        to: "app",
        message: br#"{"u":1}"#,
    };
    assert_eq!(packet(expected, |out| back.encode(out).unwrap()), vectors::HAND_BACK);
    assert_eq!(from_worker(vectors::HAND_BACK, expected), FromWorker::HandBack(back));
}

#[test]
fn a_connection_of_which_something_was_read_is_these_bytes() {
    let expected = header(kind::MESSAGE, Codec::None, 1, 5);
    let info =
        ConnectionInfo { handed_back_by: Some(Box::new("login-1".into())), ..bare_connection() };
    let items = vec![ItemKind::Connection(info)];
    let written = packet(expected, |out| {
        items.iter().for_each(|item| message::put_item(out, item).unwrap());
        message::put_prefix(out, b"GET ");
        message::put_message(out, b"");
    });
    assert_eq!(written, vectors::MESSAGE_PREFIX);
    let read = to_worker(vectors::MESSAGE_PREFIX, expected);
    let ToWorker::Message(read) = read else { panic!("kind") };
    assert_eq!(read, MessageBody { items, prefix: Cow::Borrowed(b"GET "), message: b"" });
}

/// One that is longer than a field travels in several, up to its bound.
#[test]
fn what_was_read_is_put_together_again_and_bounded() {
    let bytes = |length: usize| (0..length).map(|at| at as u8).collect::<Vec<u8>>();
    let header = header(kind::MESSAGE, Codec::None, 1, 1);
    let read = |prefix: &[u8]| {
        let mut body = Vec::new();
        message::put_item(&mut body, &ItemKind::Connection(bare_connection())).unwrap();
        message::put_prefix(&mut body, prefix);
        message::put_message(&mut body, b"");
        let read = decode_message(&header, &body, &mut Names::default())?;
        Ok::<_, MessageError>(read.prefix.into_owned())
    };
    for length in [0, 1, 65_535, 65_536] {
        assert_eq!(read(&bytes(length)), Ok(bytes(length)));
    }
    assert_eq!(read(&bytes(65_537)), Err(MessageError::Prefix(65_537)));
}

#[test]
fn what_was_read_belongs_to_one_connection() {
    let connection = ItemKind::Connection(bare_connection());
    let lists = [vec![], vec![ItemKind::Descriptor], vec![connection.clone(), connection]];
    for list in lists {
        let header = header(kind::MESSAGE, Codec::None, list.len() as u8, 1);
        let mut body = Vec::new();
        list.iter().for_each(|item| message::put_item(&mut body, item).unwrap());
        message::put_prefix(&mut body, b"GET ");
        message::put_message(&mut body, b"");
        let read = decode_message(&header, &body, &mut Names::default());
        assert_eq!(read, Err(MessageError::StrayPrefix));
    }
}

#[test]
fn what_is_handed_back_has_one_descriptor_and_a_ticket_of_its_size() {
    let (good, body) = Header::decode(vectors::HAND_BACK).unwrap();
    for descriptors in [0, 2] {
        let header = Header { descriptors, ..good };
        let announced = usize::from(descriptors);
        let error = MessageError::Descriptors { described: 1, announced };
        assert_eq!(FromWorker::decode(&header, body), Err(error));
    }
    let mut short = body.to_vec();
    // The ticket's length and that of what holds it, less one, and one byte of it.
    (short[2], short[41]) = (0x36, 0x0f);
    short.remove(43);
    let error = tlv::TlvError::Length { tag: connection_info::TAG_TICKET, length: 15 };
    assert_eq!(FromWorker::decode(&good, &short), Err(error.into()));
}

#[test]
fn large_message_is_a_header_alone() {
    let expected = Header { large: true, ..header(kind::MESSAGE, Codec::Bytes, 1, 4) };
    assert_eq!(packet(expected, |_| {}), vectors::MESSAGE_LARGE);
    assert_eq!(parts(vectors::MESSAGE_LARGE, expected), b"");
    assert_eq!(message::transferred(&expected), 0, "the memfd is no part of the transfer list");
}

#[test]
fn message_of_a_worker_is_these_bytes() {
    let expected = header(kind::WORKER_MESSAGE, Codec::Json, 0, 1);
    let written = packet(expected, |out| out.extend_from_slice(br#"{"ok":true}"#));
    assert_eq!(written, vectors::WORKER_MESSAGE);
    let read = from_worker(vectors::WORKER_MESSAGE, expected);
    assert_eq!(read, FromWorker::Message(br#"{"ok":true}"#));
}

#[test]
fn error_is_these_bytes() {
    let report =
        ErrorReport { message: "boom".into(), file: "src/main.rs".into(), line: 42, column: 5 };
    let expected = bare(kind::ERROR);
    assert_eq!(packet(expected, |out| message::put_error(out, &report)), vectors::ERROR);
    assert_eq!(from_worker(vectors::ERROR, expected), FromWorker::Error(report));
}

#[test]
fn drain_close_draining_and_closing_are_these_bytes() {
    let minute = Duration::from_secs(60);
    let expected = bare(kind::DRAIN);
    assert_eq!(packet(expected, |out| message::put_timeout(out, minute)), vectors::DRAIN);
    let read = to_worker(vectors::DRAIN, expected);
    assert!(matches!(read, ToWorker::Drain { timeout, last: false } if timeout == minute));
    let mut all = Vec::new();
    message::put_last(&mut all);
    message::put_timeout(&mut all, minute);
    let read = ToWorker::decode(&expected, &all, &mut Names::default()).unwrap();
    assert!(matches!(read, ToWorker::Drain { timeout, last: true } if timeout == minute));

    assert_eq!(packet(bare(kind::CLOSE), |_| {}), vectors::CLOSE);
    assert!(matches!(to_worker(vectors::CLOSE, bare(kind::CLOSE)), ToWorker::Close));

    assert_eq!(packet(bare(kind::DRAINING), |_| {}), vectors::DRAINING);
    let read = from_worker(vectors::DRAINING, bare(kind::DRAINING));
    assert_eq!(read, FromWorker::Draining);

    assert_eq!(packet(bare(kind::CLOSING), |_| {}), vectors::CLOSING);
    assert_eq!(from_worker(vectors::CLOSING, bare(kind::CLOSING)), FromWorker::Closing);
}

#[test]
fn message_on_a_port_is_these_bytes() {
    let expected = Header { epoch: 0, ..header(kind::PORT_MESSAGE, Codec::Bincode, 1, 1) };
    let message = vestibule_protocol::Data::bincode(&300u64).unwrap();
    let written = packet(expected, |out| {
        message::put_item(out, &ItemKind::Descriptor).unwrap();
        message::put_message(out, message.as_bytes());
    });
    assert_eq!(written, vectors::PORT_MESSAGE);
    let body = parts(vectors::PORT_MESSAGE, expected);
    let read = decode_message(&expected, body, &mut Names::default()).unwrap();
    assert_eq!(read.items, [ItemKind::Descriptor]);
    assert_eq!(
        vestibule_protocol::codec::decode::<u64>(Codec::Bincode, read.message).unwrap(),
        300
    );
}
