//! `vestibule explain`: every rule in order, why it matched or not, and what follows.

use std::fmt::{self, Display, Write};

#[cfg(feature = "script")]
use super::script::{Trial, Tried};
use super::types::{Config, Route};
use crate::inspect::{Depth, Fact, Facts, Speech};
use crate::reject::Reason;
use crate::route::imagine::{Imagined, Impossible, Shown};
use crate::route::rule::Key;
#[cfg(feature = "script")]
use crate::route::script::Failure;
#[cfg(feature = "script")]
use crate::route::table::SCRIPT;
use crate::route::{Affinity, Decision, Outcome, Target, Verdict, Why};
use crate::sys::users::number_of;

/// Values of a long list that are shown.
const SHOWN: usize = 4;

impl Config {
    /// What becomes of a client, as a page for a person, by the routes alone.
    ///
    /// # Errors
    /// No client is like this.
    pub fn explain(&self, client: &Imagined, listener: usize) -> Result<String, Impossible> {
        let shown = self.shown(client, listener)?;
        let facts = shown.facts(listener);
        let mut page = String::new();
        // Writing to a text does not fail.
        let _ =
            self.write(&mut page, &facts).and_then(|()| self.write_routes(&mut page, &facts, None));
        Ok(page)
    }

    /// What becomes of a client where a script is asked first: it is run.
    ///
    /// # Errors
    /// No client is like this.
    #[cfg(feature = "script")]
    pub fn explain_scripted(
        &self,
        client: &Imagined,
        listener: usize,
        script: &mut Trial,
    ) -> Result<String, Impossible> {
        let shown = self.shown(client, listener)?;
        let facts = shown.facts(listener);
        let mut page = String::new();
        let _ = self.write(&mut page, &facts).and_then(|()| match script.ask(&facts) {
            Tried::Decides { to, message, failure } => {
                self.write_decided(&mut page, &to, message.as_deref(), failure.as_ref())
            }
            other => {
                writeln!(page, "the script {}", Left(&other))?;
                self.write_routes(&mut page, &facts, Some(other.unruled()))
            }
        });
        Ok(page)
    }

    /// What a client shows on a listener, where names of users are this system's.
    pub(super) fn shown(&self, client: &Imagined, listener: usize) -> Result<Shown, Impossible> {
        let uid = client.user.as_deref().and_then(number_of);
        Ok(client.shown(self.is_proxied(listener))?.numbered(uid))
    }

    /// Whether proxies may speak for clients of a listener.
    pub(super) fn is_proxied(&self, listener: usize) -> bool {
        self.listeners.get(listener).is_some_and(|listener| !listener.proxies.is_empty())
    }

    fn write(&self, page: &mut String, facts: &Facts<'_>) -> fmt::Result {
        let name = self.listeners.get(facts.listener).map_or("", |it| it.name.value.as_str());
        let from = facts.peer.map(|peer| format!(" from {peer}")).unwrap_or_default();
        writeln!(page, "a connection{from} on `{name}`: {}", Said(facts))
    }

    /// The script has decided: no route is asked.
    #[cfg(feature = "script")]
    fn write_decided(
        &self,
        page: &mut String,
        to: &str,
        message: Option<&str>,
        failure: Option<&Failure>,
    ) -> fmt::Result {
        let rejects = to == "reset" || to == "close" || to.parse::<u16>().is_ok();
        if rejects {
            writeln!(page, "the script rejects it: {to}")?;
        } else if self.pools.iter().any(|pool| *pool.name == *to) {
            writeln!(page, "the script posts it to pool `{to}`")?;
        } else {
            writeln!(page, "the script posts it to worker `{to}`")?;
        }
        if let Some(failure) = failure {
            writeln!(page, "and fails, which changes nothing about that: {failure}")?;
        }
        let width = self.width();
        for (index, route) in self.routes.iter().enumerate() {
            writeln!(page, "{:>4}. {:width$}  -     not asked", index + 1, route.name.value)?;
        }
        writeln!(page, "route `{SCRIPT}:{to}`")?;
        match message {
            Some(message) => writeln!(page, "message: {message}"),
            None => Ok(()),
        }
    }

    /// Of the longest name of a route.
    fn width(&self) -> usize {
        self.routes.iter().map(|route| route.name.value.len()).max().unwrap_or(0)
    }

