use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use vestibule_protocol::supervision::{RuleSetup, TargetSetup};

use super::*;
use crate::inspect::{ClientHello, Credentials, Fact, HttpHead, Label, Speech, normal};

fn table(rules: &[RuleSetup], listeners: usize) -> Table {
    let rules = rules.iter().map(|rule| compile(rule).unwrap()).collect();
    Table::new(rules, &vec![Unseen::Reject; listeners], vec![None; 3])
}

/// What of a connection there is to be seen: everything, for the reading word for word.
#[derive(Clone, Debug)]
struct Seen {
    listener: usize,
    peer: Option<IpAddr>,
    credentials: Fact<Credentials>,
    context: Fact<Label>,
    speech: Speech,
}

impl Seen {
    fn facts(&self) -> Facts<'_> {
        Facts {
            listener: self.listener,
            peer: self.peer,
            credentials: self.credentials.as_ref(),
            context: self.context.as_ref(),
            speech: &self.speech,
            announced: None,
        }
    }

    /// As much of it as was asked for.
    fn at(&self, asked: [bool; 3]) -> Facts<'_> {
        let [credentials, context, bytes] = asked;
        let all = self.facts();
        let nothing = Facts::of_address(self.listener, self.peer);
        Facts {
            credentials: if credentials { all.credentials } else { nothing.credentials },
            context: if context { all.context } else { nothing.context },
            speech: if bytes { all.speech } else { nothing.speech },
            ..nothing
        }
    }
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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Yes,
    No,
    Hidden(Cause),
}

/// One condition, as the documentation says it: any of a list. A missing value matches nothing.
fn holds<V, P>(wanted: Option<&[P]>, fact: Fact<Vec<V>>, one: impl Fn(&P, &V) -> bool) -> Is {
    match (wanted, fact) {
        (None, _) => Is::Yes,
        (Some(_), Fact::Unknown(cause)) => Is::Hidden(cause),
        (Some(_), Fact::Absent) => Is::No,
        (Some(wanted), Fact::Known(values)) => {
            let any = wanted.iter().any(|pattern| values.iter().any(|value| one(pattern, value)));
            if any { Is::Yes } else { Is::No }
        }
        (Some(_), Fact::Unasked) => panic!("everything was looked at"),
    }
}

fn is_below(pattern: &str, name: &str) -> bool {
    let pattern = pattern.to_lowercase();
    match pattern.strip_prefix("*.") {
        Some(parent) => name.ends_with(&format!(".{parent}")),
        None => match pattern.strip_prefix('.') {
            Some(parent) => name == parent || name.ends_with(&format!(".{parent}")),
            None => name == pattern,
        },
    }
}

fn is_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(parent) => path == parent || path.starts_with(&format!("{parent}/")),
        None => path == pattern,
    }
}

fn is_value(pattern: &str, value: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(stem) => value.starts_with(stem),
        None => value == pattern,
    }
}

fn is_context(pattern: &str, label: &str) -> bool {
    let parts = pattern.splitn(4, ':').zip(label.splitn(4, ':'));
    pattern != "none" && parts.into_iter().all(|(pattern, part)| pattern == "*" || pattern == part)
}

/// The documentation, word for word: in order, every condition, any of a list; what cannot be told
/// does not fall through.
fn naive(rules: &[RuleSetup], seen: &Seen) -> (Why, TargetSetup) {
    let facts = seen.facts();
    for (index, rule) in rules.iter().enumerate() {
        let conditions = conditions(rule, seen, &facts);
        if conditions.contains(&Is::No) {
            continue;
        }
        let hidden = conditions.iter().find_map(|is| match is {
            Is::Hidden(cause) => Some(*cause),
            Is::Yes | Is::No => None,
        });
        return match hidden {
            Some(cause) => (Why::Unknown { rule: index, cause }, TargetSetup::Status(400)),
            None => (Why::Rule(index), rule.target),
        };
    }
    match rules {
        [] => (Why::OnlyPool, TargetSetup::Pool(0)),
        _ => (Why::NoMatch, TargetSetup::Status(404)),
    }
}

