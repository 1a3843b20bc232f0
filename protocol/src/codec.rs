//! The formats of user messages, and the one place where bincode is called.
//!
//! The router never decodes a user message; only the two programs that exchange it do.
//! bincode has no bound of its own on depth: never decode a recursive type from a peer that is not
//! trusted with the stack. JSON stops at 128 levels. Nor has it a bound on a list of things that
//! take no bytes (`Vec<()>`): a length is then a number of turns, never read such a type from a peer.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{DECODE_LIMIT, DECODE_LIMIT_PACKET, MAX_MESSAGE, MAX_PACKET};

/// Format of a user message: the codec byte of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// No message.
    #[default]
    None = 0,
    /// JSON, RFC 8259: between languages.
    Json = 1,
    /// bincode 2, standard configuration: between Rust programs.
    Bincode = 2,
    /// Bytes as they are.
    Bytes = 3,
}

impl Codec {
    /// The codec of a header's byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::None),
            1 => Some(Self::Json),
            2 => Some(Self::Bincode),
            3 => Some(Self::Bytes),
            _ => None,
        }
    }
}

/// A message that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The type's own `Serialize` failed, or JSON cannot say it (a map with keys that are no text).
    #[error("message cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// bincode cannot say it.
    #[error("message cannot be written as bincode")]
    Bincode(#[source] bincode::error::EncodeError),
    /// The format carries bytes or nothing, not typed values.
    #[error("format {0:?} carries no typed message")]
    Untyped(Codec),
    /// Longer than the port allows.
    #[error("message of {length} bytes is over the bound of {bound}")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
        /// The port's bound.
        bound: usize,
    },
}

/// A message that could not be read as the type that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or not of that type.
    #[error("message is not the expected JSON")]
    Json(#[source] serde_json::Error),
    /// Not bincode of that type, or over the limit.
    #[error("message is not the expected bincode")]
    Bincode(#[source] bincode::error::DecodeError),
    /// Bytes follow the value: the two programs do not agree on the type.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The message is bytes, or there is none.
    #[error("a message in format {0:?} has no type")]
    Untyped(Codec),
}

/// A user message as it travels: its format and its bytes. Empty with [`Codec::None`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    codec: Codec,
    bytes: Vec<u8>,
}

impl Data {
    /// No message.
    pub const NONE: Self = Self { codec: Codec::None, bytes: Vec::new() };

    /// A message from its parts, as they were received.
    pub fn from_parts(codec: Codec, bytes: Vec<u8>) -> Self {
        Self { codec, bytes }
    }

    /// Bytes, sent as they are.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { codec: Codec::Bytes, bytes: bytes.into() }
    }

    /// A value as JSON.
    ///
    /// # Errors
    /// [`EncodeError::Json`], [`EncodeError::TooLarge`].
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        Self::encode(Codec::Json, value)
    }

    /// A value as bincode.
    ///
    /// # Errors
    /// [`EncodeError::Bincode`], [`EncodeError::TooLarge`].
    pub fn bincode<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        Self::encode(Codec::Bincode, value)
    }

    /// A value in the named format.
    ///
    /// # Errors
    /// As the constructors above; [`EncodeError::Untyped`] for a format without types.
    pub fn encode<T: Serialize + ?Sized>(codec: Codec, value: &T) -> Result<Self, EncodeError> {
        let bytes = match codec {
            Codec::Json => serde_json::to_vec(value).map_err(EncodeError::Json)?,
            Codec::Bincode => encode_bincode(value)?,
            Codec::None | Codec::Bytes => return Err(EncodeError::Untyped(codec)),
        };
        if bytes.len() > MAX_MESSAGE {
            return Err(EncodeError::TooLarge { length: bytes.len(), bound: MAX_MESSAGE });
        }
        Ok(Self { codec, bytes })
    }

    /// The message as a value.
    ///
    /// # Errors
    /// It is not of that type, in its format.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        decode(self.codec, &self.bytes)
    }

    /// The message's format.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The message's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message's bytes, moved out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Reads a value from `bytes` in the named format.
