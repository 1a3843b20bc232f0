//! The head of an HTTP/1 request, and what rules ask about it.

use std::borrow::Cow;

use super::facts::{Cause, Fact};
use super::normal;

/// A head as a parser found it, with the host and the path that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpHead {
    method: Box<str>,
    target: Box<str>,
    minor: u8,
    headers: Vec<(Box<str>, Box<[u8]>)>,
    host: Fact<Box<str>>,
    path: Fact<Box<str>>,
}

impl HttpHead {
    /// A head: the request line's method and target as they were sent, the digit after `HTTP/1.`, and
    /// every field line in order, its name in any case and its value without spaces around it.
    pub fn new(
        method: &str,
        target: &str,
        minor: u8,
        mut headers: Vec<(Box<str>, Box<[u8]>)>,
    ) -> Self {
        for (name, _) in &mut headers {
            name.make_ascii_lowercase();
        }
        let (authority, path) = parts(method, target);
        let path = match path {
            Fact::Known(path) => {
                normal::path(path).map_or(Fact::Unknown(Cause::NotHttp), Fact::Known)
            }
            Fact::Absent => Fact::Absent,
            Fact::Unknown(cause) => Fact::Unknown(cause),
            Fact::Unasked => Fact::Unasked,
        };
        let mut head = Self {
            method: method.into(),
            target: target.into(),
            minor,
            headers,
            host: Fact::Absent,
            path,
        };
        head.host = head.named(authority);
        head
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The target as it was sent.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The version's second number: 0 or 1.
    pub fn minor(&self) -> u8 {
        self.minor
    }

    /// The host, see [`normal::host`]; unknown where the target and the `Host` lines name two.
    pub fn host(&self) -> Fact<&str> {
        self.host.as_ref().map(|host| &**host)
    }

    /// The path, see [`normal::path`]; absent for `CONNECT` and for `OPTIONS *`.
    pub fn path(&self) -> Fact<&str> {
        self.path.as_ref().map(|path| &**path)
    }

    /// Every field line: names in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Every value of a field, by its name in lower case.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers().filter(move |(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Every value of a cookie (RFC 6265 4.2), as sent.
    pub fn cookie<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let pairs = self.header("cookie").flat_map(|line| line.split(|byte| *byte == b';'));
        pairs.filter_map(move |pair| {
            let pair = pair.trim_ascii();
            let (known, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
            (known.trim_ascii_end() == name.as_bytes())
                .then(|| value.get(1..).unwrap_or_default().trim_ascii_start())
        })
    }

    /// Every value of a parameter of the query, decoded.
    pub fn query<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter(|pair| !pair.is_empty()).filter_map(move |pair| {
            let (known, value) = pair.split_once('=').unwrap_or((pair, ""));
            (normal::query_part(known) == name).then(|| normal::query_part(value))
        })
    }

    /// The path and the query as the client sent them, for a redirection; `/` where there is none.
    pub fn origin_form(&self) -> &str {
        match parts(&self.method, &self.target).1 {
            Fact::Known(path) if path.starts_with('/') => path,
            _ => "/",
        }
    }

    /// What the target's authority and all `Host` lines say, if they say one thing.
    fn named(&self, authority: Option<&str>) -> Fact<Box<str>> {
        let lines = self.header("host").map(|value| std::str::from_utf8(value).ok());
        let mut found: Option<Box<str>> = None;
        for text in authority.map(Some).into_iter().chain(lines) {
            // An empty line is what a target without authority has (RFC 9112 3.2).
            if text == Some("") && authority.is_none() {
                continue;
            }
            let Some(host) = text.and_then(normal::host) else {
                return Fact::Unknown(Cause::NotHttp);
            };
            if found.as_ref().is_some_and(|found| *found != host) {
                return Fact::Unknown(Cause::NotHttp);
            }
            found = Some(host);
        }
        found.into()
    }
}