fn conditions(rule: &RuleSetup, seen: &Seen, facts: &Facts<'_>) -> Vec<Is> {
    let truth = |is: bool| if is { Is::Yes } else { Is::No };
    let one = |fact: Fact<&str>| fact.map(|value| vec![value.to_owned()]);
    let listeners = rule.listeners.as_ref();
    let mut all = vec![
        truth(listeners.is_none_or(|all| all.contains(&(seen.listener as u32)))),
        holds(rule.peers.as_deref(), seen.peer.map(|peer| vec![peer]).into(), |net, peer| {
            net.parse::<IpNet>().unwrap().contains(peer)
        }),
        holds(rule.users.as_deref(), facts.credentials.map(|who| vec![who.uid]), |user, uid| {
            *user == uid.to_string()
        }),
        match (&rule.contexts, facts.context) {
            (Some(contexts), Fact::Absent) => truth(contexts.iter().any(|it| it == "none")),
            (contexts, context) => {
                let context = context.map(|label| vec![label.as_str().to_owned()]);
                holds(contexts.as_deref(), context, |pattern, label| is_context(pattern, label))
            }
        },
        holds(rule.server_names.as_deref(), one(facts.server_name()), |pattern, name| {
            is_below(pattern, name)
        }),
        holds(rule.alpn.as_deref(), facts.alpn().map(|all| all.to_vec()), |wanted, offered| {
            wanted.as_bytes() == &**offered
        }),
        match rule.http2 {
            None => Is::Yes,
            Some(wanted) => holds(Some(&[wanted]), facts.http2().map(|is| vec![is]), bool::eq),
        },
        holds(rule.hosts.as_deref(), one(facts.host()), |pattern, host| is_below(pattern, host)),
        holds(rule.paths.as_deref(), one(facts.path()), |pattern, path| is_path(pattern, path)),
    ];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (name, patterns) in &rule.query {
        let values = facts.head().map(|head| head.query(name).map(|it| it.into_owned()).collect());
        all.push(holds(Some(patterns), values, |pattern, value: &String| is_value(pattern, value)));
    }
    for (name, patterns) in &rule.headers {
        let values = facts.head().map(|head| head.header(name).map(text).collect());
        all.push(holds(Some(patterns), values, |pattern, value: &String| is_value(pattern, value)));
    }
    for (name, patterns) in &rule.cookies {
        let values = facts.head().map(|head| head.cookie(name).map(text).collect());
        all.push(holds(Some(patterns), values, |pattern, value: &String| is_value(pattern, value)));
    }
    all
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
        (0..4u16).prop_map(|a| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, a])),
    ]
}

fn network() -> impl Strategy<Value = String> {
    (address(), 0..=128u8).prop_map(|(address, prefix)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix.min(most)).unwrap().trunc().to_string()
    })
}

/// A list of few values, so that what is asked about is in it now and then.
fn list(of: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(proptest::sample::select(of).prop_map(str::to_owned), 1..3)
}

fn maybe(of: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<String>>> {
    proptest::option::weighted(0.2, list(of))
}

fn named(
    names: &'static [&'static str],
    of: &'static [&'static str],
) -> impl Strategy<Value = Vec<(String, Vec<String>)>> {
    let one = (proptest::sample::select(names).prop_map(str::to_owned), list(of));
    prop_oneof![4 => Just(Vec::new()), 1 => one.prop_map(|one| vec![one])]
}

const NAMES: &[&str] = &["a.example", "*.example", ".b.example", "c.a.example", "Example"];
const VALUES: &[&str] = &["gold", "go*", "*", ""];

