//! All rules together, compiled when they are loaded, and the decision.

use std::net::IpAddr;
use std::sync::Arc;

use super::rule::{Rule, Target};
use crate::reject::{Reason, Rejection};

/// Name of the implicit route.
pub const DEFAULT: &str = "default";

/// Name of what is decided when no rule matches, and its reason.
pub const NO_ROUTE: &str = Reason::NoRoute.as_str();

/// What is known about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Index of the listener that accepted it.
    pub listener: usize,
    /// The client's address; none for a client without an Internet address. Mapped ones count as
    /// IPv4.
    pub peer: Option<IpAddr>,
}

/// Where a connection goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'table> {
    /// Where.
    pub target: Target,
    /// Name of the rule, [`DEFAULT`] or [`NO_ROUTE`].
    pub route: &'table Arc<str>,
    /// Why.
    pub why: Why,
}

impl Decision<'_> {
    /// How the connection is turned away, if it is.
    pub fn rejection(&self) -> Option<Rejection> {
        match (self.target, self.why) {
            (Target::Pool(_), _) => None,
            (Target::Reject(_), Why::NoMatch) => Some(Rejection::because(Reason::NoRoute)),
            (Target::Reject(refusal), Why::Rule(_) | Why::OnlyPool) => Some(refusal.rejection()),
        }
    }
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// This rule, by its index, is the first that matches.
    Rule(usize),
    /// There are no rules, and one pool.
    OnlyPool,
    /// There are rules, and none matches.
    NoMatch,
}

/// Rules that were compiled for a number of listeners.
#[derive(Clone, Debug)]
pub struct Table {
    rules: Vec<Rule>,
    /// For each listener the rules that can decide there, in order. The last one always matches, or
    /// all look at the client.
    by_listener: Vec<Vec<usize>>,
    otherwise: Why,
    default: Arc<str>,
    no_route: Arc<str>,
}

impl Table {
    /// Compiles rules for listeners `0..listeners`. Without a rule everything goes to pool 0, which
    /// is right where there is one pool.
    pub fn new(rules: Vec<Rule>, listeners: usize) -> Self {
        let by_listener = (0..listeners).map(|listener| deciding(&rules, listener)).collect();
        let otherwise = if rules.is_empty() { Why::OnlyPool } else { Why::NoMatch };
        Self { rules, by_listener, otherwise, default: DEFAULT.into(), no_route: NO_ROUTE.into() }
    }

    /// The table of one pool and no rules.
    pub fn only_pool(listeners: usize) -> Self {
        Self::new(Vec::new(), listeners)
    }

    /// Where a connection goes. A listener that the table was not compiled for has no rules.
    pub fn decide(&self, facts: Facts) -> Decision<'_> {
        let candidates = self.by_listener.get(facts.listener).map_or(&[][..], Vec::as_slice);
        for &index in candidates {
            let Some(rule) = self.rules.get(index) else { continue };
            let matches = match (&rule.peers, facts.peer) {
                (None, _) => true,
                (Some(networks), Some(peer)) => networks.contains(peer),
                (Some(_), None) => false,
            };
            if matches {
                return Decision { target: rule.target, route: &rule.name, why: Why::Rule(index) };
            }
        }
        match self.otherwise {
            Why::OnlyPool => {
                Decision { target: Target::Pool(0), route: &self.default, why: Why::OnlyPool }
            }
            Why::NoMatch | Why::Rule(_) => {
                let target = Target::Reject(super::Refusal::Status(404));
                Decision { target, route: &self.no_route, why: Why::NoMatch }
            }
        }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Rules that never decide, whatever the client, because on every listener that they are about
    /// an earlier one always matches: pairs of such a rule and the earlier one that makes it so (where
    /// listeners differ, the last of them).
    pub fn unreachable(&self) -> Vec<(usize, usize)> {
        // The last rule of a listener is the first that always matches there, if there is one.
        let always: Vec<Option<usize>> = self
            .by_listener
            .iter()
            .map(|rules| rules.last().copied())
            .map(|last| last.filter(|at| self.rules.get(*at).is_some_and(|r| r.peers.is_none())))
            .collect();
        let before = |(index, rule): (usize, &Rule)| {
            let mine = always.iter().enumerate().filter(|(listener, _)| rule.covers(*listener));
            // One listener without such a rule, and it can decide there.
            let earlier = mine
                .map(|(_, always)| always.filter(|earlier| *earlier < index))
                .collect::<Option<Vec<usize>>>()?;
            Some((index, earlier.into_iter().max()?))
        };
        self.rules.iter().enumerate().filter_map(before).collect()
    }
}

