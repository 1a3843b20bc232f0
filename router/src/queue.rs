//! Connections that wait, paused, for a free worker: bounded, each with a deadline, and watched if
//! they wait for long, so that a client who gives up leaves the queue.
//!
//! [`order`] says who waits and in which order, [`watch`] whether a client is still there; here both
//! are kept together. The pool's [`Core`](crate::pool::Core) is the only caller.

pub(crate) mod order;
pub(crate) mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::order::Order;
pub(crate) use self::order::{Lane, Token};
use self::watch::{Client, Sign, Watch};
use crate::handoff::{Cargo, Entry};

/// What one waiting connection may cost the router, in bytes, besides its descriptor.
const _: () = assert!(Order::<Entry>::PLACE <= 512);

/// How long an entry waits before its client is watched. Under load many wait for a few milliseconds,
/// until an acknowledgement opens a window: to watch these would cost two system calls for each.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Queue {
    order: Order<Entry>,
    /// `None` before the first entry waited for long: a pool that never queues needs no descriptor.
    watch: Option<Arc<Watch>>,
}

impl Queue {
    /// At most `max` entries in all lanes together, each for `timeout` from when it entered.
    pub(crate) fn new(max: usize, timeout: Duration) -> Self {
        Self { order: Order::new(max, timeout), watch: None }
    }

    /// Other bounds, for whoever waits, too. Who waits already is not turned away.
    #[cfg(feature = "cli")]
    pub(crate) fn set_bounds(&mut self, max: usize, timeout: Duration) {
        self.order.set_bounds(max, timeout);
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Puts an entry at the end of a lane; its deadline begins now. Returns whether the queue was
    /// empty before.
    ///
    /// # Errors
    /// The queue is full; the entry comes back.
    pub(crate) fn push(&mut self, lane: Lane, entry: Entry, now: Instant) -> Result<bool, Entry> {
        let first = self.order.is_empty();
        self.order.push(lane, entry, now)?;
        Ok(first)
    }

    /// As [`push`](Self::push), for an entry that had a place before, here or with a worker: it gets one,
    /// however many wait.
    ///
    /// # Errors
    /// Four thousand million wait; the entry comes back.
    pub(crate) fn push_again(
        &mut self,
        lane: Lane,
        entry: Entry,
        now: Instant,
    ) -> Result<bool, Entry> {
        let first = self.order.is_empty();
        self.order.push_again(lane, entry, now)?;
        Ok(first)
    }

    /// Takes an entry out, to be handed over, moved, or closed. It is no longer watched then: a
    /// descriptor that stays in a set keeps firing after it was passed on and closed here, and can
    /// not be removed any more.
    pub(crate) fn take(&mut self, token: Token) -> Option<Entry> {
        if let (Some(watch), Some(Entry { cargo: Cargo::Connection(connection), .. })) =
            (&self.watch, self.order.item(token))
            && self.order.is_settled(token)
        {
            watch.remove(connection);
        }
        self.order.take(token)
    }

    /// Takes the first of a lane out.
    pub(crate) fn take_first(&mut self, lane: Lane) -> Option<Entry> {
        self.take(self.order.first(lane)?)
    }

    /// Takes out whoever waits longest.
    pub(crate) fn take_oldest(&mut self) -> Option<Entry> {
        self.take(self.order.oldest()?)
    }

    /// Takes out an entry that has waited as long as it may.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Option<(Lane, Entry)> {
        let token = self.order.expired(now)?;
        Some((self.order.lane(token)?, self.take(token)?))
    }

    /// The order, to be looked at.
    pub(crate) fn order(&self) -> &Order<Entry> {
        &self.order
    }

    /// The slots that an entry was offered to before; taken out for a while, so that it can be
    /// compared with workers that change, and put back by the same call.
    pub(crate) fn swap_tried(&mut self, token: Token, tried: &mut Vec<u32>) {
        if let Some(entry) = self.order.item_mut(token) {
            std::mem::swap(&mut entry.tried, tried);
        }
    }

    /// Whether somebody waits for long and there is nothing to watch with.
    pub(crate) fn wants_watch(&self, now: Instant) -> bool {
        self.watch.is_none() && self.next_to_watch().is_some_and(|due| due <= now)
    }

    /// Whoever waits for long from now on is watched with this.
    pub(crate) fn watch_with(&mut self, watch: Arc<Watch>) {
        self.watch = Some(watch);
    }

