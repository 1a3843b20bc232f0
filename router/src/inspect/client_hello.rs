//! A TLS client's first message, put together from as many records as it is spread over
//! (RFC 8446 4.1.2 and 5.1). Pure: the worker reads every byte again.

use std::borrow::Cow;
use std::collections::HashSet;

use super::facts::{Cause, ClientHello, Fact};
use super::normal;
use super::parsed::Parsed;

/// A record's content type, version and length.
const RECORD: usize = 5;
/// Content type of a handshake record.
const HANDSHAKE: u8 = 22;
/// Longest fragment in a record (RFC 8446 5.1).
const LONGEST: usize = 1 << 14;
/// A handshake message's type and length.
const MESSAGE: usize = 4;
/// Type of the message.
const CLIENT_HELLO: u8 = 1;

/// Extensions (the registry of RFC 8446 11; RFC 9849 for the last).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Whom to believe about a hello that holds another one, encrypted, or looks as if it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encrypted {
    /// Nobody: what the worker will read is hidden.
    #[default]
    Hidden,
    /// The outer one: workers have no key for the inner one, so the outer one is what they will read.
    Outer,
}

/// Reads a hello from the first bytes of a connection, at most `most` of which will ever be looked at.
pub fn parse(bytes: &[u8], most: usize, encrypted: Encrypted) -> Parsed<ClientHello> {
    let message = match join(bytes, most) {
        Parsed::Done(message) => message,
        Parsed::More(missing) => return Parsed::More(missing),
        Parsed::Not(cause) => return Parsed::Not(cause),
    };
    let body = message.get(MESSAGE..).unwrap_or_default();
    match hello(Reader(body), encrypted) {
        Some(hello) => Parsed::Done(hello),
        None => Parsed::Not(Cause::NotHttp),
    }
}

/// The first handshake message, out of its records.
fn join(bytes: &[u8], most: usize) -> Parsed<Cow<'_, [u8]>> {
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        // What is there of a header is judged: nobody waits for the rest of what is no TLS.
        let (header, after) = rest.split_at_checked(RECORD).unwrap_or((rest, &[]));
        if !could_begin_record(header) {
            return Parsed::Not(Cause::NotHttp);
        }
        let &[_, _, _, high, low] = header else {
            return Parsed::More(RECORD - header.len());
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // An empty fragment of a handshake is forbidden, and brings its end no nearer.
        if length == 0 || length > LONGEST {
            return Parsed::Not(Cause::NotHttp);
        }
        let (part, next) = after.split_at_checked(length).unwrap_or((after, &[]));
        match &mut joined {
            Cow::Borrowed([]) => joined = Cow::Borrowed(part),
            joined => joined.to_mut().extend_from_slice(part),
        }
        let whole = match joined.as_ref() {
            [CLIENT_HELLO, a, b, c, ..] => {
                usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).map_or(most, |n| MESSAGE + n)
            }
            [] | [CLIENT_HELLO, ..] => MESSAGE,
            _ => return Parsed::Not(Cause::NotHttp),
        };
        if RECORD.saturating_add(whole) > most {
            return Parsed::Not(Cause::TooLarge);
        }
        if joined.len() >= whole && joined.len() >= MESSAGE {
            return Parsed::Done(first(joined, whole));
        }
        if part.len() < length {
            return Parsed::More((length - part.len()).min(whole - joined.len()));
        }
        rest = next;
    }
}

/// Whether these are the first bytes of a handshake record, as far as they go. The version of a
/// client's first record is 3.1 or 3.3, and was 3.0: whatever the minor number is, servers take it.
fn could_begin_record(header: &[u8]) -> bool {
    matches!(header, [] | [HANDSHAKE] | [HANDSHAKE, 3, ..])
}

/// What belongs to the message; another may follow in its last record.
fn first(joined: Cow<'_, [u8]>, length: usize) -> Cow<'_, [u8]> {
    match joined {
        Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(..length).unwrap_or_default()),
        Cow::Owned(mut bytes) => {
            bytes.truncate(length);
            Cow::Owned(bytes)
        }
    }
}

/// The message's body; `None` if it breaks the rules in any place, read or skipped.
fn hello(mut body: Reader<'_>, encrypted: Encrypted) -> Option<ClientHello> {
    let _version = body.take(2)?;
    let _random = body.take(32)?;
    let session = body.short_list()?;
    let suites = body.long_list()?;
    let compression = body.short_list()?;
    if session.0.len() > 32
        || suites.0.is_empty()
        || suites.0.len() % 2 != 0
        || compression.0.is_empty()
    {
        return None;
    }
    // TLS 1.2 and older do without extensions.
    let mut extensions = if body.0.is_empty() { Reader(&[]) } else { body.long_list()? };
    if !body.0.is_empty() {
        return None;
    }
    let (mut server_name, mut alpn) = (Fact::Absent, Fact::Absent);
    let mut hides = false;
    // A hello has some twenty; one of 16 KiB has room for four thousand, and to look each up among
    // all before it would be what an attacker wants.
    let mut kinds = HashSet::new();
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.long_list()?;
        // Each at most once (RFC 8446 4.2): of two names two readers could believe two.
        if !kinds.insert(kind) {
            return None;
        }
        match kind {
            SERVER_NAME => server_name = names(content)?,
            ALPN => alpn = protocols(content)?,
            ENCRYPTED_CLIENT_HELLO => hides = true,
            _ => {}
        }
    }
    if hides && encrypted == Encrypted::Hidden {
        let hidden = Cause::Hidden;
        return Some(ClientHello {
            server_name: Fact::Unknown(hidden),
            alpn: Fact::Unknown(hidden),
        });
    }
    Some(ClientHello { server_name, alpn })
}

