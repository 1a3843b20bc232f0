//! `[[test]]`: connections that the routes are asked about.

use super::mistake::Mistake;
#[cfg(feature = "script")]
use super::mistake::Warning;
#[cfg(feature = "script")]
use super::problem::Caution;
use super::problem::{Others, Problem};
#[cfg(feature = "script")]
use super::script::{Trial, Tried};
use super::types::{Config, Test};
#[cfg(feature = "script")]
use crate::inspect::Facts;
#[cfg(feature = "script")]
use crate::reject::Reason;
#[cfg(feature = "script")]
use crate::route::table::SCRIPT;
use crate::route::{Outcome, Why};

impl Config {
    /// Asks the route table about every `[[test]]`; what goes elsewhere is a mistake. Where a script
    /// decides, it is asked by `check` alone ([`run_script_tests`](Self::run_script_tests)).
    pub fn run_tests(&self) -> Vec<Mistake> {
        if self.router.script.value.is_some() {
            return Vec::new();
        }
        self.tests.iter().filter_map(|test| self.run_test(test)).collect()
    }

    /// Runs the script, and asks it about every `[[test]]`: for whoever may run it.
    #[cfg(feature = "script")]
    pub fn run_script_tests(&self) -> (Vec<Warning>, Vec<Mistake>) {
        let (mut warnings, mut mistakes) = (Vec::new(), Vec::new());
        match self.try_script() {
            None => {}
            Some(Err(mistake)) => mistakes.push(mistake),
            Some(Ok(mut trial)) => {
                for test in &self.tests {
                    self.run_script_test(test, &mut trial, &mut warnings, &mut mistakes);
                }
            }
        }
        (warnings, mistakes)
    }

    #[cfg(feature = "script")]
    fn run_script_test(
        &self,
        test: &Test,
        trial: &mut Trial,
        warnings: &mut Vec<Warning>,
        mistakes: &mut Vec<Mistake>,
    ) {
        let listener = test.listener.value;
        let Ok(shown) = self.shown(&test.client, listener) else { return };
        let facts = shown.facts(listener);
        let tried = trial.ask(&facts);
        if let Some(mistake) = self.judge(test, &facts, &tried) {
            mistakes.push(mistake);
        } else if let Some(failure) = tried.failure()
            && test.expect.value != Reason::ScriptFailed.as_str()
        {
            // Whoever expects something else has not meant it.
            let place = test.expect.place().unwrap_or(&test.place);
            warnings.push(Warning::at(place, Caution::ScriptFails(failure.to_string())));
        }
    }

    /// Whether a test is as expected.
    #[cfg(feature = "script")]
    fn judge(&self, test: &Test, facts: &Facts<'_>, tried: &Tried) -> Option<Mistake> {
        let expected = test.expect.value.as_str();
        let (route, why) = match tried {
            Tried::Decides { to, .. } => {
                let route = format!("{SCRIPT}:{to}");
                if expected == SCRIPT || expected == route {
                    return None;
                }
                (route, String::new())
            }
            other => {
                if let Outcome::Decided(decision) = self.table.decide(facts)
                    && let Why::Rule(_) = decision.why
                {
                    return self.run_test(test);
                }
                let reason = other.unruled();
                let why = match other {
                    Tried::Fails(failure) => failure.to_string(),
                    Tried::Unknown(_) => String::new(),
                    Tried::Decides { .. } | Tried::Leaves => {
                        "it neither posts nor rejects, and no `[[route]]` matches".to_owned()
                    }
                };
                if expected == reason.as_str() {
                    return None;
                }
                (reason.as_str().to_owned(), why)
            }
        };
        Some(self.wrong(test, route, why))
    }

    fn run_test(&self, test: &Test) -> Option<Mistake> {
        // A description that no client fits was refused when it was read.
        let listener = test.listener.value;
        let shown = self.shown(&test.client, listener).ok()?;
        let facts = shown.facts(listener);
        // Everything is known.
        let Outcome::Decided(decision) = self.table.decide(&facts) else { return None };
        if **decision.route == *test.expect.value {
            return None;
        }
        let why = match decision.why {
            Why::Rule(index) => {
                let route = self.routes.get(index)?;
                let place = route.name.place().or(route.target.place());
                place.map(|place| place.short()).unwrap_or_default()
            }
            Why::OnlyPool => "there is no `[[route]]`".to_owned(),
            Why::NoMatch => "none matches: 404".to_owned(),
            Why::Unknown { cause, .. } => cause.reason().as_str().to_owned(),
        };
        Some(self.wrong(test, decision.route.to_string(), why))
    }

    fn wrong(&self, test: &Test, route: String, why: String) -> Mistake {
        let listener = self.listeners.get(test.listener.value).map(|l| l.name.value.clone());
        let problem = Problem::Test {
            peer: test.peer.map(|peer| format!(" from {peer}")).unwrap_or_default(),
            listener: listener.unwrap_or_default(),
            route,
            why: Others(why),
            expected: test.expect.value.clone(),
        };
        Mistake::at(test.expect.place().unwrap_or(&test.place), problem)
    }
}