/// A target's authority and its path with the query (RFC 9112 3.2).
fn parts<'a>(method: &str, target: &'a str) -> (Option<&'a str>, Fact<&'a str>) {
    if method == "CONNECT" {
        return (Some(target), Fact::Absent);
    }
    if target.starts_with('/') {
        return (None, Fact::Known(target));
    }
    if target == "*" {
        return (None, Fact::Absent);
    }
    let scheme = |name: &str| {
        let (scheme, rest) = target.split_once("://")?;
        scheme.eq_ignore_ascii_case(name).then_some(rest)
    };
    let Some(rest) = scheme("http").or_else(|| scheme("https")) else {
        return (None, Fact::Unknown(Cause::NotHttp));
    };
    match rest.find(['/', '?', '#', '\\']) {
        None => (Some(rest), Fact::Known("/")),
        Some(at) => {
            let (authority, path) = rest.split_at(at);
            // `http://host?x` has an empty path, which is `/`.
            let path = if path.starts_with('?') { "/" } else { path };
            (Some(authority), Fact::Known(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, lines: &[(&str, &str)]) -> HttpHead {
        let lines = lines.iter().map(|(name, value)| ((*name).into(), value.as_bytes().into()));
        HttpHead::new(method, target, 1, lines.collect())
    }

    fn text(values: impl Iterator<Item = impl AsRef<[u8]>>) -> Vec<String> {
        values.map(|value| String::from_utf8_lossy(value.as_ref()).into_owned()).collect()
    }

    #[test]
    fn the_host_is_what_target_and_lines_agree_on() {
        let odd = Fact::Unknown(Cause::NotHttp);
        for (target, lines, host) in [
            ("/", &[("Host", "A.example:80")][..], Fact::Known("a.example")),
            ("/", &[], Fact::Absent),
            ("/", &[("host", "")], Fact::Absent),
            ("/", &[("host", "a"), ("HOST", "A.")], Fact::Known("a")),
            ("/", &[("host", "a"), ("host", "b")], odd),
            ("/", &[("host", "a b")], odd),
            ("http://a/", &[("host", "a")], Fact::Known("a")),
            ("HTTP://A:80/", &[], Fact::Known("a")),
            ("http://a/", &[("host", "b")], odd),
            ("http://a/", &[("host", "")], odd),
            ("http://u@a/", &[("host", "a")], odd),
            ("http:///x", &[("host", "a")], odd),
            ("gopher://a/", &[("host", "a")], Fact::Known("a")),
        ] {
            assert_eq!(head("GET", target, lines).host(), host, "{target} {lines:?}");
        }
        assert_eq!(head("CONNECT", "a:443", &[("host", "a:443")]).host(), Fact::Known("a"));
    }

    #[test]
    fn the_path_is_that_of_any_form_of_target() {
        for (method, target, path) in [
            ("GET", "/a/../b?c", Fact::Known("/b")),
            ("GET", "http://h/%61?c", Fact::Known("/a")),
            ("GET", "http://h", Fact::Known("/")),
            ("GET", "http://h?x=/admin", Fact::Known("/")),
            ("GET", "http://h\\admin", Fact::Unknown(Cause::NotHttp)),
            ("GET", "http://h#/admin", Fact::Unknown(Cause::NotHttp)),
            ("GET", "admin", Fact::Unknown(Cause::NotHttp)),
            ("OPTIONS", "*", Fact::Absent),
            ("CONNECT", "h:443", Fact::Absent),
        ] {
            assert_eq!(head(method, target, &[]).path(), path, "{target}");
        }
    }

    #[test]
    fn headers_cookies_and_query_give_every_value() {
        let head = head(
            "GET",
            "/?v=1&%76=2&w&v",
            &[("Cookie", "a=1; b=x=y;a = 2"), ("X-Tenant", "acme"), ("cookie", "a=\"3\"")],
        );
        assert_eq!(text(head.header("x-tenant")), ["acme"]);
        assert_eq!(text(head.cookie("a")), ["1", "2", "\"3\""]);
        assert_eq!(text(head.cookie("b")), ["x=y"]);
        assert_eq!(text(head.cookie("A")), [""; 0]);
        let query = |name| head.query(name).map(Cow::into_owned).collect::<Vec<_>>();
        assert_eq!(query("v"), ["1", "2", ""]);
        assert_eq!(query("w"), [""]);
    }

    #[test]
    fn a_redirection_keeps_path_and_query_as_sent() {
        assert_eq!(head("GET", "/a%20b?c=d", &[]).origin_form(), "/a%20b?c=d");
        assert_eq!(head("GET", "http://h/a?b", &[]).origin_form(), "/a?b");
        assert_eq!(head("OPTIONS", "*", &[]).origin_form(), "/");
    }
}
