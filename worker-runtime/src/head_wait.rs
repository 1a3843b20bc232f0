//! How long a client may take for a request's head: less for the first than for a later one.
//!
//! hyper can keep such a time, but has one for both, and with it goes through its loop a second time
//! after every answer, only to begin the wait: a fifth of what a request takes. So what happens on a
//! connection is noted where it happens anyway, in a few bits of the thread that polls it: the service
//! is called once a head is whole, an answer's body is dropped once hyper has all of it, and the
//! stream knows what it read and whether the client takes what is sent. Whose bits these are is known
//! because a connection is polled [`within`](HeadWait::within) its own [`HeadWait`].
//!
//! A wait allocates nothing and reads the clock once, when hyper's look finds no head. The table of
//! connections (see `drain::heads`) wakes who waits too long.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use crate::drain::Key;

thread_local! {
    /// The connection that this thread polls, and what is known of it.
    static POLLED: Cell<Polled> = const { Cell::new(Polled { key: None, seen: Seen(0) }) };
}

#[derive(Clone, Copy)]
struct Polled {
    key: Option<Key>,
    seen: Seen,
}

/// What was seen of a connection: bits.
#[derive(Clone, Copy, Debug)]
struct Seen(u8);

impl Seen {
    /// In this poll a head was whole.
    const HEAD: u8 = 1;
    /// In this poll something was read.
    const READ: u8 = 1 << 1;
    /// A request is not answered, or hyper has not taken all of the answer.
    const ANSWERING: u8 = 1 << 2;
    /// The client does not take what is sent.
    const BLOCKED: u8 = 1 << 3;
    /// The last request had a body.
    const BODY: u8 = 1 << 4;

    const OF_ONE_POLL: u8 = Self::HEAD | Self::READ;

    const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    const fn with(self, bits: u8) -> Self {
        Self(self.0 | bits)
    }

    const fn without(self, bits: u8) -> Self {
        Self(self.0 & !bits)
    }
}

/// Notes something of a connection, if it is the one that is polled.
fn note(key: Key, change: impl FnOnce(Seen) -> Seen) {
    let polled = POLLED.get();
    if polled.key == Some(key) {
        POLLED.set(Polled { seen: change(polled.seen), ..polled });
    }
}

/// The head of a request is whole.
pub(crate) fn head_is_whole(key: Key, has_body: bool) {
    note(key, |seen| {
        let body = if has_body { Seen::BODY } else { 0 };
        seen.without(Seen::BODY).with(Seen::HEAD | Seen::ANSWERING | body)
    });
}

/// Something was read.
pub(crate) fn read(key: Key) {
    note(key, |seen| seen.with(Seen::READ));
}

/// Something was to be sent, and had to wait or not.
pub(crate) fn wrote(key: Key, blocked: bool) {
    note(key, |seen| if blocked { seen.with(Seen::BLOCKED) } else { seen.without(Seen::BLOCKED) });
}

/// An answer that hyper has not taken all of: to be dropped with its body.
#[derive(Debug)]
pub(crate) struct Answering(Key);

impl Answering {
    /// After [`head_is_whole`].
    pub(crate) fn new(key: Key) -> Self {
        Self(key)
    }
}

impl Drop for Answering {
    /// With its connection it is dropped outside of any poll: then there is nobody to wait for.
    fn drop(&mut self) {
        note(self.0, |seen| seen.without(Seen::ANSWERING));
    }
}

/// One connection's wait for a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadWait {
    key: Key,
    seen: Seen,
    wait: Wait,
    /// There was a head.
    past_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// It is not the client's turn.
    No,
    Until(Instant),
    /// For a time that the clock cannot name.
    Unbounded,
}

impl HeadWait {
    /// Of a new connection.
    pub(crate) const fn new(key: Key) -> Self {
        Self { key, seen: Seen(0), wait: Wait::No, past_first: false }
    }

    /// Polls the connection: what is noted of it meanwhile concerns this wait.
    pub(crate) fn within<T>(&mut self, poll: impl FnOnce() -> T) -> T {
        /// Puts back what was there before, after a panic too.
        struct Restore(Polled);
        impl Drop for Restore {
            fn drop(&mut self) {
                POLLED.set(self.0);
            }
        }
        let seen = self.seen.without(Seen::OF_ONE_POLL);
        let restore = Restore(POLLED.replace(Polled { key: Some(self.key), seen }));
        let polled = poll();
        self.seen = POLLED.get().seen;
        self.past_first |= self.seen.has(Seen::HEAD);
        drop(restore);
        polled
    }

