//! What one side does not take of what the other sent, and why.

use super::TAG_REFUSAL;
use crate::tlv::{self, Fields, TlvError};

/// Why one side does not take what the other sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefusalReason {
    /// The worker finishes what it has and takes nothing new.
    Draining = 1,
    /// The program called `close()`.
    Closing = 2,
    /// The descriptor did not arrive: the receiver is at its limit, or its policy forbids it.
    MissingDescriptor = 3,
    /// It stood behind a missing descriptor in the same packet and was lost with it.
    BehindMissing = 4,
    /// The message is not what the program expects.
    Undecodable = 5,
    /// The message is in a format that the receiver cannot read.
    Format = 6,
    /// The receiver holds as much as it may.
    Full = 7,
    /// The receiver's program does not take such a thing.
    Unsupported = 8,
}

impl RefusalReason {
    /// The reason of a number on the wire. An unknown one, from a newer peer, is `Unsupported`.
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Draining,
            2 => Self::Closing,
            3 => Self::MissingDescriptor,
            4 => Self::BehindMissing,
            5 => Self::Undecodable,
            6 => Self::Format,
            7 => Self::Full,
            _ => Self::Unsupported,
        }
    }

    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Closing => "closing",
            Self::MissingDescriptor => "missing-descriptor",
            Self::BehindMissing => "behind-missing",
            Self::Undecodable => "undecodable",
            Self::Format => "format",
            Self::Full => "full",
            Self::Unsupported => "unsupported",
        }
    }

    /// Whether this refusal counts as an attempt of the connection's `max-attempts`.
    ///
    /// A worker that leaves, or a descriptor that was lost because of the one before it, says
    /// nothing against the connection.
    pub const fn counts_as_attempt(self) -> bool {
        !matches!(self, Self::Draining | Self::Closing | Self::BehindMissing)
    }
}

/// One refused sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is refused.
    pub sequence: u64,
    /// Why.
    pub reason: RefusalReason,
}

pub(super) fn decode_refusals(body: &[u8]) -> Result<Vec<Refusal>, TlvError> {
    let mut refusals = Vec::new();
    let mut fields = Fields::new(body);
    while let Some(field) = fields.next_field()? {
        if field.tag != TAG_REFUSAL {
            continue;
        }
        let wrong = TlvError::Length { tag: field.tag, length: field.value.len() };
        let Some((sequence, reason)) = field.value.split_first_chunk::<8>() else {
            return Err(wrong);
        };
        let Ok(reason) = <[u8; 2]>::try_from(reason) else { return Err(wrong) };
        refusals.push(Refusal {
            sequence: u64::from_le_bytes(*sequence),
            reason: RefusalReason::from_number(u16::from_le_bytes(reason)),
        });
    }
    Ok(refusals)
}

/// Appends a refusal.
pub fn put_refusal(out: &mut Vec<u8>, refusal: Refusal) {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = refusal.sequence.to_le_bytes();
    let [r0, r1] = (refusal.reason as u16).to_le_bytes();
    tlv::put_array(out, TAG_REFUSAL, [s0, s1, s2, s3, s4, s5, s6, s7, r0, r1]);
}
