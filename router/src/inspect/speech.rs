//! What a client says first, judged from the bytes that are there: TLS, HTTP/2, HTTP/1 or none of
//! them.

use super::client_hello::{self, Encrypted};
use super::facts::{Cause, Speech};
use super::http_head;
use super::parsed::Parsed;

/// Content type of a TLS handshake record: no method of HTTP begins so.
const HANDSHAKE: u8 = 22;

/// How much is looked at, and whom to believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ear {
    /// The first bytes of a connection: a head or a hello is within them, or cannot be told.
    pub most: usize,
    /// What to think of an encrypted hello.
    pub encrypted: Encrypted,
}

/// What was said so far, and how many bytes are missing at least: 0 once more bytes change nothing.
pub fn listen(bytes: &[u8], ear: Ear) -> (Speech, usize) {
    let bytes = bytes.get(..ear.most).unwrap_or(bytes);
    let (speech, missing) = judge(bytes, ear);
    if missing > 0 && bytes.len() >= ear.most {
        return (give_up(speech, Cause::TooLarge), 0);
    }
    (speech, missing)
}

/// What is left of a speech that will not be heard to its end.
pub fn give_up(speech: Speech, cause: Cause) -> Speech {
    match speech {
        Speech::Unasked => Speech::Unknown(cause),
        Speech::TlsBegun => Speech::TlsUnread(cause),
        Speech::Http1Begun => Speech::Http1Unread(cause),
        told => told,
    }
}

fn judge(bytes: &[u8], ear: Ear) -> (Speech, usize) {
    let Some(first) = bytes.first() else { return (Speech::Unasked, 1) };
    if *first == HANDSHAKE {
        return match client_hello::parse(bytes, ear.most, ear.encrypted) {
            Parsed::Done(hello) => (Speech::Tls(hello), 0),
            Parsed::More(missing) => (Speech::TlsBegun, missing),
            Parsed::Not(cause) => (Speech::TlsUnread(cause), 0),
        };
    }
    match http_head::preface(bytes) {
        Parsed::Done(()) => return (Speech::Http2, 0),
        // It could still be HTTP/1: `P` begins `POST`.
        Parsed::More(missing) => return (Speech::Unasked, missing.min(1)),
        Parsed::Not(_) => {}
    }
    match http_head::parse(bytes) {
        Parsed::Done(head) => (Speech::Http1(head), 0),
        Parsed::More(missing) => (Speech::Http1Begun, missing),
        // Neither this nor that: what a worker makes of it nobody can tell.
        Parsed::Not(Cause::NotHttp) => (Speech::Unknown(Cause::NotHttp), 0),
        Parsed::Not(cause) => (Speech::Http1Unread(cause), 0),
    }
}
