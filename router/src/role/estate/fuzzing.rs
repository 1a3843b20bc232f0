//! Taking over as the fuzz target `passed` drives it; no router needs it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use vestibule_protocol::codec::{Codec, Data, DecodeError};
use vestibule_protocol::supervision::WorkerId;

use super::{Bounds, Estate};
use crate::handoff::Handoff;
use crate::pool::core::succession::Legacy;
use crate::role::passing::{self, Inherited, Passed};

/// Connections without a place of their own that are taken.
pub const GAPS: u64 = 100;
/// Bytes that are taken with connections.
pub const BYTES: usize = 2_000;
/// Peers' rates that are taken.
pub const RATES: usize = 20;
/// Former configurations that are taken.
pub const FORMER: usize = 3;
/// The router that takes over.
pub const EPOCH: u16 = 7;

const BOUNDS: Bounds = Bounds {
    epoch: EPOCH,
    reserved_from: u64::MAX,
    bytes: BYTES,
    gaps: GAPS,
    rates: RATES,
    former: FORMER,
};

/// A message of the old router.
#[derive(Debug, PartialEq)]
pub struct Said(Passed);

impl Said {
    /// Reads it.
    ///
    /// # Errors
    /// It is no message.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        vestibule_protocol::codec::decode(Codec::Bincode, bytes).map(Self)
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<Vec<u8>, vestibule_protocol::codec::EncodeError> {
        Data::encode(Codec::Bincode, &self.0).map(Data::into_bytes)
    }

    /// Without what changes while it is looked at.
    fn timeless(mut passed: Passed) -> Self {
        match &mut passed {
            Passed::Offered { age: time, .. } | Passed::Inspected { left: time, .. } => {
                *time = Duration::ZERO;
            }
            _ => {}
        }
        Self(passed)
    }
}

/// What a worker was sent, as the next router has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Worker {
    /// Which.
    pub id: WorkerId,
    /// Sequence of the next offer, as it was said.
    pub next: u64,
    /// Sequence and epoch of each offer.
    pub offers: Vec<(u64, u16)>,
    /// Places that are kept for them, and connections among these.
    pub places: (usize, u32),
    /// What the next router offers next.
    pub goes_on_with: u64,
}

/// What was taken over.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How often something was left out.
    pub left_out: u64,
    /// Workers.
    pub workers: Vec<Worker>,
    /// Peers' rates.
    pub rates: usize,
    /// Former configurations.
    pub former: usize,
    /// Connections that wait or are looked at.
    pub others: usize,
    /// All of it, as it is said to the next router but one.
    pub again: Vec<Said>,
}

/// Takes all of it, has every worker's offers go through the hand-over of the next router, and says all of
/// it to another.
pub fn take(all: impl IntoIterator<Item = (Said, Option<OwnedFd>)>) -> (Outcome, Outcome) {
    let (first, said) = once(BOUNDS, all.into_iter().map(|(said, socket)| (said.0, socket)));
    // What is known of a connection may be written in more bytes than it was.
    let (second, _) = once(Bounds { bytes: 8 * BYTES, ..BOUNDS }, said);
    (first, second)
}

type Parcel = (Passed, Option<OwnedFd>);

fn once(bounds: Bounds, all: impl IntoIterator<Item = Parcel>) -> (Outcome, Vec<Parcel>) {
    let mut estate = Estate::new(bounds);
    for (passed, socket) in all {
        estate.take(passed, socket);
    }
    let mut outcome = Outcome { left_out: estate.wrong, ..Outcome::default() };
    let mut said = Vec::new();
    let (legacies, things) = estate.end();
    for legacy in legacies {
        outcome.workers.push(worker(legacy, &mut said));
    }
    let now = Instant::now();
    for thing in things {
        match thing {
            Inherited::Waiting(pool, entry) => {
                outcome.others += 1;
                said.extend(passing::waiting(pool, &entry).map(parcel));
            }
            Inherited::Inspected(listener, before) => {
                outcome.others += 1;
                said.push(parcel(passing::inspected(listener, &before, now)));
            }
            Inherited::Used(used) => {
                outcome.rates += used.len();
                said.push((Passed::Used(used), None));
            }
            Inherited::Former(number) => {
                outcome.former += 1;
                said.push((Passed::Former { number }, None));
            }
            Inherited::Worker(_) | Inherited::Offered(_) => {}
        }
    }
    let copy = |(passed, _): &Parcel| {
        let bytes = Data::encode(Codec::Bincode, passed).ok()?;
        bytes.decode().ok().map(Said::timeless)
    };
    outcome.again = said.iter().filter_map(copy).collect();
    (outcome, said)
}

fn parcel((passed, socket): (Passed, BorrowedFd<'_>)) -> Parcel {
    (passed, socket.as_fd().try_clone_to_owned().ok())
}

fn worker(legacy: Legacy, said: &mut Vec<Parcel>) -> Worker {
    let Legacy { worker: id, acks, faulty, unanswered } = legacy;
    let (next, _) = unanswered.numbers();
    let offers = unanswered.offers().iter().map(|offer| (offer.sequence, offer.epoch)).collect();
    let mut handoff = Handoff::default();
    handoff.inherit(unanswered);
    let places = (handoff.in_flight(), handoff.load());
    let goes_on_with = handoff.next_sequence();
    let now = Instant::now();
    if let Some(unanswered) = handoff.take_unanswered() {
        let legacy = Legacy { worker: id, acks, faulty, unanswered };
        said.push((passing::worker(&legacy), None));
        let offers = legacy.unanswered.offers().iter();
        said.extend(offers.filter_map(|offer| passing::offered(offer, now)).map(parcel));
        // Once more, to be answered.
        handoff.inherit(legacy.unanswered);
        let settled = handoff.acknowledge_up_to(goes_on_with.saturating_sub(1));
        let settled = settled.map(|settled| settled as u64).unwrap_or(u64::MAX);
        assert!(settled == u64::from(places.1), "{settled} of {places:?} are settled");
        assert!(handoff.load() == 0 && handoff.in_flight() == 0, "something is left: {handoff:?}");
    }
    Worker { id, next, offers, places, goes_on_with }
}
