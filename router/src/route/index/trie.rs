//! The networks around an address, the innermost first: as many looks into memory with ten thousand
//! networks as with a few dozen, into little of it, whatever their lengths.
//!
//! Networks are nested or apart. Of those that begin at an address or before it the last one is
//! therefore the innermost around it, or has that one around itself: so it is enough to know where each
//! begins and what is around each.
//!
//! The beginnings are found as in a trie that skips what its members have in common and branches so
//! often that a handful is left in each branch (Nilsson and Karlsson, "IP-address lookup using
//! LC-tries", IEEE JSAC 1999), and then by the next 32 bits of each. An address that differs in what is
//! skipped ends somewhere in a branch that is not its own. All networks around it are around that whole
//! branch, and so around what is found there, too.

use super::Entry;

/// Nothing: neither a network nor a beginning.
const NOTHING: u32 = u32::MAX;

/// Beginnings that are looked through: their keys are in a line or two of a processor's caches.
const HANDFUL: usize = 16;

/// Beginnings that a branch is made for: half a handful on the average, so that few have to branch
/// again.
const A_BRANCH: usize = 4;

/// An address that can be looked up.
pub(super) trait Address: Copy + Ord {
    /// How long it is.
    const BITS: u32;
    /// How many bits it has in common with another from the first on.
    fn common(self, other: Self) -> u32;
    /// 32 bits of it, from one on.
    fn window(self, from: u32) -> u32;
}

impl Address for u32 {
    const BITS: u32 = Self::BITS;

    fn common(self, other: Self) -> u32 {
        (self ^ other).leading_zeros()
    }

    fn window(self, from: u32) -> u32 {
        self.wrapping_shl(from)
    }
}

impl Address for u128 {
    const BITS: u32 = Self::BITS;

    fn common(self, other: Self) -> u32 {
        (self ^ other).leading_zeros()
    }

    fn window(self, from: u32) -> u32 {
        (self.wrapping_shl(from) >> 96) as u32
    }
}

/// Networks of one kind of address.
#[derive(Clone, Debug)]
pub(super) struct Trie<A> {
    /// From the root on.
    branches: Vec<Branch>,
    /// Of each beginning the bits that tell it from its neighbours, in order.
    keys: Vec<u32>,
    /// The longest network at each beginning, then all others.
    nets: Vec<Net<A>>,
}

/// A network, and what is found for its addresses.
#[derive(Clone, Copy, Debug)]
struct Net<A> {
    first: A,
    /// The next larger one.
    around: u32,
    rule: u32,
    brief: u16,
    length: u8,
}

/// Where to go on from some beginnings that have all bits before `skip` in common.
#[derive(Clone, Copy, Debug)]
enum Branch {
    /// So many bits say to which of the branches from this one on.
    Branches { skip: u8, bits: u8, first: u32 },
    /// It is one of so many keys from this one on, or before all.
    Keys { skip: u8, count: u8, first: u32 },
}

impl<A> Default for Trie<A> {
    fn default() -> Self {
        Self { branches: Vec::new(), keys: Vec::new(), nets: Vec::new() }
    }
}

impl<A: Address> Trie<A> {
    /// Compiles networks that are nested or apart, sorted by their first address and then by their
    /// length: those around others come before them.
    pub(super) fn new(sorted: &[(A, u8, Entry)]) -> Self {
        let mut starts: Vec<A> = sorted.iter().map(|(first, ..)| *first).collect();
        starts.dedup();
        let mut trie = Self {
            branches: vec![Branch::Keys { skip: 0, count: 0, first: 0 }],
            keys: Vec::with_capacity(starts.len()),
            nets: nets(sorted, starts.len()),
        };
        trie.grow(0, &starts);
        trie
    }

