//! One rule: which connections it is about, and where they go.

use std::ops::ControlFlow;
use std::sync::Arc;

use vestibule_protocol::Data;

use super::networks::Networks;
use super::pattern::{ContextPattern, Names, PathPattern, ValuePattern, is_user};
use crate::inspect::label::LevelRange;
use crate::inspect::{Cause, Depth, Fact, Facts, HttpHead};
use crate::reject::{Reason, Rejection};

/// Where certificate authorities look for what proves that a host is its owner's (RFC 8555 8.3): they
/// ask for it without TLS, so that a redirection to TLS leaves it alone.
pub const ACME: &str = "/.well-known/acme-challenge/";

/// A rule; every condition must hold.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name, which travels with the connection.
    pub name: Arc<str>,
    /// Indices of listeners. None: any.
    pub listeners: Option<Vec<usize>>,
    /// Networks of the client. None: any client, one without an Internet address included.
    pub peers: Option<Networks>,
    /// What has to be looked at.
    pub conditions: Conditions,
    /// Where its connections go.
    pub target: Target,
    /// What is posted with them.
    pub message: Option<Arc<Data>>,
}

/// Conditions on what does not come with the connection by itself. Of a list, one has to hold.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Users at the other end of a Unix-domain socket, by name or number.
    pub users: Option<Vec<Box<str>>>,
    /// Security contexts.
    pub contexts: Option<Vec<ContextPattern>>,
    /// Ranges of levels, in one of which the peer's lies.
    pub levels: Option<Vec<LevelRange>>,
    /// Names that TLS clients ask for.
    pub server_names: Option<Names>,
    /// Protocols that TLS clients offer.
    pub alpn: Option<Vec<Box<[u8]>>>,
    /// Whether the client begins with HTTP/2 in clear.
    pub http2: Option<bool>,
    /// Hosts of the first request.
    pub hosts: Option<Names>,
    /// Its paths.
    pub paths: Option<Vec<PathPattern>>,
    /// Its parameters: of each name one value.
    pub query: Vec<(Box<str>, Vec<ValuePattern>)>,
    /// Its fields, names in lower case.
    pub headers: Vec<(Box<str>, Vec<ValuePattern>)>,
    /// Its cookies.
    pub cookies: Vec<(Box<str>, Vec<ValuePattern>)>,
}

/// A condition, by its key in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'rule> {
    /// The key.
    pub word: &'static str,
    /// Which header, cookie or parameter.
    pub name: Option<&'rule str>,
}

impl Key<'_> {
    const fn of(word: &'static str) -> Self {
        Key { word, name: None }
    }
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name {
            Some(name) => write!(out, "{} `{name}`", self.word),
            None => out.write_str(self.word),
        }
    }
}

