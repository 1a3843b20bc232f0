//! How much of the router one peer network may have: connections that it holds at one time, and how
//! many come in a second. One set a listener; `dispatch` asks before it looks any deeper.
//!
//! Whoever has thousands of addresses is many peers here, as in any such limit; what all peers together
//! may have is bounded elsewhere (`inspecting`, the queues, `max-connections`).

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vestibule_protocol::supervision::{LimitSetup, RateSetup};

use crate::reject::Reason;

/// Peers that are told apart at one time: some 100 bytes each. Whoever holds nothing and has not come
/// for a while needs no place.
const PEERS: usize = 65_536;

/// Where the table is full, newcomers share so many counts, by a hash that nobody can guess: an
/// attacker with more than 65,536 networks costs one newcomer in a thousand its connection, not all,
/// and none of them goes uncounted.
const SHARED: usize = 1_024;

/// How often a full table is looked through for places that nobody needs.
const SWEEP: Duration = Duration::from_secs(1);

/// A peer: an address with what is beyond the prefix cut off.
type Network = IpAddr;

/// The limits of one listener.
#[derive(Debug)]
pub(crate) struct Limits {
    per_peer: Option<u32>,
    prefix: (u8, u8),
    rate: Option<Rate>,
    /// What peers have of the listener, whatever the limits are that a reload brings.
    peers: Arc<Mutex<Peers>>,
}

/// Room that a connection takes of its peer's, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    peers: Arc<Mutex<Peers>>,
    network: Network,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(peer) = lock(&self.peers).place(self.network) {
            peer.held = peer.held.saturating_sub(1);
        }
    }
}

#[derive(Debug)]
struct Peers {
    known: HashMap<Network, Peer>,
    shared: Vec<Peer>,
    hasher: RandomState,
    most: usize,
    swept: Option<Instant>,
}

/// What one peer has.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    held: u32,
    /// When its bucket is empty again: what is ahead of now is what was used up.
    used_until: Option<Instant>,
}

/// A token bucket, kept as the time at which it will be full again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    /// Between two connections.
    each: Duration,
    /// So much may be used up ahead.
    ahead: Duration,
}

impl Rate {
    fn new(setup: RateSetup) -> Self {
        let each = setup.per / setup.connections.max(1);
        Self { each, ahead: each.saturating_mul(setup.burst.max(1)) }
    }
}

impl Limits {
    /// `None` if they limit nothing that a peer has.
    pub(crate) fn new(setup: &LimitSetup) -> Option<Arc<Self>> {
        Self::with_room(setup, PEERS)
    }

    fn with_room(setup: &LimitSetup, most: usize) -> Option<Arc<Self>> {
        if setup.per_peer.is_none() && setup.rate.is_none() {
            return None;
        }
        let peers = Peers {
            known: HashMap::new(),
            shared: vec![Peer::default(); SHARED],
            hasher: RandomState::new(),
            most,
            swept: None,
        };
        Some(Arc::new(Self {
            per_peer: setup.per_peer,
            prefix: setup.prefix,
            rate: setup.rate.map(Rate::new),
            peers: Arc::new(Mutex::new(peers)),
        }))
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        lock(&self.peers)
    }

    /// Goes on with what peers have by the limits before, if a peer is still the same. Another rate
    /// begins anew: what was used up of the last one says nothing of it.
    pub(crate) fn go_on_from(&mut self, before: &Self) {
        if self.prefix != before.prefix {
            return;
        }
        self.peers = Arc::clone(&before.peers);
        if self.rate != before.rate {
            self.peers().known.values_mut().for_each(|peer| peer.used_until = None);
            self.peers().shared.iter_mut().for_each(|peer| peer.used_until = None);
        }
    }

    /// Counts a connection that was let in before, by other limits or another router: unless it is
    /// counted here already.
    pub(crate) fn count(&self, peer: IpAddr, held: Option<&Held>, now: Instant) -> Option<Held> {
        if held.is_some_and(|held| Arc::ptr_eq(&held.peers, &self.peers)) {
            return None;
        }
        let network = network(peer, self.prefix);
        let mut peers = self.peers();
        peers.make_room(network, now);
        peers.place(network)?.held += 1;
        Some(Held { peers: Arc::clone(&self.peers), network })
    }

    /// How much of its rate each peer has used up, as a time: for the next router.
    pub(crate) fn used(&self, now: Instant) -> Vec<(IpAddr, Duration)> {
        let ahead = |(network, peer): (&Network, &Peer)| {
            let ahead = peer.used_until?.checked_duration_since(now)?;
            Some((*network, ahead))
        };
        self.peers().known.iter().filter_map(ahead).collect()
    }

