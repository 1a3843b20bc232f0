//! For which later requests a decision holds, as a worker is told it: whatever bytes come are a scope or
//! an error, and a worker says of each request what the router's table says of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::within;
use vestibule_protocol::limits::MAX_SCOPE;
use vestibule_protocol::scope::{Named, Request, Scope};
use vestibule_protocol::supervision::{ListenerSetup, RuleSetup, Setup, TargetSetup};
use vestibule_router::inspect::facts::Speech;
use vestibule_router::inspect::http_head::parse;
use vestibule_router::inspect::parsed::Parsed;
use vestibule_router::inspect::request::HttpHead;
use vestibule_router::route::{Facts, Outcome, Table, Why};

/// More rules than any interesting case needs.
const MOST_RULES: usize = 8;
/// Rules whose texts are together no longer than this are short enough for a scope: 3 bytes (a space,
/// a letter, a name of another) become 14 at most, so that these are below [`MAX_SCOPE`].
const SHORT: usize = 800;

/// What reading a byte may allocate. One rule is there at a time, and it takes most where its bytes are
/// values: an empty one is 4 bytes long, and a pattern of 24. A list that grows exists twice for a
/// moment, once with twice the room: 3 × 24 for 4.
const READ: usize = 18;
/// What a byte may allocate when a request is asked about, and all rules are kept: likewise, where they
/// are empty. Such a rule is 4 bytes long, and 200 when it was read.
const ASKED: usize = 150;
/// Besides, lists begin with room for four, and the request's own values are decoded.
const BESIDES: usize = 1024;

fuzz_target!(|input: &[u8]| {
    travels(input);
    let Some(end) = input.windows(2).position(|two| two == b"\n\n") else { return };
    let Ok(text) = std::str::from_utf8(&input[..end]) else { return };
    let Parsed::Done(head) = parse(&input[end + 2..]) else { return };
    let rules: Vec<RuleSetup> =
        text.split('\n').take(MOST_RULES).enumerate().map(|(at, line)| rule(at, line)).collect();
    let setup = Setup { rules, listeners: vec![ListenerSetup::default()], ..Setup::default() };
    // A pattern that is none.
    let Ok(table) = Table::of(&setup) else { return };
    judges_as_the_table(&table, &head, text.len() <= SHORT);
});

/// What was decoded is what came, and what it says of a request costs no panic.
fn travels(bytes: &[u8]) {
    let read = within(READ * bytes.len() + BESIDES, || Scope::decode(bytes));
    assert!(read.is_err() || bytes.len() <= MAX_SCOPE);
    let Ok(scope) = read else { return };
    assert_eq!(scope.as_bytes(), bytes);
    let request = [("host", &b"a.example"[..]), ("cookie", b"a=b")];
    let request = Request::new("GET", "/api/x?v=2", &request);
    let inside = within(ASKED * bytes.len() + BESIDES, || scope.covers(&request));
    assert_eq!(scope.covers(&request), inside);
}

/// A rule of words: `h` and a host, `p` and a path, `q`, `f`, `c` and a name, `=`, a value of a query, a
/// field, a cookie.
fn rule(at: usize, line: &str) -> RuleSetup {
    let pool = u32::try_from(at).expect("few rules");
    let mut rule = RuleSetup::new(format!("rule-{at}"), TargetSetup::Pool(pool));
    let named = |all: &mut Vec<Named>, text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, "*"));
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value.to_owned()),
            None => all.push((name.to_owned(), vec![value.to_owned()])),
        }
    };
    for word in line.split(' ') {
        let mut rest = word.chars();
        let kind = rest.next();
        let text = rest.as_str();
        match kind {
            Some('h') => rule.hosts.get_or_insert_default().push(text.to_owned()),
            Some('p') => rule.paths.get_or_insert_default().push(text.to_owned()),
            Some('q') => named(&mut rule.query, text),
            Some('f') => named(&mut rule.headers, text),
            Some('c') => named(&mut rule.cookies, text),
            _ => {}
        }
    }
    rule
}

/// Which rule's scope has the request inside: that of the rule that the table chooses.
fn judges_as_the_table(table: &Table, head: &HttpHead, short: bool) {
    let speech = Speech::Http1(head.clone());
    let facts = Facts { speech: &speech, ..Facts::of_address(0, None) };
    let Outcome::Decided(decision) = table.decide(&facts) else {
        panic!("all is known that the request says");
    };
    let lines: Vec<(&str, &[u8])> = head.headers().collect();
    let request = Request::new(head.method(), head.target(), &lines);
    for at in 0..table.rules().len() {
        let chosen = decision.why == Why::Rule(at);
        match table.scope(&facts, Why::Rule(at)) {
            // It holds for every request: a rule without conditions, which is the first; or one behind
            // such a rule, and none is chosen there.
            None => assert_eq!(chosen, at == 0, "rule {at}, and the table says {:?}", decision.why),
            Some(scope) => {
                let read = Scope::decode(&scope).expect("what the router wrote");
                assert_eq!(read.as_bytes(), &*scope);
                let inside = read.covers(&request);
                // What would be too long has nothing inside.
                let expected = chosen && (short || !scope.is_empty());
                assert_eq!(inside, expected, "rule {at}, and the table says {:?}", decision.why);
            }
        }
    }
}