/// What a rule says about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'rule> {
    /// Every condition holds.
    Matches,
    /// This one does not, whatever else may be learned.
    Differs(Key<'rule>),
    /// All that can be told hold, and this one cannot.
    Unknown(Key<'rule>, Cause),
    /// This one was not looked at yet.
    Unasked(Key<'rule>, Depth),
}

impl Rule {
    /// Whether it is about connections of this listener at all.
    pub fn covers(&self, listener: usize) -> bool {
        self.listeners.as_ref().is_none_or(|listeners| listeners.contains(&listener))
    }

    /// Whether it is about every connection of its listeners.
    pub fn is_open(&self) -> bool {
        self.peers.is_none() && self.depth() == Depth::Address
    }

    /// The deepest look that it can need.
    pub fn depth(&self) -> Depth {
        let Conditions { users, contexts, levels, .. } = &self.conditions;
        if self.target == Target::Redirect || self.conditions.need_bytes() {
            Depth::Bytes
        } else if contexts.is_some() || levels.is_some() {
            Depth::Context
        } else if users.is_some() {
            Depth::Credentials
        } else {
            Depth::Address
        }
    }

    /// What it says about a connection. Pure; looks at nothing that was not looked at.
    pub fn verdict(&self, facts: &Facts<'_>) -> Verdict<'_> {
        if !self.covers(facts.listener) {
            return Verdict::Differs(Key::of("listener"));
        }
        match (&self.peers, facts.peer) {
            (Some(networks), Some(peer)) if !networks.contains(peer) => {
                Verdict::Differs(Key::of("peer"))
            }
            (Some(_), None) => Verdict::Differs(Key::of("peer")),
            _ => self.verdict_beyond_address(facts),
        }
    }

    /// As [`verdict`](Self::verdict), where listener and peer are known to be right.
    pub(super) fn verdict_beyond_address(&self, facts: &Facts<'_>) -> Verdict<'_> {
        let mut weighing = Weighing { unasked: None, unknown: None };
        match self.weigh(facts, &mut weighing) {
            ControlFlow::Break(key) => Verdict::Differs(key),
            ControlFlow::Continue(()) => match (weighing.unasked, weighing.unknown) {
                (Some((key, depth)), _) => Verdict::Unasked(key, depth),
                (None, Some((key, cause))) => Verdict::Unknown(key, cause),
                (None, None) => Verdict::Matches,
            },
        }
    }

    /// Every condition, cheapest first.
    fn weigh<'rule>(
        &'rule self,
        facts: &Facts<'_>,
        weighing: &mut Weighing<'rule>,
    ) -> ControlFlow<Key<'rule>> {
        let conditions = &self.conditions;
        if let Some(users) = &conditions.users {
            let is = facts.credentials.map(|who| users.iter().any(|user| is_user(user, who)));
            weighing.add(Key::of("peer-user"), Depth::Credentials, is)?;
        }
        if let Some(contexts) = &conditions.contexts {
            let mut is = Fact::Known(false);
            for context in contexts {
                match context.matches(facts.context) {
                    Fact::Known(false) | Fact::Absent => {}
                    other => is = other,
                }
            }
            weighing.add(Key::of("peer-context"), Depth::Context, is)?;
        }
        if let Some(levels) = &conditions.levels {
            let is = facts.context.and_then(|label| match label.level().parse::<LevelRange>() {
                Ok(level) => Fact::Known(levels.iter().any(|range| range.contains(&level))),
                // A policy without levels.
                Err(_) if label.level().is_empty() => Fact::Absent,
                // One with other names: only the policy knows which of them dominates which.
                Err(_) => Fact::Unknown(Cause::Hidden),
            });
            weighing.add(Key::of("peer-level"), Depth::Context, is)?;
        }
        if conditions.need_bytes() {
            self.weigh_speech(facts, weighing)?;
        }
        if self.target == Target::Redirect {
            let is = facts.path().map(|path| !path.starts_with(ACME));
            // A request without a path (`OPTIONS *`) is none of an authority's.
            let is = if is == Fact::Absent { Fact::Known(true) } else { is };
            weighing.add(Key::of("redirect"), Depth::Bytes, is)?;
            let host = match facts.host() {
                Fact::Known(_) | Fact::Absent => Fact::Known(true),
                Fact::Unknown(cause) => Fact::Unknown(cause),
                Fact::Unasked => Fact::Unasked,
            };
            weighing.add(Key::of("redirect"), Depth::Bytes, host)?;
        }
        ControlFlow::Continue(())
    }

    /// What the client's first bytes say.
    fn weigh_speech<'rule>(
        &'rule self,
        facts: &Facts<'_>,
        weighing: &mut Weighing<'rule>,
    ) -> ControlFlow<Key<'rule>> {
        let conditions = &self.conditions;
        let bytes = Depth::Bytes;
        if let Some(names) = &conditions.server_names {
            weighing.add(Key::of("sni"), bytes, facts.server_name().map(|it| names.contain(it)))?;
        }
        if let Some(protocols) = &conditions.alpn {
            let is = facts.alpn().map(|all| protocols.iter().any(|wanted| all.contains(wanted)));
            weighing.add(Key::of("alpn"), bytes, is)?;
        }
        if let Some(wanted) = conditions.http2 {
            weighing.add(Key::of("http2"), bytes, facts.http2().map(|is| is == wanted))?;
        }
        if let Some(names) = &conditions.hosts {
            weighing.add(Key::of("host"), bytes, facts.host().map(|it| names.contain(it)))?;
        }
        if let Some(paths) = &conditions.paths {
            let is = facts.path().map(|path| paths.iter().any(|pattern| pattern.matches(path)));
            weighing.add(Key::of("path"), bytes, is)?;
        }
        let head = facts.head();
        let mut named = |word, all: &'rule [(Box<str>, Vec<ValuePattern>)], is: Present| {
            for (name, patterns) in all {
                let is = head.map(|head| is(head, name, patterns));
                weighing.add(Key { word, name: Some(name) }, bytes, is)?;
            }
            ControlFlow::Continue(())
        };
        named("query", &conditions.query, |head, name, patterns| {
            head.query(name).any(|value| any(patterns, value.as_bytes()))
        })?;
        named("header", &conditions.headers, |head, name, patterns| {
            head.header(name).any(|value| any(patterns, value))
        })?;
        named("cookie", &conditions.cookies, |head, name, patterns| {
            head.cookie(name).any(|value| any(patterns, value))
        })
    }
}