    /// Every route in order, and the result; `unruled` is why a connection is rejected that no route
    /// matches.
    fn write_routes(
        &self,
        page: &mut String,
        facts: &Facts<'_>,
        unruled: Option<Reason>,
    ) -> fmt::Result {
        let (decision, depth) = self.decide(facts);
        let decided = match decision.as_ref().map(|decision| decision.why) {
            Some(Why::Rule(rule) | Why::Unknown { rule, .. }) => Some(rule),
            _ => None,
        };
        let width = self.width();
        for (index, (route, rule)) in self.routes.iter().zip(self.table.rules()).enumerate() {
            let (number, name) = (index + 1, &route.name.value);
            write!(page, "{number:>4}. {name:width$}  ")?;
            if decided.is_some_and(|decided| index > decided) {
                writeln!(page, "-     not asked")?;
                continue;
            }
            match rule.verdict(facts) {
                Verdict::Matches => writeln!(page, "yes")?,
                Verdict::Differs(key) => {
                    writeln!(page, "no    {}", Difference { key, route, facts, config: self })?;
                }
                Verdict::Unknown(key, cause) => {
                    let reason = cause.reason().as_str();
                    writeln!(
                        page,
                        "?     {key} cannot be told ({reason}): no later route is asked"
                    )?;
                }
                // Everything is known of a client that is described.
                Verdict::Unasked(key, _) => writeln!(page, "?     {key} was not looked at")?,
            }
        }
        match (decision, unruled) {
            (Some(decision), Some(reason))
                if matches!(decision.why, Why::OnlyPool | Why::NoMatch) =>
            {
                writeln!(page, "no route matches: rejected ({})", reason.as_str())
            }
            (Some(decision), _) => self.result(page, &decision, depth, facts),
            (None, _) => Ok(()),
        }
    }

    /// Decides as a router does, and notes how deep it has to look.
    fn decide(&self, facts: &Facts<'_>) -> (Option<Decision<'_>>, Depth) {
        // What a proxy says comes before its client.
        let seen = Facts::of_address(facts.listener, facts.peer);
        let mut seen = Facts { announced: facts.announced, ..seen };
        let mut deepest = Depth::Address;
        // Each look is deeper than nothing, and there are three.
        for _ in 0..4 {
            let depth = match self.table.decide(&seen) {
                Outcome::Decided(decision) => return (Some(decision), deepest),
                Outcome::Need(depth) => depth,
            };
            deepest = deepest.max(depth);
            match depth {
                Depth::Address => {}
                Depth::Credentials => seen.credentials = facts.credentials,
                Depth::Context => seen.context = facts.context,
                Depth::Bytes => seen.speech = facts.speech,
            }
        }
        (None, deepest)
    }

    fn result(
        &self,
        page: &mut String,
        decision: &Decision<'_>,
        depth: Depth,
        facts: &Facts<'_>,
    ) -> fmt::Result {
        let route = &decision.route;
        match (decision.target, decision.redirection(facts)) {
            (Target::Pool(pool), _) => {
                let Some(pool) = self.pools.get(pool) else { return Ok(()) };
                writeln!(page, "route `{route}`: pool `{}`", *pool.name)?;
                write!(page, "balance: {}", *pool.balance)?;
                match self.table.affinity(decision.target, facts) {
                    Some(Affinity::Key(key)) => {
                        writeln!(page, ", key `{}`", String::from_utf8_lossy(&key).escape_debug())?;
                    }
                    Some(Affinity::Worker(worker)) => {
                        writeln!(page, ", worker `{}`", worker.escape_debug())?;
                    }
                    None => writeln!(page)?,
                }
            }
            (_, Some(Some(location))) => writeln!(page, "route `{route}`: 308 to {location}")?,
            (_, Some(None)) => writeln!(page, "route `{route}`: 400, the request names no host")?,
            (_, None) => {
                let reason = decision.rejection().map(|rejection| rejection.reason().as_str());
                let reason = reason.unwrap_or_default();
                writeln!(page, "route `{route}`: rejected ({reason})")?;
            }
        }
        if let Some(message) = decision.message {
            writeln!(page, "message: {}", String::from_utf8_lossy(message.as_bytes()))?;
        }
        let depth = match depth {
            Depth::Address => "its address only",
            Depth::Credentials => "its user",
            Depth::Context => "its security context",
            Depth::Bytes => "its first bytes",
        };
        writeln!(page, "looked at: {depth}")
    }
}

/// Why a script leaves the decision to the routes.
#[cfg(feature = "script")]
struct Left<'a>(&'a Tried);

