//! Clients are held to their time for the head of a request by one timer for all connections.
//!
//! Nearly every first request comes within a millisecond: a timer of each connection's own would be
//! set in the runtime only to be dropped, and setting one while there is no earlier one wakes the
//! reactor with a system call. Here a connection notes its time in the table that it stands in
//! anyway, and one task looks at the table when the earliest time in it is over. Most of those
//! connections are gone by then, so it looks about once in the time that a client has.

use std::task::Waker;

use tokio::time::Instant;

use super::{Connections, Key};

impl Connections {
    /// The task of this connection ([`wake_at_end`](Self::wake_at_end)) is woken at `due`, at least
    /// once, whether or not the head has come. Returns whether the caller has to start
    /// [`watch_heads`](Self::watch_heads).
    pub(crate) fn expect_head(&self, key: Key, due: Instant) -> bool {
        let mut table = self.table();
        if let Some(held) = table.held.get_mut(key.0) {
            held.head_due = Some(due);
        }
        match table.next_look {
            None => {
                table.next_look = Some(due);
                true
            }
            Some(next) if due < next => {
                table.next_look = Some(due);
                self.earlier.notify_one();
                false
            }
            Some(_) => false,
        }
    }

    /// Wakes connections whose clients' time is over. Ends when there are none to wait for.
    pub(crate) async fn watch_heads(&self) {
        loop {
            let Some(next) = self.table().next_look else { return };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.earlier.notified() => continue,
            }
            self.look_at_heads(Instant::now());
        }
    }

    fn look_at_heads(&self, now: Instant) {
        let mut late: Vec<Waker> = Vec::new();
        {
            let mut table = self.table();
            let mut next = None;
            for (_, held) in &mut table.held {
                match held.head_due {
                    Some(due) if due <= now => {
                        held.head_due = None;
                        late.extend(held.task.clone());
                    }
                    Some(due) if next.is_none_or(|next| due < next) => next = Some(due),
                    _ => {}
                }
            }
            table.next_look = next;
        }
        // Woken outside the lock: a waker may run anything.
        late.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;
    use crate::sys::Watched;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection whose task counts how often it is woken.
    fn connection(connections: &Connections) -> (Key, Arc<Woken>, std::os::unix::net::UnixStream) {
        let (here, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let key = connections.opened(Watched::new(std::os::fd::AsFd::as_fd(&here)));
        let woken = Arc::new(Woken::default());
        connections.wake_at_end(key, &Waker::from(Arc::clone(&woken)));
        (key, woken, here)
    }

    fn times(woken: &Woken) -> usize {
        woken.0.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn each_client_has_its_own_time_and_the_watch_ends_with_the_last() {
        let connections = Connections::new();
        let (late, late_woken, _late) = connection(&connections);
        let (gone, gone_woken, _gone) = connection(&connections);
        let (early, early_woken, _early) = connection(&connections);
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert!(connections.expect_head(late, after(75)));
        assert!(!connections.expect_head(gone, after(20)));
        let watch = connections.watch_heads();
        tokio::pin!(watch);
        tokio::select! {
            biased;
            () = &mut watch => panic!("two clients are waited for"),
            () = tokio::time::sleep_until(after(1)) => {}
        }
        // Earlier than all that the watch knows of.
        assert!(!connections.expect_head(early, after(10)));
        connections.closed(gone);
        tokio::select! {
            biased;
            () = &mut watch => panic!("one client is waited for"),
            () = tokio::time::sleep_until(after(11)) => {}
        }
        assert_eq!((times(&early_woken), times(&late_woken)), (1, 0));
        watch.await;
        assert_eq!(Instant::now(), after(75));
        assert_eq!((times(&early_woken), times(&gone_woken), times(&late_woken)), (1, 0, 1));
        assert!(connections.expect_head(late, after(100)), "the next one starts a watch again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_worker_does_not_end_the_clients_time() {
        let connections = Connections::new();
        let (key, woken, _socket) = connection(&connections);
        let due = Instant::now() + Duration::from_secs(10);
        connections.expect_head(key, due);
        let later = due + Duration::from_secs(50);
        let cause = super::super::Cause::Drain;
        connections.begin(super::super::Ending {
            cause,
            last_call: due,
            deadline: later,
            linger: due,
        });
        assert_eq!(times(&woken), 1);
        connections.watch_heads().await;
        assert_eq!((Instant::now(), times(&woken)), (due, 2));
    }
}
