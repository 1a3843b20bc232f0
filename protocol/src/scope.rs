//! For which later requests of a connection the decision about it holds.
//!
//! A connection is handed over once, by what its first request said. Where the rules of its listener
//! look at requests, the worker is told what they look at: the conditions of the rules that came
//! before the one that decided and could decide about another request, and that one's own. A later
//! request is in the scope if none of the earlier ones matches it, and the own one does. All others
//! are the router's again.
//!
//! A worker never decides where a request goes: what it cannot tell is not in the scope.

use std::iter;
use std::sync::{Arc, OnceLock};

use crate::connection_info::TAG_SCOPE;
use crate::http::pattern::{Names, NotAPattern, PathPattern, ValuePattern};
use crate::http::request::{self, Said};
use crate::limits::MAX_SCOPE;
use crate::tlv::{self, Fields, TlvError};

/// Conditions of one rule, in the order in which rules are asked; the last is the one that decided.
pub const TAG_RULE: u16 = 0x0201;
/// Within a rule: a pattern of hosts; as often as needed, any of them.
pub const TAG_HOST: u16 = 0x0202;
/// Within a rule: a pattern of paths; likewise.
pub const TAG_PATH: u16 = 0x0203;
/// Within a rule: a parameter of the query, with a name and patterns of values.
pub const TAG_QUERY: u16 = 0x0204;
/// Within a rule: a field, likewise.
pub const TAG_HEADER: u16 = 0x0205;
/// Within a rule: a cookie, likewise.
pub const TAG_COOKIE: u16 = 0x0206;
/// Within one of those: its name.
pub const TAG_NAME: u16 = 0x0207;
/// Within one of those: a pattern of values; as often as needed, any of them.
pub const TAG_VALUE: u16 = 0x0208;

/// Patterns of values by a name.
pub type Named = (String, Vec<String>);

/// The conditions of one rule about a request, as they are written in a configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Texts<'a> {
    /// Hosts.
    pub hosts: Option<&'a [String]>,
    /// Paths.
    pub paths: Option<&'a [String]>,
    /// Parameters of the query.
    pub query: &'a [Named],
    /// Fields.
    pub headers: &'a [Named],
    /// Cookies.
    pub cookies: &'a [Named],
}

/// Writes the scope of a rule: earlier ones first, its own conditions last. What would be longer than
/// [`MAX_SCOPE`] becomes the scope that no later request is in, which costs a way through the router
/// for each, and is never wrong.
pub fn encode<'a>(rules: impl IntoIterator<Item = Texts<'a>>) -> Vec<u8> {
    let mut out = Vec::new();
    for rule in rules {
        if put_rule(&mut out, rule).is_err() || out.len() > MAX_SCOPE {
            return Vec::new();
        }
    }
    out
}

fn put_rule(out: &mut Vec<u8>, rule: Texts<'_>) -> Result<(), tlv::TooLong> {
    let mut whole = Ok(());
    tlv::nested(out, TAG_RULE, |out| whole = put_conditions(out, rule))?;
    whole
}

fn put_conditions(out: &mut Vec<u8>, rule: Texts<'_>) -> Result<(), tlv::TooLong> {
    for (tag, texts) in [(TAG_HOST, rule.hosts), (TAG_PATH, rule.paths)] {
        for text in texts.unwrap_or_default() {
            tlv::put(out, tag, text.as_bytes())?;
        }
    }
    let named = [(TAG_QUERY, rule.query), (TAG_HEADER, rule.headers), (TAG_COOKIE, rule.cookies)];
    for (tag, all) in named {
        for (name, values) in all {
            let mut whole = Ok(());
            tlv::nested(out, tag, |out| {
                whole = tlv::put(out, TAG_NAME, name.as_bytes());
                for value in values {
                    whole = whole.and(tlv::put(out, TAG_VALUE, value.as_bytes()));
                }
            })?;
            whole?;
        }
    }
    Ok(())
}

/// What a worker keeps to.
#[derive(Clone, Debug)]
pub struct Scope {
    written: Box<[u8]>,
    /// Read when a later request is asked about: most connections that come with a scope have none, and
    /// a rule takes many times what it takes on its way.
    rules: OnceLock<Box<[Rule]>>,
}

