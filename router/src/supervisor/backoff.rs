//! How long to wait before a process is started again. Pure.

use std::time::Duration;

use crate::options::Restart;

/// Doubles with each start that fails soon; a process that lasted starts it anew.
#[derive(Debug)]
pub(crate) struct Backoff {
    restart: Restart,
    next: Duration,
}

/// A process that lived at least this long was healthy: its end is a new trouble, not the same one.
const HEALTHY: Duration = Duration::from_secs(10);

impl Backoff {
    pub(crate) fn new(restart: Restart) -> Self {
        Self { restart, next: restart.delay }
    }

    /// The delay before the next start, after a process that lived so long.
    pub(crate) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.next = self.restart.delay;
        }
        let delay = self.next.min(self.restart.max_delay);
        self.next = (delay * 2).min(self.restart.max_delay);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_to_its_bound_and_begins_anew_after_a_healthy_life() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(Restart { delay: ms(100), max_delay: ms(500) });
        let delays: Vec<_> = (0..4).map(|_| backoff.after(ms(10))).collect();
        assert_eq!(delays, [ms(100), ms(200), ms(400), ms(500)]);
        assert_eq!(backoff.after(HEALTHY), ms(100));
    }
}
