//! The last connections of a listener that goes away: closing it would reset whoever is there, and whoever
//! is half there.
//!
//! For its client a connection is there once the kernel has answered. For the kernel it is there an answer
//! later; and where it is to keep whoever says nothing (`TCP_DEFER_ACCEPT`), when it has asked again, after a
//! second: it does so for those whom it keeps already even if that is taken back.

use std::time::Duration;

#[cfg(feature = "cli")]
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::time::Instant;

use super::{Listener, Present};
use crate::connection::Connection;

/// How long a connection may be half there. The kernel asks again after a second (RFC 6298 2.1), and an
/// answer takes less than another: else it would ask once more. Who loses just that question, or the answer
/// to it, may be reset; more time would be for those alone.
#[cfg(feature = "cli")]
const HALF_THERE: Duration = Duration::from_secs(2);

/// How long descriptors or memory may be short: as long as those may take that are looked at and wait in a
/// queue (3 s and 5 s, unless a configuration says otherwise), which free some.
const SHORT: Duration = Duration::from_secs(10);

/// How long connections of one listener are still waited for.
#[derive(Debug)]
pub(crate) struct Dry {
    #[cfg(feature = "cli")]
    until: Instant,
    short_until: Instant,
}

impl Dry {
    /// Those that are there.
    pub(crate) fn present() -> Self {
        let now = Instant::now();
        Self {
            #[cfg(feature = "cli")]
            until: now,
            short_until: now + SHORT,
        }
    }

    /// And, over a network, those that are half there.
    #[cfg(feature = "cli")]
    pub(crate) fn half_there(listener: &Listener) -> Self {
        let mut this = Self::present();
        if !listener.is_unix {
            this.until += HALF_THERE;
        }
        this
    }

    /// Nobody is half there any more of whom it would matter.
    #[cfg(feature = "cli")]
    pub(crate) fn hurry(&mut self) {
        self.until = Instant::now();
    }
}

impl Listener {
    /// Takes more of the last connections, when there are some. Returns whether to go on.
    ///
    /// # Cancel safety
    /// What was accepted is in `taken`.
    pub(crate) async fn take_last(&mut self, dry: &Dry, taken: &mut Vec<Connection>) -> bool {
        loop {
            // Before the look: who comes in between is reset.
            #[cfg(feature = "cli")]
            let over = dry.until <= Instant::now();
            let present = self.take_present(taken);
            if !taken.is_empty() {
                return present != Present::Unusable;
            }
            match present {
                #[cfg(feature = "cli")]
                Present::Empty if !over => tokio::select! {
                    () = self.arrival() => {}
                    () = tokio::time::sleep_until(dry.until) => {}
                },
                Present::Empty | Present::Unusable => return false,
                Present::More | Present::Short => {
                    if dry.short_until <= Instant::now() {
                        tracing::error!(
                            listener = &*self.name,
                            "whoever waits at a listener that goes is reset: nothing could be \
                             accepted for too long"
                        );
                        return false;
                    }
                    match self.lost.is_lasting() {
                        true => self.tell_of_errors(),
                        false => self.tell_of_shortage(),
                    }
                    self.pause().await;
                }
            }
        }
    }

    /// Waits until somebody is there.
    #[cfg(feature = "cli")]
    async fn arrival(&self) {
        while let Ok(mut ready) = self.socket.readable().await {
            let mut poll = [PollFd::new(self.socket.get_ref(), PollFlags::IN)];
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            // What cannot be told is seen by the next look.
            if rustix::event::poll(&mut poll, Some(&zero)) != Ok(0) {
                return;
            }
            ready.clear_ready();
        }
        // The runtime ends.
        std::future::pending().await
    }
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use std::net::TcpStream;

    use rustix::io::Errno;

    use super::*;

    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    async fn listener() -> (Listener, std::net::SocketAddr) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// How many are taken.
    async fn take_all(listener: &mut Listener, dry: &Dry) -> usize {
        let mut taken = Vec::new();
        let mut count = 0;
        while listener.take_last(dry, &mut taken).await {
            count += taken.drain(..).count();
        }
        count + taken.len()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_half_there_is_waited_for_and_then_nobody() {
        let (mut listener, address) = listener().await;
        let _there = TcpStream::connect(address).unwrap();
        let begin = Instant::now();
        let dry = Dry::half_there(&listener);
        let later = tokio::spawn(async move {
            tokio::time::sleep(HALF_THERE / 2).await;
            TcpStream::connect(address).unwrap()
        });
        assert_eq!(take_all(&mut listener, &dry).await, 2);
        assert!(later.is_finished());
        assert!((HALF_THERE..SHORT).contains(&begin.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_in_a_hurry_or_where_nobody_can_be_half_there() {
        let begin = Instant::now();
        let (mut listener, address) = listener().await;
        let _there = TcpStream::connect(address).unwrap();
        let mut dry = Dry::half_there(&listener);
        dry.hurry();
        assert_eq!(take_all(&mut listener, &dry).await, 1);
        let mut local =
            Listener::bind(&format!("unix:@vestibule-dry-{}", std::process::id())).await.unwrap();
        let dry = Dry::half_there(&local);
        assert_eq!(take_all(&mut local, &dry).await, 0);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_shortage_and_errors_that_last_are_not_taken_for_nobody_and_not_waited_out_for_ever() {
        for error in [Errno::MFILE, Errno::PERM] {
            let case = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .start_paused(true)
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let (mut listener, address) = listener().await;
                    let _there = TcpStream::connect(address).unwrap();
                    crate::sys::filter::refuse_accept_in_this_thread(error).unwrap();
                    let begin = Instant::now();
                    assert_eq!(take_all(&mut listener, &Dry::present()).await, 0);
                    (begin.elapsed(), listener.counters().pauses)
                })
            });
            let (elapsed, pauses) = case.join().unwrap();
            assert!((SHORT..2 * SHORT).contains(&elapsed), "{error}: {elapsed:?}");
            assert!(pauses > 9, "{error}: {pauses}");
        }
    }
}
