//! The time that a script may take.
//!
//! QuickJS calls the handler every ten thousand steps of a script (a step is a call or a turn of a
//! loop), over all of its decisions, and often within a regular expression. Nothing else asks it: a
//! decision may take so many steps longer, and a step takes as long as it takes.
//!
//! A turn's begin is read from the clock that the kernel only moves on at its ticks (clock_gettime(2),
//! `CLOCK_MONOTONIC_COARSE`): that costs a hundredth of a decision. Nobody's time is cut short for that; it
//! may be a tick longer. And the thread must have worked: who got no processor meanwhile has used up nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

/// What sixteen failures may take together, one may not take alone: in times of its limit.
const FAR: u64 = super::switch::MOST_FAILURES as u64;

/// How long what the thread had worked is taken for what it has: asking costs a system call.
const REFERENCE: u64 = 50_000_000;

/// What the engine and QuickJS's handler share. All times are in nanoseconds.
#[derive(Debug)]
struct Shared {
    /// When this turn began, or up to a tick before.
    begun: AtomicU64,
    /// What this turn may take.
    limit: AtomicU64,
    expired: AtomicBool,
    /// What the thread had worked when this turn's time was first seen to be over; 0: it was not.
    late: AtomicU64,
    /// Between two moments of the coarse clock.
    tick: u64,
    /// When the reference was read.
    referred: AtomicU64,
    reference: Mutex<Option<Reference>>,
}

/// What a thread had worked when it was asked.
#[derive(Clone, Copy, Debug)]
struct Reference {
    thread: ThreadId,
    worked: u64,
}

/// Measures one turn after the other.
#[derive(Clone, Debug)]
pub(super) struct Clock(Arc<Shared>);

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Shared {
            begun: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            expired: AtomicBool::new(false),
            late: AtomicU64::new(0),
            tick: nanoseconds(clock_getres(ClockId::MonotonicCoarse)),
            referred: AtomicU64::new(0),
            reference: Mutex::new(None),
        }))
    }
}

/// What the thread has worked counts, too: a router that was paused meanwhile, or got no processor, has
/// done nothing wrong.
impl Shared {
    /// Whether this turn has surely worked for so long, as its thread has worked so much.
    fn has_worked(&self, now: u64, least: u64) -> bool {
        let reference = *self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Reference { thread, worked }) = reference else { return false };
        // Before it began the thread may have worked all the time since the reference.
        let begun = self.begun.load(Ordering::Relaxed);
        let before = begun.saturating_sub(self.referred.load(Ordering::Relaxed)) + self.tick;
        let worked = now.saturating_sub(worked).saturating_sub(before);
        thread == std::thread::current().id() && worked >= least
    }

    /// Whether a turn whose time is over has worked for it. What it had worked before that was first
    /// seen may not be known: then it has the same time once more.
    fn is_to_blame(&self, limit: u64) -> bool {
        let now = read(ClockId::ThreadCPUTime);
        let late = self.late.load(Ordering::Relaxed);
        if late == 0 {
            self.late.store(now.max(1), Ordering::Relaxed);
        }
        self.has_worked(now, limit) || late != 0 && now.saturating_sub(late) >= limit
    }
}

impl Clock {
    /// A turn begins, which may take so long.
    pub(super) fn begin(&self, limit: Duration) {
        let shared = &*self.0;
        let now = read(ClockId::MonotonicCoarse);
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        shared.begun.store(now, Ordering::Relaxed);
        shared.limit.store(limit, Ordering::Relaxed);
        shared.expired.store(false, Ordering::Relaxed);
        shared.late.store(0, Ordering::Relaxed);
        if now.saturating_sub(shared.referred.load(Ordering::Relaxed)) >= REFERENCE {
            shared.referred.store(now, Ordering::Relaxed);
            let reference = Reference {
                thread: std::thread::current().id(),
                worked: read(ClockId::ThreadCPUTime),
            };
            *shared.reference.lock().unwrap_or_else(PoisonError::into_inner) = Some(reference);
        }
    }

    /// Whether this turn's time is over.
    pub(super) fn expired(&self) -> bool {
        self.0.expired.load(Ordering::Relaxed)
    }

    /// Whether this turn, which ends, has taken its time over and over.
    pub(super) fn is_far_over(&self) -> bool {
        let shared = &*self.0;
        let begun = shared.begun.load(Ordering::Relaxed);
        let far = shared.limit.load(Ordering::Relaxed).saturating_mul(FAR);
        if read(ClockId::MonotonicCoarse).saturating_sub(begun) < far {
            return false;
        }
        shared.has_worked(read(ClockId::ThreadCPUTime), far)
    }

    /// What QuickJS calls: whether the script is to end, in a way that it cannot catch.
    pub(super) fn handler(&self) -> impl FnMut() -> bool + Send + 'static {
        let shared = Arc::clone(&self.0);
        move || {
            let elapsed =
                read(ClockId::Monotonic).saturating_sub(shared.begun.load(Ordering::Relaxed));
            let limit = shared.limit.load(Ordering::Relaxed);
            let over = elapsed >= limit.saturating_add(shared.tick) && shared.is_to_blame(limit);
            if over {
                shared.expired.store(true, Ordering::Relaxed);
            }
            over
        }
    }
}

fn read(clock: ClockId) -> u64 {
    nanoseconds(clock_gettime(clock))
}

/// No clock that is read here is negative, or five hundred years old.
fn nanoseconds(time: Timespec) -> u64 {
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(5);

    fn work(time: Duration) {
        let end = read(ClockId::ThreadCPUTime) + nanoseconds(Timespec::try_from(time).unwrap());
        while read(ClockId::ThreadCPUTime) < end {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn who_got_no_processor_has_not_used_up_the_time() {
        let clock = Clock::default();
        let mut is_over = clock.handler();
        clock.begin(LIMIT);
        std::thread::sleep(20 * LIMIT);
        assert!(!is_over() && !clock.expired());
        work(LIMIT);
        assert!(is_over() && clock.expired());
        clock.begin(LIMIT);
        assert!(!is_over(), "another turn");
    }
}
