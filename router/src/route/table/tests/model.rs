//! The documentation's rules, read word for word, and rules and clients to compare with.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use vestibule_protocol::supervision::{RuleSetup, TargetSetup};

use super::super::*;
use crate::inspect::{ClientHello, Credentials, Fact, HttpHead, Label, Speech};

/// What of a connection there is to be seen: everything, for the reading word for word.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) listener: usize,
    pub(super) peer: Option<IpAddr>,
    pub(super) credentials: Fact<Credentials>,
    pub(super) context: Fact<Label>,
    pub(super) speech: Speech,
}

impl Seen {
    pub(super) fn facts(&self) -> Facts<'_> {
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
    pub(super) fn at(&self, asked: [bool; 3]) -> Facts<'_> {
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
pub(super) fn naive(rules: &[RuleSetup], seen: &Seen) -> (Why, TargetSetup) {
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

pub(super) fn written() -> impl Strategy<Value = RuleSetup> {
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

pub(super) fn seen() -> impl Strategy<Value = Seen> {
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
