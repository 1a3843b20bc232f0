//! `Attach` and `Hello`: one handshake at the start of a worker and after each router's crash.
//!
//! A router says `Attach` with its epoch; the worker answers `Hello` once its program is ready.
//! Nothing is offered before. Both are pure values here.

use std::time::Duration;

use crate::header::VERSION;
use crate::limits::{MAX_DESCRIPTORS, MAX_PACKET};
use crate::tlv::{self, Fields, TlvError};

const TAG_VERSIONS: u16 = 0x0030;
const TAG_DRAIN_TIMEOUT: u16 = 0x0031;
const TAG_MAX_PACKET: u16 = 0x0032;
const TAG_BATCH: u16 = 0x0033;
const TAG_ACKS: u16 = 0x0034;
const TAG_READY: u16 = 0x0035;
const TAG_OPEN: u16 = 0x0036;
const TAG_RECEIVED: u16 = 0x0037;
const TAG_MAX_CONNECTIONS: u16 = 0x0038;
const TAG_ABILITIES: u16 = 0x0039;

/// Least packet size that either side may name: a header, an offer's entry and room for its facts.
const LEAST_PACKET: u32 = 1024;

/// Highest sequence that a `Hello` may claim: half of all, so that nobody can make the router's
/// count overflow.
const MAX_SEQUENCE: u64 = u64::MAX / 2;

/// How a worker acknowledges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// One number covers everything before it.
    #[default]
    Cumulative,
    /// Each sequence by itself: several processes share the port.
    Each,
}

/// What a side can do beyond the least. Bits that it does not know mean nothing to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities(pub u32);

impl Abilities {
    /// In `Attach`: the router takes connections back. In `Hello`: the worker may hand them back, so
    /// that it needs tickets.
    pub const HAND_BACK: Self = Self(1);
    /// In `Hello`: the worker reads what an earlier one has read of a connection before anything from
    /// the socket.
    pub const PREFIX: Self = Self(2);

    /// In `Hello`: the worker keeps to the scope of a connection. Without it it is given none that has
    /// one.
    pub const SCOPE: Self = Self(4);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of these are there.
    pub const fn has(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }
}

/// A router begins to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Lowest and highest protocol version that the router speaks.
    pub versions: (u8, u8),
    /// How long the worker may finish what it has, when its port closes or it is told to drain.
    pub drain_timeout: Duration,
    /// Largest packet that the router receives, in bytes.
    pub max_packet: u32,
    /// Most connections that the router lets the worker hold; 0: it has not said. A worker that held so many
    /// says at once when one ends: somebody may wait for the place.
    pub max_connections: u32,
    /// What else it can do.
    pub abilities: Abilities,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            versions: (VERSION, VERSION),
            drain_timeout: Duration::from_secs(60),
            max_packet: MAX_PACKET as u32,
            max_connections: 0,
            abilities: Abilities::HAND_BACK,
        }
    }
}

/// A worker is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version that the worker chose.
    pub version: u8,
    /// Largest packet that the worker receives, in bytes.
    pub max_packet: u32,
    /// Most connections that it takes in one packet.
    pub batch: u16,
    /// How it acknowledges.
    pub acks: Acks,
    /// Whether it takes connections now; a draining worker says no.
    pub ready: bool,
    /// Connections that it holds.
    pub open: u32,
    /// Most connections that it wants to hold; 0: no bound of its own.
    pub max_connections: u32,
    /// Highest sequence that it has received from any router: the next router goes on from here.
    pub received: u64,
    /// What else it can do.
    pub abilities: Abilities,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            version: VERSION,
            max_packet: MAX_PACKET as u32,
            batch: MAX_DESCRIPTORS as u16,
            acks: Acks::Cumulative,
            ready: true,
            open: 0,
            max_connections: 0,
            received: 0,
            abilities: Abilities::default(),
        }
    }
}

impl Attach {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let timeout = u32::try_from(self.drain_timeout.as_millis()).unwrap_or(u32::MAX);
        tlv::put_array(out, TAG_VERSIONS, [self.versions.0, self.versions.1]);
        tlv::put_array(out, TAG_DRAIN_TIMEOUT, timeout.to_le_bytes());
        tlv::put_array(out, TAG_MAX_PACKET, self.max_packet.to_le_bytes());
        if self.max_connections != 0 {
            tlv::put_array(out, TAG_MAX_CONNECTIONS, self.max_connections.to_le_bytes());
        }
        put_abilities(out, self.abilities);
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Malformed or missing fields, values out of range.
    pub fn decode(body: &[u8]) -> Result<Self, TlvError> {
        let none = Abilities::default();
        let mut attach = Self { versions: (0, 0), abilities: none, ..Self::default() };
        let mut fields = Fields::new(body);
        while let Some(field) = fields.next_field()? {
            match field.tag {
                TAG_VERSIONS => {
                    let [low, high] = field.u16()?.to_le_bytes();
                    attach.versions = (low, high);
                }
                TAG_DRAIN_TIMEOUT => {
                    attach.drain_timeout = Duration::from_millis(field.u32()?.into());
                }
                TAG_MAX_PACKET => attach.max_packet = packet_size(field.tag, field.u32()?)?,
                TAG_MAX_CONNECTIONS => attach.max_connections = field.u32()?,
                TAG_ABILITIES => attach.abilities = Abilities(field.u32()?),
                _ => {}
            }
        }
        if attach.versions == (0, 0) {
            return Err(TlvError::Missing(TAG_VERSIONS));
        }
        Ok(attach)
    }

