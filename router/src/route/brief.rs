//! What a decision needs to know of a rule that was found by all that it asks for. Rules are many, and
//! what is to be known of them is nearly always the same: so a number of 16 bits, beside what is found,
//! says it.

use super::rule::{Conditions, Rule, Target};

/// The brief of a rule that has to be asked itself.
pub(super) const ASK: u16 = 0;

/// What no rule's brief is.
pub(super) const NO_BRIEF: u16 = u16::MAX;

/// What there is to be known, each once.
#[derive(Clone, Debug)]
pub(super) struct Briefs(Vec<Option<Brief>>);

/// What becomes of a connection for which a rule was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Brief {
    pub(super) target: Target,
    pub(super) has_message: bool,
}

impl Briefs {
    /// The briefs of rules, and the number of each rule's.
    pub(super) fn new(rules: &[Rule]) -> (Self, Vec<u16>) {
        let mut briefs = vec![None];
        let number = |rule: &Rule| {
            let brief = Brief { target: rule.target, has_message: rule.message.is_some() };
            let brief = Some(brief).filter(|_| !asks_more(rule));
            let known = briefs.iter().position(|known| *known == brief);
            let number = known.unwrap_or_else(|| {
                briefs.push(brief);
                briefs.len() - 1
            });
            // Nobody has so many pools.
            u16::try_from(number).ok().filter(|number| *number != NO_BRIEF).unwrap_or(ASK)
        };
        let numbers = rules.iter().map(number).collect();
        (Self(briefs), numbers)
    }

    /// Nothing where the rule itself has to be asked.
    pub(super) fn get(&self, brief: u16) -> Option<Brief> {
        *self.0.get(usize::from(brief))?
    }
}

/// Whether a rule asks for more than its listener, its networks and names of one kind, by all of which
/// it is found.
fn asks_more(rule: &Rule) -> bool {
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
        return true;
    };
    // A redirection looks at the path, too.
    rule.target == Target::Redirect
        || (hosts.is_some() && server_names.is_some())
        || !query.is_empty()
        || !headers.is_empty()
        || !cookies.is_empty()
}
