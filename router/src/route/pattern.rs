//! What a rule says about networks, contexts and users, as it is compared; names, paths and values
//! are [`vestibule_protocol::http::pattern`]'s, which workers compare with, too.
//!
//! Every pattern is read from the text that is written in a configuration; the texts also travel to
//! the router, which reads them again.

use std::net::IpAddr;

use ipnet::IpNet;
pub(super) use vestibule_protocol::http::pattern::parents;
pub use vestibule_protocol::http::pattern::{Names, NotAPattern, PathPattern, ValuePattern};

use super::networks::canonical;
use crate::inspect::label::{LabelPattern, PatternError};
use crate::inspect::{Credentials, Fact, Label};

/// Reads a network, or a single address as the network of it.
///
/// # Errors
/// It is neither.
pub fn network(text: &str) -> Result<IpNet, NotAPattern> {
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| NotAPattern::Network(text.to_owned()))?;
    Ok(canonical(network))
}

/// Contexts, `none` among them: a peer that has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextPattern {
    /// A peer without a context.
    None,
    /// A peer with one like this.
    Label(LabelPattern),
}

impl ContextPattern {
    /// Reads `user:role:type:level`, with `*` within a part, or `none`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, NotAPattern> {
        if text == crate::inspect::label::NONE {
            return Ok(Self::None);
        }
        let label = text.parse().map_err(|error: PatternError| {
            NotAPattern::Context(text.to_owned(), error.to_string())
        })?;
        Ok(Self::Label(label))
    }

    /// Whether a peer's context is as this says.
    pub fn matches(&self, context: Fact<&Label>) -> Fact<bool> {
        match (self, context) {
            (Self::None, Fact::Absent) => Fact::Known(true),
            (Self::None, Fact::Known(_)) => Fact::Known(false),
            (Self::Label(pattern), Fact::Known(label)) => Fact::Known(pattern.matches(label)),
            (Self::Label(_), Fact::Absent) => Fact::Known(false),
            (_, Fact::Unknown(cause)) => Fact::Unknown(cause),
            (_, Fact::Unasked) => Fact::Unasked,
        }
    }
}

/// Whether this name or number is a user's.
pub fn is_user(written: &str, credentials: &Credentials) -> bool {
    credentials.user.as_deref() == Some(written)
        || written.parse::<u32>().is_ok_and(|uid| uid == credentials.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_a_peer_without_a_context_and_nothing_else() {
        let label = Label::parse("staff_u:staff_r:staff_client_t:s0").unwrap();
        let none = ContextPattern::parse("none").unwrap();
        let staff = ContextPattern::parse("*:*:staff_client_t:*").unwrap();
        assert_eq!(none.matches(Fact::Absent), Fact::Known(true));
        assert_eq!(none.matches(Fact::Known(&label)), Fact::Known(false));
        assert_eq!(staff.matches(Fact::Known(&label)), Fact::Known(true));
        assert_eq!(staff.matches(Fact::Absent), Fact::Known(false));
        assert_eq!(none.matches(Fact::Unasked), Fact::Unasked);
        assert!(ContextPattern::parse("staff_client_t").is_err());
    }
}
