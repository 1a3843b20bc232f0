//! What is known about a connection: values, and why some are missing.
//!
//! Pure: whoever looks at sockets fills these in, ordered by cost, and no deeper than rules ask for
//! ([`Depth`]). A fact has four states, because "the client sent no name" and "we could not see the
//! name" must never be taken for each other: a rule that rejects by name would be slipped past.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::label::Label;
use super::request::HttpHead;
use crate::reject::Reason;

/// One thing that may be known about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact<T> {
    /// It is this.
    Known(T),
    /// It was looked for, and the client has none.
    Absent,
    /// It was looked for, and cannot be told. It neither equals anything nor differs from it.
    Unknown(Cause),
    /// Nobody has looked yet.
    Unasked,
}

impl<T> Fact<T> {
    /// The value, if there is one.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unknown(_) | Self::Unasked => None,
        }
    }

    /// The same fact about something that follows from the value.
    pub fn and_then<U>(self, then: impl FnOnce(T) -> Fact<U>) -> Fact<U> {
        match self {
            Self::Known(value) => then(value),
            Self::Absent => Fact::Absent,
            Self::Unknown(cause) => Fact::Unknown(cause),
            Self::Unasked => Fact::Unasked,
        }
    }

    /// The same fact about a part of the value.
    pub fn map<U>(self, part: impl FnOnce(T) -> U) -> Fact<U> {
        self.and_then(|value| Fact::Known(part(value)))
    }

    /// The same fact, borrowed.
    pub fn as_ref(&self) -> Fact<&T> {
        match self {
            Self::Known(value) => Fact::Known(value),
            Self::Absent => Fact::Absent,
            Self::Unknown(cause) => Fact::Unknown(*cause),
            Self::Unasked => Fact::Unasked,
        }
    }
}

impl<T> From<Option<T>> for Fact<T> {
    /// What was looked for is there or is not.
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Known)
    }
}

/// Why a fact cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The client did not show it within `inspect-timeout`.
    TimedOut,
    /// It is not within the first `peek-max` bytes, or not within as many looks as a client gets.
    TooLarge,
    /// What the client sent is neither TLS nor HTTP, or breaks their rules so that two readers could
    /// understand two things.
    NotHttp,
    /// It is behind TLS or HTTP/2, or encrypted in the hello itself.
    Hidden,
}

impl Cause {
    /// Why a connection is turned away whose rule needed the fact.
    pub const fn reason(self) -> Reason {
        match self {
            Self::TimedOut => Reason::InspectTimeout,
            Self::TooLarge => Reason::HeadTooLarge,
            Self::NotHttp => Reason::NotHttp,
            Self::Hidden => Reason::UnknownFact,
        }
    }
}

/// How deep a connection has to be looked at, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Depth {
    /// Its listener and its peer's address, which come with it.
    Address,
    /// The user at the other end of a Unix-domain socket (`SO_PEERCRED`): one system call.
    Credentials,
    /// Its peer's security context (`SO_PEERSEC`): one system call.
    Context,
    /// What its client says first: bytes that may have to be waited for.
    Bytes,
}

/// Who is at the other end of a Unix-domain socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user's number.
    pub uid: u32,
    /// The user's name, where this system knows one.
    pub user: Option<Box<str>>,
}

/// What a TLS client's first message shows (RFC 8446 4.1.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// The name that it asks for (RFC 6066 3): in lower case, without a dot at its end
    /// ([`super::normal::host`]). Unknown where it is encrypted.
    pub server_name: Fact<Box<str>>,
    /// The protocols that it offers (RFC 7301), in its order.
    pub alpn: Fact<Vec<Box<[u8]>>>,
}

/// What a client says first, as far as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    /// Nobody has looked, or nothing has come yet.
    Unasked,
    /// It begins as TLS, and its hello is not whole yet.
    TlsBegun,
    /// A TLS hello.
    Tls(ClientHello),
    /// It begins as TLS, and its hello was not to be had.
    TlsUnread(Cause),
    /// The preface of HTTP/2 (RFC 9113 3.4), in clear.
    Http2,
    /// It begins as HTTP/1 and cannot be TLS or HTTP/2 any more; its head is not whole yet.
    Http1Begun,
    /// A whole head of HTTP/1.
    Http1(HttpHead),
    /// It is neither TLS nor HTTP/2, and its head was not to be had.
    Http1Unread(Cause),
    /// Nothing can be told.
    Unknown(Cause),
}

