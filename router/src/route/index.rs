//! Which rules of a listener can be about a connection at all: found by address and by name, so that
//! ten thousand rules cost little more than ten.
//!
//! Networks are nested or apart, never across each other: sorted, each with the one around it, the
//! innermost that holds an address is a binary search away, and the others are those around it. Rules
//! with networks stand at each of theirs, the others at the root. At each place rules with names stand
//! under these, for a look-up by hash. What comes out are lists in order, which are merged.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use smallvec::SmallVec;

use super::pattern::{Names, parents};
use super::rule::Rule;
use crate::inspect::{Fact, Facts};

/// Index of a rule.
type At = u32;

/// Lists of rules that are merged: the root's and one a network around the address, for each those
/// without and those with names. More than this, with networks nested deeper or with long names, takes
/// one allocation.
const LISTS: usize = 16;

/// The rules of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    root: Bucket,
    v4: Nets<u32>,
    v6: Nets<u128>,
}

/// Rules that only their names distinguish.
#[derive(Clone, Debug, Default)]
struct Bucket {
    plain: Vec<At>,
    hosts: ByName,
    server_names: ByName,
}

/// Rules by name.
#[derive(Clone, Debug, Default)]
struct ByName {
    all: Vec<At>,
    any: Vec<At>,
    exact: HashMap<Box<str>, Vec<At>>,
    below: HashMap<Box<str>, Vec<At>>,
}

#[derive(Clone, Debug)]
struct Nets<T>(Vec<Net<T>>);

impl<T> Default for Nets<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[derive(Clone, Debug)]
struct Net<T> {
    first: T,
    last: T,
    around: Option<u32>,
    rules: Bucket,
}

impl Index {
    /// Takes rules with their places, in order.
    pub(super) fn new<'rule>(rules: impl Iterator<Item = (usize, &'rule Rule)>) -> Self {
        let mut root = Bucket::default();
        let (mut v4, mut v6) = (HashMap::<_, Bucket>::new(), HashMap::<_, Bucket>::new());
        for (at, rule) in rules {
            // There are never as many.
            let Ok(at) = At::try_from(at) else { break };
            match &rule.peers {
                None => root.add(at, rule),
                Some(networks) => {
                    for network in networks.blocks() {
                        let place = match network {
                            IpNet::V4(net) => v4.entry(bounds4(net)).or_default(),
                            IpNet::V6(net) => v6.entry(bounds6(net)).or_default(),
                        };
                        Bucket::add(place, at, rule);
                    }
                }
            }
        }
        Self { root, v4: Nets::new(v4), v6: Nets::new(v6) }
    }

    /// Every rule whose listener, networks and names do not speak against it, in order. Those whose
    /// names cannot be compared yet, or ever, are among them.
    pub(super) fn candidates<'index>(&'index self, facts: &Facts<'_>) -> Candidates<'index> {
        let mut lists = SmallVec::new();
        let mut names = NamesOf { facts, host: None, server_name: None };
        self.root.collect(&mut names, &mut lists);
        match facts.peer.map(|peer| peer.to_canonical()) {
            Some(IpAddr::V4(peer)) => self.v4.collect(peer.to_bits(), &mut names, &mut lists),
            Some(IpAddr::V6(peer)) => self.v6.collect(peer.to_bits(), &mut names, &mut lists),
            None => {}
        }
        Candidates { lists }
    }
}

/// The names of a connection, found out when the first rule with names is met.
struct NamesOf<'a, 'b> {
    facts: &'b Facts<'a>,
    host: Option<Fact<&'a str>>,
    server_name: Option<Fact<&'a str>>,
}

impl<'a> NamesOf<'a, '_> {
    fn host(&mut self) -> Fact<&'a str> {
        *self.host.get_or_insert_with(|| self.facts.host())
    }

    fn server_name(&mut self) -> Fact<&'a str> {
        *self.server_name.get_or_insert_with(|| self.facts.server_name())
    }
}

type Lists<'index> = SmallVec<[&'index [At]; LISTS]>;

/// Rules in order, out of several lists in order.
pub(super) struct Candidates<'index> {
    lists: Lists<'index>,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let next = self.lists.iter().filter_map(|list| list.first()).min().copied()?;
        for list in &mut self.lists {
            // A rule with several networks around the address, or several names, is in several.
            if let Some((first, rest)) = list.split_first()
                && *first == next
            {
                *list = rest;
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

    fn collect<'index>(&'index self, names: &mut NamesOf<'_, '_>, lists: &mut Lists<'index>) {
        note(&self.plain, lists);
        if !self.hosts.all.is_empty() {
            self.hosts.collect(names.host(), lists);
        }
        if !self.server_names.all.is_empty() {
            self.server_names.collect(names.server_name(), lists);
        }
    }
}

impl ByName {
    fn add(&mut self, at: At, names: &Names) {
        push(&mut self.all, at);
        if names.any {
            push(&mut self.any, at);
        }
        for (from, to) in [(&names.exact, &mut self.exact), (&names.below, &mut self.below)] {
            for name in from {
                push(to.entry(name.clone()).or_default(), at);
            }
        }
    }

    fn collect<'index>(&'index self, name: Fact<&str>, lists: &mut Lists<'index>) {
        let name = match name {
            Fact::Known(name) => name,
            // No name is none of these.
            Fact::Absent => return,
            Fact::Unknown(_) | Fact::Unasked => return note(&self.all, lists),
        };
        note(&self.any, lists);
        if let Some(list) = self.exact.get(name) {
            note(list, lists);
        }
        if !self.below.is_empty() {
            for list in parents(name).filter_map(|parent| self.below.get(parent)) {
                note(list, lists);
            }
        }
    }
}

fn bounds4(net: &Ipv4Net) -> (u32, u32) {
    (net.network().to_bits(), net.broadcast().to_bits())
}

fn bounds6(net: &Ipv6Net) -> (u128, u128) {
    (net.network().to_bits(), net.broadcast().to_bits())
}

/// Adds what is not there: rules come in order.
fn push(list: &mut Vec<At>, at: At) {
    if list.last() != Some(&at) {
        list.push(at);
    }
}

fn note<'index>(list: &'index [At], lists: &mut Lists<'index>) {
    if !list.is_empty() {
        lists.push(list);
    }
}

impl<T: Copy + Ord + std::hash::Hash> Nets<T> {
    fn new(rules: HashMap<(T, T), Bucket>) -> Self {
        let mut sorted: Vec<_> = rules.into_iter().collect();
        // Of those that begin alike the outer one comes first.
        sorted.sort_unstable_by(|((first, last), _), ((other, end), _)| {
            first.cmp(other).then(end.cmp(last))
        });
        let mut nets: Vec<Net<T>> = Vec::with_capacity(sorted.len());
        let mut open: Vec<u32> = Vec::new();
        for ((first, last), rules) in sorted {
            while let Some(around) = open.last()
                && nets.get(*around as usize).is_none_or(|around| around.last < first)
            {
                open.pop();
            }
            let around = open.last().copied();
            // As many as there are rules at most times networks of one: never more than fit.
            open.push(nets.len() as u32);
            nets.push(Net { first, last, around, rules });
        }
        Self(nets)
    }

    fn collect<'index>(
        &'index self,
        address: T,
        names: &mut NamesOf<'_, '_>,
        lists: &mut Lists<'index>,
    ) {
        let after = self.0.partition_point(|net| net.first <= address);
        let mut at = after.checked_sub(1);
        while let Some(net) = at.and_then(|at| self.0.get(at)) {
            if address <= net.last {
                net.rules.collect(names, lists);
            }
            at = net.around.map(|around| around as usize);
        }
    }
}
