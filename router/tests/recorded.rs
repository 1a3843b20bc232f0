//! What real clients said first, in every prefix, in every fragmentation into records, and with
//! anything behind it: parsers never panic, never ask for more bytes than there are to come, and do
//! not change their answer once they have one.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "that is how a test fails"
)]

use std::path::Path;

use proptest::prelude::*;
use vestibule_router::inspect::client_hello::Encrypted;
use vestibule_router::inspect::facts::{Cause, Fact, Speech};
use vestibule_router::inspect::speech::{Ear, listen};

const MOST: usize = 16 * 1024;
const HIDDEN: Ear = Ear { most: MOST, encrypted: Encrypted::Hidden };
const OUTER: Ear = Ear { most: MOST, encrypted: Encrypted::Outer };

fn recorded(extension: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    assert!(files.len() >= 3, "recordings are missing");
    files
}

/// Every proper prefix is incomplete, and what it lacks at least is not more than it lacks.
fn assert_every_prefix_is_incomplete(name: &str, whole: &[u8], begun: &Speech) {
    for length in 0..whole.len() {
        let (speech, missing) = listen(&whole[..length], HIDDEN);
        assert!(missing > 0, "{name}: {length} bytes: {speech:?}");
        assert!(length + missing <= whole.len(), "{name}: {length} bytes and {missing} more");
        assert!(
            speech == *begun || speech == Speech::Unasked,
            "{name}: {length} bytes: {speech:?}"
        );
    }
}

#[test]
fn every_prefix_of_a_hello_is_incomplete_and_the_whole_says_name_and_protocols() {
    for (name, bytes) in recorded("hello") {
        assert_every_prefix_is_incomplete(&name, &bytes, &Speech::TlsBegun);
        let (Speech::Tls(hello), 0) = listen(&bytes, OUTER) else { panic!("{name}") };
        let expected = (!name.contains("noservername")).then(|| "app.example.org".into());
        assert_eq!(hello.server_name, Fact::from(expected), "{name}");
        let protocols: Option<Vec<Box<[u8]>>> =
            (!name.contains("noservername")).then(|| vec![(*b"h2").into(), (*b"http/1.1").into()]);
        assert_eq!(hello.alpn, Fact::from(protocols), "{name}");
    }
}

#[test]
fn a_browsers_encrypted_hello_hides_what_is_asked_for() {
    for (name, bytes) in recorded("hello") {
        let browser = name.starts_with("chromium") || name.starts_with("firefox");
        let (Speech::Tls(hello), 0) = listen(&bytes, HIDDEN) else { panic!("{name}") };
        let hidden = hello.server_name == Fact::Unknown(Cause::Hidden);
        assert_eq!(
            (hidden, hello.alpn == Fact::Unknown(Cause::Hidden)),
            (browser, browser),
            "{name}"
        );
    }
}

#[test]
fn every_prefix_of_a_head_is_incomplete_and_the_whole_says_host_and_path() {
    for (name, bytes) in recorded("head") {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_every_prefix_is_incomplete(&name, &bytes[..end], &Speech::Http1Begun);
        for length in end..=bytes.len() {
            let (Speech::Http1(head), 0) = listen(&bytes[..length], HIDDEN) else {
                panic!("{name}")
            };
            assert_eq!(head.host(), Fact::Known("app.example.org"), "{name}");
            assert_eq!(head.path(), Fact::Known("/api/v1"), "{name}");
            assert_eq!(head.query("v").collect::<Vec<_>>(), ["2"], "{name}");
        }
    }
}

#[test]
fn every_prefix_of_the_preface_of_http2_is_incomplete() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_every_prefix_is_incomplete("preface", preface, &Speech::Unasked);
    assert_eq!(listen(preface, HIDDEN), (Speech::Http2, 0));
    assert_eq!(listen(b"PRI * HTTP/2.0\r\n\r\nSN", HIDDEN), (Speech::Unknown(Cause::NotHttp), 0));
}

/// The same handshake message in other records: fragments of these lengths, over and over.
fn in_records(hello: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut message = &hello[5..];
    let mut records = Vec::new();
    for length in lengths.iter().cycle() {
        if message.is_empty() {
            break;
        }
        let (fragment, rest) = message.split_at((*length).min(message.len()));
        records.extend_from_slice(&[22, 3, 1]);
        records.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend_from_slice(fragment);
        message = rest;
    }
    records
}

proptest! {
    #[test]
    fn a_hello_says_the_same_in_any_records(
        lengths in proptest::collection::vec(1..700usize, 1..8),
        behind in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        for (name, bytes) in recorded("hello") {
            let mut records = in_records(&bytes, &lengths);
            if records.len() > MOST {
                continue;
            }
            assert_every_prefix_is_incomplete(&name, &records, &Speech::TlsBegun);
            records.extend_from_slice(&behind);
            prop_assert_eq!(listen(&records, OUTER), listen(&bytes, OUTER), "{}", name);
        }
    }

    /// An answer is final, whatever follows: else a client could have one rule see one thing, and
    /// the worker another.
    #[test]
    fn an_answer_does_not_change_with_what_follows(
        which in 0..9usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut all = recorded("hello");
        all.extend(recorded("head"));
        let (_, mut bytes) = all.swap_remove(which % all.len());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut answer = None;
        for length in 0..=bytes.len() {
            let (speech, missing) = listen(&bytes[..length], OUTER);
            match &answer {
                None if missing == 0 => answer = Some(speech),
                None => {}
                Some(first) => prop_assert_eq!((&speech, missing), (first, 0), "at {}", length),
            }
        }
    }

    #[test]
    fn a_head_that_never_ends_is_too_large(lines in 1..40usize, length in 1..2000usize) {
        let mut head = b"GET / HTTP/1.1\r\nhost: a\r\n".to_vec();
        for line in 0..lines {
            head.extend_from_slice(format!("x-{line}: {}\r\n", "v".repeat(length)).as_bytes());
        }
        let expected = if head.len() < MOST {
            (Speech::Http1Begun, 1)
        } else {
            (Speech::Http1Unread(Cause::TooLarge), 0)
        };
        prop_assert_eq!(listen(&head, HIDDEN), expected);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), tls in any::<bool>()) {
        let mut bytes = bytes;
        if tls {
            bytes.splice(0..0, [22, 3, 1, 1, 0, 1, 0, 0, 250]);
        }
        let (_, missing) = listen(&bytes, HIDDEN);
        prop_assert!(missing < MOST);
    }
}