impl PartialEq for Scope {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Scope {}

#[derive(Clone, Debug, Default)]
struct Rule {
    hosts: Option<Names>,
    paths: Vec<PathPattern>,
    query: Vec<Values>,
    headers: Vec<Values>,
    cookies: Vec<Values>,
}

#[derive(Clone, Debug, Default)]
struct Values {
    name: Box<str>,
    patterns: Vec<ValuePattern>,
}

impl Scope {
    /// Reads a scope. One with a pattern that this side does not understand is a scope that no later
    /// request is in.
    ///
    /// # Errors
    /// Malformed fields, or more than [`MAX_SCOPE`] bytes.
    pub fn decode(written: &[u8]) -> Result<Self, TlvError> {
        if written.len() > MAX_SCOPE {
            return Err(TlvError::Length { tag: TAG_SCOPE, length: written.len() });
        }
        for rule in rules(written) {
            rule?;
        }
        Ok(Self { written: written.into(), rules: OnceLock::new() })
    }

    fn rules(&self) -> &[Rule] {
        let read = || rules(&self.written).map(|rule| rule.ok().flatten()).collect::<Option<_>>();
        self.rules.get_or_init(|| read().unwrap_or_default())
    }

    /// The bytes that it was read from.
    pub fn as_bytes(&self) -> &[u8] {
        &self.written
    }

    /// Whether the decision about the connection holds for this request.
    pub fn covers(&self, request: &Request<'_>) -> bool {
        // Some servers cut a fragment off, and read another query then.
        if request.target.contains('#') {
            return false;
        }
        let Some((own, earlier)) = self.rules().split_last() else { return false };
        earlier.iter().all(|rule| rule.matches(request) == Some(false))
            && own.matches(request) == Some(true)
    }
}

/// The rules of a scope one after the other; `None` for what this side does not understand.
fn rules(written: &[u8]) -> impl Iterator<Item = Result<Option<Rule>, TlvError>> {
    let mut fields = Fields::new(written);
    iter::from_fn(move || {
        let field = fields.next_field().transpose()?;
        Some(field.and_then(|field| match field.tag {
            TAG_RULE => rule(field.value).map(Result::ok),
            // A condition that this side does not know.
            _ => Ok(None),
        }))
    })
}

/// A malformed rule is an error; one with a pattern that is none is `Ok(Err(_))`.
fn rule(value: &[u8]) -> Result<Result<Rule, NotUnderstood>, TlvError> {
    let mut rule = Rule::default();
    let mut understood = Ok(());
    let mut fields = Fields::new(value);
    while let Some(field) = fields.next_field()? {
        let read = match field.tag {
            TAG_HOST => {
                let text = field.text()?;
                rule.hosts.get_or_insert_default().add(text).map_err(NotUnderstood::from)
            }
            TAG_PATH => PathPattern::parse(field.text()?)
                .map(|pattern| rule.paths.push(pattern))
                .map_err(NotUnderstood::from),
            TAG_QUERY => values(field.value)?.map(|values| rule.query.push(values)),
            TAG_HEADER => values(field.value)?.map(|mut values| {
                values.name.make_ascii_lowercase();
                rule.headers.push(values);
            }),
            TAG_COOKIE => values(field.value)?.map(|values| rule.cookies.push(values)),
            _ => Err(NotUnderstood),
        };
        understood = understood.and(read);
    }
    Ok(understood.map(|()| rule))
}

fn values(value: &[u8]) -> Result<Result<Values, NotUnderstood>, TlvError> {
    let mut name = None;
    let mut patterns = Vec::new();
    let mut understood = Ok(());
    let mut fields = Fields::new(value);
    while let Some(field) = fields.next_field()? {
        match field.tag {
            TAG_NAME => name = Some(field.text()?.into()),
            TAG_VALUE => match ValuePattern::parse(field.text()?) {
                Ok(pattern) => patterns.push(pattern),
                Err(_) => understood = Err(NotUnderstood),
            },
            _ => understood = Err(NotUnderstood),
        }
    }
    let name = name.ok_or(TlvError::Missing(TAG_NAME))?;
    Ok(understood.map(|()| Values { name, patterns }))
}

/// A condition from the future.
#[derive(Clone, Copy, Debug)]
struct NotUnderstood;

impl From<NotAPattern> for NotUnderstood {
    fn from(_: NotAPattern) -> Self {
        Self
    }
}

impl Rule {
    /// Whether it matches; `None` if that cannot be told.
    fn matches(&self, request: &Request<'_>) -> Option<bool> {
        let mut known = Some(true);
        if let Some(names) = &self.hosts {
            match &request.host {
                Said::Once(host) if names.contain(host) => {}
                Said::Once(_) | Said::Never => return Some(false),
                Said::Oddly => known = None,
            }
        }
        if !self.paths.is_empty() {
            match &request.path {
                Said::Once(path) if self.paths.iter().any(|pattern| pattern.matches(path)) => {}
                Said::Once(_) | Said::Never => return Some(false),
                Said::Oddly => known = None,
            }
        }
        let query = |values: &Values| {
            let mut sent = request::query(request.target, &values.name);
            sent.any(|value| values.allow(value.as_bytes()))
        };
        let header =
            |values: &Values| request.values(&values.name).any(|value| values.allow(value));
        let cookie = |values: &Values| {
            let mut lines = request.values("cookie");
            lines.any(|line| request::cookie(line, &values.name).any(|it| values.allow(it)))
        };
        let all = self.query.iter().all(query)
            && self.headers.iter().all(header)
            && self.cookies.iter().all(cookie);
        if all { known } else { Some(false) }
    }
}

impl Values {
    fn allow(&self, value: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(value))
    }
}

