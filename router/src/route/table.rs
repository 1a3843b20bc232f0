//! All rules together, compiled when they are loaded, and the decision.

use std::sync::Arc;

use vestibule_protocol::Data;
use vestibule_protocol::supervision::Setup;

use super::affinity::{Affinity, KeySource};
use super::brief::{Brief, Briefs};
use super::compile::{RuleError, compile};
use super::index::{Candidates, Entry, Index};
use super::rule::{Refusal, Rule, Target, Verdict};
use super::scope::Scopes;
use crate::inspect::{Cause, Depth, Facts};
use crate::reject::{Reason, Rejection};

/// Name of the implicit route.
pub const DEFAULT: &str = "default";

/// Name of what is decided when no rule matches, and its reason.
pub const NO_ROUTE: &str = Reason::NoRoute.as_str();

/// Name of what a script decides.
pub const SCRIPT: &str = "script";

/// Name of what is decided when a rule had to know what was not to be seen.
pub const UNKNOWN: &str = "unknown";

/// Where a connection goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'table> {
    /// Where.
    pub target: Target,
    /// Name of the rule, [`DEFAULT`], [`NO_ROUTE`] or [`UNKNOWN`].
    pub route: &'table Arc<str>,
    /// What is posted with it.
    pub message: Option<&'table Arc<Data>>,
    /// Why.
    pub why: Why,
}

impl Decision<'_> {
    /// How the connection is turned away, if it is. A redirection needs the request, see
    /// [`redirection`](Self::redirection).
    pub fn rejection(&self) -> Option<Rejection> {
        match (self.target, self.why) {
            (Target::Pool(_) | Target::Redirect, _) => None,
            (Target::Reject(_), Why::NoMatch) => Some(Rejection::because(Reason::NoRoute)),
            (Target::Reject(_), Why::Unknown { cause, .. }) => {
                Some(Rejection::because(cause.reason()))
            }
            (Target::Reject(refusal), Why::Rule(_) | Why::OnlyPool) => Some(refusal.rejection()),
        }
    }

    /// Where the client is to come again, if it is. `Some(None)`: it is, and has not said which host
    /// it wants.
    pub fn redirection(&self, facts: &Facts<'_>) -> Option<Option<String>> {
        if self.target != Target::Redirect {
            return None;
        }
        let (host, head) = (facts.host().known(), facts.head().known());
        Some(host.zip(head).map(|(host, head)| format!("https://{host}{}", head.origin_form())))
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
    /// No rule before this one matches, and whether this one does cannot be told.
    Unknown {
        /// The rule's index.
        rule: usize,
        /// Why it cannot be told.
        cause: Cause,
    },
}

/// A decision, or what it takes to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<'table> {
    /// It is made.
    Decided(Decision<'table>),
    /// The connection has to be looked at as deep as this first.
    Need(Depth),
}

/// What happens on a listener to connections of which a rule had to know what was not to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unseen {
    /// They are rejected, and the reason is why it was not to be seen.
    #[default]
    Reject,
    /// They go to this pool, by its index.
    Pool(usize),
}

/// Rules that were compiled for a number of listeners and pools. Never changes: a new configuration
/// brings a new one.
#[derive(Clone, Debug)]
pub struct Table {
    rules: Vec<Rule>,
    briefs: Briefs,
    listeners: Vec<Listing>,
    keys: Vec<Option<KeySource>>,
    otherwise: Why,
    default: Arc<str>,
    no_route: Arc<str>,
    unknown: Arc<str>,
    scopes: Scopes,
}

/// The rules of one listener, up to the first that always matches.
#[derive(Clone, Debug)]
struct Listing {
    index: Index,
    /// The first that always matches.
    always: Option<usize>,
    /// The deepest look that one of them can need.
    depth: Depth,
    unseen: Unseen,
}

