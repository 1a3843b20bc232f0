//! A connection whose later requests may be another worker's: whatever its client says, in whatever
//! pieces, hyper behind the gate serves the requests that a second reading of all of it finds, and what
//! leaves is the rest, from the first byte of a request that is outside the scope.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use vestibule_fuzz::within;
use vestibule_protocol::scope::{Request, Scope, Texts, encode};
use vestibule_worker::fuzzing::{Outcome, Seen, converse};

/// What hyper takes (`max_headers`).
const FIELDS: usize = 100;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime without I/O"));

/// Nothing; all but `/admin`; a host and below `/api`; a cookie and a parameter.
static SCOPES: LazyLock<[Scope; 4]> = LazyLock::new(|| {
    let text = |text: &str| vec![text.to_owned()];
    let (admin, all, api, host) = (text("/admin/*"), text("/*"), text("/api/*"), text("*.example"));
    let named = |name: &str| vec![(name.to_owned(), text("a*"))];
    let (cookies, query) = (named("tier"), named("v"));
    let rule = Texts::default();
    let scope = |rules: &[Texts<'_>]| {
        Scope::decode(&encode(rules.iter().copied())).expect("what was encoded")
    };
    [
        scope(&[]),
        scope(&[Texts { paths: Some(&admin), ..rule }, Texts { paths: Some(&all), ..rule }]),
        scope(&[Texts { hosts: Some(&host), paths: Some(&api), ..rule }]),
        scope(&[Texts { cookies: &cookies, query: &query, ..rule }]),
    ]
});

fuzz_target!(|input: &[u8]| {
    let Some((&[how, sizes @ ..], said)) = input.split_first_chunk::<5>() else { return };
    let scope = &SCOPES[usize::from(how >> 1) % SCOPES.len()];
    let later = how & 1 == 1;
    LazyLock::force(&RUNTIME);
    let outcome =
        within(512 * 1024 + 16 * said.len(), || RUNTIME.block_on(talk(said, sizes, scope, later)));
    check(said, scope, &outcome);
});

/// Says all of it in pieces of these sizes.
async fn talk(said: &[u8], sizes: [u8; 4], scope: &Scope, later: bool) -> Outcome {
    let (client, server) = duplex(16 * 1024);
    let (mut reader, mut writer) = tokio::io::split(client);
    let write = async {
        let mut rest = said;
        for size in sizes.iter().cycle() {
            // Small ones matter most; with a zero all that is left comes at once.
            let size = if *size == 0 { rest.len() } else { usize::from(*size) };
            let (piece, later) = rest.split_at(size.min(rest.len()));
            if writer.write_all(piece).await.is_err() || later.is_empty() {
                break;
            }
            rest = later;
            tokio::task::yield_now().await;
        }
        let _ = writer.shutdown().await;
    };
    let read = async {
        let mut answers = Vec::new();
        let _ = reader.read_to_end(&mut answers).await;
    };
    let ((), (), outcome) = tokio::join!(write, read, converse(server, scope, later));
    outcome
}

/// Compares with a second reading of all that was said.
fn check(said: &[u8], scope: &Scope, outcome: &Outcome) {
    let mut at = 0;
    for (number, served) in outcome.served.iter().enumerate() {
        let expected = parse(&said[at..]).expect("what was served is a request");
        assert!(number == 0 || expected.is_in(scope), "served outside its scope: {served:?}");
        expected.is_like(served);
        let body = &said[at + expected.head..];
        match expected.body {
            Some(length) => {
                let there = length.min(body.len());
                assert_eq!((&*served.body, served.whole), (&body[..there], there == length));
                at += expected.head + there;
            }
            // Its end is hyper's to find, and its answer closes the connection.
            None => {
                assert_eq!(number + 1, outcome.served.len(), "something was served behind it");
                assert!(outcome.left.is_none(), "something left behind it");
            }
        }
    }
    if let Some((seen, left)) = &outcome.left {
        assert!(!outcome.served.is_empty(), "the first request is the one that was decided about");
        let expected = parse(&said[at..]).expect("what leaves is a request");
        assert!(!expected.is_in(scope), "left its scope: {seen:?}");
        expected.is_like(seen);
        assert_eq!(left, &said[at..]);
    }
}

/// A request as httparse reads it.
struct Expected {
    seen: Seen,
    /// Bytes up to the end of its head, with the empty lines before it.
    head: usize,
    /// Bytes of its body; `None`: it is chunked, or what follows is a tunnel.
    body: Option<usize>,
}

fn parse(bytes: &[u8]) -> Option<Expected> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    let field = |field: &httparse::Header<'_>| {
        (field.name.to_ascii_lowercase(), field.value.trim_ascii().to_vec())
    };
    let fields: Vec<_> = request.headers.iter().map(field).collect();
    let method = request.method?.to_owned();
    let of = |name: &str| fields.iter().filter(|(known, _)| known == name).count();
    let length = fields.iter().find(|(name, _)| name == "content-length");
    let body = if method == "CONNECT" || of("transfer-encoding") > 0 {
        None
    } else {
        match length {
            Some((_, text)) => Some(std::str::from_utf8(text).ok()?.parse().ok()?),
            None => Some(0),
        }
    };
    let target = request.path?.to_owned();
    let seen = Seen { method, target, fields, ..Seen::default() };
    Some(Expected { seen, head, body })
}

impl Expected {
    fn is_in(&self, scope: &Scope) -> bool {
        let lines: Vec<_> =
            self.seen.fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        scope.covers(&Request::new(&self.seen.method, &self.seen.target, &lines))
    }

    /// The same head; hyper keeps fields of one name together. The lengths are what the bodies show: of
    /// several that are equal it keeps one, and none beside an encoding (RFC 9112 6.3).
    fn is_like(&self, seen: &Seen) {
        let head = |seen: &Seen| {
            let mut fields = seen.fields.clone();
            fields.iter_mut().for_each(|(_, value)| *value = value.trim_ascii().to_vec());
            fields.retain(|(name, _)| name != "content-length");
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            (seen.method.clone(), seen.target.clone(), fields)
        };
        assert_eq!(head(&self.seen), head(seen));
    }
}