    /// Takes what the router before this one has said of a peer. Nobody has more ahead than a burst:
    /// what is more would keep it out for longer than it can have used up.
    pub(crate) fn has_used(&self, network: Network, ahead: Duration, now: Instant) {
        let Some(rate) = self.rate else { return };
        let ahead = ahead.min(rate.ahead);
        let mut peers = self.peers();
        peers.make_room(network, now);
        if let Some(peer) = peers.place(network) {
            peer.used_until = peer.used_until.max(now.checked_add(ahead));
        }
    }

    /// Lets a connection in, or says why not.
    ///
    /// # Errors
    /// `TooMany` or `RateLimited`. One that is not let in uses up nothing.
    pub(crate) fn admit(&self, peer: IpAddr, now: Instant) -> Result<Held, Reason> {
        let network = network(peer, self.prefix);
        let mut peers = self.peers();
        peers.make_room(network, now);
        let Some(peer) = peers.place(network) else { return Err(Reason::TooMany) };
        if self.per_peer.is_some_and(|most| peer.held >= most) {
            return Err(Reason::TooMany);
        }
        if let Some(rate) = self.rate {
            let from = peer.used_until.map_or(now, |until| until.max(now));
            let until = from.checked_add(rate.each).unwrap_or(from);
            if until.saturating_duration_since(now) > rate.ahead {
                return Err(Reason::RateLimited);
            }
            peer.used_until = Some(until);
        }
        peer.held += 1;
        drop(peers);
        Ok(Held { peers: Arc::clone(&self.peers), network })
    }
}

fn lock(peers: &Mutex<Peers>) -> MutexGuard<'_, Peers> {
    // Every step under the lock keeps the counts whole.
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// A newcomer gets a place of its own, if there is one.
    fn make_room(&mut self, network: Network, now: Instant) {
        if self.known.contains_key(&network) {
            return;
        }
        let due = |swept: Instant| now.saturating_duration_since(swept) >= SWEEP;
        if self.known.len() >= self.most && self.swept.is_none_or(due) {
            self.swept = Some(now);
            self.known.retain(|_, peer| {
                peer.held > 0 || peer.used_until.is_some_and(|until| until > now)
            });
        }
        // What it has among the shared ones stays there until it is given back.
        if self.known.len() < self.most {
            self.known.insert(network, Peer::default());
        }
    }

    fn place(&mut self, network: Network) -> Option<&mut Peer> {
        if let Some(peer) = self.known.get_mut(&network) {
            return Some(peer);
        }
        let shared = usize::try_from(self.hasher.hash_one(network) % SHARED as u64).ok()?;
        self.shared.get_mut(shared)
    }
}

