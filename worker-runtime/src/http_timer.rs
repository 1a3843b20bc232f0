//! How long a client may take for a request's head: less for the first than for a later one.
//!
//! hyper has one time for both. It asks its timer for a sleep when it begins to wait for a head, and
//! drops the sleep when the head is whole: that is all that is taken from it. Its timer here tells no
//! time and is one for all connections of a server; whose sleep it makes is known because a
//! connection is polled [`within`](HeadWait::within) its own [`HeadWait`].
//!
//! So a wait allocates nothing and reads the clock once, when hyper's first look finds no head. The
//! table of connections (see `drain::heads`) wakes who waits too long.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

thread_local! {
    /// Of the connection that this thread polls.
    static POLLED: Cell<HeadWait> = const { Cell::new(HeadWait::NONE) };
}

/// One connection's wait for a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadWait {
    wait: Wait,
    /// A head was waited for before.
    past_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// hyper has the head, or has not begun.
    No,
    /// hyper began to wait.
    Begun,
    Until(Instant),
    /// For a time that the clock cannot name.
    Unbounded,
}

impl HeadWait {
    /// Of a new connection.
    pub(crate) const NONE: Self = Self { wait: Wait::No, past_first: false };

    /// Polls hyper's connection: what it asks of its timer concerns this wait.
    pub(crate) fn within<T>(&mut self, poll: impl FnOnce() -> T) -> T {
        /// Puts back what was there before, after a panic too.
        struct Restore(HeadWait);
        impl Drop for Restore {
            fn drop(&mut self) {
                POLLED.set(self.0);
            }
        }
        let restore = Restore(POLLED.replace(*self));
        let polled = poll();
        *self = POLLED.get();
        drop(restore);
        polled
    }

    /// After a poll that left hyper pending: until when the client has time, if that is news.
    pub(crate) fn news(&mut self, first: Duration, later: Duration) -> Option<Instant> {
        if self.wait != Wait::Begun {
            return None;
        }
        let time = if self.past_first { later } else { first };
        self.past_first = true;
        let due = Instant::now().checked_add(time);
        self.wait = due.map_or(Wait::Unbounded, Wait::Until);
        due
    }

    fn set(wait: Wait) {
        let polled = POLLED.get();
        // The first head is past, too, if it was there at once.
        let past_first = polled.past_first || (wait == Wait::No && polled.wait != Wait::No);
        POLLED.set(Self { wait, past_first });
    }
}

/// The timer of all connections of a server.
#[derive(Debug)]
pub(crate) struct HeadTimer {
    /// What hyper reckons from. It does not matter: a [`HeadWait`] has its own clock.
    made: std::time::Instant,
}

impl HeadTimer {
    /// The time that hyper is told: not used, see [`HeadWait::news`].
    pub(crate) const ANY: Duration = Duration::ZERO;

    pub(crate) fn new() -> Self {
        Self { made: std::time::Instant::now() }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.made)
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        HeadWait::set(Wait::Begun);
        // Without a size, so without an allocation.
        Box::pin(HeadSleep)
    }

    fn now(&self) -> std::time::Instant {
        self.made
    }

    fn reset(&self, _: &mut Pin<Box<dyn Sleep>>, _: std::time::Instant) {
        HeadWait::set(Wait::Begun);
    }
}

/// Over when the polled connection's wait is; dropped when that one's head is whole.
struct HeadSleep;

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match POLLED.get().wait {
            Wait::Until(due) if Instant::now() >= due => Poll::Ready(()),
            // The connection's task is woken by the table of connections.
            _ => Poll::Pending,
        }
    }
}

impl Drop for HeadSleep {
    /// With its connection it is dropped outside of any poll: then there is no wait to be ended.
    fn drop(&mut self) {
        HeadWait::set(Wait::No);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(75);

    fn sleep(wait: &mut HeadWait) -> Pin<Box<dyn Sleep>> {
        let timer = HeadTimer::new();
        wait.within(|| timer.sleep_until(timer.now()))
    }

    fn is_over(wait: &mut HeadWait, sleep: &mut Pin<Box<dyn Sleep>>) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        wait.within(|| sleep.as_mut().poll(&mut context).is_ready())
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_head_has_the_first_time() {
        let mut wait = HeadWait::NONE;
        let first = sleep(&mut wait);
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + FIRST));
        assert_eq!(wait.news(FIRST, LATER), None, "it is known");
        wait.within(|| drop(first));
        assert_eq!(wait.news(FIRST, LATER), None, "the head is there");
        let mut second = sleep(&mut wait);
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
        assert!(!is_over(&mut wait, &mut second));
        tokio::time::advance(LATER).await;
        assert!(is_over(&mut wait, &mut second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_was_there_at_once_was_the_first() {
        let mut wait = HeadWait::NONE;
        let timer = HeadTimer::new();
        wait.within(|| drop(timer.sleep_until(timer.now())));
        assert_eq!(wait.news(FIRST, LATER), None);
        let _second = sleep(&mut wait);
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_of_two_connections_do_not_mix() {
        let (mut one, mut other) = (HeadWait::NONE, HeadWait::NONE);
        let mut sleep_of_one = sleep(&mut one);
        one.news(FIRST, LATER);
        // Polled from within the other's poll, and dropped outside of any.
        let over = other.within(|| is_over(&mut one, &mut sleep_of_one));
        assert!(!over);
        assert_eq!(other.news(FIRST, LATER), None);
        tokio::time::advance(FIRST).await;
        assert!(is_over(&mut one, &mut sleep_of_one));
        drop(sleep_of_one);
        assert_eq!(POLLED.get().wait, Wait::No);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_the_clock_cannot_name_is_never_over() {
        let mut wait = HeadWait::NONE;
        let mut sleep = sleep(&mut wait);
        assert_eq!(wait.news(Duration::MAX, Duration::MAX), None);
        tokio::time::advance(LATER).await;
        assert!(!is_over(&mut wait, &mut sleep));
    }
}