impl Table {
    /// Compiles rules for these listeners, and for pools whose workers are chosen by these keys.
    /// Without a rule everything goes to pool 0, which is right where there is one pool.
    pub fn new(rules: Vec<Rule>, listeners: &[Unseen], keys: Vec<Option<KeySource>>) -> Self {
        let (briefs, numbers) = Briefs::new(&rules);
        let listing = |(listener, unseen): (usize, &Unseen)| {
            let mine = || rules.iter().enumerate().filter(move |(_, rule)| rule.covers(listener));
            let always = mine().find(|(_, rule)| rule.is_open()).map(|(at, _)| at);
            let deciding = || mine().take_while(move |(at, _)| always.is_none_or(|end| *at <= end));
            let key = |target: Target| match target {
                Target::Pool(pool) => keys.get(pool).and_then(Option::as_ref),
                Target::Reject(_) | Target::Redirect => None,
            };
            let depth = |rule: &Rule| {
                rule.depth().max(key(rule.target).map_or(Depth::Address, KeySource::depth))
            };
            let deepest = deciding().map(|(_, rule)| depth(rule)).max();
            let implicit = || key(Target::Pool(0)).map_or(Depth::Address, KeySource::depth);
            Listing {
                index: Index::new(deciding(), &numbers),
                always,
                depth: if rules.is_empty() {
                    implicit()
                } else {
                    deepest.unwrap_or(Depth::Address)
                },
                unseen: *unseen,
            }
        };
        let listeners = listeners.iter().enumerate().map(listing).collect();
        let otherwise = if rules.is_empty() { Why::OnlyPool } else { Why::NoMatch };
        Self {
            briefs,
            rules,
            listeners,
            keys,
            otherwise,
            default: DEFAULT.into(),
            no_route: NO_ROUTE.into(),
            unknown: UNKNOWN.into(),
            scopes: Scopes::default(),
        }
    }

    /// The table that the supervisor asks for.
    ///
    /// # Errors
    /// A text that is no pattern.
    pub fn of(setup: &Setup) -> Result<Self, RuleError> {
        let rules = setup.rules.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
        let unseen = setup.listeners.iter().map(|listener| match listener.unknown {
            Some(pool) => Unseen::Pool(pool as usize),
            None => Unseen::Reject,
        });
        let keys = setup.pools.iter().map(|pool| KeySource::of(&pool.settings.balance));
        let mut table = Self::new(rules, &unseen.collect::<Vec<_>>(), keys.collect());
        table.scopes = Scopes::new(setup, &table.rules);
        Ok(table)
    }

    /// The table of one pool and no rules.
    pub fn only_pool(listeners: usize) -> Self {
        Self::new(Vec::new(), &vec![Unseen::Reject; listeners], vec![None])
    }

