//! In what connections differ that rules can tell.

use std::net::Ipv4Addr;

/// Of so many kinds of connections each is any one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// There is one kind.
    Alike,
    /// They come from so many networks.
    Networks(u32),
    /// They are for so many hosts.
    Hosts(u32),
}

impl Asking {
    /// How many kinds there are.
    pub(crate) fn kinds(self) -> u32 {
        match self {
            Self::Alike => 1,
            Self::Networks(kinds) | Self::Hosts(kinds) => kinds,
        }
    }

    /// The kind of a connection, by its number: in no order that a processor could foresee.
    pub(super) fn kind(self, number: u64) -> u32 {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33) as u32 % self.kinds()
    }

    /// Where a connection of this kind comes from, if that matters.
    pub(super) fn source(self, kind: u32) -> Option<Ipv4Addr> {
        matches!(self, Self::Networks(_)).then(|| network(kind) | Ipv4Addr::new(0, 0, 0, 7))
    }

    /// The host that a connection of this kind is for, if that matters.
    pub(super) fn host(self, kind: u32) -> Option<String> {
        matches!(self, Self::Hosts(_)).then(|| host(kind))
    }
}

/// First address of a network of 256, which are no one's destination.
pub(crate) fn network(kind: u32) -> Ipv4Addr {
    Ipv4Addr::new(127, 1 + (kind / 256) as u8, (kind % 256) as u8, 0)
}

/// Name of a host.
pub(crate) fn host(kind: u32) -> String {
    format!("tenant-{kind}.example")
}
