//! A set of addresses, given as networks.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// First address of `::ffff:0:0/96`, the IPv4 addresses as IPv6 sockets see them.
const MAPPED: u128 = 0xffff_0000_0000;

/// Networks as sorted ranges that neither touch nor overlap, so that a look-up is a binary search,
/// however many networks were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    blocks: Vec<IpNet>,
}

impl Networks {
    /// Compiles a set. Networks of mapped addresses (`::ffff:10.0.0.0/104`) mean the IPv4 ones; no
    /// other IPv6 network contains an IPv4 address.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let networks: Vec<IpNet> = networks.into_iter().map(canonical).collect();
        for network in &networks {
            match network {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self {
            v4: merged(v4, u32::checked_add),
            v6: merged(v6, u128::checked_add),
            blocks: IpNet::aggregate(&networks),
        }
    }

    /// The same addresses as few networks, which are nested or apart from those of any other set, as
    /// ranges of neighbours would not be.
    pub(super) fn blocks(&self) -> &[IpNet] {
        &self.blocks
    }

    /// Whether an address is in one of them; a mapped address counts as the IPv4 one.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => within(&self.v6, address.to_bits()),
        }
    }
}

/// The IPv4 network that a network of mapped addresses means; any other as it is.
pub fn canonical(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && v6.addr().to_bits() >> 32 == MAPPED >> 32
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(address, prefix)
    {
        return IpNet::V4(v4);
    }
    network
}

fn merged<T: Copy + Ord + From<u8>>(
    mut ranges: Vec<(T, T)>,
    add: fn(T, T) -> Option<T>,
) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            // What overlaps or begins right after the one before belongs to it.
            Some(before) if add(before.1, T::from(1)).is_none_or(|next| first <= next) => {
                before.1 = before.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn within<T: Ord>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(texts: &[&str]) -> Networks {
        Networks::new(texts.iter().map(|text| text.parse().unwrap()))
    }

    fn contains(networks: &Networks, address: &str) -> bool {
        networks.contains(address.parse().unwrap())
    }

    #[test]
    fn neighbours_become_one_range_and_ends_are_inside() {
        let set = networks(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32", "255.255.255.255/32"]);
        assert_eq!(set.v4.len(), 2);
        for inside in ["10.0.0.0", "10.0.1.255", "255.255.255.255"] {
            assert!(contains(&set, inside), "{inside}");
        }
        for outside in ["9.255.255.255", "10.0.2.0", "0.0.0.0", "::a00:1"] {
            assert!(!contains(&set, outside), "{outside}");
        }
    }

    #[test]
    fn mapped_addresses_and_networks_are_ipv4() {
        assert!(contains(&networks(&["10.0.0.0/8"]), "::ffff:10.1.2.3"));
        assert!(contains(&networks(&["::ffff:10.0.0.0/104"]), "10.1.2.3"));
        assert!(!contains(&networks(&["::/0"]), "10.1.2.3"));
        assert!(!contains(&networks(&["0.0.0.0/0"]), "::1"));
    }

    /// Few distinct values, so that networks overlap, touch and contain the addresses asked for.
    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, 0, a, b.wrapping_sub(2)]));
        let v6 = (0..4u16, 0..4u16, any::<bool>()).prop_map(|(a, b, mapped)| {
            let middle = if mapped { 0xffff } else { 0 };
            IpAddr::from([0, 0, 0, 0, 0, middle, a, b.wrapping_sub(2)])
        });
        prop_oneof![v4, v6, any::<IpAddr>()]
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128u8).prop_map(|(address, prefix)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, if prefix > most { most } else { prefix }).unwrap()
        })
    }

    proptest! {
        /// The set says what each of its networks says, one after the other.
        #[test]
        fn a_set_contains_what_one_of_its_networks_contains(
            written in proptest::collection::vec(network(), 0..12),
            asked in proptest::collection::vec(address(), 1..24),
        ) {
            let set = Networks::new(written.iter().copied());
            for address in asked {
                let address = address.to_canonical();
                let naive = written.iter().any(|network| canonical(*network).contains(&address));
                prop_assert_eq!(set.contains(address), naive, "{}", address);
            }
        }
    }
}
