//! The choice of one worker among those that can take a connection. Pure: no clock, no I/O.
//!
//! Candidates stand in a binary heap with an index, so that a pick and a change of load cost the
//! logarithm of the number of workers and allocate nothing.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;
use vestibule_protocol::supervision::{Balance, Otherwise};

/// What orders candidates: a sluggish worker comes after all others, then the load, then the turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    sluggish: bool,
    load: u32,
    turn: u64,
}

const ABSENT: usize = usize::MAX;

/// The candidates of a pool, by slot.
#[derive(Debug)]
pub(crate) struct Picker {
    by_load: bool,
    /// Slots in heap order.
    heap: Vec<u32>,
    /// Where each slot stands in the heap, or `ABSENT`.
    place: Vec<usize>,
    rank: Vec<Rank>,
    turns: u64,
}

impl Picker {
    /// A picker for slots `0..slots`, none of which is a candidate yet.
    /// Without a key, what is `otherwise` decides.
    pub(crate) fn new(balance: &Balance, otherwise: Otherwise, slots: usize) -> Self {
        let by_load = match balance {
            Balance::LeastConnections => true,
            Balance::RoundRobin => false,
            _ => otherwise != Otherwise::RoundRobin,
        };
        Self {
            by_load,
            heap: Vec::with_capacity(slots),
            place: vec![ABSENT; slots],
            rank: vec![Rank { sluggish: false, load: 0, turn: 0 }; slots],
            turns: 0,
        }
    }

    /// Makes room for slots up to `slots`.
    #[cfg(feature = "cli")]
    pub(crate) fn grow(&mut self, slots: usize) {
        self.place.resize(slots, ABSENT);
        self.rank.resize(slots, Rank { sluggish: false, load: 0, turn: self.turns });
    }

    /// The best candidate.
    pub(crate) fn best(&self) -> Option<u32> {
        self.heap.first().copied()
    }

    /// Whether the best candidate is known to be sluggish: then all are.
    pub(crate) fn is_sluggish(&self, slot: u32) -> bool {
        self.rank.get(slot as usize).is_some_and(|rank| rank.sluggish)
    }

    /// The slot was chosen: among equals it is last now.
    pub(crate) fn chosen(&mut self, slot: u32) {
        self.turns += 1;
        let turns = self.turns;
        if let Some(rank) = self.rank.get_mut(slot as usize) {
            rank.turn = turns;
        }
        self.reorder(slot);
    }

    /// The slot can take a connection, with this load.
    pub(crate) fn set(&mut self, slot: u32, load: u32, sluggish: bool) {
        let load = if self.by_load { load } else { 0 };
        let index = slot as usize;
        let (Some(rank), Some(place)) = (self.rank.get_mut(index), self.place.get_mut(index))
        else {
            return;
        };
        let new = Rank { sluggish, load, turn: rank.turn };
        if *place == ABSENT {
            *rank = new;
            *place = self.heap.len();
            self.heap.push(slot);
        } else if *rank == new {
            return;
        } else {
            *rank = new;
        }
        self.reorder(slot);
    }

    /// The slot can take no connection.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(place) = self.place.get_mut(slot as usize) else { return };
        let at = std::mem::replace(place, ABSENT);
        if at == ABSENT {
            return;
        }
        self.heap.swap_remove(at);
        if let Some(&moved) = self.heap.get(at) {
            self.note(moved, at);
            self.reorder(moved);
        }
    }

    fn note(&mut self, slot: u32, at: usize) {
        if let Some(place) = self.place.get_mut(slot as usize) {
            *place = at;
        }
    }

    fn rank_at(&self, at: usize) -> Option<Rank> {
        let slot = *self.heap.get(at)?;
        self.rank.get(slot as usize).copied()
    }

    fn reorder(&mut self, slot: u32) {
        let Some(&at) = self.place.get(slot as usize) else { return };
        if at == ABSENT {
            return;
        }
        let at = self.up(at);
        self.down(at);
    }

    fn up(&mut self, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.rank_at(parent) <= self.rank_at(at) {
                break;
            }
            self.swap(parent, at);
            at = parent;
        }
        at
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let Some(left_rank) = self.rank_at(left) else { return };
            let (child, rank) = match self.rank_at(right) {
                Some(right_rank) if right_rank < left_rank => (right, right_rank),
                _ => (left, left_rank),
            };
            if self.rank_at(at).is_none_or(|own| own <= rank) {
                return;
            }
            self.swap(at, child);
            at = child;
        }
    }

    fn swap(&mut self, one: usize, two: usize) {
        self.heap.swap(one, two);
        for at in [one, two] {
            if let Some(&slot) = self.heap.get(at) {
                self.note(slot, at);
            }
        }
    }
}