    /// The version to speak: the highest that both know.
    pub fn choose_version(&self) -> Option<u8> {
        (self.versions.0..=self.versions.1).contains(&VERSION).then_some(VERSION)
    }
}

impl Hello {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let acks = match self.acks {
            Acks::Cumulative => 0,
            Acks::Each => 1,
        };
        tlv::put_array(out, TAG_VERSIONS, [self.version]);
        tlv::put_array(out, TAG_MAX_PACKET, self.max_packet.to_le_bytes());
        tlv::put_array(out, TAG_BATCH, self.batch.to_le_bytes());
        tlv::put_array(out, TAG_ACKS, [acks]);
        tlv::put_array(out, TAG_READY, [self.ready.into()]);
        tlv::put_array(out, TAG_OPEN, self.open.to_le_bytes());
        tlv::put_array(out, TAG_MAX_CONNECTIONS, self.max_connections.to_le_bytes());
        tlv::put_array(out, TAG_RECEIVED, self.received.to_le_bytes());
        put_abilities(out, self.abilities);
    }

    /// Reads the body.
    ///
    /// # Errors
    /// Malformed or missing fields, values out of range: a batch of 0 or over
    /// [`MAX_DESCRIPTORS`], a packet size no offer fits in.
    pub fn decode(body: &[u8]) -> Result<Self, TlvError> {
        let mut hello = Self { version: 0, batch: 1, ..Self::default() };
        let mut fields = Fields::new(body);
        while let Some(field) = fields.next_field()? {
            match field.tag {
                TAG_VERSIONS => hello.version = field.u8()?,
                TAG_MAX_PACKET => hello.max_packet = packet_size(field.tag, field.u32()?)?,
                TAG_BATCH => hello.batch = batch(field.u16()?)?,
                TAG_ACKS => {
                    hello.acks = match field.u8()? {
                        0 => Acks::Cumulative,
                        1 => Acks::Each,
                        value => return Err(out_of_range(TAG_ACKS, value)),
                    }
                }
                TAG_READY => hello.ready = field.u8()? != 0,
                TAG_OPEN => hello.open = field.u32()?,
                TAG_MAX_CONNECTIONS => hello.max_connections = field.u32()?,
                TAG_RECEIVED => hello.received = last_received(field.u64()?)?,
                TAG_ABILITIES => hello.abilities = Abilities(field.u32()?),
                _ => {}
            }
        }
        match hello.version {
            0 => Err(TlvError::Missing(TAG_VERSIONS)),
            VERSION => Ok(hello),
            other => Err(out_of_range(TAG_VERSIONS, other)),
        }
    }
}

fn put_abilities(out: &mut Vec<u8>, Abilities(bits): Abilities) {
    tlv::put_array(out, TAG_ABILITIES, bits.to_le_bytes());
}

fn out_of_range(tag: u16, value: impl Into<u64>) -> TlvError {
    TlvError::Range { tag, value: value.into() }
}

fn packet_size(tag: u16, value: u32) -> Result<u32, TlvError> {
    if value < LEAST_PACKET {
        return Err(out_of_range(tag, value));
    }
    Ok(value.min(MAX_PACKET as u32))
}

fn batch(value: u16) -> Result<u16, TlvError> {
    if value == 0 || usize::from(value) > MAX_DESCRIPTORS {
        return Err(out_of_range(TAG_BATCH, value));
    }
    Ok(value)
}

/// The router counts on from here: what would overflow is no sequence that anybody sent.
fn last_received(value: u64) -> Result<u64, TlvError> {
    if value > MAX_SEQUENCE {
        return Err(out_of_range(TAG_RECEIVED, value));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_come_back_as_they_were() {
        let attach = Attach {
            drain_timeout: Duration::from_millis(1500),
            max_connections: 8,
            ..Attach::default()
        };
        let hello = Hello {
            acks: Acks::Each,
            ready: false,
            open: 7,
            max_connections: 100,
            received: 1 << 40,
            ..Hello::default()
        };
        let (mut a, mut h) = (Vec::new(), Vec::new());
        attach.encode(&mut a);
        hello.encode(&mut h);
        assert_eq!(Attach::decode(&a), Ok(attach));
        assert_eq!(Hello::decode(&h), Ok(hello));
    }

    #[test]
    fn a_hello_out_of_range_is_refused() {
        for hello in [
            Hello { batch: 0, ..Hello::default() },
            Hello { batch: 65, ..Hello::default() },
            Hello { max_packet: 100, ..Hello::default() },
            Hello { version: 2, ..Hello::default() },
            Hello { received: u64::MAX, ..Hello::default() },
        ] {
            let mut bytes = Vec::new();
            hello.encode(&mut bytes);
            assert!(matches!(Hello::decode(&bytes), Err(TlvError::Range { .. })), "{hello:?}");
        }
        assert_eq!(Hello::decode(&[]), Err(TlvError::Missing(TAG_VERSIONS)));
    }

    #[test]
    fn a_router_of_another_version_only_has_none_in_common() {
        assert_eq!(Attach { versions: (2, 3), ..Attach::default() }.choose_version(), None);
        assert_eq!(Attach { versions: (1, 3), ..Attach::default() }.choose_version(), Some(1));
    }
}
