//! A second reading of the documented fields, by tag and offset.
//!
//! Round trips alone do not see a decoder that drops or changes a value, as long as it always does:
//! here what was decoded is compared with the bytes that were sent. Where a field may be said only
//! once, the last one counts.

use std::net::{IpAddr, SocketAddr};

use vestibule_protocol::connection_info::{self as facts, ConnectionInfo};
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::{MAX_DESCRIPTORS, MAX_PACKET};
use vestibule_protocol::message::{self, ItemKind, RefusalReason, transferred};
use vestibule_protocol::tlv::Fields;

use crate::said::Said;

/// Asserts that a packet's meaning is what its fields say.
///
/// # Panics
/// It is not: the finding.
pub fn assert_nothing_lost(header: &Header, body: &[u8], said: &Said) {
    let may_be_large =
        matches!(said, Said::Message(..) | Said::WorkerMessage(_) | Said::HandBack { .. });
    assert!(may_be_large || !header.large, "only a user's message outgrows its packet");
    let last = |tag| last(body, tag);
    match said {
        Said::Attach(attach) => {
            let milliseconds = attach.drain_timeout.as_millis();
            assert_eq!(
                last(0x0030),
                Some(u64::from_le_bytes([attach.versions.0, attach.versions.1, 0, 0, 0, 0, 0, 0],))
            );
            assert_eq!(u128::from(last(0x0031).unwrap_or(60_000)), milliseconds);
            assert_packet_size(last(0x0032), attach.max_packet);
            assert_eq!(last(0x0038).unwrap_or(0), u64::from(attach.max_connections));
            assert_eq!(last(0x0039).unwrap_or(0), u64::from(attach.abilities.0));
        }
        Said::Hello(hello) => {
            assert_eq!(last(0x0030), Some(hello.version.into()));
            assert_packet_size(last(0x0032), hello.max_packet);
            assert!((1..=MAX_DESCRIPTORS).contains(&hello.batch.into()), "{hello:?}");
            assert_eq!(last(0x0033).unwrap_or(1), u64::from(hello.batch));
            assert_eq!(last(0x0034).unwrap_or(0), hello.acks as u64);
            assert_eq!(last(0x0035).unwrap_or(1) != 0, hello.ready);
            assert_eq!(last(0x0036).unwrap_or(0), u64::from(hello.open));
            assert_eq!(last(0x0037).unwrap_or(0), hello.received);
            assert!(hello.received <= u64::MAX / 2, "the router counts on from here");
            assert_eq!(last(0x0038).unwrap_or(0), u64::from(hello.max_connections));
            assert_eq!(last(0x0039).unwrap_or(0), u64::from(hello.abilities.0));
        }
        Said::Offer(entries) => {
            let sent = values(body, message::TAG_ENTRY);
            assert_eq!(sent.len(), entries.len());
            assert_eq!(entries.len(), transferred(header), "one descriptor an entry");
            for (entry, (info, posted)) in sent.into_iter().zip(entries) {
                assert_facts(entry, info);
                let message = values(entry, message::TAG_MESSAGE).pop();
                assert_eq!(message.unwrap_or_default(), posted);
            }
        }
        Said::HandBack { info, prefix, to, message: posted } => {
            assert_eq!(transferred(header), 1, "the connection");
            let (fields, message) = split_message(body);
            let sent = values(fields, message::TAG_CONNECTION);
            assert_facts(sent.last().expect("the facts"), info);
            assert_eq!(values(fields, message::TAG_PREFIX).concat(), *prefix);
            let name = values(fields, message::TAG_TO).pop();
            assert_eq!(name.unwrap_or_default(), to.as_bytes());
            assert_eq!(message, posted);
        }
        Said::Message(items, prefix, posted) => {
            assert_eq!(items.len(), transferred(header), "one descriptor an item");
            let infos = items.iter().filter_map(|item| match item {
                ItemKind::Connection(info) => Some(info),
                ItemKind::Port | ItemKind::Listener | ItemKind::Descriptor => None,
            });
            let (fields, message) = split_message(body);
            let sent = values(fields, message::TAG_CONNECTION);
            assert_eq!(sent.len(), infos.clone().count());
            sent.into_iter().zip(infos).for_each(|(facts, info)| assert_facts(facts, info));
            assert_eq!(values(fields, message::TAG_PREFIX).concat(), *prefix);
            assert_eq!(message, posted);
        }
        Said::Refused(refusals) => {
            let sent = values(body, message::TAG_REFUSAL);
            assert_eq!(sent.len(), refusals.len());
            for (value, refusal) in sent.into_iter().zip(refusals) {
                assert_eq!(value.len(), 10);
                assert_eq!(value[..8], refusal.sequence.to_le_bytes());
                let known = (1..=7).contains(&number(&value[8..10]));
                let reason = if known { number(&value[8..10]) } else { 8 };
                assert_eq!(reason, refusal.reason as u64);
                assert_eq!(RefusalReason::from_number(reason as u16), refusal.reason);
            }
        }
        Said::Drain(timeout, last) => {
            assert_eq!(*last, !values(body, message::TAG_LAST).is_empty());
            let first = values(body, message::TAG_TIMEOUT)[0];
            assert_eq!(u128::from(number(first)), timeout.as_millis());
        }
        Said::Acknowledge { up_to, open, each } => {
            assert_eq!(last(message::TAG_UP_TO).unwrap_or(0), *up_to);
            assert_eq!(last(message::TAG_OPEN), Some(u64::from(*open)), "a load must be said");
            let sent: Vec<_> = values(body, message::TAG_EACH).into_iter().map(number).collect();
            assert_eq!(sent, *each);
        }
        Said::WorkerMessage(posted) => assert_eq!(body, posted),
        Said::Error(report) => {
            let text = |tag| values(body, tag).pop().unwrap_or_default();
            assert_eq!(text(message::TAG_TEXT), report.message.as_bytes());
            assert_eq!(text(message::TAG_FILE), report.file.as_bytes());
            assert_eq!(last(message::TAG_LINE).unwrap_or(0), u64::from(report.line));
            assert_eq!(last(message::TAG_COLUMN).unwrap_or(0), u64::from(report.column));
        }
        Said::Bare => {}
    }
}

