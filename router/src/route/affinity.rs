//! What a pool's balance hangs on: the key of a connection, found out once, before it waits for
//! anybody.

use serde::{Deserialize, Serialize};
use vestibule_protocol::supervision::Balance;

use crate::inspect::{Fact, Facts};

/// What the workers of a pool are chosen by, besides the peer's address, which every connection has
/// with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The peer's security context.
    PeerContext,
    /// The name that a TLS client asks for.
    ServerName,
    /// The host of the first request.
    Host,
    /// A parameter of it.
    Query(Box<str>),
    /// A field of it, by its name in lower case.
    Header(Box<str>),
    /// A cookie of it.
    Cookie(Box<str>),
    /// A cookie that names the worker after its last dot.
    Sticky(Box<str>),
}

/// Which worker a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    /// The same for the same bytes.
    Key(Box<[u8]>),
    /// The one of this name.
    Worker(Box<str>),
}

impl KeySource {
    /// What a balance needs to know that does not come with a connection.
    pub fn of(balance: &Balance) -> Option<Self> {
        match balance {
            Balance::LeastConnections | Balance::RoundRobin | Balance::HashPeerIp => None,
            Balance::HashPeerContext => Some(Self::PeerContext),
            Balance::HashServerName => Some(Self::ServerName),
            Balance::HashHost => Some(Self::Host),
            Balance::HashQuery(name) => Some(Self::Query(name.as_str().into())),
            Balance::HashHeader(name) => Some(Self::Header(name.to_ascii_lowercase().into())),
            Balance::HashCookie(name) => Some(Self::Cookie(name.as_str().into())),
            Balance::Sticky(name) => Some(Self::Sticky(name.as_str().into())),
        }
    }

    /// How deep a connection has to be looked at for it.
    pub fn depth(&self) -> crate::inspect::Depth {
        match self {
            Self::PeerContext => crate::inspect::Depth::Context,
            _ => crate::inspect::Depth::Bytes,
        }
    }

    /// Whether it was not looked at yet.
    pub(super) fn is_unasked(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::PeerContext => facts.context == Fact::Unasked,
            Self::ServerName => facts.server_name() == Fact::Unasked,
            Self::Host | Self::Query(_) | Self::Header(_) | Self::Cookie(_) | Self::Sticky(_) => {
                matches!(facts.head(), Fact::Unasked)
            }
        }
    }

    /// A connection's key; nothing where it has none or cannot be told: the pool's `otherwise` is for
    /// both, for no key opens anything that another does not.
    pub fn affinity(&self, facts: &Facts<'_>) -> Option<Affinity> {
        let key = |bytes: &[u8]| Some(Affinity::Key(bytes.into()));
        match self {
            Self::PeerContext => key(facts.context.known()?.as_str().as_bytes()),
            Self::ServerName => key(facts.server_name().known()?.as_bytes()),
            Self::Host => key(facts.host().known()?.as_bytes()),
            Self::Query(name) => key(facts.head().known()?.query(name).next()?.as_bytes()),
            Self::Header(name) => key(facts.head().known()?.header(name).next()?),
            Self::Cookie(name) => key(facts.head().known()?.cookie(name).next()?),
            Self::Sticky(name) => {
                let value = facts.head().known()?.cookie(name).next()?;
                let (_, worker) = std::str::from_utf8(value).ok()?.rsplit_once('.')?;
                (!worker.is_empty()).then(|| Affinity::Worker(worker.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{HttpHead, Speech};

    fn affinity(source: &KeySource, target: &str, lines: &[(&str, &str)]) -> Option<Affinity> {
        let lines = lines.iter().map(|(name, value)| ((*name).into(), value.as_bytes().into()));
        let speech = Speech::Http1(HttpHead::new("GET", target, 1, lines.collect()));
        source.affinity(&Facts { speech: &speech, ..Facts::of_address(0, None) })
    }

    #[test]
    fn a_key_is_the_first_value_of_what_is_asked_for() {
        let lines = [("host", "A.example:80"), ("cookie", "id=7; id=8"), ("X-Tenant", "acme")];
        for (source, key) in [
            (KeySource::Host, "a.example"),
            (KeySource::Cookie("id".into()), "7"),
            (KeySource::Header("x-tenant".into()), "acme"),
            (KeySource::Query("user".into()), "a b"),
        ] {
            let expected = Some(Affinity::Key(key.as_bytes().into()));
            assert_eq!(affinity(&source, "/?user=a+b", &lines), expected, "{source:?}");
        }
        assert_eq!(affinity(&KeySource::ServerName, "/", &lines), None);
        assert_eq!(affinity(&KeySource::Cookie("none".into()), "/", &lines), None);
    }

    #[test]
    fn a_sticky_cookie_names_a_worker_after_its_last_dot() {
        let sticky = KeySource::Sticky("sid".into());
        let named = |cookie: &str| affinity(&sticky, "/", &[("cookie", cookie)]);
        assert_eq!(named("sid=abc.app-2"), Some(Affinity::Worker("app-2".into())));
        assert_eq!(named("sid=a.b.app-2"), Some(Affinity::Worker("app-2".into())));
        for none in ["sid=app-2", "sid=abc.", "other=abc.app-2", ""] {
            assert_eq!(named(none), None, "{none}");
        }
    }
}
