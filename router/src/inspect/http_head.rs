//! The head of an HTTP/1 request (RFC 9112), and the preface of HTTP/2. Pure: the worker reads every
//! byte again.

use std::mem::MaybeUninit;

use super::facts::Cause;
use super::parsed::Parsed;
use super::request::HttpHead;

/// What a client of HTTP/2 says first (RFC 9113 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Most field lines of a head: hyper takes 100, Apache as many; browsers send some twenty.
pub const MOST_FIELDS: usize = 128;

/// Whether a connection begins with the preface of HTTP/2.
pub fn preface(bytes: &[u8]) -> Parsed<()> {
    if bytes.starts_with(PREFACE) {
        Parsed::Done(())
    } else if PREFACE.starts_with(bytes) {
        Parsed::More(PREFACE.len() - bytes.len())
    } else {
        Parsed::Not(Cause::NotHttp)
    }
}

/// Reads a head from the first bytes of a connection. What two servers may understand differently is
/// not HTTP: control characters, folded lines, spaces before a colon.
pub fn parse(bytes: &[u8]) -> Parsed<HttpHead> {
    let mut room = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut room) {
        Ok(httparse::Status::Complete(_)) => {}
        // Two bytes end a head that is whole but for them; one may be enough where lines end bare.
        Ok(httparse::Status::Partial) => return Parsed::More(1),
        Err(httparse::Error::TooManyHeaders) => return Parsed::Not(Cause::TooLarge),
        Err(_) => return Parsed::Not(Cause::NotHttp),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Parsed::Not(Cause::NotHttp);
    };
    // A target has no fragment (RFC 9112 3.2): some servers cut it off, and read another query then.
    if target.contains('#') {
        return Parsed::Not(Cause::NotHttp);
    }
    let fields = request.headers.iter().map(|field| (field.name.into(), field.value.into()));
    Parsed::Done(HttpHead::new(method, target, minor, fields.collect()))
}
