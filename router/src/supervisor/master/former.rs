//! Configurations that others have replaced, for as long as a client may go by one of them.
//!
//! Clients of removed listeners are decided about by what held when they came. A router that takes over
//! needs it, too, and does not have it from the one before: that one faces clients, and what it said would
//! be rules, and a script, of its own making.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use vestibule_protocol::supervision::{InspectSetup, Setup};

/// So many reloads in a row removed a listener while its clients were looked at.
pub(crate) const MOST_FORMER: usize = 8;
/// A client is looked at for a minute at most; but while one router takes over from another nobody is,
/// and several may fail at it.
const KEPT: Duration = InspectSetup::MOST_TIME.saturating_mul(5);

/// The last ones that are not too old, with when they were replaced.
#[derive(Debug, Default)]
pub(super) struct FormerSetups {
    all: VecDeque<(Instant, Setup)>,
}

impl FormerSetups {
    /// Keeps what is replaced by this, if a listener goes with it.
    pub(super) fn keep(&mut self, before: Setup, next: &Setup, now: Instant) {
        self.forget(now);
        let stays = |id: u32| next.listeners.iter().any(|listener| listener.id == id);
        if before.listeners.iter().all(|listener| stays(listener.id)) {
            return;
        }
        if self.all.len() >= MOST_FORMER {
            self.all.pop_front();
        }
        self.all.push_back((now, before));
    }

    /// Those by which a client may still go.
    pub(super) fn young(&mut self, now: Instant) -> impl Iterator<Item = &Setup> {
        self.forget(now);
        self.all.iter().map(|(_, setup)| setup)
    }

    fn forget(&mut self, now: Instant) {
        self.all.retain(|(replaced, _)| now.saturating_duration_since(*replaced) < KEPT);
    }
}

#[cfg(test)]
mod tests {
    use vestibule_protocol::supervision::ListenerSetup;

    use super::*;

    fn setup(number: u64, listener: u32) -> Setup {
        let listener = ListenerSetup { id: listener, ..ListenerSetup::default() };
        Setup { number, listeners: vec![listener], ..Setup::default() }
    }

    fn numbers(former: &mut FormerSetups, now: Instant) -> Vec<u64> {
        former.young(now).map(|setup| setup.number).collect()
    }

    #[test]
    fn the_last_ones_that_had_a_listener_more_are_kept_for_a_while() {
        let (mut former, now) = (FormerSetups::default(), Instant::now());
        former.keep(setup(1, 7), &setup(2, 7), now);
        assert!(numbers(&mut former, now).is_empty(), "all its listeners are there");
        for number in 2..12 {
            former.keep(setup(number, number as u32), &setup(0, 0), now);
        }
        assert_eq!(numbers(&mut former, now), [4, 5, 6, 7, 8, 9, 10, 11]);
        former.keep(setup(12, 12), &setup(0, 0), now + KEPT);
        assert_eq!(numbers(&mut former, now + KEPT), [12]);
    }
}