/// A request as it is compared with a scope.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    target: &'a str,
    lines: &'a [(&'a str, &'a [u8])],
    host: Said<Box<str>>,
    path: Said<Box<str>>,
}

impl<'a> Request<'a> {
    /// A request: its method and target as they were sent, and every field line, its name in lower
    /// case.
    pub fn new(method: &str, target: &'a str, lines: &'a [(&'a str, &'a [u8])]) -> Self {
        let (authority, path) = request::parts(method, target);
        let of_host = lines.iter().filter(|(name, _)| *name == "host").map(|(_, value)| *value);
        let host = request::host(authority, of_host);
        Self { target, lines, host, path: request::path(path) }
    }

    fn values<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'a [u8]> + 'b {
        self.lines.iter().filter(move |(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// The last few scopes that were read: one a rule, on every connection.
#[derive(Debug, Default)]
pub(crate) struct Scopes {
    kept: Vec<Arc<Scope>>,
    next: usize,
}

/// As many as a listener has rules that many connections come by.
const KEPT: usize = 8;

impl Scopes {
    pub(crate) fn read(&mut self, written: &[u8]) -> Result<Arc<Scope>, TlvError> {
        if let Some(known) = self.kept.iter().find(|known| *known.written == *written) {
            return Ok(Arc::clone(known));
        }
        let new = Arc::new(Scope::decode(written)?);
        match self.kept.get_mut(self.next) {
            Some(place) => *place = Arc::clone(&new),
            None => self.kept.push(Arc::clone(&new)),
        }
        self.next = (self.next + 1) % KEPT;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn covers(scope: &[u8], target: &str, lines: &[(&str, &str)]) -> bool {
        let lines: Vec<(&str, &[u8])> =
            lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        Scope::decode(scope).unwrap().covers(&Request::new("GET", target, &lines))
    }

    #[test]
    fn a_later_request_is_in_the_scope_if_the_same_rule_is_the_first_that_matches() {
        let (private, api) = (texts(&["/api/private/*"]), texts(&["/api/*"]));
        let path = |paths| Texts { paths: Some(paths), ..Texts::default() };
        let scope = encode([path(&private), path(&api)]);
        let host = &[("host", "a.example")][..];
        for (target, inside) in [
            ("/api", true),
            ("/api/x?y=/api/private", true),
            ("http://a.example/api/x", true),
            ("/api/private/x", false),
            ("/api/x/../private", false),
            ("/%61pi/x", true),
            ("/apis", false),
            ("/", false),
            ("*", false),
            ("/api/x\\..\\private", false),
        ] {
            assert_eq!(covers(&scope, target, host), inside, "{target}");
        }
    }

    #[test]
    fn every_kind_of_condition_is_compared() {
        let hosts = texts(&["*.example.org"]);
        let named = |name: &str, value: &str| vec![(name.to_owned(), texts(&[value]))];
        let (query, headers, cookies) =
            (named("v", "2"), named("x-tenant", "ac*"), named("tier", "*"));
        let scope = encode([Texts {
            hosts: Some(&hosts),
            paths: None,
            query: &query,
            headers: &headers,
            cookies: &cookies,
        }]);
        let good =
            [("host", "a.example.org:80"), ("x-tenant", "acme"), ("cookie", "a=b; tier=gold")];
        assert!(covers(&scope, "/?v=1&v=2", &good));
        assert!(!covers(&scope, "/?v=1", &good));
        for at in 0..good.len() {
            let mut lines = good;
            lines[at].1 = "other";
            assert!(!covers(&scope, "/?v=2", &lines), "{lines:?}");
            assert!(!covers(&scope, "/?v=2", &[&good[..at], &good[at + 1..]].concat()));
        }
    }

    #[test]
    fn what_cannot_be_told_is_in_no_scope() {
        let (one, all) = (texts(&["a.example"]), texts(&["*"]));
        let host = |hosts| Texts { hosts: Some(hosts), ..Texts::default() };
        let two = [("host", "a.example"), ("host", "b.example")];
        // Neither that it is the own rule's is known, nor that it is not an earlier one's.
        assert!(!covers(&encode([host(&one)]), "/", &two));
        let any = Texts { paths: Some(&all), ..Texts::default() };
        assert!(!covers(&encode([host(&one), any]), "/", &two));
        assert!(covers(&encode([host(&one), any]), "/", &[("host", "b.example")]));
        assert!(!covers(&encode([any]), "/?debug#", &[]));
    }

    #[test]
    fn a_scope_that_is_too_long_or_not_understood_covers_nothing() {
        let many: Vec<String> = (0..1000).map(|at| format!("/path-{at}")).collect();
        let long = encode([Texts { paths: Some(&many), ..Texts::default() }]);
        assert!(long.is_empty() && !covers(&long, "/path-1", &[]));
        let all = texts(&["/*"]);
        let mut scope = encode([Texts { paths: Some(&all), ..Texts::default() }]);
        assert!(covers(&scope, "/", &[]));
        tlv::put(&mut scope, 0x02ff, b"a condition from the future").unwrap();
        assert!(!covers(&scope, "/", &[]));
        let mut rule = Vec::new();
        tlv::nested(&mut rule, TAG_RULE, |out| tlv::put(out, TAG_PATH, b"/a*b").unwrap()).unwrap();
        assert!(!covers(&rule, "/a", &[]));
    }

    #[test]
    fn a_malformed_rule_is_an_error_wherever_it_is() {
        let all = texts(&["/*"]);
        let good = encode([Texts { paths: Some(&all), ..Texts::default() }]);
        let mut bad = Vec::new();
        tlv::nested(&mut bad, TAG_RULE, |out| tlv::put(out, TAG_PATH, b"/\xff").unwrap()).unwrap();
        let text = TlvError::Text(TAG_PATH);
        for scope in [&[&bad[..], &good], &[&good[..], &bad]] {
            assert_eq!(Scope::decode(&scope.concat()), Err(text));
        }
        // What is not understood hides nothing that is malformed.
        let mut unknown = Vec::new();
        tlv::put(&mut unknown, 0x02ff, b"").unwrap();
        assert_eq!(Scope::decode(&[&unknown[..], &bad].concat()), Err(text));
    }

    #[test]
    fn what_is_longer_than_any_scope_that_travels_is_none() {
        let mut rules = Vec::new();
        while rules.len() < MAX_SCOPE {
            tlv::put(&mut rules, TAG_RULE, b"").unwrap();
        }
        assert_eq!(Scope::decode(&rules).unwrap().as_bytes(), rules);
        tlv::put(&mut rules, TAG_RULE, b"").unwrap();
        let (tag, length) = (TAG_SCOPE, rules.len());
        assert_eq!(Scope::decode(&rules), Err(TlvError::Length { tag, length }));
    }

    #[test]
    fn no_bytes_panic() {
        let all = texts(&["/api/*", "/x"]);
        let scope = encode([Texts { paths: Some(&all), ..Texts::default() }; 3]);
        for end in 0..scope.len() {
            let _ = Scope::decode(&scope[..end]);
            let mut changed = scope.clone();
            changed[end] ^= 0x55;
            let _ = Scope::decode(&changed);
        }
    }
}