/// What an address has in common with its neighbours, which count as one peer.
fn network(address: IpAddr, prefix: (u8, u8)) -> Network {
    let beyond = |bits: u32, prefix: u8| bits.saturating_sub(prefix.into());
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(beyond(32, prefix.0)).unwrap_or_default();
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(beyond(128, prefix.1)).unwrap_or_default();
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn setup(per_peer: Option<u32>, rate: Option<(u32, u32)>) -> LimitSetup {
        let rate = rate.map(|(connections, burst)| RateSetup { connections, per: SECOND, burst });
        LimitSetup { per_peer, rate, prefix: (32, 64), inspecting: None }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_has_as_many_as_it_may_and_gets_room_back() {
        let limits = Limits::new(&setup(Some(2), None)).unwrap();
        let now = Instant::now();
        let first = limits.admit(address("192.0.2.1"), now).unwrap();
        let _second = limits.admit(address("::ffff:192.0.2.1"), now).unwrap();
        assert_eq!(limits.admit(address("192.0.2.1"), now).unwrap_err(), Reason::TooMany);
        let _other = limits.admit(address("192.0.2.2"), now).unwrap();
        drop(first);
        let _third = limits.admit(address("192.0.2.1"), now).unwrap();
    }

    #[test]
    fn neighbours_in_a_prefix_are_one_peer() {
        let mut written = setup(Some(1), None);
        written.prefix = (24, 48);
        let limits = Limits::new(&written).unwrap();
        let now = Instant::now();
        let _v4 = limits.admit(address("192.0.2.1"), now).unwrap();
        assert!(limits.admit(address("192.0.2.255"), now).is_err());
        let _next = limits.admit(address("192.0.3.1"), now).unwrap();
        let _v6 = limits.admit(address("2001:db8:1::1"), now).unwrap();
        assert!(limits.admit(address("2001:db8:1:ffff::1"), now).is_err());
        let _next = limits.admit(address("2001:db8:2::1"), now).unwrap();
        assert_eq!(network(address("192.0.2.1"), (0, 0)), address("0.0.0.0"));
        assert_eq!(network(address("2001::1"), (32, 128)), address("2001::1"));
    }

    #[test]
    fn a_burst_is_let_in_at_once_and_then_as_many_as_the_rate_says() {
        let limits = Limits::new(&setup(None, Some((10, 20)))).unwrap();
        let start = Instant::now();
        let come = |now, times| {
            (0..times).filter(|_| limits.admit(address("192.0.2.1"), now).is_ok()).count()
        };
        assert_eq!(come(start, 50), 20);
        assert_eq!(come(start + SECOND, 50), 10);
        assert_eq!(come(start + SECOND * 10, 50), 20, "no more than a burst is saved");
        assert_eq!(
            limits.admit(address("192.0.2.1"), start + SECOND * 10).unwrap_err(),
            Reason::RateLimited
        );
    }

    #[test]
    fn a_full_table_forgets_who_has_nothing_and_counts_the_rest_together() {
        let limits = Limits::with_room(&setup(Some(1), Some((1, 1))), 2).unwrap();
        let now = Instant::now();
        let first = limits.admit(address("192.0.2.1"), now).unwrap();
        let second = limits.admit(address("192.0.2.2"), now).unwrap();
        let mut refused = 0;
        let newcomers: Vec<_> = (0..10_000u32)
            .filter_map(|number| {
                let newcomer = limits.admit(IpAddr::V4(number.into()), now);
                refused += usize::from(newcomer.is_err());
                newcomer.ok()
            })
            .collect();
        assert!(newcomers.len() <= SHARED && refused > 0, "{}", newcomers.len());
        assert_eq!(limits.peers().known.len(), 2);
        drop((first, second, newcomers));
        let later = now + SECOND * 5;
        let _next = limits.admit(address("198.51.100.1"), later).unwrap();
        assert_eq!(limits.peers().known.len(), 1);
        assert!(limits.peers().shared.iter().all(|peer| peer.held == 0));
    }

    #[test]
    fn other_limits_go_on_with_what_peers_have() {
        let now = Instant::now();
        let peer = address("192.0.2.1");
        let before = Limits::new(&setup(Some(3), Some((10, 2)))).unwrap();
        let held: Vec<_> = (0..2).map(|_| before.admit(peer, now).unwrap()).collect();
        assert_eq!(before.admit(peer, now).unwrap_err(), Reason::RateLimited);
        let next = |setup: LimitSetup| {
            let mut next = Arc::into_inner(Limits::new(&setup).unwrap()).unwrap();
            next.go_on_from(&before);
            next
        };
        let same = next(setup(Some(3), Some((10, 2))));
        assert_eq!(same.admit(peer, now).unwrap_err(), Reason::RateLimited);
        // It is counted already.
        assert!(same.count(peer, held.first(), now).is_none());
        let fewer = next(setup(Some(2), Some((10, 2))));
        assert_eq!(fewer.admit(peer, now + SECOND).unwrap_err(), Reason::TooMany);
        let faster = next(setup(Some(3), Some((1000, 2))));
        let third = faster.admit(peer, now).unwrap();
        assert_eq!(faster.admit(peer, now).unwrap_err(), Reason::TooMany);
        drop((held, third));
        let _first = before.admit(peer, now + SECOND).unwrap();
        let wider = next(LimitSetup { prefix: (24, 64), ..setup(Some(1), None) });
        let again = wider.count(peer, None, now).unwrap();
        assert_eq!(wider.admit(address("192.0.2.9"), now).unwrap_err(), Reason::TooMany);
        drop(again);
        assert!(wider.admit(peer, now).is_ok());
    }

    #[test]
    fn another_router_goes_on_with_the_rates() {
        let now = Instant::now();
        let peer = address("192.0.2.1");
        let limits = || Limits::new(&setup(None, Some((1, 5)))).unwrap();
        let (before, next) = (limits(), limits());
        let come =
            |limits: &Limits, now| (0..9).filter(|_| limits.admit(peer, now).is_ok()).count();
        assert_eq!(come(&before, now), 5);
        for (network, ahead) in before.used(now + SECOND * 2) {
            next.has_used(network, ahead, now + SECOND * 2);
        }
        assert_eq!(come(&next, now + SECOND * 2), 2);
        let next = limits();
        next.has_used(peer, Duration::MAX, now);
        assert_eq!(come(&next, now), 0);
        assert_eq!(come(&next, now + SECOND * 2), 2, "a burst at most was used up");
    }

    #[test]
    fn without_limits_there_is_nothing_to_ask() {
        assert!(Limits::new(&setup(None, None)).is_none());
    }
}
