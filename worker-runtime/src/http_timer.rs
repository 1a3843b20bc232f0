//! How long a client may take for a request's head: less for the first than for a later one.
//!
//! hyper has one time for both. It asks its timer for a new sleep for each head, so a timer of each
//! connection's own can tell the first from the rest. That timer sets none of the runtime's: all
//! connections share one (see `drain::heads`).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

use crate::drain::Key;
use crate::link::Link;

/// The timer of one connection; `header_read_timeout` is the time of a later head.
#[derive(Debug)]
pub(crate) struct HeadTimer {
    times: Times,
    link: Arc<Link>,
    key: Key,
}

#[derive(Debug)]
struct Times {
    first: Duration,
    later: Duration,
    past_first: AtomicBool,
}

impl HeadTimer {
    pub(crate) fn new(link: Arc<Link>, key: Key, first: Duration, later: Duration) -> Self {
        let past_first = AtomicBool::new(false);
        Self { times: Times { first, later, past_first }, link, key }
    }
}

impl Times {
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
        let due = self.times.adjust(deadline).into();
        self.link.expect_head(self.key, due);
        Box::pin(HeadSleep { due })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// Over when it is due. The connection's task, which polls it, is woken by the table of connections.
struct HeadSleep {
    due: tokio::time::Instant,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if tokio::time::Instant::now() >= self.due { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_head_has_the_first_time() {
        let past_first = AtomicBool::new(false);
        let (first, later) = (Duration::from_secs(10), Duration::from_secs(75));
        let times = Times { first, later, past_first };
        let now = Instant::now();
        let deadline = now + Duration::from_secs(75);
        assert_eq!(times.adjust(deadline), now + Duration::from_secs(10));
        assert_eq!(times.adjust(deadline), deadline);
    }
}
