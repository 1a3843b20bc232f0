//! Which rules of a listener can be about a connection at all: found by address and by name, so that
//! ten thousand rules cost little more than ten.
//!
//! Networks are nested or apart, never across each other: each has the one around it, and a trie finds
//! the innermost that holds an address. Rules with networks stand at each of theirs, the others at the
//! root. At each place rules with names stand under these, for a look-up by hash. What comes out are
//! lists in order, which are merged.
//!
//! A network with one rule that has no names, and a name with one rule, which most of ten thousand are,
//! have that rule with its brief beside them: everything that a decision reads is small and close
//! together.

mod names;
mod trie;

use std::collections::BTreeMap;
use std::net::IpAddr;

use smallvec::SmallVec;

use self::names::ByName;
use self::trie::{Address, Trie};
use super::brief::NO_BRIEF;
use super::networks::Networks;
use super::rule::Rule;
use crate::inspect::Facts;

/// A rule that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its index.
    pub(super) rule: u32,
    /// What is to be known of it where all that it asks for was found, see [`Briefs`](super::brief::Briefs).
    pub(super) brief: u16,
}

/// The brief of what has several rules: instead of a rule there is the number of their list.
const SEVERAL: u16 = NO_BRIEF;

/// No rule: the last one comes before it.
const NOBODY: Entry = Entry { rule: u32::MAX, brief: NO_BRIEF };

/// Lists of rules that are merged: the root's and one a network around the address, for each those
/// without and those with names. More than this, with networks nested deeper or with long names, takes
/// one allocation.
const LISTS: usize = 16;

/// The rules of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    root: Bucket,
    v4: Trie<u32>,
    v6: Trie<u128>,
    /// Rules of networks that have several, or one with names.
    buckets: Vec<Bucket>,
}

/// Rules that only their names distinguish.
#[derive(Clone, Debug, Default)]
struct Bucket {
    plain: Vec<Entry>,
    hosts: ByName,
    server_names: ByName,
}

/// Rules by network: by its first address and its length, so that networks around others come first.
type ByNetwork<A> = BTreeMap<(A, u8), Bucket>;

impl Index {
    /// Takes rules with their places, in order, and the number of each one's brief.
    pub(super) fn new<'rule>(
        rules: impl Iterator<Item = (usize, &'rule Rule)>,
        briefs: &[u16],
    ) -> Self {
        let mut index = Self::default();
        let (mut v4, mut v6) = (ByNetwork::new(), ByNetwork::new());
        for (at, rule) in rules {
            let Some(brief) = briefs.get(at) else { break };
            // There are never as many.
            let Some(at) = u32::try_from(at).ok().filter(|at| *at != NOBODY.rule) else { break };
            let entry = Entry { rule: at, brief: *brief };
            for network in rule.peers.iter().flat_map(Networks::blocks) {
                let (first, length) = (network.network(), network.prefix_len());
                let bucket = match first {
                    IpAddr::V4(first) => v4.entry((first.to_bits(), length)).or_default(),
                    IpAddr::V6(first) => v6.entry((first.to_bits(), length)).or_default(),
                };
                bucket.add(entry, rule);
            }
            if rule.peers.is_none() {
                index.root.add(entry, rule);
            }
        }
        index.v4 = index.trie(v4);
        index.v6 = index.trie(v6);
        index
    }

    /// A trie of networks, whose rules get their places.
    fn trie<A: Address>(&mut self, networks: ByNetwork<A>) -> Trie<A> {
        let place = |((first, length), bucket)| (first, length, self.place(bucket));
        Trie::new(&networks.into_iter().map(place).collect::<Vec<_>>())
    }

    /// What is found for a network with these rules.
    fn place(&mut self, bucket: Bucket) -> Entry {
        bucket.only_rule().unwrap_or_else(|| {
            self.buckets.push(bucket);
            // As many as there are rules at most times networks of one: never more than fit.
            Entry { rule: self.buckets.len() as u32 - 1, brief: SEVERAL }
        })
    }

    /// Finds every rule whose listener, networks and names do not speak against it. Those whose names
    /// cannot be compared yet, or ever, are among them.
    pub(super) fn find<'index>(&'index self, facts: &Facts<'_>, found: &mut Candidates<'index>) {
        let lists = &mut found.lists;
        self.root.collect(facts, lists);
        match facts.peer.map(|peer| peer.to_canonical()) {
            Some(IpAddr::V4(peer)) => self.collect(self.v4.around(peer.to_bits()), facts, lists),
            Some(IpAddr::V6(peer)) => self.collect(self.v6.around(peer.to_bits()), facts, lists),
            None => {}
        }
    }

    /// The rules of networks.
    fn collect<'index>(
        &'index self,
        around: impl Iterator<Item = Entry>,
        facts: &Facts<'_>,
        lists: &mut Lists<'index>,
    ) {
        for found in around {
            if found.brief != SEVERAL {
                lists.push(List { next: found, rest: &[] });
            } else if let Some(bucket) = self.buckets.get(found.rule as usize) {
                bucket.collect(facts, lists);
            }
        }
    }
}

type Lists<'index> = SmallVec<[List<'index>; LISTS]>;

/// Rules in order: the next one, and those after it.
#[derive(Clone, Copy, Debug)]
struct List<'index> {
    next: Entry,
    rest: &'index [Entry],
}

/// Rules in order, out of several lists in order. Some hundred bytes: whoever asks has the place for
/// them, so that they are not moved.
#[derive(Default)]
pub(super) struct Candidates<'index> {
    lists: Lists<'index>,
}

impl Iterator for Candidates<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let next = self.lists.iter().map(|list| list.next).min_by_key(|next| next.rule)?;
        if next == NOBODY {
            return None;
        }
        for list in &mut self.lists {
            // A rule with several networks around the address, or several names, is in several.
            if list.next == next {
                *list = match list.rest.split_first() {
                    Some((next, rest)) => List { next: *next, rest },
                    None => List { next: NOBODY, rest: &[] },
                };
            }
        }
        Some(next)
    }
}

impl Bucket {
    fn add(&mut self, entry: Entry, rule: &Rule) {
        if let Some(names) = &rule.conditions.hosts {
            self.hosts.add(entry, names);
        } else if let Some(names) = &rule.conditions.server_names {
            self.server_names.add(entry, names);
        } else {
            push(&mut self.plain, entry);
        }
    }

    /// The rule of this bucket, if it is the only one and has no names.
    fn only_rule(&self) -> Option<Entry> {
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
fn push(list: &mut Vec<Entry>, entry: Entry) {
    if list.last() != Some(&entry) {
        list.push(entry);
    }
}

fn note<'index>(list: &'index [Entry], lists: &mut Lists<'index>) {
    if let Some((next, rest)) = list.split_first() {
        lists.push(List { next: *next, rest });
    }
}