///
/// # Errors
/// The bytes are not exactly one value of that type.
pub fn decode<T: DeserializeOwned>(codec: Codec, bytes: &[u8]) -> Result<T, DecodeError> {
    match codec {
        Codec::Json => serde_json::from_slice(bytes).map_err(DecodeError::Json),
        Codec::Bincode => decode_bincode(bytes),
        Codec::None | Codec::Bytes => Err(DecodeError::Untyped(codec)),
    }
}

fn encode_bincode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard().with_limit::<DECODE_LIMIT>())
        .map_err(EncodeError::Bincode)
}

/// Without the limit a nine-byte length would allocate what the peer says; bincode also takes a
/// value with bytes after it for good, which two programs of different versions must not.
fn decode_bincode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let config = bincode::config::standard();
    let decoded = if bytes.len() <= MAX_PACKET {
        bincode::serde::decode_from_slice(bytes, config.with_limit::<DECODE_LIMIT_PACKET>())
    } else {
        bincode::serde::decode_from_slice(bytes, config.with_limit::<DECODE_LIMIT>())
    };
    let (value, used) = decoded.map_err(DecodeError::Bincode)?;
    match bytes.len() - used {
        0 => Ok(value),
        trailing => Err(DecodeError::Trailing(trailing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Point {
        x: i32,
        name: String,
    }

    #[test]
    fn a_value_comes_back_from_each_typed_format() {
        let point = Point { x: -3, name: "ä".into() };
        for codec in [Codec::Json, Codec::Bincode] {
            let data = Data::encode(codec, &point).unwrap();
            assert_eq!(data.codec(), codec);
            assert_eq!(data.decode::<Point>().unwrap(), point);
        }
    }

    #[test]
    fn bytes_after_a_value_are_an_error_in_each_format() {
        for codec in [Codec::Json, Codec::Bincode] {
            let mut bytes = Data::encode(codec, &7u32).unwrap().into_bytes();
            bytes.push(b'1');
            bytes.push(b' ');
            bytes.push(b'2');
            assert!(decode::<u32>(codec, &bytes).is_err(), "{codec:?}");
        }
    }

    #[test]
    fn a_length_of_four_gigabytes_allocates_nothing() {
        // 253 marks a 64-bit length in bincode's standard configuration.
        let bytes = [253, 0, 0, 0, 0, 1, 0, 0, 0, b'x'];
        assert!(matches!(decode::<Vec<u8>>(Codec::Bincode, &bytes), Err(DecodeError::Bincode(_))));
        assert!(matches!(decode::<String>(Codec::Bincode, &bytes), Err(DecodeError::Bincode(_))));
    }

    #[test]
    fn large_messages_of_small_numbers_can_be_read_again() {
        let numbers = vec![1u64; 3 << 20];
        let data = Data::bincode(&numbers).unwrap();
        assert!(data.len() < MAX_MESSAGE);
        assert_eq!(data.decode::<Vec<u64>>().unwrap(), numbers);
        let wide = vec![1u128; MAX_PACKET - 8];
        assert_eq!(Data::bincode(&wide).unwrap().decode::<Vec<u128>>().unwrap(), wide);
    }

    #[test]
    fn formats_without_types_refuse_values() {
        assert!(matches!(Data::encode(Codec::Bytes, &1), Err(EncodeError::Untyped(Codec::Bytes))));
        assert!(matches!(Data::bytes("x").decode::<u8>(), Err(DecodeError::Untyped(Codec::Bytes))));
    }

    #[test]
    fn a_message_over_the_bound_is_refused_by_the_sender() {
        let text = "x".repeat(MAX_MESSAGE);
        assert!(matches!(Data::json(&text), Err(EncodeError::TooLarge { .. })));
        assert!(matches!(
            Data::bincode(&text),
            Err(EncodeError::TooLarge { .. } | EncodeError::Bincode(_))
        ));
    }
}
