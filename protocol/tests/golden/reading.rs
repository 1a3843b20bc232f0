//! How the golden packets are read: by whom, when they are cut off, and with fields that nobody knows yet.

use vestibule_protocol::connection_info::Names;
use vestibule_protocol::header::{HEADER_LEN, Header};
use vestibule_protocol::message::{self, FromWorker, ToWorker, decode_message, kind};
use vestibule_protocol::tlv;

use crate::vectors;

/// A whole reading, as each of the three kinds of receiver does it.
fn read_as_everybody(packet: &[u8]) -> [bool; 3] {
    let Ok((header, body)) = Header::decode(packet) else { return [false; 3] };
    let names = &mut Names::default();
    let worker = match ToWorker::decode(&header, body, names) {
        Ok(ToWorker::Offer(mut entries)) => loop {
            match entries.next_entry(names) {
                Ok(Some(_)) => {}
                Ok(None) => break true,
                Err(_) => break false,
            }
        },
        read => read.is_ok(),
    };
    let router = FromWorker::decode(&header, body).is_ok();
    let port = header.kind == kind::PORT_MESSAGE && decode_message(&header, body, names).is_ok();
    [worker, router, port]
}

#[test]
fn each_packet_is_read_by_its_receiver_alone() {
    for (name, golden) in vectors::ALL.iter().filter(|(name, _)| *name != "message-large") {
        let receivers = read_as_everybody(golden).into_iter().filter(|read| *read).count();
        assert_eq!(receivers, 1, "{name}");
    }
}

/// Where the prefix of a packet ends at a field's end, what is left may have a meaning: fields can be
/// absent. Everywhere else it is an error.
#[test]
fn every_prefix_is_an_error_or_a_shorter_message() {
    for (name, golden) in vectors::ALL {
        for length in 0..golden.len() {
            let prefix = &golden[..length];
            let read = read_as_everybody(prefix).contains(&true);
            if length < HEADER_LEN {
                assert!(!read, "{name}: {length} bytes are no header");
            } else if matches!(*name, "worker-message") {
                assert!(read, "{name}: any bytes are a message");
            } else if matches!(*name, "message" | "port-message" | "hand-back" | "message-prefix") {
                let follows = message_start(golden);
                assert_eq!(read, length >= follows, "{name}: cut at {length}");
            } else if read {
                let ends = field_ends(&golden[HEADER_LEN..]);
                assert!(ends.contains(&(length - HEADER_LEN)), "{name}: cut at {length}");
            }
        }
    }
}

/// What must be said is missed when it is cut off, even at the end of a field.
#[test]
fn a_prefix_without_what_must_be_said_is_an_error() {
    for (golden, optional) in [
        // VERSIONS comes first, everything after it has a default.
        (vectors::ATTACH, HEADER_LEN + 6),
        (vectors::HELLO, HEADER_LEN + 5),
        // Every entry announced, the whole load, the time.
        (vectors::OFFER, vectors::OFFER.len()),
        (vectors::ACKNOWLEDGE, vectors::ACKNOWLEDGE.len()),
        (vectors::ACKNOWLEDGE_EACH, vectors::ACKNOWLEDGE_EACH.len()),
        (vectors::DRAIN, vectors::DRAIN.len()),
    ] {
        for length in 0..optional {
            assert_eq!(read_as_everybody(&golden[..length]), [false; 3], "cut at {length}");
        }
        assert!(read_as_everybody(&golden[..optional]).contains(&true));
    }
}

fn field_ends(body: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    let mut fields = tlv::Fields::new(body);
    while fields.next_field().unwrap().is_some() {
        ends.push(body.len() - fields.rest().len());
    }
    ends
}

/// Where the user's message begins.
fn message_start(golden: &[u8]) -> usize {
    let mut fields = tlv::Fields::new(&golden[HEADER_LEN..]);
    while let Some(field) = fields.next_field().unwrap() {
        if field.tag == message::TAG_MESSAGE_FOLLOWS {
            break;
        }
    }
    golden.len() - fields.rest().len()
}

/// A packet with a field from the future before each of its own fields, and within its entries.
fn with_unknown_fields(golden: &[u8]) -> Vec<u8> {
    const UNKNOWN: &[u8] = &[0xfe, 0x7f, 0x03, 0x00, 1, 2, 3];
    let (head, body) = golden.split_at(HEADER_LEN);
    let mut out = head.to_vec();
    let mut fields = tlv::Fields::new(body);
    out.extend_from_slice(UNKNOWN);
    while let Some(field) = fields.next_field().unwrap() {
        let nested = matches!(field.tag, message::TAG_ENTRY | message::TAG_CONNECTION);
        let mut value = if nested { UNKNOWN.to_vec() } else { Vec::new() };
        value.extend_from_slice(field.value);
        tlv::put(&mut out, field.tag, &value).unwrap();
        if field.tag == message::TAG_MESSAGE_FOLLOWS {
            out.extend_from_slice(fields.rest());
            return out;
        }
        out.extend_from_slice(UNKNOWN);
    }
    out
}

#[test]
fn unknown_fields_are_skipped_in_every_kind() {
    let names = &mut Names::default();
    for (name, golden) in vectors::ALL {
        if matches!(*name, "message-large" | "worker-message") {
            continue;
        }
        let grown = with_unknown_fields(golden);
        assert_eq!(read_as_everybody(&grown), read_as_everybody(golden), "{name}");
        let (header, body) = Header::decode(golden).unwrap();
        let (_, grown_body) = Header::decode(&grown).unwrap();
        let plain = ToWorker::decode(&header, body, names).map(|read| meaning(read, names));
        let skipped = ToWorker::decode(&header, grown_body, names).map(|read| meaning(read, names));
        assert_eq!(skipped, plain, "{name}");
        let plain = FromWorker::decode(&header, body).map(answer);
        assert_eq!(FromWorker::decode(&header, grown_body).map(answer), plain, "{name}");
        let plain = decode_message(&header, body, names);
        if header.kind == kind::PORT_MESSAGE {
            assert_eq!(decode_message(&header, grown_body, names), plain, "{name}");
        }
    }
}

/// What a packet to a worker says, as text, so that two can be compared.
fn meaning(read: ToWorker<'_>, names: &mut Names) -> String {
    match read {
        ToWorker::Offer(mut entries) => {
            let mut all = Vec::new();
            while let Some(entry) = entries.next_entry(names).unwrap() {
                all.push(entry);
            }
            format!("{all:?}")
        }
        other => format!("{other:?}"),
    }
}

/// What a packet from a worker says, as text: an acknowledgement also borrows its fields.
fn answer(read: FromWorker<'_>) -> String {
    match read {
        FromWorker::Acknowledge(taken) => {
            format!("{} {} {:?}", taken.up_to, taken.open, taken.each().collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    }
}
