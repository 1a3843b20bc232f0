//! TLV: every packet of the worker's link and of a user's port, in both directions, from its first
//! byte; what is no packet is read as bare fields and as a connection's facts.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::model::{assert_facts, assert_nothing_lost};
use vestibule_fuzz::said::{Said, names_are_short};
use vestibule_fuzz::{prefixes, within};
use vestibule_protocol::connection_info::{ConnectionInfo, Names, Proxied};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{
    FromWorker, TAG_MESSAGE_FOLLOWS, ToWorker, decode_message, kind,
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
    assert_nothing_lost(&header, body, &said);
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

/// A body that ends inside a field is an error, whatever the kind. One that ends between two fields
/// may be whole, since fields are optional; not so where the header says how many there are, or where
/// something must be said. What follows "the rest is the message" is no field.
fn assert_cut_is_seen(header: &Header, body: &[u8]) {
    if matches!(header.kind, kind::WORKER_MESSAGE | kind::CLOSE | kind::DRAINING | kind::CLOSING) {
        return;
    }
    let message = matches!(header.kind, kind::MESSAGE | kind::PORT_MESSAGE | kind::HAND_BACK);
    let whole_only = message || header.kind == kind::OFFER;
    let ends = field_ends(body, message);
    let last = ends.last().copied().unwrap_or(0);
    for length in prefixes(last) {
        let between = length == 0 || ends.contains(&length);
        // The time of a drain must be said, that it is the last one need not.
        let needed = whole_only || (header.kind == kind::DRAIN && length == 0);
        if needed || !between {
            let read = Said::decode(header, &body[..length]);
            assert!(read.is_err(), "cut at {length} of {last}: {read:?}");
        }
    }
}

/// Where each field of a body that was encoded here ends.
fn field_ends(body: &[u8], message_follows: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field().expect("what was encoded is fields") {
        ends.push(body.len() - fields.rest().len());
        if message_follows && field.tag == TAG_MESSAGE_FOLLOWS {
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
    assert_facts(bytes, &info);
    if !names_are_short(&info) {
        return;
    }
    let mut written = Vec::new();
    info.encode(&mut written);
    // Fewer names than are kept: reading them again costs nothing. Who handed a connection back, which
    // few connections have, is kept in a place of its own, and so is what a proxy said.
    let by = if info.handed_back_by.is_some() { size_of::<Arc<str>>() } else { 0 };
    let proxied = if info.proxied.is_some() { size_of::<Proxied>() + written.len() } else { 0 };
    let rare = by + proxied;
    let names = &mut Names::default();
    assert_eq!(ConnectionInfo::decode(&written, names).as_ref(), Ok(&info));
    let again = within(rare, || ConnectionInfo::decode(&written, names));
    assert_eq!(again, Ok(info));
}

/// What reading a body may allocate: its own size a few times over (names, texts, messages), and
/// what 64 descriptors are.
fn bound(body: &[u8]) -> usize {
    (64 << 10) + 8 * body.len()
}