    /// Where a connection goes, or what has to be known first. Looks no deeper than the rules in
    /// front of the decision, and the key of the pool that is chosen, need. A listener that the table
    /// was not compiled for has no rules.
    ///
    /// Every fact that was looked for is a value, absent or unknown; asked for at a depth once more,
    /// the answer never needs that depth again.
    pub fn decide(&self, facts: &Facts<'_>) -> Outcome<'_> {
        if self.rules.is_empty() {
            return self.choose(self.implicit(), facts);
        }
        let Some(listing) = self.listeners.get(facts.listener) else {
            return Outcome::Decided(self.implicit());
        };
        let mut found = Candidates::default();
        listing.index.find(facts, &mut found);
        for Entry { rule: index, brief } in &mut found {
            let index = index as usize;
            let Some(rule) = self.rules.get(index) else { continue };
            if let Some(Brief { target, has_message }) = self.briefs.get(brief) {
                // The rule itself is not looked at where that can be: it may be far away.
                let message = if has_message { rule.message.as_ref() } else { None };
                let (route, why) = (&rule.name, Why::Rule(index));
                return self.choose(Decision { target, route, message, why }, facts);
            }
            match rule.verdict_beyond_address(facts) {
                Verdict::Matches => return self.choose(self.by_rule(index, rule), facts),
                Verdict::Differs(_) => {}
                Verdict::Unasked(_, depth) => return Outcome::Need(depth),
                // Whoever hides what a rule wants to see must not come to the next one.
                Verdict::Unknown(_, cause) => {
                    let unseen = self.unseen(listing.unseen, index, cause);
                    return self.choose(unseen, facts);
                }
            }
        }
        self.choose(self.implicit(), facts)
    }

    /// A decision stands when the key of its pool was looked for.
    fn choose<'table>(
        &'table self,
        decision: Decision<'table>,
        facts: &Facts<'_>,
    ) -> Outcome<'table> {
        match self.key(decision.target) {
            Some(key) if key.is_unasked(facts) => Outcome::Need(key.depth()),
            _ => Outcome::Decided(decision),
        }
    }

    fn key(&self, target: Target) -> Option<&KeySource> {
        match target {
            Target::Pool(pool) => self.keys.get(pool)?.as_ref(),
            Target::Reject(_) | Target::Redirect => None,
        }
    }

    /// Which worker of the pool a connection belongs to, by what its balance looks at; nothing where
    /// it looks at the peer's address or at the workers alone.
    pub fn affinity(&self, target: Target, facts: &Facts<'_>) -> Option<Affinity> {
        self.key(target)?.affinity(facts)
    }

    fn by_rule<'table>(&self, index: usize, rule: &'table Rule) -> Decision<'table> {
        Decision {
            target: rule.target,
            route: &rule.name,
            message: rule.message.as_ref(),
            why: Why::Rule(index),
        }
    }

    fn unseen(&self, unseen: Unseen, rule: usize, cause: Cause) -> Decision<'_> {
        let target = match unseen {
            Unseen::Reject => Target::Reject(Refusal::Status(400)),
            Unseen::Pool(pool) => Target::Pool(pool),
        };
        let why = Why::Unknown { rule, cause };
        Decision { target, route: &self.unknown, message: None, why }
    }

    fn implicit(&self) -> Decision<'_> {
        let (target, route, why) = match self.otherwise {
            Why::OnlyPool => (Target::Pool(0), &self.default, Why::OnlyPool),
            _ => (Target::Reject(Refusal::Status(404)), &self.no_route, Why::NoMatch),
        };
        Decision { target, route, message: None, why }
    }

    /// Name of what is decided where no rule does.
    pub fn no_route(&self) -> &Arc<str> {
        &self.no_route
    }

    /// For which later requests on the same connection a decision holds; `None`: for all.
    pub fn scope(&self, facts: &Facts<'_>, why: Why) -> Option<Arc<[u8]>> {
        // Every later request is as hidden as the first one was: the rules would say the same of it.
        if facts.hides_requests() {
            return None;
        }
        match why {
            Why::Rule(index) => self.scopes.of_rule(facts.listener, index),
            // The next request may well show what the first one hid.
            Why::Unknown { .. } => self.scopes.nothing(facts.listener),
            Why::OnlyPool | Why::NoMatch => None,
        }
    }

    /// The same for a decision that was made by a table before this one, or by a script: nobody has
    /// looked at what the client says next.
    pub fn scope_of_route(&self, listener: usize, route: &str) -> Option<Arc<[u8]>> {
        if route == DEFAULT {
            return None;
        }
        match self.rules.iter().position(|rule| *rule.name == *route) {
            Some(index) => self.scopes.of_rule(listener, index),
            None => self.scopes.nothing(listener),
        }
    }

    /// The scope of a decision that rests on what cannot be told to a worker.
    pub fn no_scope(&self, facts: &Facts<'_>) -> Option<Arc<[u8]>> {
        // As in `scope`.
        if facts.hides_requests() { None } else { self.scopes.nothing(facts.listener) }
    }

    /// Whether connections come to a pool by a decision that does not hold for all later requests.
    pub fn scopes_lead_to(&self, pool: usize) -> bool {
        let leads = |rule: &Rule| rule.target == Target::Pool(pool);
        (0..self.listeners.len()).any(|listener| {
            let mut rules = self.rules.iter().enumerate();
            rules.any(|(at, rule)| leads(rule) && self.scopes.of_rule(listener, at).is_some())
                || (self.listeners.get(listener)).is_some_and(|listing| {
                    listing.unseen == Unseen::Pool(pool)
                        && listing.depth == Depth::Bytes
                        && self.scopes.nothing(listener).is_some()
                })
        })
    }

    /// The deepest look that a listener's connections can need.
    pub fn depth(&self, listener: usize) -> Depth {
        self.listeners.get(listener).map_or(Depth::Address, |listing| listing.depth)
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Rules that never decide, whatever the client, because on every listener that they are about
    /// an earlier one always matches: pairs of such a rule and the earlier one that makes it so (where
    /// listeners differ, the last of them).
    pub fn unreachable(&self) -> Vec<(usize, usize)> {
        let before = |(index, rule): (usize, &Rule)| {
            let listings = self.listeners.iter().enumerate();
            let mine = listings.filter(|(listener, _)| rule.covers(*listener));
            // One listener without such a rule, and it can decide there.
            let earlier = mine
                .map(|(_, listing)| listing.always.filter(|earlier| *earlier < index))
                .collect::<Option<Vec<usize>>>()?;
            Some((index, earlier.into_iter().max()?))
        };
        self.rules.iter().enumerate().filter_map(before).collect()
    }
}

#[cfg(test)]
mod tests;
