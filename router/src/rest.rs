//! What the router's thread does before it sleeps while connections pour in: it lets others run first.
//!
//! A thread that sleeps is woken by the next connection, runs for that one, and sleeps again: two
//! changes of process a connection, and packets of one. Where clients and workers want the processor
//! at that moment, a `sched_yield(2)` gives them their turn first, and what they bring meanwhile is
//! found in one look. Where nobody wants it, the call returns at once and the thread sleeps: an idle
//! router costs nothing, and nothing spins.
//!
//! Whoever computes without a pause gets a time slice by it (some 3 ms), for which new connections then
//! wait. So it is done only at a rate at which processors are what is short.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections a second from which on others run first. Below, there is little to gather, and a
/// router and its workers take a tenth of a processor at most.
const RATE: u64 = 10_000;

/// For how long the rate is counted: long against a time slice, short against what people notice.
const WINDOW: Duration = Duration::from_millis(20);

/// The rate at which connections come. Pure: it is told the time, in nanoseconds since any moment.
#[derive(Debug, Default)]
struct Load {
    since: AtomicU64,
    /// Connections accepted until then.
    before: AtomicU64,
    high: AtomicBool,
}

impl Load {
    /// Whether it is high, now that so many connections were accepted altogether.
    fn is_high(&self, now: u64, accepted: u64) -> bool {
        let elapsed = now.saturating_sub(self.since.load(Ordering::Relaxed));
        if elapsed >= nanoseconds(WINDOW) {
            let count = accepted.saturating_sub(self.before.load(Ordering::Relaxed));
            let high = u128::from(count) * 1_000_000_000 >= u128::from(elapsed) * u128::from(RATE);
            self.since.store(now, Ordering::Relaxed);
            self.before.store(accepted, Ordering::Relaxed);
            self.high.store(high, Ordering::Relaxed);
        }
        self.high.load(Ordering::Relaxed)
    }
}

/// What to give to [`on_thread_park`](tokio::runtime::Builder::on_thread_park) of the runtime that accepts:
/// under load it lets others run before the thread sleeps. `vestibule run` does so itself.
///
/// It pays where clients, router and workers share processors, and costs a look at the clock elsewhere.
pub fn before_sleep() -> impl Fn() + Send + Sync + 'static {
    let begin = Instant::now();
    let load = Load::default();
    move || {
        if load.is_high(nanoseconds(begin.elapsed()), crate::listener::accepted()) {
            rustix::thread::sched_yield();
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    #[test]
    fn a_high_rate_is_noticed_and_its_end_too() {
        let load = Load::default();
        assert!(!load.is_high(19 * MILLISECOND, 500), "not yet counted");
        assert!(load.is_high(20 * MILLISECOND, 500), "25,000 a second");
        assert!(load.is_high(39 * MILLISECOND, 500), "until the next window");
        assert!(!load.is_high(40 * MILLISECOND, 600), "5,000 a second");
    }

    #[test]
    fn a_burst_after_a_long_sleep_is_no_load() {
        let load = Load::default();
        assert!(!load.is_high(10_000 * MILLISECOND, 64));
        assert!(!load.is_high(20_000 * MILLISECOND, 128));
    }
}