#[cfg(feature = "script")]
impl Display for Left<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Tried::Fails(failure) => write!(out, "fails: {failure}"),
            Tried::Unknown(cause) => {
                write!(out, "asks for what cannot be told ({})", cause.reason().as_str())
            }
            Tried::Leaves | Tried::Decides { .. } => write!(out, "neither posts nor rejects"),
        }
    }
}

/// What a client says, in a line.
struct Said<'a>(&'a Facts<'a>);

impl Display for Said<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Fact::Known(who) = self.0.credentials {
            match &who.user {
                Some(user) => write!(out, "user {user}, ")?,
                None => write!(out, "user {}, ", who.uid)?,
            }
        }
        if let Fact::Known(context) = self.0.context {
            write!(out, "context {context}, ")?;
        }
        if self.0.announced.is_some() {
            match self.0.server_name() {
                Fact::Known(name) => write!(out, "TLS for {name}")?,
                _ => write!(out, "TLS without a name")?,
            }
            write!(out, ", ended by a proxy: ")?;
        }
        match self.0.speech {
            Speech::Tls(_) => {
                write!(out, "TLS")?;
                match self.0.server_name() {
                    Fact::Known(name) => write!(out, " for {name}"),
                    _ => write!(out, " without a name"),
                }
            }
            Speech::Http2 => write!(out, "HTTP/2 in clear"),
            Speech::Http1(head) => {
                write!(out, "{} {}", head.method(), head.target().escape_debug())?;
                match head.host() {
                    Fact::Known(host) => write!(out, ", host {host}"),
                    Fact::Unknown(_) if head.header("host").count() > 1 => {
                        write!(out, ", hosts that differ")
                    }
                    Fact::Unknown(_) => write!(out, ", a host that is none"),
                    Fact::Absent | Fact::Unasked => write!(out, ", no host"),
                }
            }
            _ => write!(out, "nothing"),
        }
    }
}

/// Why a rule does not match: the fact, and what the rule wants.
struct Difference<'a> {
    key: Key<'a>,
    route: &'a Route,
    facts: &'a Facts<'a>,
    config: &'a Config,
}

impl Display for Difference<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions = &self.route.conditions;
        let text = |fact: Fact<&str>| fact.known().map(|text| text.escape_debug().to_string());
        let named = |all: &[(String, Vec<String>)]| {
            let name = self.key.name.unwrap_or_default();
            let found = all.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, values)| values.clone())
        };
        let (is, wanted) = match self.key.word {
            "listener" => {
                let names = self.route.listeners.iter().flatten();
                let names = names.filter_map(|at| self.config.listeners.get(*at));
                (None, Some(names.map(|it| it.name.value.clone()).collect()))
            }
            "peer" => {
                let networks = self.route.peers.iter().flatten().map(ToString::to_string);
                (self.facts.peer.map(|peer| peer.to_string()), Some(networks.collect()))
            }
            "peer-user" => (None, conditions.users.value.clone()),
            "peer-context" | "peer-level" => {
                let is = self.facts.context.known().map(ToString::to_string);
                let context = self.key.word == "peer-context";
                let wanted = if context { &conditions.contexts } else { &conditions.levels };
                (is, wanted.value.clone())
            }
            "sni" => (text(self.facts.server_name()), conditions.server_names.value.clone()),
            "alpn" => (None, conditions.alpn.value.clone()),
            "http2" => (None, conditions.http2.map(|is| vec![is.to_string()])),
            "host" => (text(self.facts.host()), conditions.hosts.value.clone()),
            "path" => (text(self.facts.path()), conditions.paths.value.clone()),
            "query" => (None, named(&conditions.query)),
            "header" => (None, named(&conditions.headers)),
            "cookie" => (None, named(&conditions.cookies)),
            _ => (text(self.facts.path()), None),
        };
        let wanted: Vec<String> = wanted.unwrap_or_default();
        write!(out, "{}", self.key)?;
        if let Some(is) = is {
            write!(out, ": `{is}`")?;
        }
        match self.key.word {
            "redirect" => return write!(out, " is a certificate authority's"),
            _ if wanted.is_empty() => return Ok(()),
            _ => write!(out, " is not ")?,
        }
        let shown: Vec<String> = wanted.iter().take(SHOWN).map(|it| format!("`{it}`")).collect();
        write!(out, "{}", shown.join(", "))?;
        match wanted.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(out, " or {more} more"),
        }
    }
}
