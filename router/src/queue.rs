//! Connections that wait, paused, for a free worker: bounded, each with a deadline, and watched, so
//! that a client who gives up leaves the queue at once.
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

#[derive(Debug)]
pub(crate) struct Queue {
    order: Order<Entry>,
    /// `None` before the first entry ever waited: a pool that never queues needs no descriptor.
    watch: Option<Arc<Watch>>,
}

impl Queue {
    /// At most `max` entries in all lanes together, each for `timeout` from when it entered.
    pub(crate) fn new(max: usize, timeout: Duration) -> Self {
        Self { order: Order::new(max, timeout), watch: None }
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
        let token = self.order.push(lane, entry, now)?;
        if let (Some(watch), Some(entry)) = (&self.watch, self.order.item(token)) {
            add(watch, entry, token);
        }
        Ok(first)
    }

    /// Takes an entry out, to be handed over, moved, or closed. It is no longer watched then: a
    /// descriptor that stays in a set keeps firing after it was passed on and closed here, and can
    /// not be removed any more.
    pub(crate) fn take(&mut self, token: Token) -> Option<Entry> {
        if let (Some(watch), Some(Entry { cargo: Cargo::Connection(connection), .. })) =
            (&self.watch, self.order.item(token))
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

    /// Whether clients that wait have nobody who watches them.
    pub(crate) fn is_unwatched(&self) -> bool {
        self.watch.is_none() && !self.order.is_empty()
    }

    /// From now on everybody is watched, those too who wait already.
    pub(crate) fn watch(&mut self, watch: Arc<Watch>) {
        for (token, entry) in self.order.iter() {
            add(&watch, entry, token);
        }
        self.watch = Some(watch);
    }

    /// Takes out the entry that a sign is about, if its client is gone. If the client has only said
    /// all it wants to say, it goes on waiting.
    pub(crate) fn take_gone(&mut self, sign: Sign) -> Option<(Lane, Entry)> {
        let watch = self.watch.as_ref()?;
        let Entry { cargo: Cargo::Connection(connection), .. } = self.order.item(sign.token)?
        else {
            return None;
        };
        match sign.client(connection) {
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

fn add(watch: &Watch, entry: &Entry, token: Token) {
    if let Cargo::Connection(connection) = &entry.cargo {
        watch.add(connection, token);
    }
}
