//! The time that a script may take.
//!
//! QuickJS calls the handler every ten thousand steps of a script (a step is a call or a turn of a
//! loop), and often within a regular expression. Most decisions are over before: they cost no look at
//! a clock. So the time runs from the first call, and a decision may take so many steps longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the engine and QuickJS's handler share.
#[derive(Debug, Default)]
struct Shared {
    /// Counts the turns, so that the handler sees that another has begun.
    turn: AtomicU64,
    /// Nanoseconds that this turn may take.
    limit: AtomicU64,
    expired: AtomicBool,
}

/// Measures one turn after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<Shared>);

impl Clock {
    /// A turn begins, which may take so long.
    pub(super) fn begin(&self, limit: Duration) {
        let nanoseconds = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.0.limit.store(nanoseconds, Ordering::Relaxed);
        self.0.expired.store(false, Ordering::Relaxed);
        // Nobody else writes it, so it need not be one step.
        self.0.turn.store(self.0.turn.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether this turn's time is over.
    pub(super) fn expired(&self) -> bool {
        self.0.expired.load(Ordering::Relaxed)
    }

    /// What QuickJS calls: whether the script is to end, in a way that it cannot catch.
    pub(super) fn handler(&self) -> impl FnMut() -> bool + Send + 'static {
        let shared = Arc::clone(&self.0);
        let mut begun = (0, Instant::now());
        move || {
            let turn = shared.turn.load(Ordering::Relaxed);
            if begun.0 != turn {
                begun = (turn, Instant::now());
                return false;
            }
            let limit = Duration::from_nanos(shared.limit.load(Ordering::Relaxed));
            let over = begun.1.elapsed() >= limit;
            if over {
                shared.expired.store(true, Ordering::Relaxed);
            }
            over
        }
    }
}