/// The name in a `server_name` extension (RFC 6066 3). What is there and is no host name cannot be
/// told: a server may well take it for one.
fn names(mut content: Reader<'_>) -> Option<Fact<Box<str>>> {
    const HOST_NAME: u8 = 0;
    let mut list = content.long_list()?;
    if !content.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut found = Fact::Absent;
    while !list.0.is_empty() {
        let kind = list.byte()?;
        let name = list.long_list()?;
        // One name of a kind; other kinds were never defined.
        if kind != HOST_NAME || found != Fact::Absent {
            return None;
        }
        let text = std::str::from_utf8(name.0).ok().filter(|text| !text.contains([':', '[']));
        found = text.and_then(normal::host).map_or(Fact::Unknown(Cause::NotHttp), Fact::Known);
    }
    Some(found)
}

/// The protocols in an ALPN extension (RFC 7301 3.1), none of them empty.
fn protocols(mut content: Reader<'_>) -> Option<Fact<Vec<Box<[u8]>>>> {
    let mut list = content.long_list()?;
    if !content.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.short_list()?;
        if protocol.0.is_empty() {
            return None;
        }
        protocols.push(protocol.0.into());
    }
    Some(Fact::Known(protocols))
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    /// A list with its length in one byte.
    fn short_list(&mut self) -> Option<Self> {
        let length = self.byte()?;
        self.take(length.into()).map(Reader)
    }

    /// A list with its length in two bytes.
    fn long_list(&mut self) -> Option<Self> {
        let length = self.number()?;
        self.take(length.into()).map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 16 * 1024;

    fn list16(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &list16(content)].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &list16(&[&[0][..], &list16(name)].concat()))
    }

    /// A hello with these extensions, in one record.
    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(list16(&extensions.concat()));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[CLIENT_HELLO][..], &length[1..], &body].concat();
        [&[HANDSHAKE, 3, 1][..], &list16(&message)].concat()
    }

    fn name(bytes: &[u8]) -> Parsed<Fact<Box<str>>> {
        match parse(bytes, MOST, Encrypted::Hidden) {
            Parsed::Done(hello) => Parsed::Done(hello.server_name),
            Parsed::More(missing) => Parsed::More(missing),
            Parsed::Not(cause) => Parsed::Not(cause),
        }
    }

    #[test]
    fn a_name_has_one_spelling_and_what_is_no_name_cannot_be_told() {
        let odd = Fact::Unknown(Cause::NotHttp);
        for (written, meant) in [
            (&b"App.Example.ORG"[..], Fact::Known("app.example.org".into())),
            (b"app.example.org.", Fact::Known("app.example.org".into())),
            (b"", odd.clone()),
            (b"a:443", odd.clone()),
            (b"[::1]", odd.clone()),
            (b"a\0b", odd.clone()),
            (b"\xff", odd),
        ] {
            assert_eq!(name(&hello(&[server_name(written)])), Parsed::Done(meant), "{written:?}");
        }
        assert_eq!(name(&hello(&[])), Parsed::Done(Fact::Absent));
    }

    #[test]
    fn two_names_are_no_hello_in_one_extension_or_in_two() {
        let two = [&[0][..], &list16(b"a"), &[0], &list16(b"b")].concat();
        for hello in [
            hello(&[server_name(b"a"), server_name(b"b")]),
            hello(&[extension(SERVER_NAME, &list16(&two))]),
            hello(&[extension(SERVER_NAME, &list16(&[]))]),
            hello(&[extension(SERVER_NAME, &[])]),
            hello(&[extension(ALPN, &list16(&[0]))]),
        ] {
            assert_eq!(name(&hello), Parsed::Not(Cause::NotHttp));
        }
    }

    #[test]
    fn another_record_or_an_empty_one_in_between_is_no_hello() {
        let whole = hello(&[server_name(b"a")]);
        let (head, tail) = whole[RECORD..].split_at(20);
        let first = [&[HANDSHAKE, 3, 1][..], &list16(head)].concat();
        let second = [&[HANDSHAKE, 3, 3][..], &list16(tail)].concat();
        assert_eq!(name(&[&first[..], &second].concat()), name(&whole));
        for between in [&[21, 3, 3, 0, 2, 1, 0][..], &[HANDSHAKE, 3, 3, 0, 0], &[23]] {
            let bytes = [&first[..], between, &second].concat();
            assert_eq!(name(&bytes), Parsed::Not(Cause::NotHttp), "{between:?}");
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_known_at_once() {
        assert_eq!(name(&[HANDSHAKE, 3, 1, 0x40, 1]), Parsed::Not(Cause::NotHttp));
        assert_eq!(name(&[HANDSHAKE, 2]), Parsed::Not(Cause::NotHttp));
        assert_eq!(name(&[HANDSHAKE, 3, 1, 1, 0, 2]), Parsed::Not(Cause::NotHttp));
        let long = [HANDSHAKE, 3, 1, 0x40, 0, CLIENT_HELLO, 0, 0x40, 0];
        assert_eq!(name(&long), Parsed::Not(Cause::TooLarge));
        let cut = hello(&[vec![0, 0, 0, 9]]);
        assert_eq!(name(&cut), Parsed::Not(Cause::NotHttp));
    }

    #[test]
    fn what_is_missing_is_asked_for_exactly_where_lengths_say_it() {
        let whole = hello(&[server_name(b"a")]);
        assert_eq!(name(&[]), Parsed::More(RECORD));
        assert_eq!(name(&whole[..2]), Parsed::More(3));
        assert_eq!(name(&whole[..RECORD + MESSAGE]), Parsed::More(whole.len() - RECORD - MESSAGE));
    }
}
