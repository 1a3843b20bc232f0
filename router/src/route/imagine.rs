//! A client that somebody describes, in a `[[test]]` or to `vestibule explain`: what it would show.

use std::fmt::Write;
use std::net::IpAddr;

use crate::inspect::{
    Cause, ClientHello, Credentials, Fact, Facts, HttpHead, Label, Speech, normal,
};

/// A client. What is not said it does not have; one of which nothing is said but its address asks for
/// `/` with HTTP/1.1 and names no host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imagined {
    /// Its address; none for a client of a Unix-domain socket.
    pub peer: Option<IpAddr>,
    /// Its user, by name or number, on a Unix-domain socket.
    pub user: Option<String>,
    /// Its security context.
    pub context: Option<Label>,
    /// The name that it asks for with TLS.
    pub server_name: Option<String>,
    /// The protocols that it offers with TLS.
    pub alpn: Vec<String>,
    /// Whether it begins with HTTP/2 in clear.
    pub http2: bool,
    /// The host that it asks for.
    pub host: Option<String>,
    /// The path, and perhaps a query, that it asks for.
    pub path: Option<String>,
    /// Parameters of its request.
    pub query: Vec<(String, String)>,
    /// Fields of its request.
    pub headers: Vec<(String, String)>,
    /// Cookies of its request.
    pub cookies: Vec<(String, String)>,
}

/// Why no client is like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// A request behind TLS.
    #[error("`{0}` is behind TLS: with `sni` or `alpn` the router does not see it")]
    HiddenByTls(&'static str),
    /// Something that HTTP/2 in clear does not show, or that is TLS's.
    #[error("`{0}` cannot be seen of a client that begins with HTTP/2 in clear")]
    HiddenByHttp2(&'static str),
    /// What the kernel knows of the proxy that has ended the client's TLS.
    #[error("`{0}` cannot be seen of a client whose TLS a proxy has ended")]
    BehindProxy(&'static str),
}

impl Impossible {
    /// The key that does not fit.
    pub const fn key(self) -> &'static str {
        let (Self::HiddenByTls(key) | Self::HiddenByHttp2(key) | Self::BehindProxy(key)) = self;
        key
    }
}

/// All that a client shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    peer: Option<IpAddr>,
    context: Fact<Label>,
    credentials: Option<Credentials>,
    speech: Speech,
    announced: Option<ClientHello>,
}

impl Shown {
    /// The same, where somebody has looked up the number of the user whom a name is of.
    pub fn numbered(mut self, uid: Option<u32>) -> Self {
        if let (Some(credentials), Some(uid)) = (&mut self.credentials, uid) {
            credentials.uid = uid;
        }
        self
    }

    /// What is known once everything was looked at.
    pub fn facts(&self, listener: usize) -> Facts<'_> {
        Facts {
            credentials: self.credentials.as_ref().into(),
            context: self.context.as_ref(),
            speech: &self.speech,
            announced: self.announced.as_ref(),
            ..Facts::of_address(listener, self.peer)
        }
    }
}

impl Imagined {
    /// What it shows, on a listener where proxies may speak for their clients (`proxied`) or none does.
    /// With a TLS name or protocol and a request it is one whose TLS such a proxy has ended, which tells
    /// them.
    ///
    /// # Errors
    /// No client shows all of this.
    pub fn shown(&self, proxied: bool) -> Result<Shown, Impossible> {
        let request = self.of_request().is_some() || self.http2;
        let ended = proxied && self.of_tls().is_some() && request;
        if ended && self.context.is_some() {
            return Err(Impossible::BehindProxy("peer-context"));
        }
        Ok(Shown {
            peer: self.peer,
            context: match ended {
                true => Fact::Unknown(Cause::Hidden),
                false => self.context.clone().into(),
            },
            credentials: self.credentials(),
            speech: self.speech(ended)?,
            announced: ended.then(|| self.hello()),
        })
    }

