//! How far the replacing of a pool's workers has come, and whether the next one's turn has come. Pure: the
//! time is given.

use std::time::{Duration, Instant};

use vestibule_protocol::supervision::WorkerId;

/// How long after a successor of a worn worker did not become ready another is tried: what keeps a program
/// from starting may mend itself, and a start a minute costs little.
const RETRY: Duration = Duration::from_secs(60);

/// Where a pool's roll is.
#[derive(Debug, Default)]
pub(in super::super) struct Roll {
    /// Somebody is being replaced.
    active: bool,
    /// A worker that was replaced and may still finish what it has.
    finishing: Option<WorkerId>,
    /// Why it went no further, and since when.
    stopped: Option<(Stopped, Instant)>,
}

/// Why a roll stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Stopped {
    /// The name whose successor did not become ready.
    pub(in super::super) worker: String,
    pub(in super::super) reason: String,
    /// What that successor said last.
    pub(in super::super) lines: Vec<String>,
}

impl Roll {
    pub(in super::super) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    pub(in super::super) fn is_active(&self) -> bool {
        self.active
    }

    pub(in super::super) fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref().map(|(stopped, _)| stopped)
    }

    /// Whoever was replaced last: the next one's turn comes when it has ended.
    pub(super) fn finishing(&self) -> Option<WorkerId> {
        self.finishing
    }

    /// There is another program, or every worker is to be a new one: whatever stopped the last one counts
    /// no more.
    pub(super) fn begin(&mut self) {
        self.stopped = None;
    }

    /// Whether a worker is to be replaced now. `is_old`: by one of another program, which one that does
    /// not become ready stops for good. `is_worn` may cost a system call: it is asked only if that counts.
    pub(super) fn replaces(
        &self,
        now: Instant,
        is_old: bool,
        is_worn: impl FnOnce() -> bool,
    ) -> bool {
        match &self.stopped {
            None => is_old || is_worn(),
            Some((_, since)) => now.saturating_duration_since(*since) >= RETRY && is_worn(),
        }
    }

    /// Nobody is under way, and there is somebody to be replaced, or not. Returns whether that was the
    /// end of it.
    pub(super) fn step(&mut self, somebody: bool) -> bool {
        self.finishing = None;
        std::mem::replace(&mut self.active, somebody) && !somebody
    }

    /// A successor is ready, and this one finishes. `newest`: of the program that was wanted, which works
    /// after all.
    pub(super) fn replaced(&mut self, old: WorkerId, newest: bool) {
        self.finishing = Some(old);
        if newest {
            self.stopped = None;
        }
    }

    /// A successor did not become ready.
    pub(super) fn stop(&mut self, why: Stopped, now: Instant) {
        self.active = false;
        self.stopped = Some((why, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: WorkerId = WorkerId { pool: 0, slot: 0, generation: 0 };

    fn why(reason: &str) -> Stopped {
        Stopped { worker: "app-1".to_owned(), reason: reason.to_owned(), lines: Vec::new() }
    }

    fn never() -> bool {
        panic!("nobody is to look at what is used up")
    }

    /// Whether old and worn workers are replaced.
    fn replaced(roll: &Roll, now: Instant) -> (bool, bool) {
        (roll.replaces(now, true, || false), roll.replaces(now, false, || true))
    }

    #[test]
    fn after_a_successor_that_does_not_become_ready_a_worn_worker_waits_for_a_minute() {
        let begin = Instant::now();
        let mut roll = Roll::default();
        assert_eq!(replaced(&roll, begin), (true, true));
        assert!(!roll.step(true) && roll.is_active());
        roll.stop(why("exit code 3"), begin);
        assert!(!roll.is_active());
        let nearly = begin + RETRY - Duration::from_nanos(1);
        for moment in [begin, begin + Duration::from_secs(1), nearly] {
            assert!(!roll.replaces(moment, true, never), "{moment:?}");
            assert!(!roll.replaces(moment, false, never), "{moment:?}");
        }
        // An old one goes on waiting for another program; a worn one has its turn, for ever.
        for moment in [begin + RETRY, begin + 2 * RETRY, begin + 1_000 * RETRY] {
            assert_eq!(replaced(&roll, moment), (false, true), "{moment:?}");
        }
        // And why it stopped is said until one is ready.
        assert_eq!(roll.stopped(), Some(&why("exit code 3")));
    }

    #[test]
    fn each_successor_that_does_not_become_ready_begins_the_minute_anew() {
        let mut now = Instant::now();
        let mut roll = Roll::default();
        for attempt in 1..=5 {
            roll.stop(why(&attempt.to_string()), now);
            assert_eq!(replaced(&roll, now + RETRY - Duration::from_secs(1)), (false, false));
            now += RETRY;
            assert_eq!(replaced(&roll, now), (false, true));
            assert!(!roll.step(true));
            // The start of a process takes its time.
            now += Duration::from_secs(25);
            assert_eq!(roll.stopped(), Some(&why(&attempt.to_string())));
        }
    }

    #[test]
    fn what_ends_the_wait_before_its_time() {
        let now = Instant::now();
        // A restart, or another program.
        let mut roll = Roll::default();
        roll.stop(why("exit code 3"), now);
        roll.begin();
        assert_eq!((replaced(&roll, now), roll.is_stopped()), ((true, true), false));
        // The program that was wanted is ready after all.
        roll.stop(why("exit code 3"), now);
        roll.replaced(OLD, true);
        assert_eq!((replaced(&roll, now), roll.is_stopped()), ((true, true), false));
        // One of the old program says nothing about the other.
        roll.stop(why("exit code 3"), now);
        roll.replaced(OLD, false);
        assert_eq!((replaced(&roll, now), roll.is_stopped()), ((false, false), true));
    }

    #[test]
    fn a_clock_that_seems_to_go_back_makes_nobody_earlier() {
        let now = Instant::now();
        let mut roll = Roll::default();
        roll.stop(why("exit code 3"), now + RETRY);
        assert_eq!(replaced(&roll, now), (false, false));
    }

    #[test]
    fn a_roll_ends_once_and_whoever_finishes_is_forgotten_with_the_next_step() {
        let mut roll = Roll::default();
        assert!(!roll.step(false), "there was none");
        assert!(!roll.step(true));
        roll.replaced(OLD, true);
        assert_eq!(roll.finishing(), Some(OLD));
        assert!(!roll.step(true));
        assert_eq!(roll.finishing(), None);
        roll.replaced(OLD, true);
        assert!(roll.step(false), "this was the last");
        assert!(!roll.step(false));
        assert_eq!((roll.finishing(), roll.is_active()), (None, false));
    }
}