/// Whether a head has one of these values under this name.
type Present = fn(&HttpHead, &str, &[ValuePattern]) -> bool;

fn any(patterns: &[ValuePattern], value: &[u8]) -> bool {
    patterns.iter().any(|pattern| pattern.matches(value))
}

impl Conditions {
    /// Whether one of them is about what the client says.
    pub fn need_bytes(&self) -> bool {
        let Self { server_names, alpn, http2, .. } = self;
        server_names.is_some() || alpn.is_some() || http2.is_some() || self.need_head()
    }

    /// Whether one of them is about the first request: then a later one on the same connection may be
    /// another rule's.
    pub fn need_head(&self) -> bool {
        let Self { hosts, paths, query, headers, cookies, .. } = self;
        hosts.is_some()
            || paths.is_some()
            || !query.is_empty()
            || !headers.is_empty()
            || !cookies.is_empty()
    }
}

/// What keeps a rule from matching so far, without speaking against it.
struct Weighing<'rule> {
    unasked: Option<(Key<'rule>, Depth)>,
    unknown: Option<(Key<'rule>, Cause)>,
}

impl<'rule> Weighing<'rule> {
    /// One known difference settles it, whatever could not be seen; of what was not looked at the
    /// cheapest comes first.
    fn add(&mut self, key: Key<'rule>, depth: Depth, is: Fact<bool>) -> ControlFlow<Key<'rule>> {
        match is {
            Fact::Known(true) => {}
            Fact::Known(false) | Fact::Absent => return ControlFlow::Break(key),
            Fact::Unknown(cause) => {
                self.unknown.get_or_insert((key, cause));
            }
            Fact::Unasked => {
                self.unasked.get_or_insert((key, depth));
            }
        }
        ControlFlow::Continue(())
    }
}

/// Where connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a pool, by its index.
    Pool(usize),
    /// Nowhere.
    Reject(Refusal),
    /// Nowhere: the client is told to come again with TLS.
    Redirect,
}

/// How a rule turns connections away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An HTTP status from 400 to 599.
    Status(u16),
    /// A TCP reset.
    Reset,
    /// A close without a word.
    Close,
}

impl Refusal {
    /// The answer, with the reason `rejected`.
    pub const fn rejection(self) -> Rejection {
        const REASON: Reason = Reason::Rejected;
        match self {
            Self::Status(status) => Rejection::status(status, REASON),
            Self::Reset => Rejection::reset(REASON),
            Self::Close => Rejection::close(REASON),
        }
    }
}