    /// What it says of TLS.
    fn of_tls(&self) -> Option<&'static str> {
        let said = [("sni", self.server_name.is_some()), ("alpn", !self.alpn.is_empty())];
        said.into_iter().find(|(_, said)| *said).map(|(key, _)| key)
    }

    /// What it says of its request.
    fn of_request(&self) -> Option<&'static str> {
        let said = [
            ("host", self.host.is_some()),
            ("path", self.path.is_some()),
            ("query", !self.query.is_empty()),
            ("header", !self.headers.is_empty()),
            ("cookie", !self.cookies.is_empty()),
        ];
        said.into_iter().find(|(_, said)| *said).map(|(key, _)| key)
    }

    /// What it says first; of a client whose TLS a proxy has `ended`, what is behind that.
    fn speech(&self, ended: bool) -> Result<Speech, Impossible> {
        let tls = if ended { None } else { self.of_tls() };
        match (self.http2, tls, self.of_request()) {
            (true, _, Some(key)) | (true, Some(key), None) => Err(Impossible::HiddenByHttp2(key)),
            (true, None, None) => Ok(Speech::Http2),
            (false, Some(_), Some(key)) => Err(Impossible::HiddenByTls(key)),
            (false, Some(_), None) => Ok(Speech::Tls(self.hello())),
            (false, None, _) => Ok(Speech::Http1(self.head())),
        }
    }

    /// Who is at the other end.
    fn credentials(&self) -> Option<Credentials> {
        let user = self.user.as_ref()?;
        Some(match user.parse() {
            Ok(uid) => Credentials { uid, user: None },
            // A number that no user has (chown(2)).
            Err(_) => Credentials { uid: u32::MAX, user: Some(user.as_str().into()) },
        })
    }

    fn hello(&self) -> ClientHello {
        let name = self.server_name.as_deref().and_then(normal::host);
        let alpn: Vec<_> = self.alpn.iter().map(|one| one.as_bytes().into()).collect();
        ClientHello {
            server_name: name.into(),
            alpn: if alpn.is_empty() { Fact::Absent } else { Fact::Known(alpn) },
        }
    }

    fn head(&self) -> HttpHead {
        let mut target = self.path.clone().unwrap_or_else(|| "/".to_owned());
        for (name, value) in &self.query {
            target.push(if target.contains('?') { '&' } else { '?' });
            escape(name, &mut target);
            target.push('=');
            escape(value, &mut target);
        }
        let host = self.host.iter().map(|host| ("host", host.clone()));
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = (!cookies.is_empty()).then(|| ("cookie", cookies.join("; ")));
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let lines = host.chain(headers).chain(cookies);
        let lines = lines.map(|(name, value)| (name.into(), value.into_bytes().into()));
        HttpHead::new("GET", &target, 1, lines.collect())
    }
}

/// A name or a value as a query carries it.
fn escape(text: &str, target: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            target.push(char::from(byte));
        } else {
            // Writing to a text does not fail.
            let _ = write!(target, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(shown: &Shown) -> Facts<'_> {
        shown.facts(0)
    }

    #[test]
    fn a_client_of_which_nothing_is_said_asks_for_the_root_and_names_no_host() {
        for proxied in [false, true] {
            let shown = Imagined::default().shown(proxied).unwrap();
            let facts = facts(&shown);
            assert_eq!((facts.path(), facts.host()), (Fact::Known("/"), Fact::Absent));
            assert_eq!((facts.server_name(), facts.http2()), (Fact::Absent, Fact::Known(false)));
            assert_eq!(facts.context, Fact::Absent);
        }
    }

    #[test]
    fn what_is_said_is_what_is_seen() {
        let client = Imagined {
            host: Some("A.example".to_owned()),
            path: Some("/x?y=1".to_owned()),
            query: vec![("q&".to_owned(), "a b".to_owned())],
            cookies: vec![("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())],
            ..Imagined::default()
        };
        let shown = client.shown(false).unwrap();
        let Speech::Http1(head) = &shown.speech else { panic!("plain") };
        assert_eq!((head.host(), head.path()), (Fact::Known("a.example"), Fact::Known("/x")));
        assert_eq!(head.query("q&").collect::<Vec<_>>(), ["a b"]);
        assert_eq!(head.query("y").collect::<Vec<_>>(), ["1"]);
        assert_eq!(head.cookie("b").collect::<Vec<_>>(), [b"2"]);
    }

    #[test]
    fn no_client_shows_a_request_behind_tls_or_http2() {
        let tls = Imagined { server_name: Some("a".to_owned()), ..Imagined::default() };
        for proxied in [false, true] {
            // A proxy may leave TLS as it is.
            assert!(matches!(tls.shown(proxied).unwrap().speech, Speech::Tls(_)));
        }
        let both = Imagined { host: Some("a".to_owned()), ..tls.clone() };
        assert_eq!(both.shown(false), Err(Impossible::HiddenByTls("host")));
        let http2 = Imagined { http2: true, ..tls };
        assert_eq!(http2.shown(false), Err(Impossible::HiddenByHttp2("sni")));
        let all = Imagined { http2: true, ..both };
        for proxied in [false, true] {
            assert_eq!(all.shown(proxied), Err(Impossible::HiddenByHttp2("host")));
        }
    }

    #[test]
    fn a_proxy_that_has_ended_tls_tells_of_it_and_shows_the_request() {
        let client = Imagined {
            server_name: Some("A.example.".to_owned()),
            alpn: vec!["http/1.1".to_owned()],
            path: Some("/api".to_owned()),
            ..Imagined::default()
        };
        let shown = client.shown(true).unwrap();
        let facts = facts(&shown);
        assert_eq!(
            (facts.server_name(), facts.path()),
            (Fact::Known("a.example"), Fact::Known("/api"))
        );
        assert!(facts.alpn().known().is_some_and(|all| all.len() == 1));
        // The kernel knows the proxy's.
        assert_eq!(facts.context, Fact::Unknown(Cause::Hidden));
        let http2 = Imagined { path: None, http2: true, ..client.clone() };
        let shown = http2.shown(true).unwrap();
        let facts = shown.facts(0);
        assert_eq!(
            (facts.server_name(), facts.http2()),
            (Fact::Known("a.example"), Fact::Known(true))
        );
        let context = Label::parse("staff_u:staff_r:staff_t:s0").ok();
        let labelled = Imagined { context, ..client };
        assert_eq!(labelled.shown(true), Err(Impossible::BehindProxy("peer-context")));
    }
}