/// The rules of one listener, up to the first that always matches.
fn deciding(rules: &[Rule], listener: usize) -> Vec<usize> {
    let mut deciding = Vec::new();
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.covers(listener)) {
        deciding.push(index);
        if rule.peers.is_none() {
            break;
        }
    }
    deciding
}

#[cfg(test)]
mod tests {
    use super::super::{Networks, Refusal};
    use super::*;
    use ipnet::IpNet;
    use proptest::prelude::*;

    /// A rule as it is written.
    #[derive(Clone, Debug)]
    struct Written {
        listeners: Option<Vec<usize>>,
        peers: Option<Vec<IpNet>>,
        target: Target,
    }

    fn compiled(written: &[Written], listeners: usize) -> Table {
        let rule = |(index, rule): (usize, &Written)| Rule {
            name: format!("route-{}", index + 1).into(),
            listeners: rule.listeners.clone(),
            peers: rule.peers.clone().map(Networks::new),
            target: rule.target,
        };
        Table::new(written.iter().enumerate().map(rule).collect(), listeners)
    }

    /// The documentation, word for word: in order, every condition, any of a list.
    fn naive(written: &[Written], facts: Facts) -> Option<usize> {
        written.iter().position(|rule| {
            let listener = match &rule.listeners {
                Some(listeners) => listeners.contains(&facts.listener),
                None => true,
            };
            let peer = match (&rule.peers, facts.peer) {
                (Some(networks), Some(peer)) => networks.iter().any(|net| net.contains(&peer)),
                (Some(_), None) => false,
                (None, _) => true,
            };
            listener && peer
        })
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
            (0..4u16).prop_map(|a| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, a])),
        ]
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128u8).prop_map(|(address, prefix)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, prefix.min(most)).unwrap()
        })
    }

    fn written() -> impl Strategy<Value = Written> {
        let listeners = proptest::option::of(proptest::collection::vec(0..3usize, 1..3));
        let peers = proptest::option::weighted(0.8, proptest::collection::vec(network(), 1..4));
        let target = prop_oneof![
            (0..3usize).prop_map(Target::Pool),
            (400..600u16).prop_map(|status| Target::Reject(Refusal::Status(status))),
            Just(Target::Reject(Refusal::Reset)),
            Just(Target::Reject(Refusal::Close)),
        ];
        (listeners, peers, target).prop_map(|(listeners, peers, target)| Written {
            listeners,
            peers,
            target,
        })
    }

    proptest! {
        #[test]
        fn the_compiled_table_decides_as_the_rules_read(
            rules in proptest::collection::vec(written(), 0..8),
            asked in proptest::collection::vec((0..3usize, proptest::option::of(address())), 1..16),
        ) {
            let table = compiled(&rules, 3);
            for (listener, peer) in asked {
                let facts = Facts { listener, peer };
                let decision = table.decide(facts);
                let expected = match naive(&rules, facts) {
                    Some(index) => (Why::Rule(index), rules[index].target, format!("route-{}", index + 1)),
                    None if rules.is_empty() => (Why::OnlyPool, Target::Pool(0), "default".to_owned()),
                    None => (
                        Why::NoMatch,
                        Target::Reject(Refusal::Status(404)),
                        "no-route".to_owned(),
                    ),
                };
                prop_assert_eq!((decision.why, decision.target, decision.route.to_string()), expected);
            }
        }

        /// What is called unreachable never decides.
        #[test]
        fn an_unreachable_rule_never_decides(
            rules in proptest::collection::vec(written(), 0..8),
            listener in 0..3usize,
            peer in proptest::option::of(address()),
        ) {
            let table = compiled(&rules, 3);
            for (index, earlier) in table.unreachable() {
                prop_assert!(earlier < index);
                prop_assert_ne!(table.decide(Facts { listener, peer }).why, Why::Rule(index));
            }
        }
    }

    fn rule(name: &str, listeners: Option<Vec<usize>>, peers: Option<&str>) -> Rule {
        let peers = peers.map(|net| Networks::new([net.parse().unwrap()]));
        Rule { name: name.into(), listeners, peers, target: Target::Pool(0) }
    }

    #[test]
    fn a_rule_is_unreachable_only_if_each_of_its_listeners_is_decided_before() {
        let table = Table::new(
            vec![
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
        only.target = Target::Reject(Refusal::Status(403));
        let table = Table::new(vec![only], 1);
        let decide = |peer: &str| {
            let facts = Facts { listener: 0, peer: peer.parse().ok() };
            table.decide(facts).rejection()
        };
        assert_eq!(decide("192.0.2.1"), Some(Rejection::because(Reason::NoRoute)));
        assert_eq!(decide("10.0.0.1"), Some(Rejection::status(403, Reason::Rejected)));
        assert_eq!(Table::only_pool(1).decide(Facts { listener: 0, peer: None }).rejection(), None);
    }
}
