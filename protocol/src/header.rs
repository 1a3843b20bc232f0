//! The sixteen bytes in front of every packet.
//!
//! ```text
//!  0       2         3       4      5             6       8                    16
//!  | magic | version | codec | kind | descriptors | epoch | sequence           |
//!  |  u16  |   u8    |  u8   |  u8  |     u8      |  u16  |   u64              |   little-endian
//! ```

use crate::codec::Codec;
use crate::limits::MAX_DESCRIPTORS;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 16;

/// The first two bytes of every packet, `v` and `b`.
pub const MAGIC: u16 = u16::from_le_bytes(*b"vb");

/// The version this crate speaks.
pub const VERSION: u8 = 1;

/// Set in the kind byte: the body is not in the packet but in a sealed memfd, descriptor 0.
pub const LARGE: u8 = 0x80;

/// A decoded header. `sequence` counts per direction from 1 and goes on across epochs; 0 marks a
/// packet that is not numbered (`Attach`, `Hello`, acknowledgements, refusals).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Format of the user message in the body.
    pub codec: Codec,
    /// What the packet is, without the [`LARGE`] bit.
    pub kind: u8,
    /// Whether the body travels in a memfd.
    pub large: bool,
    /// Descriptors that the sender attached, the memfd included.
    pub descriptors: u8,
    /// Which router speaks: a worker outlives routers, and answers to each by its epoch.
    pub epoch: u16,
    /// Number of the first message in this packet.
    pub sequence: u64,
}

/// Why sixteen bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than [`HEADER_LEN`] bytes.
    #[error("packet of {0} bytes is shorter than its header")]
    Short(usize),
    /// The magic number is another protocol's.
    #[error("packet begins with {0:#06x}, not with the protocol's mark")]
    Magic(u16),
    /// A version this crate does not speak.
    #[error("packet is of protocol version {0}, not {VERSION}")]
    Version(u8),
    /// A codec byte without a meaning.
    #[error("packet names the unknown format {0}")]
    Codec(u8),
    /// More descriptors than a packet may carry.
    #[error("packet announces {0} descriptors, more than {MAX_DESCRIPTORS}")]
    Descriptors(u8),
}

impl Header {
    /// A header for `kind` without descriptors, message or number.
    pub const fn new(kind: u8, epoch: u16) -> Self {
        Self { codec: Codec::None, kind, large: false, descriptors: 0, epoch, sequence: 0 }
    }

    /// The header as it stands on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let [m0, m1] = MAGIC.to_le_bytes();
        let [e0, e1] = self.epoch.to_le_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.sequence.to_le_bytes();
        let kind = self.kind | if self.large { LARGE } else { 0 };
        let codec = self.codec as u8;
        [m0, m1, VERSION, codec, kind, self.descriptors, e0, e1, s0, s1, s2, s3, s4, s5, s6, s7]
    }

    /// Reads a header and returns it with the body that follows it.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the bytes.
    pub fn decode(packet: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let Some((head, body)) = packet.split_first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short(packet.len()));
        };
        let [m0, m1, version, codec, kind, descriptors, e0, e1, sequence @ ..] = *head;
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let codec = Codec::from_byte(codec).ok_or(HeaderError::Codec(codec))?;
        if usize::from(descriptors) > MAX_DESCRIPTORS {
            return Err(HeaderError::Descriptors(descriptors));
        }
        let header = Self {
            codec,
            kind: kind & !LARGE,
            large: kind & LARGE != 0,
            descriptors,
            epoch: u16::from_le_bytes([e0, e1]),
            sequence: u64::from_le_bytes(sequence),
        };
        Ok((header, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_sixteen_documented_bytes() {
        let header = Header {
            codec: Codec::Json,
            kind: 2,
            large: true,
            descriptors: 3,
            epoch: 0x0102,
            sequence: 0x1122_3344_5566_7788,
        };
        let bytes = header.encode();
        assert_eq!(
            bytes,
            [0x76, 0x62, 1, 1, 0x82, 3, 0x02, 0x01, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
        );
        assert_eq!(Header::decode(&bytes), Ok((header, &[][..])));
    }

    #[test]
    fn every_wrong_header_says_what_is_wrong() {
        let good = Header::new(1, 7).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Header::decode(&bytes).map(|(header, _)| header)
        };
        assert_eq!(Header::decode(&good[..15]), Err(HeaderError::Short(15)));
        assert_eq!(with(0, b'x'), Err(HeaderError::Magic(u16::from_le_bytes(*b"xb"))));
        assert_eq!(with(2, 9), Err(HeaderError::Version(9)));
        assert_eq!(with(3, 200), Err(HeaderError::Codec(200)));
        assert_eq!(with(5, 65), Err(HeaderError::Descriptors(65)));
    }
}