/// The key of an address: four bytes for IPv4, the first eight (/64) for IPv6.
pub(crate) fn address_key(address: IpAddr) -> ([u8; 8], usize) {
    let mut key = [0; 8];
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            key = [a, b, c, d, 0, 0, 0, 0];
            (key, 4)
        }
        IpAddr::V6(v6) => {
            for (to, from) in key.iter_mut().zip(v6.octets()) {
                *to = from;
            }
            (key, 8)
        }
    }
}

/// The score of a worker for a key: SipHash-2-4 with key zero over the key, a zero byte and the
/// worker's name. The highest score wins (rendezvous hashing): a worker that leaves moves only its
/// own keys, and every router computes the same.
pub(crate) fn score(key: &[u8], worker: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    hasher.write(key);
    hasher.write(&[0]);
    hasher.write(worker.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u32, bool),
        Remove(u32),
        Pick,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..8u32, 0..5u32, any::<bool>())
                .prop_map(|(slot, load, slow)| Step::Set(slot, load, slow)),
            (0..8u32).prop_map(Step::Remove),
            Just(Step::Pick),
        ]
    }

    proptest! {
        /// The heap agrees with the plain definition: the smallest of (sluggish, load, last turn).
        #[test]
        fn the_best_is_the_least_of_all_candidates(
            steps in proptest::collection::vec(step(), 0..200),
            by_load in any::<bool>(),
        ) {
            let balance = if by_load { Balance::LeastConnections } else { Balance::RoundRobin };
            let mut picker = Picker::new(&balance, Otherwise::LeastConnections, 8);
            let mut model: Vec<Option<(bool, u32)>> = vec![None; 8];
            let mut turn = [0u64; 8];
            let mut turns = 0;
            for step in steps {
                match step {
                    Step::Set(slot, load, slow) => {
                        picker.set(slot, load, slow);
                        model[slot as usize] = Some((slow, if by_load { load } else { 0 }));
                    }
                    Step::Remove(slot) => {
                        picker.remove(slot);
                        model[slot as usize] = None;
                    }
                    Step::Pick => {
                        let best = picker.best();
                        let rank = |slot: u32| model[slot as usize].map(|(slow, load)| (slow, load, turn[slot as usize]));
                        let least = (0..8).filter_map(rank).min();
                        prop_assert_eq!(best.and_then(rank), least);
                        if let Some(slot) = best {
                            turns += 1;
                            turn[slot as usize] = turns;
                            picker.chosen(slot);
                        }
                    }
                }
            }
        }

        /// Taking one worker away moves only the keys that it had.
        #[test]
        fn a_worker_that_leaves_moves_only_its_own_keys(key in any::<[u8; 4]>(), gone in 0..5usize) {
            let names: Vec<String> = (1..=5).map(|n| format!("app-{n}")).collect();
            let best = |skip: Option<usize>| {
                (0..5).filter(|n| Some(*n) != skip).max_by_key(|n| score(&key, &names[*n])).unwrap()
            };
            let before = best(None);
            if before != gone {
                prop_assert_eq!(best(Some(gone)), before);
            }
        }
    }

    #[test]
    fn equals_take_turns() {
        let mut picker = Picker::new(&Balance::RoundRobin, Otherwise::LeastConnections, 3);
        for slot in 0..3 {
            picker.set(slot, 0, false);
        }
        let picked: Vec<u32> = (0..6)
            .map(|_| {
                let slot = picker.best().unwrap();
                picker.chosen(slot);
                slot
            })
            .collect();
        assert_eq!(picked[..3], picked[3..]);
        let mut once = picked[..3].to_vec();
        once.sort_unstable();
        assert_eq!(once, [0, 1, 2]);
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // SipHash-2-4, zero key, over 127.0.0.1's bytes, 00, "app-1".
        let (key, length) = address_key("127.0.0.1".parse().unwrap());
        let mut reference = SipHasher24::new_with_keys(0, 0);
        reference.write(&[127, 0, 0, 1, 0, b'a', b'p', b'p', b'-', b'1']);
        assert_eq!(score(&key[..length], "app-1"), reference.finish());
    }

    #[test]
    fn ipv6_keys_are_networks() {
        let one = address_key("2001:db8:1:2::1".parse().unwrap());
        let two = address_key("2001:db8:1:2:ffff::2".parse().unwrap());
        assert_eq!(one, two);
    }
}
