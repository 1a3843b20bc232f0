//! A head of HTTP/1: whatever bytes come first on a connection, what was found is what a second
//! reading line by line finds, the answer is final, and hosts and paths have one spelling.
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