/// Asserts that facts are what their fields say.
///
/// # Panics
/// They are not: the finding.
pub fn assert_facts(bytes: &[u8], info: &ConnectionInfo) {
    let text = |tag| values(bytes, tag).pop();
    assert_eq!(last(bytes, facts::TAG_ID), Some(info.id));
    assert_eq!(last(bytes, facts::TAG_ACCEPTED).unwrap_or(0), info.accepted);
    assert_address(values(bytes, facts::TAG_PEER).pop(), info.peer);
    let numbers = |who: facts::PeerCredentials| [who.pid, who.uid, who.gid].map(u64::from);
    let sent =
        text(facts::TAG_PEER_CREDENTIALS).map(|sent| [0, 4, 8].map(|at| number(&sent[at..at + 4])));
    assert_eq!(sent, info.peer_credentials.map(numbers));
    assert_address(values(bytes, facts::TAG_DESTINATION).pop(), info.destination);
    let proxied = info.proxied.as_deref().cloned().unwrap_or_default();
    assert_eq!(text(facts::TAG_PROXIED_TLS).is_some(), proxied.tls);
    let name = proxied.server_name.as_deref().map(str::as_bytes);
    assert_eq!(text(facts::TAG_PROXIED_NAME), name);
    assert_eq!(text(facts::TAG_PROXIED_ALPN), proxied.alpn.as_deref());
    assert_eq!(text(facts::TAG_PROXIED_ID), proxied.unique_id.as_deref());
    assert_eq!(text(facts::TAG_LISTENER).unwrap_or_default(), info.listener.as_bytes());
    assert_eq!(text(facts::TAG_ROUTE).unwrap_or_default(), info.route.as_bytes());
    // Half a ticket that is zero is read as one that is not.
    let ticket =
        text(facts::TAG_TICKET).map(|sent| <[u8; 16]>::try_from(sent).expect("its length"));
    let by = info.handed_back_by.as_deref().map(|by| by.as_bytes());
    assert_eq!(text(facts::TAG_HANDED_BACK_BY), by);
    assert_eq!(ticket.map(facts::Ticket::from), info.ticket);
    assert_eq!(text(facts::TAG_SCOPE), info.scope.as_ref().map(|scope| scope.as_bytes()));
    assert_eq!(text(facts::TAG_PEER_CONTEXT), info.peer_context.as_deref().map(str::as_bytes));
}

fn assert_address(sent: Option<&[u8]>, read: Option<SocketAddr>) {
    let (Some(sent), Some(read)) = (sent, read) else {
        assert_eq!(sent.is_some(), read.is_some());
        return;
    };
    let (ip, rest) = sent.split_at(if sent.len() == 6 { 4 } else { 16 });
    match read.ip() {
        IpAddr::V4(v4) => assert_eq!(ip, v4.octets()),
        IpAddr::V6(v6) => assert_eq!(ip, v6.octets()),
    }
    assert_eq!(number(&rest[..2]), u64::from(read.port()));
    if let SocketAddr::V6(v6) = read {
        assert_eq!(number(&rest[2..]), u64::from(v6.scope_id()));
    }
}

/// A packet size over ours is taken as ours.
fn assert_packet_size(sent: Option<u64>, read: u32) {
    let ours = MAX_PACKET as u64;
    assert!(read >= 1024, "no offer fits in {read} bytes");
    assert_eq!(sent.unwrap_or(ours).min(ours), u64::from(read));
}

/// The values of a tag in the order in which they were sent.
fn values(bytes: &[u8], tag: u16) -> Vec<&[u8]> {
    let mut fields = Fields::new(bytes);
    std::iter::from_fn(|| fields.next_field().ok()?)
        .filter(|field| field.tag == tag)
        .map(|field| field.value)
        .collect()
}

fn last(bytes: &[u8], tag: u16) -> Option<u64> {
    values(bytes, tag).pop().map(number)
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    assert!(bytes.len() <= 8, "a number of {} bytes was taken", bytes.len());
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The fields before "the rest is the message", and that rest.
fn split_message(body: &[u8]) -> (&[u8], &[u8]) {
    let mut fields = Fields::new(body);
    loop {
        let before = body.len() - fields.rest().len();
        match fields.next_field() {
            Ok(Some(field)) if field.tag == message::TAG_MESSAGE_FOLLOWS => {
                return (&body[..before], fields.rest());
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return (body, &[]),
        }
    }
}