    /// Makes a branch for these beginnings, which are next in order.
    fn grow(&mut self, at: usize, starts: &[A]) {
        // There are never as many.
        let keys_before = self.keys.len() as u32;
        let (Some(low), Some(high)) = (starts.first(), starts.last()) else {
            return self.set(at, Branch::Keys { skip: 0, count: 0, first: keys_before });
        };
        // What one alone differs in is seen when it is compared as a network.
        let common = low.common(*high).min(A::BITS - 1);
        let skip = common as u8;
        let window = |start: &A| start.window(common);
        if starts.len() <= HANDFUL && starts.is_sorted_by(|one, next| window(one) < window(next)) {
            self.keys.extend(starts.iter().map(window));
            let count = starts.len() as u8;
            return self.set(at, Branch::Keys { skip, count, first: keys_before });
        }
        let bits = (starts.len() / A_BRANCH).max(2).ilog2();
        let first = self.branches.len();
        let empty = Branch::Keys { skip: 0, count: 0, first: 0 };
        self.branches.resize(first + (1 << bits), empty);
        self.set(at, Branch::Branches { skip, bits: bits as u8, first: first as u32 });
        let mut rest = starts;
        for branch in 0..1 << bits {
            let mine = rest.partition_point(|start| window(start) >> (32 - bits) <= branch);
            let (mine, others) = rest.split_at(mine);
            self.grow(first + branch as usize, mine);
            rest = others;
        }
    }

    fn set(&mut self, at: usize, branch: Branch) {
        if let Some(place) = self.branches.get_mut(at) {
            *place = branch;
        }
    }

    /// What there is for the networks around an address, the innermost first.
    pub(super) fn around(&self, address: A) -> impl Iterator<Item = Entry> {
        let begun = self.net(self.last_begun(address));
        let nets = std::iter::successors(begun, |net| self.net(net.around));
        let around = nets.filter(move |net| net.first.common(address) >= u32::from(net.length));
        around.map(|net| Entry { rule: net.rule, brief: net.brief })
    }

    fn net(&self, at: u32) -> Option<&Net<A>> {
        self.nets.get(at as usize)
    }

    /// A network that all networks around an address are, or are around of.
    fn last_begun(&self, address: A) -> u32 {
        let mut at = 0;
        loop {
            match self.branches.get(at as usize) {
                Some(&Branch::Branches { skip, bits, first }) => {
                    at = first + (address.window(skip.into()) >> (32 - bits));
                }
                Some(&Branch::Keys { skip, count, first }) => {
                    let end = first + u32::from(count);
                    let keys = self.keys.get(first as usize..end as usize).unwrap_or_default();
                    let window = address.window(skip.into());
                    let begun = keys.partition_point(|key| *key <= window) as u32;
                    // Before the first one is nothing.
                    return (first + begun).wrapping_sub(1);
                }
                None => return NOTHING,
            }
        }
    }
}

