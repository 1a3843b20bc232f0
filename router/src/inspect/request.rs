//! The head of an HTTP/1 request, and what rules ask about it.

use std::borrow::Cow;

use vestibule_protocol::http::request::{self, Said};

use super::facts::{Cause, Fact};

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
        let (authority, path) = request::parts(method, target);
        let path = request::path(path).into();
        let mut head = Self {
            method: method.into(),
            target: target.into(),
            minor,
            headers,
            host: Fact::Absent,
            path,
        };
        head.host = request::host(authority, head.header("host")).into();
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

    /// The host, see [`super::normal::host`]; unknown where the target and the `Host` lines name two.
    pub fn host(&self) -> Fact<&str> {
        self.host.as_ref().map(|host| &**host)
    }

    /// The path, see [`super::normal::path`]; absent for `CONNECT` to an authority and for `OPTIONS *`.
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
        self.header("cookie").flat_map(move |line| request::cookie(line, name))
    }

    /// Every value of a parameter of the query, decoded.
    pub fn query<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        request::query(&self.target, name)
    }

    /// The path and the query as the client sent them, for a redirection; `/` where there is none.
    pub fn origin_form(&self) -> Cow<'_, str> {
        match request::parts(&self.method, &self.target).1 {
            // `http://host?x` has an empty path, and a query all the same.
            Said::Once("/") => match self.target.split_once('?') {
                Some((_, query)) => format!("/?{query}").into(),
                None => "/".into(),
            },
            Said::Once(path) if path.starts_with('/') => path.into(),
            _ => "/".into(),
        }
    }
}

impl<T> From<Said<T>> for Fact<T> {
    fn from(said: Said<T>) -> Self {
        match said {
            Said::Once(it) => Self::Known(it),
            Said::Never => Self::Absent,
            Said::Oddly => Self::Unknown(Cause::NotHttp),
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
            // Some servers take these for paths.
            ("CONNECT", "/admin", Fact::Unknown(Cause::NotHttp)),
            ("CONNECT", "http://h/admin", Fact::Unknown(Cause::NotHttp)),
            ("CONNECT", "*", Fact::Unknown(Cause::NotHttp)),
            ("GET", "*", Fact::Unknown(Cause::NotHttp)),
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
        assert_eq!(head("GET", "http://h?a/b?c", &[]).origin_form(), "/?a/b?c");
        assert_eq!(head("GET", "http://h", &[]).origin_form(), "/");
        assert_eq!(head("GET", "http://h/", &[]).origin_form(), "/");
        assert_eq!(head("OPTIONS", "*", &[]).origin_form(), "/");
    }
}
