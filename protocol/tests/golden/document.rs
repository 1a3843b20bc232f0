//! `docs/wire-protocol.md` cannot drift: its dumps are the golden packets, its tables the constants.

use vestibule_protocol::message::{self, RefusalReason, kind};
use vestibule_protocol::{connection_info, limits, scope};

use crate::vectors;

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire-protocol.md");
    std::fs::read_to_string(path).expect("the document stands beside the crates")
}

/// The blocks that begin with "```hex NAME": bytes in hexadecimal, and notes after a semicolon.
fn dumps(document: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let mut bytes = Vec::new();
        for line in lines.by_ref().take_while(|line| *line != "```") {
            let dump = line.split(';').next().unwrap_or_default();
            bytes.extend(dump.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
        found.push((name.to_owned(), bytes));
    }
    found
}

#[test]
fn the_dumps_of_the_document_are_the_golden_packets() {
    let dumps = dumps(&document());
    for (name, golden) in vectors::ALL {
        let shown: Vec<_> = dumps.iter().filter(|(shown, _)| shown == name).collect();
        assert_eq!(shown.len(), 1, "the document shows `{name}` once");
        assert_eq!(shown[0].1, *golden, "{name}");
    }
    assert_eq!(dumps.len(), vectors::ALL.len(), "the document shows nothing else");
}

/// The table row that begins with these cells.
#[track_caller]
fn assert_row(document: &str, cells: &[String]) {
    let row = format!("| {} |", cells.join(" | "));
    assert!(document.lines().any(|line| line.starts_with(&row)), "no row begins {row}");
}

#[test]
fn the_tables_of_the_document_name_the_constants() {
    let document = document();
    for (number, name) in [
        (kind::ATTACH, "ATTACH"),
        (kind::OFFER, "OFFER"),
        (kind::MESSAGE, "MESSAGE"),
        (kind::REFUSED, "REFUSED"),
        (kind::DRAIN, "DRAIN"),
        (kind::CLOSE, "CLOSE"),
        (kind::HELLO, "HELLO"),
        (kind::ACKNOWLEDGE, "ACKNOWLEDGE"),
        (kind::REFUSE, "REFUSE"),
        (kind::WORKER_MESSAGE, "WORKER_MESSAGE"),
        (kind::ERROR, "ERROR"),
        (kind::DRAINING, "DRAINING"),
        (kind::CLOSING, "CLOSING"),
        (kind::HAND_BACK, "HAND_BACK"),
        (kind::PORT_MESSAGE, "PORT_MESSAGE"),
    ] {
        assert_row(&document, &[format!("0x{number:02x}"), format!("`{name}`")]);
    }
    for (tag, name) in [
        (message::TAG_ENTRY, "ENTRY"),
        (message::TAG_MESSAGE, "MESSAGE"),
        (message::TAG_MESSAGE_FOLLOWS, "MESSAGE_FOLLOWS"),
        (message::TAG_CONNECTION, "CONNECTION"),
        (message::TAG_PORT, "PORT"),
        (message::TAG_LISTENER, "LISTENER"),
        (message::TAG_DESCRIPTOR, "DESCRIPTOR"),
        (message::TAG_PREFIX, "PREFIX"),
        (message::TAG_TO, "TO"),
        (message::TAG_UP_TO, "UP_TO"),
        (message::TAG_EACH, "EACH"),
        (message::TAG_OPEN, "OPEN"),
        (message::TAG_REFUSAL, "REFUSAL"),
        (message::TAG_TIMEOUT, "TIMEOUT"),
        (message::TAG_TEXT, "TEXT"),
        (message::TAG_FILE, "FILE"),
        (message::TAG_LINE, "LINE"),
        (message::TAG_COLUMN, "COLUMN"),
        (connection_info::TAG_ID, "ID"),
        (connection_info::TAG_PEER, "PEER"),
        (connection_info::TAG_LISTENER, "LISTENER_NAME"),
        (connection_info::TAG_ROUTE, "ROUTE"),
        (connection_info::TAG_DESTINATION, "DESTINATION"),
        (connection_info::TAG_PEER_CONTEXT, "PEER_CONTEXT"),
        (connection_info::TAG_ACCEPTED, "ACCEPTED"),
        (connection_info::TAG_PEER_CREDENTIALS, "PEER_CREDENTIALS"),
        (connection_info::TAG_PROXIED_TLS, "PROXIED_TLS"),
        (connection_info::TAG_PROXIED_NAME, "PROXIED_NAME"),
        (connection_info::TAG_PROXIED_ALPN, "PROXIED_ALPN"),
        (connection_info::TAG_PROXIED_ID, "PROXIED_ID"),
        (connection_info::TAG_TICKET, "TICKET"),
        (connection_info::TAG_HANDED_BACK_BY, "HANDED_BACK_BY"),
        (connection_info::TAG_SCOPE, "SCOPE"),
        (scope::TAG_RULE, "RULE"),
        (scope::TAG_HOST, "HOST"),
        (scope::TAG_PATH, "PATH"),
        (scope::TAG_QUERY, "QUERY"),
        (scope::TAG_HEADER, "HEADER"),
        (scope::TAG_COOKIE, "COOKIE"),
        (scope::TAG_NAME, "NAME"),
        (scope::TAG_VALUE, "VALUE"),
    ] {
        assert_row(&document, &[format!("0x{tag:04x}"), format!("`{name}`")]);
    }
    let known = (1..=8).map(RefusalReason::from_number);
    for (number, reason) in (1..=8).zip(known) {
        let attempt = if reason.counts_as_attempt() { "yes" } else { "no" };
        let cells = [number.to_string(), format!("`{}`", reason.as_str()), attempt.to_owned()];
        assert_row(&document, &cells);
    }
    for (name, value) in [
        ("largest packet", limits::MAX_PACKET),
        ("descriptors in a packet", limits::MAX_DESCRIPTORS),
        ("largest user message", limits::MAX_MESSAGE),
        ("transfer list of a large body", limits::MAX_TRANSFER_LIST),
        ("text", limits::MAX_TEXT),
        ("what was read of a connection", limits::MAX_PREFIX),
        ("hops without an answer", usize::from(limits::MAX_HOPS)),
        ("messages before a slow receiver", limits::QUEUE_MESSAGES),
        ("bytes before a slow receiver", limits::QUEUE_BYTES),
    ] {
        assert_row(&document, &[name.to_owned(), value.to_string()]);
    }
}
