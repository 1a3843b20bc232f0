//! A client that somebody describes, in a `[[test]]` or to `vestibule explain`: what it would show.

use std::fmt::Write;
use std::net::IpAddr;

use crate::inspect::{ClientHello, Credentials, Fact, Facts, HttpHead, Label, Speech, normal};

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
}

impl Imagined {
    /// What it says first.
    ///
    /// # Errors
    /// No client shows all of this.
    pub fn speech(&self) -> Result<Speech, Impossible> {
        let tls = self.server_name.is_some() || !self.alpn.is_empty();
        let request = [
            ("host", self.host.is_some()),
            ("path", self.path.is_some()),
            ("query", !self.query.is_empty()),
            ("header", !self.headers.is_empty()),
            ("cookie", !self.cookies.is_empty()),
        ];
        let request = request.into_iter().find(|(_, said)| *said).map(|(key, _)| key);
        match (self.http2, tls, request) {
            (true, _, Some(key)) => Err(Impossible::HiddenByHttp2(key)),
            (true, true, None) if self.server_name.is_some() => {
                Err(Impossible::HiddenByHttp2("sni"))
            }
            (true, true, None) => Err(Impossible::HiddenByHttp2("alpn")),
            (true, false, None) => Ok(Speech::Http2),
            (false, true, Some(key)) => Err(Impossible::HiddenByTls(key)),
            (false, true, None) => Ok(Speech::Tls(self.hello())),
            (false, false, _) => Ok(Speech::Http1(self.head())),
        }
    }

    /// What is known once everything was looked at.
    pub fn facts<'a>(
        &'a self,
        listener: usize,
        credentials: Option<&'a Credentials>,
        speech: &'a Speech,
    ) -> Facts<'a> {
        Facts {
            credentials: credentials.into(),
            context: self.context.as_ref().into(),
            speech,
            ..Facts::of_address(listener, self.peer)
        }
    }

    /// Who is at the other end, for [`facts`](Self::facts).
    pub fn credentials(&self) -> Option<Credentials> {
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

    #[test]
    fn a_client_of_which_nothing_is_said_asks_for_the_root_and_names_no_host() {
        let client = Imagined::default();
        let speech = client.speech().unwrap();
        let facts = client.facts(0, None, &speech);
        assert_eq!((facts.path(), facts.host()), (Fact::Known("/"), Fact::Absent));
        assert_eq!((facts.server_name(), facts.http2()), (Fact::Absent, Fact::Known(false)));
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
        let Speech::Http1(head) = client.speech().unwrap() else { panic!("plain") };
        assert_eq!((head.host(), head.path()), (Fact::Known("a.example"), Fact::Known("/x")));
        assert_eq!(head.query("q&").collect::<Vec<_>>(), ["a b"]);
        assert_eq!(head.query("y").collect::<Vec<_>>(), ["1"]);
        assert_eq!(head.cookie("b").collect::<Vec<_>>(), [b"2"]);
    }

    #[test]
    fn no_client_shows_a_request_behind_tls_or_http2() {
        let tls = Imagined { server_name: Some("a".to_owned()), ..Imagined::default() };
        assert!(matches!(tls.speech(), Ok(Speech::Tls(_))));
        let both = Imagined { host: Some("a".to_owned()), ..tls.clone() };
        assert_eq!(both.speech(), Err(Impossible::HiddenByTls("host")));
        let http2 = Imagined { http2: true, ..tls };
        assert_eq!(http2.speech(), Err(Impossible::HiddenByHttp2("sni")));
    }
}
