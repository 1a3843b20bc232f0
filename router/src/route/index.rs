//! Which rules of a listener can be about a connection at all: found by address and by name, so that
//! ten thousand rules cost little more than ten.
//!
//! Networks are nested or apart, never across each other: each has the one around it, and a trie finds
//! the innermost that holds an address. Rules with networks stand at each of theirs, the others at the
//! root. At each place rules with names stand under these, for a look-up by hash. What comes out are
//! lists in order, which are merged.
//!
//! A network with one rule that has no names, which most of ten thousand are, is no more than that
//! rule's number in the trie's leaves: everything that a decision reads is small and close together.

mod names;
mod trie;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use self::names::ByName;
use self::trie::{Address, NOTHING, Net, Trie};
use super::rule::Rule;
use crate::inspect::Facts;

/// Index of a rule.
type At = u32;

/// No rule: their number ends before [`ALONE`].
const NOBODY: At = At::MAX;

/// What a trie finds is a rule by itself, not a place.
const ALONE: u32 = 1 << 31;

/// Lists of rules that are merged: the root's and one a network around the address, for each those
/// without and those with names. More than this, with networks nested deeper or with long names, takes
/// one allocation.
const LISTS: usize = 16;

/// The rules of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    root: Bucket,
    v4: Trie,
    v6: Trie,
    places: Vec<Place>,
    buckets: Vec<Bucket>,
}

/// A network that has more than one rule by itself.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its rule, if it has one and that has no names.
    rule: At,
    /// Else where its rules are.
    bucket: u32,
    /// What there is for the network around it, as in a trie's leaf.
    around: u32,
}

/// Rules that only their names distinguish.
#[derive(Clone, Debug, Default)]
struct Bucket {
    plain: Vec<At>,
    hosts: ByName,
    server_names: ByName,
}

/// Rules by network: by its first address and its length, so that networks around others come first.
type ByNetwork = BTreeMap<(u128, u32), Bucket>;

impl Index {
    /// Takes rules with their places, in order.
    pub(super) fn new<'rule>(rules: impl Iterator<Item = (usize, &'rule Rule)>) -> Self {
        let mut index = Self::default();
        let (mut v4, mut v6) = (ByNetwork::new(), ByNetwork::new());
        for (at, rule) in rules {
            // There are never as many.
            let Some(at) = At::try_from(at).ok().filter(|at| *at < ALONE) else { break };
            match &rule.peers {
                None => index.root.add(at, rule),
                Some(networks) => {
                    for network in networks.blocks() {
                        let (networks, first) = match network {
                            IpNet::V4(net) => (&mut v4, net.network().to_bits().aligned()),
                            IpNet::V6(net) => (&mut v6, net.network().to_bits().aligned()),
                        };
                        let place = (first, u32::from(network.prefix_len()));
                        networks.entry(place).or_default().add(at, rule);
                    }
                }
            }
        }
        index.v4 = index.trie(v4);
        index.v6 = index.trie(v6);
        index
    }

    /// A trie of networks, whose rules get their places.
    fn trie(&mut self, networks: ByNetwork) -> Trie {
        let mut nets: Vec<Net> = Vec::with_capacity(networks.len());
        // Those around the present one.
        let mut open: Vec<Net> = Vec::new();
        for ((first, length), bucket) in networks {
            while open.last().is_some_and(|around| !around.holds(first)) {
                open.pop();
            }
            let around = open.last().map_or(NOTHING, |around| around.value);
            let net = Net { first, length, value: self.place(bucket, around) };
            open.push(net);
            nets.push(net);
        }
        Trie::new(&nets)
    }

    /// What is found for a network with these rules.
    fn place(&mut self, bucket: Bucket, around: u32) -> u32 {
        let place = match (bucket.only_rule(), around) {
            (Some(rule), NOTHING) => return ALONE | rule,
            (Some(rule), _) => Place { rule, bucket: NOTHING, around },
            (None, _) => {
                self.buckets.push(bucket);
                // As many as there are rules at most times networks of one: never more than fit.
                Place { rule: NOBODY, bucket: self.buckets.len() as u32 - 1, around }
            }
        };
        self.places.push(place);
        self.places.len() as u32 - 1
    }

    /// Every rule whose listener, networks and names do not speak against it, in order. Those whose
    /// names cannot be compared yet, or ever, are among them.
    pub(super) fn candidates<'index>(&'index self, facts: &Facts<'_>) -> Candidates<'index> {
        let mut lists = SmallVec::new();
        self.root.collect(facts, &mut lists);
        let found = match facts.peer.map(|peer| peer.to_canonical()) {
            Some(IpAddr::V4(peer)) => self.v4.find(peer.to_bits()),
            Some(IpAddr::V6(peer)) => self.v6.find(peer.to_bits()),
            None => NOTHING,
        };
        self.collect(found, facts, &mut lists);
        Candidates { lists }
    }

    /// The rules of a network and of those around it.
    fn collect<'index>(&'index self, mut found: u32, facts: &Facts<'_>, lists: &mut Lists<'index>) {
        while found != NOTHING {
            if found & ALONE != 0 {
                return lists.push(List { next: found & !ALONE, rest: &[] });
            }
            let Some(place) = self.places.get(found as usize) else { return };
            match self.buckets.get(place.bucket as usize) {
                Some(bucket) => bucket.collect(facts, lists),
                None => lists.push(List { next: place.rule, rest: &[] }),
            }
            found = place.around;
        }
    }
}

impl Net {
    fn holds(&self, address: u128) -> bool {
        let differ = self.first ^ address;
        differ.leading_zeros() >= self.length
    }
}

type Lists<'index> = SmallVec<[List<'index>; LISTS]>;

/// Rules in order: the next one, and those after it.
#[derive(Clone, Copy, Debug)]
struct List<'index> {
    next: At,
    rest: &'index [At],
}

/// Rules in order, out of several lists in order.
pub(super) struct Candidates<'index> {
    lists: Lists<'index>,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let next = self.lists.iter().map(|list| list.next).min().filter(|next| *next != NOBODY)?;
        for list in &mut self.lists {
            // A rule with several networks around the address, or several names, is in several.
            if list.next == next {
                *list = match list.rest.split_first() {
                    Some((next, rest)) => List { next: *next, rest },
                    None => List { next: NOBODY, rest: &[] },
                };
            }
        }
        Some(next as usize)
    }
}

impl Bucket {
    fn add(&mut self, at: At, rule: &Rule) {
        if let Some(names) = &rule.conditions.hosts {
            self.hosts.add(at, names);
        } else if let Some(names) = &rule.conditions.server_names {
            self.server_names.add(at, names);
        } else {
            push(&mut self.plain, at);
        }
    }

    /// The rule of this bucket, if it is the only one and has no names.
    fn only_rule(&self) -> Option<At> {
        match *self.plain {
            [rule] if self.hosts.is_empty() && self.server_names.is_empty() => Some(rule),
            _ => None,
        }
    }

    fn collect<'index>(&'index self, facts: &Facts<'_>, lists: &mut Lists<'index>) {
        note(&self.plain, lists);
        if !self.hosts.is_empty() {
            self.hosts.collect(facts.host(), lists);
        }
        if !self.server_names.is_empty() {
            self.server_names.collect(facts.server_name(), lists);
        }
    }
}

/// Adds what is not there: rules come in order.
fn push(list: &mut Vec<At>, at: At) {
    if list.last() != Some(&at) {
        list.push(at);
    }
}

fn note<'index>(list: &'index [At], lists: &mut Lists<'index>) {
    if let Some((next, rest)) = list.split_first() {
        lists.push(List { next: *next, rest });
    }
}