    /// After a poll that left the connection pending: until when the client has time, if that is news.
    ///
    /// The time begins when the last answer is sent, or, after a request with a body, when the client
    /// last sent something: that may be the rest of the body, of which the answer did not wait. A client
    /// that may send bodies gains no time by that which it could not have in a body.
    pub(crate) fn news(&mut self, first: Duration, later: Duration) -> Option<Instant> {
        if self.seen.has(Seen::ANSWERING | Seen::BLOCKED) {
            self.wait = Wait::No;
            return None;
        }
        let goes_on = self.seen.has(Seen::BODY) && self.seen.has(Seen::READ);
        if self.wait != Wait::No && !self.seen.has(Seen::HEAD) && !goes_on {
            return None;
        }
        let time = if self.past_first { later } else { first };
        let due = Instant::now().checked_add(time);
        self.wait = due.map_or(Wait::Unbounded, Wait::Until);
        due
    }

    /// Whether the client's time is over.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.wait, Wait::Until(due) if Instant::now() >= due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Connections;
    use crate::sys::Watched;

    const FIRST: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(75);

    /// Keys of two connections.
    fn keys() -> [Key; 2] {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let connections = Connections::new();
        [&here, &there].map(|end| connections.opened(Watched::new(std::os::fd::AsFd::as_fd(end))))
    }

    fn asked(key: Key, wait: &mut HeadWait, has_body: bool) -> Answering {
        wait.within(|| {
            head_is_whole(key, has_body);
            Answering::new(key)
        })
    }

    fn idle(wait: &mut HeadWait) -> Option<Instant> {
        wait.within(|| ());
        wait.news(FIRST, LATER)
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_head_has_the_first_time() {
        let [key, _] = keys();
        let mut wait = HeadWait::new(key);
        assert_eq!(idle(&mut wait), Some(Instant::now() + FIRST));
        assert_eq!(idle(&mut wait), None, "it is known");
        tokio::time::advance(FIRST / 2).await;
        wait.within(|| read(key));
        assert_eq!(wait.news(FIRST, LATER), None, "a part of a head gains no time");
        let answering = asked(key, &mut wait, false);
        assert_eq!(wait.news(FIRST, LATER), None, "the head is there");
        tokio::time::advance(FIRST).await;
        assert!(!wait.is_over());
        wait.within(|| drop(answering));
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
        wait.within(|| read(key));
        assert_eq!(wait.news(FIRST, LATER), None);
        assert!(!wait.is_over());
        tokio::time::advance(LATER).await;
        assert!(wait.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_was_there_at_once_was_the_first() {
        let [key, _] = keys();
        let mut wait = HeadWait::new(key);
        wait.within(|| {
            head_is_whole(key, false);
            drop(Answering::new(key));
        });
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
        tokio::time::advance(LATER / 2).await;
        wait.within(|| {
            head_is_whole(key, false);
            drop(Answering::new(key));
        });
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER), "one answer later");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_the_answer_is_not_waited_for() {
        let [key, _] = keys();
        let mut wait = HeadWait::new(key);
        let answering = asked(key, &mut wait, false);
        wait.within(|| {
            wrote(key, true);
            drop(answering);
        });
        assert_eq!(wait.news(FIRST, LATER), None);
        tokio::time::advance(LATER * 2).await;
        assert_eq!(idle(&mut wait), None);
        assert!(!wait.is_over());
        wait.within(|| wrote(key, false));
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_body_may_come_after_the_answer() {
        let [key, _] = keys();
        let mut wait = HeadWait::new(key);
        let answering = asked(key, &mut wait, true);
        wait.within(|| drop(answering));
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
        tokio::time::advance(LATER / 2).await;
        wait.within(|| read(key));
        assert_eq!(wait.news(FIRST, LATER), Some(Instant::now() + LATER));
        tokio::time::advance(LATER).await;
        assert!(wait.is_over());
        drop(asked(key, &mut wait, false));
        assert_eq!(wait.news(FIRST, LATER), None, "a drop outside of a poll is not seen");
    }

    #[tokio::test(start_paused = true)]
    async fn waits_of_two_connections_do_not_mix() {
        let [key, other_key] = keys();
        let (mut one, mut other) = (HeadWait::new(key), HeadWait::new(other_key));
        let of_one = asked(key, &mut one, false);
        // Polled from within the other's poll.
        other.within(|| {
            drop(asked(key, &mut one, false));
            wrote(key, true);
            head_is_whole(key, false);
        });
        assert_eq!(other.news(FIRST, LATER), Some(Instant::now() + FIRST));
        assert_eq!(one.news(FIRST, LATER), None);
        one.within(|| drop(of_one));
        assert_eq!(one.news(FIRST, LATER), Some(Instant::now() + LATER));
        assert!(POLLED.get().key.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_the_clock_cannot_name_is_never_over() {
        let [key, _] = keys();
        let mut wait = HeadWait::new(key);
        wait.within(|| ());
        assert_eq!(wait.news(Duration::MAX, Duration::MAX), None);
        tokio::time::advance(LATER).await;
        assert!(!wait.is_over());
        wait.within(|| ());
        assert_eq!(wait.news(FIRST, LATER), None, "it waits already");
    }
}
