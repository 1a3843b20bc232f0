//! How long to wait before a process is started again. Pure.

use std::time::Duration;

use crate::options::Restart;

/// Doubles with each start that fails soon; a process that lasted starts it anew.
#[derive(Debug)]
pub(crate) struct Backoff {
    restart: Restart,
    next: Duration,
    /// Starts in a row that failed.
    failed: u32,
}

/// A process that lived at least this long was healthy: its end is a new trouble, not the same one.
const HEALTHY: Duration = Duration::from_secs(10);

impl Backoff {
    pub(crate) fn new(restart: Restart) -> Self {
        Self { restart, next: restart.delay, failed: 0 }
    }

    /// The delay before the next start, after a process that lived so long and was ready or not;
    /// `None` if as many starts in a row have failed as may.
    pub(crate) fn after(&mut self, lived: Duration, ready: bool) -> Option<Duration> {
        self.failed = if ready { 0 } else { self.failed + 1 };
        if self.restart.attempts.is_some_and(|attempts| self.failed >= attempts.get()) {
            return None;
        }
        if lived >= HEALTHY {
            self.next = self.restart.delay;
        }
        let delay = self.next.min(self.restart.max_delay);
        self.next = (delay * 2).min(self.restart.max_delay);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_to_its_bound_and_begins_anew_after_a_healthy_life() {
        let ms = Duration::from_millis;
        let restart = Restart { delay: ms(100), max_delay: ms(500), attempts: None };
        let mut backoff = Backoff::new(restart);
        let delays: Vec<_> = (0..4).map(|_| backoff.after(ms(10), false).unwrap()).collect();
        assert_eq!(delays, [ms(100), ms(200), ms(400), ms(500)]);
        assert_eq!(backoff.after(HEALTHY, true), Some(ms(100)));
    }

    #[test]
    fn as_many_failed_starts_in_a_row_as_are_allowed_end_it() {
        let attempts = std::num::NonZeroU32::new(2);
        let mut backoff = Backoff::new(Restart { attempts, ..Restart::default() });
        assert!(backoff.after(Duration::ZERO, false).is_some());
        assert!(backoff.after(Duration::ZERO, true).is_some(), "it was ready: counted anew");
        assert!(backoff.after(Duration::ZERO, false).is_some());
        assert!(backoff.after(Duration::ZERO, false).is_none());
    }
}