fn written() -> impl Strategy<Value = RuleSetup> {
    let target = prop_oneof![
        (0..3u32).prop_map(TargetSetup::Pool),
        (400..600u16).prop_map(TargetSetup::Status),
        Just(TargetSetup::Reset),
        Just(TargetSetup::Close),
    ];
    let listeners = proptest::option::of(proptest::collection::vec(0..3u32, 1..3));
    let peers = proptest::option::of(proptest::collection::vec(network(), 1..4));
    let labels = maybe(&["none", "*:*:staff_t:*", "staff_u:*:*:*"]);
    (
        (listeners, peers, maybe(&["7", "8"]), labels, target),
        (maybe(NAMES), maybe(&["h2", "http/1.1"]), proptest::option::weighted(0.1, any::<bool>())),
        (maybe(NAMES), maybe(&["/", "/a/*", "/a/b"])),
        (named(&["q"], VALUES), named(&["x-tier"], VALUES), named(&["c"], VALUES)),
    )
        .prop_map(|(cheap, tls, (hosts, paths), (query, headers, cookies))| {
            let (listeners, peers, users, contexts, target) = cheap;
            let (server_names, alpn, http2) = tls;
            RuleSetup {
                listeners,
                peers,
                users,
                contexts,
                server_names,
                alpn,
                http2,
                hosts,
                paths,
                query,
                headers,
                cookies,
                ..RuleSetup::new("rule", target)
            }
        })
}

fn cause() -> impl Strategy<Value = Cause> {
    proptest::sample::select(&[Cause::TimedOut, Cause::TooLarge, Cause::NotHttp, Cause::Hidden][..])
}

fn fact<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Fact<T>> {
    prop_oneof![
        4 => value.prop_map(Fact::Known),
        1 => Just(Fact::Absent),
        1 => cause().prop_map(Fact::Unknown),
    ]
}

fn speech() -> impl Strategy<Value = Speech> {
    let names = || {
        let names = ["a.example", "c.a.example", "b.example", "x.b.example", "other"];
        proptest::sample::select(names.to_vec())
    };
    let hello = (fact(names()), fact(list(&["h2", "http/1.1", "x"]))).prop_map(|(name, alpn)| {
        Speech::Tls(ClientHello {
            server_name: name.map(Box::from),
            alpn: alpn.map(|all| all.iter().map(|it| it.as_bytes().into()).collect()),
        })
    });
    let target = proptest::sample::select(vec!["/", "/a?q=gold", "/x/../a/b?q", "*", "nonsense"]);
    let line = |name: &'static str, of: &'static [&'static str]| {
        let value = proptest::sample::select(of);
        proptest::option::of(value)
            .prop_map(move |value| Some((name.into(), value?.as_bytes().into())))
    };
    let head = (
        target,
        proptest::option::of(names()),
        line("X-Tier", &["gold", "good", "silver"]),
        line("Cookie", &["c=gold", "c=; d", "d=gold"]),
    )
        .prop_map(|(target, host, tier, cookie)| {
            let host = host.map(|host| ("Host".into(), host.as_bytes().into()));
            let lines = [host, tier, cookie].into_iter().flatten().collect();
            Speech::Http1(HttpHead::new("GET", target, 1, lines))
        });
    prop_oneof![
        3 => hello,
        5 => head,
        1 => Just(Speech::Http2),
        1 => cause().prop_map(Speech::TlsUnread),
        1 => cause().prop_map(Speech::Http1Unread),
        1 => cause().prop_map(Speech::Unknown),
    ]
}

fn seen() -> impl Strategy<Value = Seen> {
    let credentials = fact((6..9u32).prop_map(|uid| Credentials { uid, user: None }));
    let labels = ["staff_u:staff_r:staff_t:s0", "guest_u:guest_r:guest_t:s0"];
    let context = fact(proptest::sample::select(labels.to_vec()));
    let context = context.prop_map(|fact| fact.map(|text| Label::parse(text).unwrap()));
    (0..3usize, proptest::option::of(address()), credentials, context, speech()).prop_map(
        |(listener, peer, credentials, context, speech)| Seen {
            listener,
            peer,
            credentials,
            context,
            speech,
        },
    )
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
    let found: Vec<usize> = index.candidates(&seen.facts()).collect();
    assert_eq!(found, [9999, 19_999]);
    assert_eq!(decide(&table, &seen).0.why, Why::Rule(9999));
}