    /// Watches who waits for long by now, and returns when to do so again. Without anything to watch
    /// with they wait all the same, until their deadlines.
    pub(crate) fn watch(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let due = self.next_to_watch()?;
            if due > now {
                return Some(due);
            }
            if let (Some(watch), Some(token)) = (&self.watch, self.order.newcomer())
                && let Some(Entry { cargo: Cargo::Connection(connection), .. }) =
                    self.order.item(token)
            {
                watch.add(connection, token);
            }
            self.order.settle();
        }
    }

    fn next_to_watch(&self) -> Option<Instant> {
        self.order.since(self.order.newcomer()?)?.checked_add(PATIENCE)
    }

    /// Takes out the entry that a sign is about, if its client is gone. If the client has only said
    /// all it wants to say, it goes on waiting.
    pub(crate) fn take_gone(&mut self, sign: Sign) -> Option<(Lane, Entry)> {
        let watch = self.watch.as_ref()?;
        let Entry { cargo: Cargo::Connection(connection), .. } = self.order.item(sign.token)?
        else {
            return None;
        };
        match sign.client(connection, !connection.prefix().is_empty()) {
            Client::Gone => Some((self.order.lane(sign.token)?, self.take(sign.token)?)),
            Client::SaidAll => {
                watch.expect_no_more(connection, sign.token);
                None
            }
            Client::There => None,
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Each is taken out of the set before it is closed.
        while self.take_oldest().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};

    use vestibule_protocol::{ConnectionInfo, Data};

    use crate::connection::Connection;
    use crate::inspect::PausedConnection;
    use crate::sys::tcp;

    const LONG: Duration = Duration::from_secs(600);

    /// A client, its connection as an entry, and a copy as a worker has one.
    fn connection() -> (TcpStream, Entry, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let copy = server.try_clone().unwrap().into();
        let info = ConnectionInfo {
            id: 1,
            peer: Some(peer),
            peer_credentials: None,
            destination: None,
            listener: "".into(),
            route: "".into(),
            peer_context: None,
            accepted: 0,
            ..ConnectionInfo::default()
        };
        let connection = Connection::new(PausedConnection::new(server.into()), info);
        (client, Entry::new(Data::NONE, Cargo::Connection(connection)), copy)
    }

    fn leave(client: TcpStream, copy: &OwnedFd) {
        drop(client);
        while !tcp::is_read_closed(copy.as_fd()) {
            std::thread::yield_now();
        }
    }

    fn signs(watch: &Watch) -> Vec<Sign> {
        let mut signs = Vec::new();
        watch.take_signs(|sign| signs.push(sign)).unwrap();
        signs
    }

    /// Puts one in, takes it out, and looks whether anything is still heard of it, though a worker
    /// has a copy.
    fn assert_forgotten(how: &str, take: impl FnOnce(&mut Queue, Instant) -> Option<Entry>) {
        let watch = Arc::new(Watch::new().unwrap());
        let mut queue = Queue::new(1, LONG);
        queue.watch_with(Arc::clone(&watch));
        let (client, entry, copy) = connection();
        let now = Instant::now();
        queue.push(Lane::Worker(3), entry, now).unwrap();
        assert_eq!(queue.watch(now + PATIENCE), None);
        let taken = take(&mut queue, now);
        assert!(queue.is_empty(), "{how}");
        drop(taken);
        leave(client, &copy);
        assert!(signs(&watch).is_empty(), "{how}: it would fire for ever");
    }

    #[tokio::test]
    async fn what_is_taken_out_is_not_watched_any_more() {
        assert_forgotten("served", |queue, _| queue.take_first(Lane::Worker(3)));
        assert_forgotten("given up", |queue, _| queue.take_oldest());
        assert_forgotten("expired", |queue, now| {
            queue.take_expired(now + LONG).map(|(_, entry)| entry)
        });
        assert_forgotten("dropped", |queue, _| {
            *queue = Queue::new(0, LONG);
            None
        });
    }

    #[tokio::test]
    async fn who_waits_for_long_is_watched_from_then_on_and_leaves_once() {
        let mut queue = Queue::new(2, LONG);
        let (client, entry, copy) = connection();
        let now = Instant::now();
        queue.push(Lane::Worker(3), entry, now).unwrap();
        assert!(!queue.wants_watch(now));
        assert!(queue.wants_watch(now + PATIENCE));
        let watch = Arc::new(Watch::new().unwrap());
        queue.watch_with(Arc::clone(&watch));
        assert!(!queue.wants_watch(now + PATIENCE));
        leave(client, &copy);
        assert_eq!(queue.watch(now), Some(now + PATIENCE));
        assert!(signs(&watch).is_empty());
        assert_eq!(queue.watch(now + PATIENCE), None);
        let [sign] = signs(&watch).try_into().unwrap();
        let (lane, gone) = queue.take_gone(sign).unwrap();
        assert_eq!((lane, gone.is_connection()), (Lane::Worker(3), true));
        assert!(queue.take_gone(sign).is_none());
        assert!(signs(&watch).is_empty());
    }

    #[tokio::test]
    async fn a_sign_is_not_taken_for_who_has_its_place_now() {
        let mut queue = Queue::new(1, LONG);
        let watch = Arc::new(Watch::new().unwrap());
        queue.watch_with(Arc::clone(&watch));
        let (client, entry, copy) = connection();
        let now = Instant::now();
        queue.push(Lane::Pool, entry, now).unwrap();
        queue.watch(now + PATIENCE);
        leave(client, &copy);
        let [sign] = signs(&watch).try_into().unwrap();
        let old = queue.take_oldest();
        let (_stays, entry, _copy) = connection();
        queue.push(Lane::Pool, entry, now).unwrap();
        assert!(queue.take_gone(sign).is_none());
        assert_eq!(queue.len(), 1);
        drop(old);
    }
}
