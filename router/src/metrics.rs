//! What is counted, on a page that the supervisor keeps: a router that crashes takes no number with it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::pool::core::Counters;
use crate::reject::Reason;
use crate::sys::page::{NUMBERS, Page};

const ACCEPTED: usize = 0;
/// One number a reason, in the order of [`Reason::ALL`].
const FIRST_REASON: usize = 8;
/// What pools count begins here; eight numbers each.
const FIRST_POOL: usize = 32;
const POOL: usize = 8;

const _: () = assert!(FIRST_REASON + Reason::ALL.len() <= FIRST_POOL, "reasons have their room");

/// The counters of a router, shared with its supervisor.
#[derive(Debug)]
pub(crate) struct Metrics {
    page: Page,
}

impl Metrics {
    /// New counters, and the descriptor for the router.
    pub(crate) fn new() -> Result<(Self, OwnedFd), Errno> {
        let (page, memory) = Page::new()?;
        Ok((Self { page }, memory))
    }

    /// The counters behind a descriptor.
    pub(crate) fn map(memory: impl AsFd) -> Result<Self, Errno> {
        Ok(Self { page: Page::map(memory)? })
    }

    fn get(&self, index: usize) -> u64 {
        self.page.numbers().get(index).map_or(0, |number| number.load(Ordering::Relaxed))
    }

    fn add(&self, index: usize, count: u64) {
        if let Some(number) = self.page.numbers().get(index) {
            number.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Connections were accepted.
    pub(crate) fn accepted(&self, count: usize) {
        self.add(ACCEPTED, count as u64);
    }

    /// A connection was turned away.
    pub(crate) fn rejected(&self, reason: Reason) {
        self.add(FIRST_REASON + reason as usize, 1);
    }

    /// Connections accepted since the supervisor's start.
    pub(crate) fn total_accepted(&self) -> u64 {
        self.get(ACCEPTED)
    }

    /// Connections turned away, by reason.
    pub(crate) fn rejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |reason: Reason| self.get(FIRST_REASON + reason as usize);
        Reason::ALL.into_iter().map(move |reason| (reason.as_str(), count(reason)))
    }

    /// What a pool counted, in all routers together. Pools beyond the page are not counted.
    pub(crate) fn pool(&self, pool: u32) -> Counters {
        let at = |offset| self.get(FIRST_POOL + pool as usize * POOL + offset);
        Counters {
            delivered: at(0),
            moved: at(1),
            touched: at(2),
            undelivered: at(3),
            faults: at(4),
            client_gone: at(5),
            discarded: at(6),
            handed_back: at(7),
        }
    }

    /// Notes what a pool of this router has counted, on top of `before`, what earlier routers had.
    pub(crate) fn note_pool(&self, pool: u32, before: Counters, now: Counters) {
        let values = [
            before.delivered + now.delivered,
            before.moved + now.moved,
            before.touched + now.touched,
            before.undelivered + now.undelivered,
            before.faults + now.faults,
            before.client_gone + now.client_gone,
            before.discarded + now.discarded,
            before.handed_back + now.handed_back,
        ];
        let first = FIRST_POOL + pool as usize * POOL;
        for (index, value) in (first..NUMBERS).zip(values) {
            if let Some(number) = self.page.numbers().get(index) {
                number.store(value, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_router_counts_on() {
        let (metrics, memory) = Metrics::new().unwrap();
        let first = Metrics::map(&memory).unwrap();
        first.accepted(3);
        first.rejected(Reason::QueueFull);
        first.note_pool(1, Counters::default(), Counters { delivered: 2, ..Counters::default() });
        let second = Metrics::map(&memory).unwrap();
        second.accepted(1);
        let before = second.pool(1);
        second.note_pool(1, before, Counters { delivered: 5, ..Counters::default() });
        assert_eq!(metrics.total_accepted(), 4);
        assert_eq!(metrics.pool(1).delivered, 7);
        assert_eq!(metrics.pool(0), Counters::default());
        assert!(metrics.rejections().all(|(name, count)| count == u64::from(name == "queue-full")));
    }
}
