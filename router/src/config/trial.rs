//! `[[test]]`: connections that the routes are asked about.

use super::mistake::Mistake;
use super::problem::{Others, Problem};
use super::types::{Config, Test};
use crate::route::{Facts, Outcome, Why};

impl Config {
    /// Asks the route table about every `[[test]]`; what goes elsewhere is a mistake.
    pub fn run_tests(&self) -> Vec<Mistake> {
        self.tests.iter().filter_map(|test| self.run_test(test)).collect()
    }

    fn run_test(&self, test: &Test) -> Option<Mistake> {
        let facts = Facts::of_address(test.listener.value, Some(test.peer.value));
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
        let listener = self.listeners.get(test.listener.value).map(|l| l.name.value.clone());
        let problem = Problem::Test {
            peer: test.peer.to_string(),
            listener: listener.unwrap_or_default(),
            route: decision.route.to_string(),
            why: Others(why),
            expected: test.expect.value.clone(),
        };
        Some(Mistake::at(test.expect.place().unwrap_or(&test.place), problem))
    }
}
