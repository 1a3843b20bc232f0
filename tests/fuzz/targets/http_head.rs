//! A head of HTTP/1: whatever bytes come first on a connection, what was found is what a second
//! reading line by line finds, the answer is final, hosts and paths have one spelling, and parameters
//! and cookies are those that others find.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::{prefixes, within};
use vestibule_router::inspect::client_hello::Encrypted;
use vestibule_router::inspect::facts::{Fact, Speech};
use vestibule_router::inspect::http_head::{MOST_FIELDS, PREFACE, parse};
use vestibule_router::inspect::parsed::Parsed;
use vestibule_router::inspect::request::HttpHead;
use vestibule_router::inspect::speech::{Ear, listen};

const MOST: usize = 16 * 1024;
const EAR: Ear = Ear { most: MOST, encrypted: Encrypted::Hidden };

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MOST)];
    let whole = within(8 * bytes.len() + 16 * 1024, || parse(bytes));
    if let Parsed::Done(head) = &whole {
        is_what_the_lines_say(bytes, head);
        is_what_httparse_says(bytes, head);
        has_the_parameters_of_form_urlencoded(head);
        has_the_cookies_of_its_lines(head);
    }
    for length in prefixes(bytes.len()) {
        match parse(&bytes[..length]) {
            Parsed::More(missing) => assert!(missing > 0),
            told => assert_eq!(told, whole, "{length}"),
        }
    }
    let (speech, missing) = listen(bytes, EAR);
    match speech {
        Speech::Http2 => assert!(bytes.starts_with(PREFACE)),
        Speech::Http1(head) => assert_eq!(Parsed::Done(head), whole),
        Speech::Tls(_) | Speech::TlsBegun | Speech::TlsUnread(_) => assert_eq!(bytes[0], 22),
        Speech::Unasked => assert!(PREFACE.starts_with(bytes)),
        Speech::Http1Begun => assert!(missing > 0 && bytes.len() < MOST),
        Speech::Http1Unread(_) | Speech::Unknown(_) => assert_eq!(missing, 0),
    }
});

/// The lines of the head, split by hand.
fn is_what_the_lines_say(bytes: &[u8], head: &HttpHead) {
    let mut lines =
        bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.by_ref().find(|line| !line.is_empty()).expect("a request line");
    let first = std::str::from_utf8(first).expect("text");
    let mut words = first.split(' ').filter(|word| !word.is_empty());
    assert_eq!(words.next(), Some(head.method()));
    assert_eq!(words.next(), Some(head.target()));
    assert_eq!(words.next(), Some(format!("HTTP/1.{}", head.minor()).as_str()));
    assert_eq!(words.next(), None);
    let mut fields = 0;
    let mut found = head.headers();
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        let (name, value) = line.split_at(colon);
        let (known, content) = found.next().expect("as many fields as lines");
        assert!(known.as_bytes().eq_ignore_ascii_case(name), "{known}");
        assert_eq!(value[1..].trim_ascii(), content.trim_ascii());
        fields += 1;
    }
    assert!(found.next().is_none() && fields <= MOST_FIELDS);
}

/// The crate's own reading, with another array and in another form.
fn is_what_httparse_says(bytes: &[u8], head: &HttpHead) {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    assert!(request.parse(bytes).expect("a head").is_complete());
    assert_eq!((request.method, request.path), (Some(head.method()), Some(head.target())));
    assert_eq!(request.headers.len(), head.headers().count());
    let hosts: Vec<_> =
        request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host")).collect();
    if let Fact::Known(host) = head.host() {
        assert!(!host.is_empty() && !host.ends_with('.') && *host == host.to_ascii_lowercase());
        assert!(hosts.iter().all(|field| {
            let line = field.value.to_ascii_lowercase();
            line.is_empty() || host.starts_with('[') || line.starts_with(host.as_bytes())
        }));
    }
    if let Fact::Known(path) = head.path() {
        assert!(path.starts_with('/') && !path.contains("//"));
        assert!(!path.split('/').any(|segment| segment == "." || segment == ".."));
    }
}

/// A name that hardly any request has.
const ABSENT: &str = "absent";
/// So many names are asked for: all of most heads, and no square of the names of a long one.
const MOST_NAMES: usize = 64;

/// The parameters of the query, as the URL Standard's own form of them is read by somebody else.
fn has_the_parameters_of_form_urlencoded(head: &HttpHead) {
    let query = head.target().split_once('?').map_or("", |(_, query)| query);
    let all: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    for name in all.iter().map(|(name, _)| &**name).take(MOST_NAMES).chain([ABSENT]) {
        let expected = all.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value);
        assert!(head.query(name).eq(expected), "{name:?} of {query:?}");
    }
}

/// The cookies, in the order of the lines, from the texts of all lines.
fn has_the_cookies_of_its_lines(head: &HttpHead) {
    // A letter for each byte, so that every line is a text.
    let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let lines: Vec<String> = head
        .headers()
        .filter(|(name, _)| name.eq_ignore_ascii_case("cookie"))
        .map(|(_, line)| text(line))
        .collect();
    let white = |c: char| c.is_ascii_whitespace();
    let all: Vec<(&str, &str)> = lines
        .iter()
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.trim_matches(white), value.trim_matches(white)))
        .collect();
    let names = all.iter().map(|(name, _)| *name).filter(|name| name.is_ascii());
    for name in names.take(MOST_NAMES).chain([ABSENT]) {
        let expected = all.iter().filter(|(known, _)| *known == name).map(|(_, value)| *value);
        assert!(head.cookie(name).map(text).eq(expected), "{name:?} of {lines:?}");
    }
}