/// What is known about one connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Index of the listener that accepted it.
    pub listener: usize,
    /// The client's address; none for a client without an Internet address. Mapped ones count as
    /// IPv4.
    pub peer: Option<IpAddr>,
    /// Who is at the other end; absent for what is no Unix-domain socket.
    pub credentials: Fact<&'a Credentials>,
    /// The peer's security context; absent where it has none.
    pub context: Fact<&'a Label>,
    /// What its client says.
    pub speech: &'a Speech,
    /// The TLS that a proxy in front has ended, as that one tells it: who speaks to it is not the
    /// client.
    pub announced: Option<&'a ClientHello>,
}

impl<'a> Facts<'a> {
    /// What comes with a connection; nobody has looked at it.
    pub const fn of_address(listener: usize, peer: Option<IpAddr>) -> Self {
        Self {
            listener,
            peer,
            credentials: Fact::Unasked,
            context: Fact::Unasked,
            speech: &Speech::Unasked,
            announced: None,
        }
    }

    /// Name that a TLS client asks for.
    pub fn server_name(&self) -> Fact<&'a str> {
        self.hello().and_then(|hello| hello.server_name.as_ref().map(|name| &**name))
    }

    /// Protocols that a TLS client offers.
    pub fn alpn(&self) -> Fact<&'a [Box<[u8]>]> {
        self.hello().and_then(|hello| hello.alpn.as_ref().map(Vec::as_slice))
    }

    /// The hello; a plain client has none.
    pub fn hello(&self) -> Fact<&'a ClientHello> {
        if let Some(announced) = self.announced {
            return Fact::Known(announced);
        }
        match self.speech {
            Speech::Tls(hello) => Fact::Known(hello),
            Speech::Http2 | Speech::Http1Begun | Speech::Http1(_) | Speech::Http1Unread(_) => {
                Fact::Absent
            }
            Speech::TlsUnread(cause) | Speech::Unknown(cause) => Fact::Unknown(*cause),
            Speech::Unasked | Speech::TlsBegun => Fact::Unasked,
        }
    }

    /// Whether the client begins with the preface of HTTP/2, in clear. What a TLS client speaks is
    /// settled after its hello, so it does not.
    pub fn http2(&self) -> Fact<bool> {
        match self.speech {
            Speech::Http2 => Fact::Known(true),
            Speech::Tls(_)
            | Speech::TlsBegun
            | Speech::TlsUnread(_)
            | Speech::Http1Begun
            | Speech::Http1(_)
            | Speech::Http1Unread(_) => Fact::Known(false),
            Speech::Unknown(cause) => Fact::Unknown(*cause),
            Speech::Unasked => Fact::Unasked,
        }
    }

    /// The head of the first request. TLS and HTTP/2 hide it.
    pub fn head(&self) -> Fact<&'a HttpHead> {
        match self.speech {
            Speech::Http1(head) => Fact::Known(head),
            Speech::Tls(_) | Speech::TlsBegun | Speech::TlsUnread(_) | Speech::Http2 => {
                Fact::Unknown(Cause::Hidden)
            }
            Speech::Http1Unread(cause) | Speech::Unknown(cause) => Fact::Unknown(*cause),
            Speech::Unasked | Speech::Http1Begun => Fact::Unasked,
        }
    }

    /// Whether what the client asks for is hidden for as long as it lives: its first byte is TLS's, which
    /// no HTTP begins with, so that all that follows is behind TLS or nothing. What a proxy announces of
    /// a TLS that it has ended itself says nothing here: the requests are in clear then.
    pub fn hides_requests(&self) -> bool {
        matches!(self.speech, Speech::Tls(_) | Speech::TlsBegun | Speech::TlsUnread(_))
    }

    /// The host that the first request is for, normalised.
    pub fn host(&self) -> Fact<&'a str> {
        self.head().and_then(HttpHead::host)
    }

    /// The path that the first request is for, normalised.
    pub fn path(&self) -> Fact<&'a str> {
        self.head().and_then(HttpHead::path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(speech: &Speech) -> Facts<'_> {
        Facts { speech, ..Facts::of_address(0, None) }
    }

    fn head(head: &str) -> Speech {
        Speech::Http1(HttpHead::new("GET", head, 1, Vec::new()))
    }

    #[test]
    fn a_plain_client_has_no_tls_name_and_a_tls_client_hides_its_request() {
        for plain in
            [Speech::Http2, Speech::Http1Begun, head("/"), Speech::Http1Unread(Cause::TooLarge)]
        {
            assert_eq!(facts(&plain).server_name(), Fact::Absent, "{plain:?}");
            assert_eq!(facts(&plain).alpn(), Fact::Absent, "{plain:?}");
        }
        let hello = ClientHello { server_name: Fact::Absent, alpn: Fact::Absent };
        for hidden in [
            Speech::Tls(hello),
            Speech::TlsBegun,
            Speech::TlsUnread(Cause::TimedOut),
            Speech::Http2,
        ] {
            assert_eq!(facts(&hidden).host(), Fact::Unknown(Cause::Hidden), "{hidden:?}");
            assert_eq!(facts(&hidden).path(), Fact::Unknown(Cause::Hidden), "{hidden:?}");
        }
    }

    #[test]
    fn what_a_proxy_announces_is_the_hello_whatever_it_forwards() {
        let hello = ClientHello { server_name: Fact::Known("a".into()), alpn: Fact::Absent };
        for speech in [Speech::Unasked, Speech::Http1Begun, Speech::Unknown(Cause::TimedOut)] {
            let facts = Facts { announced: Some(&hello), ..facts(&speech) };
            assert_eq!(facts.server_name(), Fact::Known("a"));
            assert_eq!(facts.alpn(), Fact::Absent);
        }
    }

    /// Else a later request could be what nobody has looked at.
    #[test]
    fn only_who_begins_with_tls_hides_all_that_follows() {
        let hello = || ClientHello { server_name: Fact::Known("a".into()), alpn: Fact::Absent };
        for (speech, hides) in [
            (Speech::Tls(hello()), true),
            (Speech::TlsBegun, true),
            (Speech::TlsUnread(Cause::TimedOut), true),
            (Speech::Unasked, false),
            (Speech::Unknown(Cause::TimedOut), false),
            (Speech::Http2, false),
            (Speech::Http1Begun, false),
            (Speech::Http1Unread(Cause::TooLarge), false),
            (head("/"), false),
        ] {
            let announced = hello();
            for announced in [None, Some(&announced)] {
                let facts = Facts { announced, ..facts(&speech) };
                assert_eq!(facts.hides_requests(), hides, "{speech:?}");
            }
        }
    }

    #[test]
    fn what_is_not_whole_yet_is_unasked_and_what_cannot_be_told_says_why() {
        assert_eq!(facts(&Speech::Unasked).http2(), Fact::Unasked);
        assert_eq!(facts(&Speech::Http1Begun).host(), Fact::Unasked);
        assert_eq!(facts(&Speech::TlsBegun).server_name(), Fact::Unasked);
        let late = Speech::Unknown(Cause::TimedOut);
        assert_eq!(facts(&late).host(), Fact::Unknown(Cause::TimedOut));
        assert_eq!(facts(&late).server_name(), Fact::Unknown(Cause::TimedOut));
        assert_eq!(facts(&late).http2(), Fact::Unknown(Cause::TimedOut));
    }

    #[test]
    fn every_cause_is_a_reason_of_the_documentation() {
        let reasons = [Cause::TimedOut, Cause::TooLarge, Cause::NotHttp, Cause::Hidden]
            .map(|cause| cause.reason().as_str());
        assert_eq!(reasons, ["inspect-timeout", "head-too-large", "not-http", "unknown-fact"]);
    }
}
