//! What a decision needs to know of a rule that was found by all that it asks for: a few bytes each,
//! close together, so that one among ten thousand is as close at hand as one among ten.

use super::rule::{Conditions, Rule, Target};
use crate::inspect::{Fact, Facts};

/// All rules in brief.
#[derive(Clone, Debug)]
pub(super) struct Briefs {
    rules: Vec<Brief>,
    /// Each once.
    targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug)]
struct Brief {
    asks: Asks,
    has_message: bool,
    target: u16,
}

/// What a rule asks for besides its listener and its networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Nothing,
    /// A host, by which it was found if there is one.
    Host,
    /// The same with the name of a TLS client.
    ServerName,
    /// What the rule itself has to be asked about.
    More,
}

impl Briefs {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut targets = Vec::new();
        let brief = |rule: &Rule| {
            let known = targets.iter().position(|known| *known == rule.target);
            let place = known.unwrap_or_else(|| {
                targets.push(rule.target);
                targets.len() - 1
            });
            let target = u16::try_from(place);
            Brief {
                // Nobody has so many pools.
                asks: target.map_or(Asks::More, |_| asks(rule)),
                has_message: rule.message.is_some(),
                target: target.unwrap_or_default(),
            }
        };
        Self { rules: rules.iter().map(brief).collect(), targets }
    }

    /// Where a rule sends a connection, and whether with a message, if nothing more has to be asked:
    /// the rule is one of the index's candidates for these facts.
    pub(super) fn settled(&self, rule: usize, facts: &Facts<'_>) -> Option<(Target, bool)> {
        let brief = self.rules.get(rule)?;
        let found = match brief.asks {
            Asks::Nothing => true,
            Asks::Host => matches!(facts.host(), Fact::Known(_)),
            Asks::ServerName => matches!(facts.server_name(), Fact::Known(_)),
            Asks::More => false,
        };
        let target = *self.targets.get(usize::from(brief.target))?;
        found.then_some((target, brief.has_message))
    }
}

fn asks(rule: &Rule) -> Asks {
    let Conditions {
        users: None,
        contexts: None,
        levels: None,
        server_names,
        alpn: None,
        http2: None,
        hosts,
        paths: None,
        query,
        headers,
        cookies,
    } = &rule.conditions
    else {
        return Asks::More;
    };
    let values = !query.is_empty() || !headers.is_empty() || !cookies.is_empty();
    match (hosts, server_names) {
        // A redirection looks at the path, too.
        _ if values || rule.target == Target::Redirect => Asks::More,
        (None, None) => Asks::Nothing,
        (Some(_), None) => Asks::Host,
        (None, Some(_)) => Asks::ServerName,
        (Some(_), Some(_)) => Asks::More,
    }
}
