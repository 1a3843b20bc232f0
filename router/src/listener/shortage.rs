//! Shortage of descriptors: when a listener leaves new connections in the kernel's queue.
//!
//! Accepting stops before the last descriptor is used. What is left is for the rest of the router: a
//! worker that starts sends its port, a large message needs memory, an administrator connects; a
//! port that arrived at the limit would be lost in the kernel. nginx and HAProxy stop the same way
//! and look again a little later: the kernel tells nobody that a descriptor came free.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::process::Resource;

/// Most descriptors that are kept for the rest of the router.
const MOST_RESERVED: u64 = 64;
/// Fewest, however low the limit is.
const LEAST_RESERVED: u64 = 8;
/// One in so many of the limit, in between.
const SHARE: u64 = 16;

/// Whether there is a shortage.
#[derive(Debug)]
pub(super) struct Shortage {
    /// New descriptors from this number on belong to the reserve. The system gives out the lowest
    /// free number, so a number says how many are in use at least.
    reserved_from: u64,
    stopped: bool,
    told: bool,
}

impl Shortage {
    pub(super) fn new() -> Self {
        Self { reserved_from: first_reserved(), stopped: false, told: false }
    }

    /// A connection was accepted. Returns whether accepting goes on.
    pub(super) fn accepted(&mut self, connection: &OwnedFd) -> bool {
        if self.is_reserved(connection) {
            // The limit may have been raised meanwhile.
            self.reserved_from = first_reserved();
            self.stopped = self.is_reserved(connection);
        }
        !self.stopped
    }

    /// A connection could not be accepted for want of something.
    pub(super) fn failed(&mut self) {
        self.stopped = true;
    }

    /// The kernel's queue is empty: whatever shortage there was is over.
    pub(super) fn queue_is_empty(&mut self) {
        self.told = false;
    }

    /// Whether new connections are left where they are.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether this shortage is to be logged: it was not yet.
    pub(super) fn tell(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }

    /// Accepting goes on if there are descriptors besides the reserve.
    pub(super) fn look_again(&mut self, any: impl AsFd) {
        self.stopped = match any.as_fd().try_clone_to_owned() {
            Ok(lowest) => self.is_reserved(&lowest),
            Err(_) => true,
        };
    }

    fn is_reserved(&self, descriptor: &OwnedFd) -> bool {
        u64::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number >= self.reserved_from)
    }
}

/// Number of the first descriptor that is no connection's.
pub(crate) fn first_reserved() -> u64 {
    reserved_from(rustix::process::getrlimit(Resource::Nofile).current)
}

fn reserved_from(limit: Option<u64>) -> u64 {
    limit.map_or(u64::MAX, |limit| {
        limit.saturating_sub((limit / SHARE).clamp(LEAST_RESERVED, MOST_RESERVED))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_share_of_the_limit_within_bounds() {
        assert_eq!(reserved_from(None), u64::MAX);
        assert_eq!(reserved_from(Some(1 << 20)), (1 << 20) - 64);
        assert_eq!(reserved_from(Some(512)), 512 - 32);
        assert_eq!(reserved_from(Some(64)), 56);
        assert_eq!(reserved_from(Some(4)), 0);
    }

    #[test]
    fn a_shortage_is_told_once_until_the_kernels_queue_was_empty() {
        let mut shortage = Shortage { reserved_from: u64::MAX, stopped: false, told: false };
        shortage.failed();
        assert!(shortage.is_stopped() && shortage.tell() && !shortage.tell());
        shortage.look_again(std::io::stdin());
        assert!(!shortage.is_stopped());
        shortage.failed();
        assert!(shortage.is_stopped() && !shortage.tell());
        shortage.queue_is_empty();
        assert!(shortage.tell());
    }

    #[test]
    fn a_descriptor_of_the_reserve_stops_until_lower_ones_are_free() {
        let mut shortage = Shortage::new();
        let any = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        assert!(shortage.accepted(&any));
        shortage.reserved_from = 0;
        // The limit is read again: it was never that low.
        assert!(shortage.accepted(&any));
        shortage.reserved_from = 0;
        shortage.look_again(&any);
        assert!(shortage.is_stopped());
        shortage.reserved_from = u64::MAX;
        shortage.look_again(&any);
        assert!(!shortage.is_stopped());
    }
}
