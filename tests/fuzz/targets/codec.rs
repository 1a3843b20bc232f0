//! Codec: a message in any format, read as types of every shape that serde knows.
//!
//! The first byte of an input chooses the type, the second the format; the rest is the message.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vestibule_fuzz::{Job, prefixes, within};
use vestibule_protocol::Codec;
use vestibule_protocol::codec::{Data, DecodeError, decode};
use vestibule_protocol::limits::{DECODE_LIMIT, DECODE_LIMIT_PACKET, MAX_PACKET};
use vestibule_protocol::supervision::{FromRouter, ToRouter};

fuzz_target!(|input: &[u8]| {
    let [shape, format, message @ ..] = input else { return };
    let Some(codec) = Codec::from_byte(*format) else { return };
    match shape % 8 {
        0 => check::<u64>(0, Durations::None, codec, message),
        1 => check::<String>(0, Durations::None, codec, message),
        2 => check::<Vec<u8>>(1, Durations::None, codec, message),
        3 => check::<Vec<Vec<i64>>>(2, Durations::None, codec, message),
        4 => check::<Job>(1, Durations::None, codec, message),
        5 => check::<ToRouter>(3, Durations::Some, codec, message),
        6 => check::<FromRouter>(2, Durations::Some, codec, message),
        _ => check_any_json(codec, message),
    }
});

/// Whether a type has durations in it: serde takes one of more than a second's nanoseconds, and writes
/// more seconds.
#[derive(Clone, Copy)]
enum Durations {
    None,
    Some,
}

/// `lists`: how many lists of the type can be in one another.
fn check<T>(lists: usize, durations: Durations, codec: Codec, message: &[u8])
where
    T: Serialize + DeserializeOwned + Debug + PartialEq,
{
    let value: T = match within(bound(lists, codec, message), || decode(codec, message)) {
        Ok(value) => value,
        Err(error) => return assert_untyped_only_if_untyped(codec, &error),
    };
    let again = Data::encode(codec, &value).expect("what was decoded can be encoded");
    assert_eq!(again.codec(), codec);
    assert_eq!(again.decode::<T>().expect("what was encoded can be decoded"), value);
    assert_whole_or_nothing::<T>(codec, again.as_bytes());
    if codec == Codec::Bincode {
        // A peer may write numbers longer than needed; we never do.
        let most = match durations {
            Durations::None => message.len(),
            // Of six bytes at least, seconds of one and nanoseconds of five, four more are made: seconds of
            // five.
            Durations::Some => message.len() + message.len() / 6 * 4,
        };
        assert!(again.len() <= most, "{} bytes from {}", again.len(), message.len());
    }
}

/// JSON of no particular type, as it goes to and from other languages. bincode cannot say "any".
fn check_any_json(codec: Codec, message: &[u8]) {
    type Any = serde_json::Value;
    let value: Any = match within(bound(0, codec, message), || decode(codec, message)) {
        Ok(value) => value,
        Err(error) => return assert_untyped_only_if_untyped(codec, &error),
    };
    assert_eq!(codec, Codec::Json, "only JSON describes itself");
    let again = Data::json(&value).expect("what was decoded can be encoded");
    let read: Any = again.decode().expect("what was encoded can be decoded");
    // serde_json reads a fraction to within its last digit, so only texts without one are equal.
    if !has_fraction(&value) {
        assert_eq!(read, value);
    }
    assert_whole_or_nothing::<Any>(codec, again.as_bytes());
}

/// No beginning of a message is a message, and nothing may follow one. A JSON number is the
/// exception: `12` begins with `1`.
fn assert_whole_or_nothing<T: DeserializeOwned>(codec: Codec, message: &[u8]) {
    let number = codec == Codec::Json && message.last().is_some_and(u8::is_ascii_digit);
    if !number {
        for length in prefixes(message.len()) {
            assert!(decode::<T>(codec, &message[..length]).is_err(), "prefix of {length} bytes");
        }
    }
    let mut longer = message.to_vec();
    longer.push(b'}');
    match decode::<T>(codec, &longer) {
        Err(DecodeError::Trailing(1)) => assert_eq!(codec, Codec::Bincode),
        Err(DecodeError::Json(_)) => assert_eq!(codec, Codec::Json),
        Err(other) => panic!("{other:?} for a byte too many"),
        Ok(_) => panic!("a byte too many was not seen"),
    }
}

fn assert_untyped_only_if_untyped(codec: Codec, error: &DecodeError) {
    let untyped = matches!(error, DecodeError::Untyped(_));
    assert_eq!(untyped, matches!(codec, Codec::None | Codec::Bytes), "{error:?}");
}

fn has_fraction(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Number(number) => number.is_f64(),
        serde_json::Value::Array(items) => items.iter().any(has_fraction),
        serde_json::Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

/// What reading a message may allocate. A length that a bincode message claims is allocated before
/// its bytes are seen, up to the codec's limit; serde adds at most 1 MiB ahead of each list that is
/// not at its end: as many as can be in one another. A JSON object of seven bytes becomes a tree node
/// of some 600.
fn bound(lists: usize, codec: Codec, message: &[u8]) -> usize {
    let (fixed, factor) = match codec {
        Codec::Bincode if message.len() <= MAX_PACKET => (DECODE_LIMIT_PACKET + (lists << 20), 128),
        Codec::Bincode => (DECODE_LIMIT + (lists << 20), 128),
        Codec::Json => (64 << 10, 512),
        Codec::None | Codec::Bytes => (0, 0),
    };
    fixed + factor * message.len()
}