/// Networks with those around them: of those that begin alike the longest one at that beginning's
/// place, the others behind.
fn nets<A: Address>(sorted: &[(A, u8, Entry)], starts: usize) -> Vec<Net<A>> {
    let mut begin = Vec::with_capacity(starts);
    let mut others = Vec::with_capacity(sorted.len() - starts);
    // Those around the present one, with their places.
    let mut open: Vec<(A, u8, u32)> = Vec::new();
    for (index, &(first, length, Entry { rule, brief })) in sorted.iter().enumerate() {
        while open.last().is_some_and(|(outer, length, _)| outer.common(first) < (*length).into()) {
            open.pop();
        }
        let around = open.last().map_or(NOTHING, |(.., place)| *place);
        let net = Net { first, around, rule, brief, length };
        // There are never as many.
        let is_longest = sorted.get(index + 1).is_none_or(|(next, ..)| *next != first);
        let (list, before) = if is_longest { (&mut begin, 0) } else { (&mut others, starts) };
        open.push((first, length, (before + list.len()) as u32));
        list.push(net);
    }
    begin.append(&mut others);
    begin
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct values at the borders of bytes and windows, so that networks are nested and touch.
    fn bits() -> impl Strategy<Value = u128> {
        let few = (0..8u128, 0..8u128, 0..4u128).prop_map(|(a, b, c)| a << 125 | b << 95 | c);
        let near = (0..64u128, 0..2u128).prop_map(|(a, b)| 0xfd00 << 112 | a << 93 | b);
        prop_oneof![few, near, any::<u128>(), Just(0), Just(u128::MAX)]
    }

    /// All kinds, some that begin alike, or so many that they branch.
    fn networks() -> impl Strategy<Value = Vec<(u128, u32)>> {
        let alike =
            || (0..64u128, 20..128u32).prop_map(|(a, length)| (0xfd00 << 112 | a << 93, length));
        let dense = (0..1u128 << 12, 0..4u128, 16..128u32)
            .prop_map(|(a, b, length)| (b << 126 | a << 100 | a << 7, length));
        prop_oneof![
            4 => proptest::collection::vec((bits(), any::<u32>()), 0..24),
            4 => proptest::collection::vec(alike(), 1..24),
            1 => proptest::collection::vec(prop_oneof![dense, alike()], 40..120),
        ]
    }

    fn mask(length: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }

    /// Numbered in order.
    fn sorted(written: &[(u128, u32)], longest: u32) -> Vec<(u128, u8, Entry)> {
        let net = |&(bits, length): &(u128, u32)| {
            let length = (length % (longest + 1)) as u8;
            (bits & mask(length), length)
        };
        let mut sorted: Vec<_> = written.iter().map(net).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let entries = (0..).map(|rule| Entry { rule, brief: 7 });
        sorted
            .into_iter()
            .zip(entries)
            .map(|((first, length), entry)| (first, length, entry))
            .collect()
    }

    /// The networks around an address, looked for one after the other.
    fn naive(nets: &[(u128, u8, Entry)], address: u128) -> Vec<u32> {
        let around = nets.iter().filter(|(first, length, _)| address & mask(*length) == *first);
        let mut around: Vec<_> = around.collect();
        around.sort_by_key(|(_, length, _)| std::cmp::Reverse(*length));
        around.into_iter().map(|(.., entry)| entry.rule).collect()
    }

    fn found<A: Address>(trie: &Trie<A>, address: A) -> Vec<u32> {
        trie.around(address).map(|entry| entry.rule).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn the_networks_around_an_address_are_found_from_the_innermost_on(
            written in networks(),
            asked in proptest::collection::vec(bits(), 1..24),
        ) {
            let of_long = sorted(&written, 128);
            let of_short = sorted(&written, 32);
            let long = Trie::new(&of_long);
            let shortened: Vec<_> =
                of_short.iter().map(|(first, length, entry)| ((first >> 96) as u32, *length, *entry)).collect();
            let short = Trie::new(&shortened);
            // Before, at and behind where each begins and ends.
            let borders = of_long.iter().chain(&of_short).flat_map(|(first, length, _)| {
                let last = first | !mask(*length);
                [first.wrapping_sub(1), *first, last, last.wrapping_add(1), first ^ 1 << 96, last ^ 1 << 110]
            });
            for address in asked.into_iter().chain(borders) {
                prop_assert_eq!(found(&long, address), naive(&of_long, address));
                let high = (address >> 96) as u32;
                prop_assert_eq!(found(&short, high), naive(&of_short, u128::from(high) << 96));
            }
        }
    }

    #[test]
    fn no_network_is_around_nothing_and_all_are_in_the_longest() {
        assert!(found(&Trie::default(), 7u32).is_empty());
        assert!(found(&Trie::new(&[]), 7u32).is_empty());
        let trie = Trie::new(&[(0u128, 0, Entry { rule: 3, brief: 7 })]);
        assert_eq!((found(&trie, u128::MAX), found(&trie, 0)), (vec![3], vec![3]));
    }
}
