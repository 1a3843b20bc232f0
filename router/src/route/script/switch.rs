//! Leaves a script alone that does nothing but fail, or takes as long at once.

use std::time::{Duration, Instant};

/// Failures in a row after which a script is left alone: a bad connection or two is no reason, and a
/// script that loops has by then cost sixteen times its time limit.
pub(super) const MOST_FAILURES: u32 = 16;

/// For so long; then it is started anew.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Switch {
    failures: u32,
    off_until: Option<Instant>,
}

/// What the switch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    On,
    Off,
    /// The pause is over: the script is to be started anew.
    Again,
}

impl Switch {
    /// Whether the script is to be asked. The clock is read only while it is off.
    pub(super) fn position(&mut self, now: impl FnOnce() -> Instant) -> Position {
        match self.off_until {
            None => Position::On,
            Some(until) if now() < until => Position::Off,
            Some(_) => {
                self.off_until = None;
                self.failures = 0;
                Position::Again
            }
        }
    }

    pub(super) fn worked(&mut self) {
        self.failures = 0;
    }

    /// It failed; whether it is off now.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures += 1;
        if self.failures >= MOST_FAILURES {
            self.off(now);
            return true;
        }
        false
    }

    pub(super) fn off(&mut self, now: Instant) {
        self.off_until = Some(now + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_failures_in_a_row_switch_off_for_a_second_and_a_success_begins_anew() {
        let start = Instant::now();
        let mut switch = Switch::default();
        for _ in 1..MOST_FAILURES {
            assert!(!switch.failed(start));
        }
        switch.worked();
        for _ in 1..MOST_FAILURES {
            assert!(!switch.failed(start));
        }
        assert_eq!(switch.position(|| start), Position::On);
        assert!(switch.failed(start));
        assert_eq!(switch.position(|| start + PAUSE - Duration::from_nanos(1)), Position::Off);
        assert_eq!(switch.position(|| start + PAUSE), Position::Again);
        assert_eq!(switch.position(|| start + PAUSE), Position::On);
        assert!(!switch.failed(start));
    }
}
