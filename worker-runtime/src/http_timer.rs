//! How long a client may take for a request's head: less for the first than for a later one.
//!
//! hyper has one time for both. It asks its timer for a new sleep for each head, so a timer of each
//! connection's own can tell the first from the rest without a timer more.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;

/// The timer of one connection; `header_read_timeout` is the time of a later head.
#[derive(Debug)]
pub(crate) struct HeadTimer {
    first: Duration,
    later: Duration,
    past_first: AtomicBool,
}

impl HeadTimer {
    pub(crate) fn new(first: Duration, later: Duration) -> Self {
        Self { first, later, past_first: AtomicBool::new(false) }
    }

    /// hyper counted the later time into `deadline`.
    fn adjust(&self, deadline: Instant) -> Instant {
        if self.past_first.swap(true, Ordering::Relaxed) {
            return deadline;
        }
        deadline.checked_sub(self.later).map_or(deadline, |now| now + self.first)
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep_until(self.adjust(deadline))
    }

    fn now(&self) -> Instant {
        TokioTimer::new().now()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: Instant) {
        TokioTimer::new().reset(sleep, new_deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_head_has_the_first_time() {
        let timer = HeadTimer::new(Duration::from_secs(10), Duration::from_secs(75));
        let now = Instant::now();
        let deadline = now + Duration::from_secs(75);
        assert_eq!(timer.adjust(deadline), now + Duration::from_secs(10));
        assert_eq!(timer.adjust(deadline), deadline);
    }
}
