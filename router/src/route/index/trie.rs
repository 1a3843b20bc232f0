//! The innermost of many networks around an address, in as many steps with ten thousand networks as
//! with ten that are as long: a trie of 64 branches a node.
//!
//! A node says which branches go on, and where the network changes from one branch to the next. Both
//! are bit maps over short lists (Asai and Ohara, "Poptrie", SIGCOMM 2015): ten thousand networks of
//! IPv4 take some 60 KB, which stay in a processor's nearest caches.

/// Nothing is around an address.
pub(super) const NOTHING: u32 = u32::MAX;

/// Bits of an address that a node looks at: as many as a bit map has numbers.
const STRIDE: u32 = 6;
const BRANCHES: usize = 1 << STRIDE;

/// An address that can be looked up.
pub(super) trait Address: Copy {
    /// Its bits from the first on, as those of the longest kind of address.
    fn aligned(self) -> u128;
    /// The bits that the node looks at that is so many below the root.
    fn branch(self, depth: u32) -> u32;
}

impl Address for u32 {
    fn aligned(self) -> u128 {
        u128::from(self) << 96
    }

    fn branch(self, depth: u32) -> u32 {
        // Below the sixth node there is none.
        ((u64::from(self) << 32).wrapping_shl(depth * STRIDE) >> (64 - STRIDE)) as u32
    }
}

impl Address for u128 {
    fn aligned(self) -> u128 {
        self
    }

    fn branch(self, depth: u32) -> u32 {
        (self.wrapping_shl(depth * STRIDE) >> (128 - STRIDE)) as u32
    }
}

/// A network, and what is found for its addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Net {
    /// Its first address, aligned.
    pub(super) first: u128,
    /// How many bits all its addresses have in common.
    pub(super) length: u32,
    pub(super) value: u32,
}

/// Networks.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    leaves: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Branches that lead to another node.
    further: u64,
    /// Of the others, those whose leaf is not that of the one before.
    turns: u64,
    first_node: u32,
    first_leaf: u32,
}

impl Trie {
    /// Compiles networks that are nested or apart, sorted by their first address and then by their
    /// length: those around others come before them.
    pub(super) fn new(nets: &[Net]) -> Self {
        let mut trie = Self::default();
        if !nets.is_empty() {
            trie.nodes.push(Node::default());
            trie.fill(0, nets, 0, NOTHING);
        }
        trie
    }

    /// Fills a node, of which these networks are, longer than what leads to it.
    fn fill(&mut self, at: usize, nets: &[Net], depth: u32, around: u32) {
        let mut leaves = [around; BRANCHES];
        // For each branch its networks that are too long for this node: they are neighbours.
        let mut further: [&[Net]; BRANCHES] = [&[]; BRANCHES];
        let end = (depth + 1) * STRIDE;
        for (index, net) in nets.iter().enumerate() {
            let branch = net.first.branch(depth) as usize;
            match end.checked_sub(net.length) {
                Some(free) => {
                    let covered = leaves.iter_mut().skip(branch).take(1 << free);
                    covered.for_each(|leaf| *leaf = net.value);
                }
                None => {
                    let Some(slot) = further.get_mut(branch) else { continue };
                    let first = index - slot.len();
                    *slot = nets.get(first..=index).unwrap_or_default();
                }
            }
        }
        // There are never as many of either.
        let mut node = Node {
            first_node: self.nodes.len() as u32,
            first_leaf: self.leaves.len() as u32,
            ..Node::default()
        };
        let mut last = None;
        for (branch, (leaf, nets)) in leaves.into_iter().zip(further).enumerate() {
            if !nets.is_empty() {
                node.further |= 1 << branch;
                self.nodes.push(Node::default());
            } else if last.replace(leaf) != Some(leaf) {
                node.turns |= 1 << branch;
                self.leaves.push(leaf);
            }
        }
        let mut below = node.first_node as usize;
        if let Some(place) = self.nodes.get_mut(at) {
            *place = node;
        }
        for (leaf, nets) in leaves.into_iter().zip(further) {
            if !nets.is_empty() {
                self.fill(below, nets, depth + 1, leaf);
                below += 1;
            }
        }
    }

    /// What is found for the innermost network around an address, or [`NOTHING`].
    pub(super) fn find(&self, address: impl Address) -> u32 {
        let (mut at, mut depth) = (0u32, 0);
        while let Some(node) = self.nodes.get(at as usize) {
            let branch = address.branch(depth);
            let up_to = u64::MAX >> (63 - branch);
            if node.further >> branch & 1 == 0 {
                let leaf = node.first_leaf + (node.turns & up_to).count_ones() - 1;
                return self.leaves.get(leaf as usize).copied().unwrap_or(NOTHING);
            }
            at = node.first_node + (node.further & up_to).count_ones() - 1;
            depth += 1;
        }
        NOTHING
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct values at the borders of nodes, so that networks are nested and touch.
    fn bits() -> impl Strategy<Value = u128> {
        let few = (0..8u128, 0..8u128, 0..4u128).prop_map(|(a, b, c)| a << 125 | b << 95 | c);
        let near = (0..64u128, 0..2u128).prop_map(|(a, b)| 0xfd00 << 112 | a << 93 | b);
        prop_oneof![few, near, any::<u128>(), Just(0), Just(u128::MAX)]
    }

    /// All kinds, or some that begin alike.
    fn networks() -> impl Strategy<Value = Vec<(u128, u32)>> {
        let alike =
            (0..64u128, 20..128u32).prop_map(|(a, length)| (0xfd00 << 112 | a << 93, length));
        prop_oneof![
            proptest::collection::vec((bits(), any::<u32>()), 0..24),
            proptest::collection::vec(alike, 1..24),
        ]
    }

    fn mask(length: u32) -> u128 {
        u128::MAX.checked_shl(128 - length).unwrap_or(0)
    }

    fn trie(written: &[(u128, u32)], longest: u32) -> (Trie, Vec<Net>) {
        let net = |&(bits, length): &(u128, u32)| {
            (bits & mask(length % (longest + 1)), length % (longest + 1))
        };
        let mut sorted: Vec<_> = written.iter().map(net).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let nets =
            (0u32..).zip(&sorted).map(|(value, &(first, length))| Net { first, length, value });
        let nets: Vec<_> = nets.collect();
        (Trie::new(&nets), nets)
    }

    /// The longest network around an address, looked for one after the other.
    fn innermost(nets: &[Net], address: u128) -> u32 {
        let around = nets.iter().filter(|net| address & mask(net.length) == net.first);
        around.max_by_key(|net| net.length).map_or(NOTHING, |net| net.value)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_innermost_network_around_an_address_is_found(
            written in networks(),
            asked in proptest::collection::vec(bits(), 1..24),
        ) {
            let (long, of_long) = trie(&written, 128);
            let (short, of_short) = trie(&written, 32);
            for address in asked.into_iter().chain(of_long.iter().map(|net| net.first)) {
                prop_assert_eq!(long.find(address), innermost(&of_long, address));
                let high = (address >> 96) as u32;
                prop_assert_eq!(short.find(high), innermost(&of_short, high.aligned()));
            }
        }
    }

    #[test]
    fn no_network_is_around_nothing_and_all_are_in_the_longest() {
        assert_eq!(Trie::default().find(7u32), NOTHING);
        let (trie, _) = trie(&[(0, 0)], 128);
        assert_eq!((trie.find(u128::MAX), trie.find(0u32)), (0, 0));
    }
}
