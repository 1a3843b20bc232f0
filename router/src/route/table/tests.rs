mod model;

use proptest::prelude::*;
use vestibule_protocol::supervision::{RuleSetup, TargetSetup};

use self::model::{Seen, naive, seen, written};
use super::*;
use crate::inspect::{Fact, HttpHead, Label, Speech, normal};

fn table(rules: &[RuleSetup], listeners: usize) -> Table {
    let rules = rules.iter().map(|rule| compile(rule).unwrap()).collect();
    Table::new(rules, &vec![Unseen::Reject; listeners], vec![None; 3])
}

/// Asks as a router does: looks when told to, and only as deep. Returns how deep it looked.
fn decide<'table>(table: &'table Table, seen: &Seen) -> (Decision<'table>, [bool; 3]) {
    let mut asked = [false; 3];
    loop {
        let depth = match table.decide(&seen.at(asked)) {
            Outcome::Decided(decision) => return (decision, asked),
            Outcome::Need(depth) => depth,
        };
        assert!(depth <= table.depth(seen.listener), "{depth:?}");
        let place = match depth {
            Depth::Address => panic!("it comes with the connection"),
            Depth::Credentials => 0,
            Depth::Context => 1,
            Depth::Bytes => 2,
        };
        assert!(!std::mem::replace(&mut asked[place], true), "{depth:?} was asked for already");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_compiled_table_decides_as_the_rules_read(
        rules in proptest::collection::vec(written(), 0..12),
        asked in proptest::collection::vec(seen(), 1..12),
    ) {
        let table = table(&rules, 3);
        for seen in asked {
            let (decision, _) = decide(&table, &seen);
            let (why, target) = naive(&rules, &seen);
            let target = compile(&RuleSetup::new("", target)).unwrap().target;
            prop_assert_eq!((decision.why, decision.target), (why, target), "{:?}", seen);
        }
    }

    /// What is not in front of the decision is not looked at: without it the decision is the same.
    #[test]
    fn what_was_not_asked_for_changes_nothing(
        rules in proptest::collection::vec(written(), 0..8),
        seen in seen(),
        other in seen(),
    ) {
        let table = table(&rules, 3);
        let (decision, asked) = decide(&table, &seen);
        let mut changed = other;
        changed.listener = seen.listener;
        changed.peer = seen.peer;
        if asked[0] { changed.credentials = seen.credentials.clone(); }
        if asked[1] { changed.context = seen.context.clone(); }
        if asked[2] { changed.speech = seen.speech.clone(); }
        prop_assert_eq!(decide(&table, &changed).0, decision);
    }

    /// What is called unreachable never decides.
    #[test]
    fn an_unreachable_rule_never_decides(
        rules in proptest::collection::vec(written(), 0..8),
        seen in seen(),
    ) {
        let table = table(&rules, 3);
        for (index, earlier) in table.unreachable() {
            prop_assert!(earlier < index);
            prop_assert_ne!(decide(&table, &seen).0.why, Why::Rule(index));
        }
    }
}

fn rule(name: &str, listeners: Option<Vec<u32>>, peers: Option<&str>) -> RuleSetup {
    RuleSetup {
        listeners,
        peers: peers.map(|net| vec![net.to_owned()]),
        ..RuleSetup::new(name, TargetSetup::Pool(0))
    }
}

fn host(name: &str, target: TargetSetup) -> RuleSetup {
    RuleSetup { hosts: Some(vec![name.to_owned()]), ..RuleSetup::new(name, target) }
}

fn spoken(speech: Speech) -> Seen {
    Seen {
        listener: 0,
        peer: "10.1.2.3".parse().ok(),
        credentials: Fact::Absent,
        context: Fact::Absent,
        speech,
    }
}

fn request(target: &str, host: &str) -> Speech {
    Speech::Http1(HttpHead::new("GET", target, 1, vec![("host".into(), host.as_bytes().into())]))
}

#[test]
fn a_rule_by_address_in_front_of_one_by_host_decides_without_a_byte() {
    let rules = [rule("near", None, Some("10.0.0.0/8")), host("a.example", TargetSetup::Pool(1))];
    let table = table(&rules, 1);
    let near = Facts::of_address(0, "10.1.2.3".parse().ok());
    assert!(matches!(table.decide(&near), Outcome::Decided(Decision { why: Why::Rule(0), .. })));
    let far = Facts::of_address(0, "192.0.2.1".parse().ok());
    assert_eq!(table.decide(&far), Outcome::Need(Depth::Bytes));
    assert_eq!(table.depth(0), Depth::Bytes);
}

#[test]
fn a_rule_is_unreachable_only_if_each_of_its_listeners_is_decided_before() {
    let table = table(
        &[
            rule("one", Some(vec![0]), None),
            rule("both", None, Some("10.0.0.0/8")),
            rule("two", Some(vec![1]), None),
            rule("late", None, None),
            rule("later", Some(vec![0]), Some("10.0.0.0/8")),
        ],
        2,
    );
    assert_eq!(table.unreachable(), [(3, 2), (4, 0)]);
}

#[test]
fn what_no_rule_matches_is_404_no_route_and_a_rule_has_its_own_answer() {
    let mut only = rule("only", None, Some("10.0.0.0/8"));
    only.target = TargetSetup::Status(403);
    let table = table(&[only], 1);
    let decide = |peer: &str| match table.decide(&Facts::of_address(0, peer.parse().ok())) {
        Outcome::Decided(decision) => decision.rejection(),
        Outcome::Need(depth) => panic!("{depth:?}"),
    };
    assert_eq!(decide("192.0.2.1"), Some(Rejection::because(Reason::NoRoute)));
    assert_eq!(decide("10.0.0.1"), Some(Rejection::status(403, Reason::Rejected)));
}

#[test]
fn what_a_rule_wants_to_see_and_cannot_goes_where_its_listener_says() {
    let rules = [
        host("admin.example", TargetSetup::Status(403)),
        RuleSetup::new("rest", TargetSetup::Pool(0)),
    ];
    let compiled = || rules.iter().map(|rule| compile(rule).unwrap()).collect();
    let strict = Table::new(compiled(), &[Unseen::Reject], vec![None]);
    let open = Table::new(compiled(), &[Unseen::Pool(2)], vec![None]);
    for cause in [Cause::TimedOut, Cause::TooLarge, Cause::NotHttp, Cause::Hidden] {
        let seen = spoken(Speech::Unknown(cause));
        let rejection = decide(&strict, &seen).0.rejection();
        assert_eq!(rejection, Some(Rejection::because(cause.reason())));
        let decision = decide(&open, &seen).0;
        assert_eq!((decision.target, &**decision.route), (Target::Pool(2), UNKNOWN));
    }
    let http2 = decide(&strict, &spoken(Speech::Http2)).0;
    assert_eq!(http2.rejection(), Some(Rejection::because(Reason::UnknownFact)));
}

/// Which level dominates another one only the policy knows whose names they are.
#[test]
fn a_level_that_cannot_be_compared_does_not_come_to_the_next_rule() {
    let low = RuleSetup {
        levels: Some(vec!["s0-s0:c0.c5".to_owned()]),
        ..RuleSetup::new("low", TargetSetup::Status(403))
    };
    let table = table(&[low, RuleSetup::new("rest", TargetSetup::Pool(0))], 1);
    for (label, reason) in [
        ("u:r:t:s0:c1", Some(Reason::Rejected)),
        ("u:r:t:s0:c1,c9", None),
        ("u:r:t", None),
        ("u:r:t:s0:secret", Some(Reason::UnknownFact)),
        ("u:r:t:confidential", Some(Reason::UnknownFact)),
    ] {
        let context = Fact::Known(Label::parse(label).unwrap());
        let seen = Seen { context, ..spoken(Speech::Http2) };
        let rejection = decide(&table, &seen).0.rejection();
        assert_eq!(rejection.map(|rejection| rejection.reason()), reason, "{label}");
    }
}

#[test]
fn a_redirection_keeps_the_request_and_leaves_certificate_authorities_alone() {
    let rules = [
        RuleSetup::new("tls", TargetSetup::Redirect),
        RuleSetup::new("acme", TargetSetup::Pool(1)),
    ];
    let table = table(&rules, 1);
    let location = |target: &str, host: &str| {
        let seen = spoken(request(target, host));
        let decision = decide(&table, &seen).0;
        (decision.redirection(&seen.facts()), decision.target)
    };
    let to = |url: &str| (Some(Some(url.to_owned())), Target::Redirect);
    assert_eq!(location("/a%20b?c=1", "A.example:80"), to("https://a.example/a%20b?c=1"));
    assert_eq!(location("/", ""), (Some(None), Target::Redirect));
    let acme = "/.well-known/acme-challenge/x";
    assert_eq!(location(acme, "a.example"), (None, Target::Pool(1)));
    let sly = "/.well-known/acme-challenge/../../admin";
    assert_eq!(location(sly, "a.example"), to(&format!("https://a.example{sly}")));
}

#[test]
fn a_pool_whose_balance_looks_at_the_request_waits_for_it() {
    let balance = vestibule_protocol::supervision::Balance::HashHost;
    let table = Table::new(Vec::new(), &[Unseen::Reject], vec![KeySource::of(&balance)]);
    assert_eq!(table.depth(0), Depth::Bytes);
    assert_eq!(table.decide(&Facts::of_address(0, None)), Outcome::Need(Depth::Bytes));
    let seen = spoken(request("/", "a.example"));
    let decision = decide(&table, &seen).0;
    let affinity = table.affinity(decision.target, &seen.facts());
    assert_eq!(affinity, Some(Affinity::Key(normal::host("a.example").unwrap().as_bytes().into())));
}

/// The first rule by network, or by name, of ten thousand is found without a look at the others.
#[test]
fn of_ten_thousand_rules_few_are_looked_at() {
    let pool = TargetSetup::Pool(0);
    let networks = (0..10_000u32).map(|n| {
        let net = format!("10.{}.{}.0/24", n / 256, n % 256);
        RuleSetup { peers: Some(vec![net]), ..RuleSetup::new("net", pool) }
    });
    let hosts = (0..10_000u32).map(|n| host(&format!("*.tenant-{n}.example"), pool));
    let rules: Vec<_> = networks.chain(hosts).collect();
    let table = table(&rules, 1);
    let index = &table.listeners[0].index;
    let seen =
        Seen { peer: "10.39.15.7".parse().ok(), ..spoken(request("/", "www.tenant-9999.example")) };
    let mut found = Candidates::default();
    index.find(&seen.facts(), &mut found);
    assert_eq!(found.map(|found| found.rule).collect::<Vec<_>>(), [9999, 19_999]);
    assert_eq!(decide(&table, &seen).0.why, Why::Rule(9999));
}
