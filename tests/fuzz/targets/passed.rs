//! What one router says to the next in a planned change: whatever it is, it is taken within bounds or left
//! out, and what was taken is as it was: said to another router it is taken whole.
//!
//! An input is messages: what comes along (nothing, a socket, or something else), two bytes of length, and
//! the message.
#![no_main]

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::within;
use vestibule_protocol::limits::DECODE_LIMIT_PACKET;
use vestibule_router::role::fuzzing::{EPOCH, FORMER, GAPS, Outcome, RATES, Said, Worker, take};

/// A socket each: less than any limit of descriptors.
const MOST: usize = 200;

/// A place of an offer, with whatever is said of it again.
const PLACE: usize = 2 * 1024;

fuzz_target!(|input: &[u8]| {
    let (socket, _client) = UnixStream::pair().expect("a pair of sockets");
    let socket = OwnedFd::from(socket);
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let pipe = OwnedFd::from(pipe);
    let mut said = Vec::new();
    let mut rest = input;
    while let [along, low, high, more @ ..] = rest
        && said.len() < MOST
    {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (message, more) = more.split_at(length);
        rest = more;
        // A length that is claimed is allocated before its bytes are seen; serde adds a list's.
        let most = DECODE_LIMIT_PACKET + (2 << 20) + 128 * message.len();
        let Ok(message) = within(most, || Said::read(message)) else { continue };
        comes_back(&message);
        let along = match along % 4 {
            0 => None,
            1 | 2 => Some(&socket),
            _ => Some(&pipe),
        };
        let along = along.map(|along| along.try_clone().expect("a descriptor"));
        said.push((message, along));
    }
    let most = (1 << 20) + PLACE * (said.len() + GAPS as usize) + 64 * input.len();
    let count = said.len();
    let (first, second) = within(most, || take(said));
    is_within_bounds(&first, count);
    assert_eq!(second.left_out, 0, "left out at the second time: {first:?}");
    assert_eq!(first.again, second.again);
    assert_eq!(first.workers, second.workers);
});

fn comes_back(message: &Said) {
    let bytes = message.write().expect("what was read can be written");
    assert_eq!(Said::read(&bytes).expect("what was written can be read"), *message);
}

fn is_within_bounds(outcome: &Outcome, count: usize) {
    assert!(outcome.rates <= RATES && outcome.former <= FORMER, "{outcome:?}");
    let mut known = BTreeSet::new();
    let mut gaps = 0;
    let mut offers = 0;
    for worker in &outcome.workers {
        assert!(known.insert(worker.id), "twice: {:?}", worker.id);
        offers += worker.offers.len();
        gaps += gaps_of(worker);
    }
    assert!(gaps <= GAPS, "{gaps} places of nobody: {outcome:?}");
    assert!(offers + outcome.others <= count, "more than was said");
}

/// The places of a worker for which there is no connection.
fn gaps_of(worker: &Worker) -> u64 {
    let (first, _) = *worker.offers.first().expect("nothing is said of who has answered");
    let numbers: Vec<_> = worker.offers.iter().map(|(sequence, _)| *sequence).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    assert!(first > 0 && numbers.iter().all(|number| *number < worker.next), "{worker:?}");
    assert!(worker.offers.iter().all(|(_, epoch)| *epoch != EPOCH), "{worker:?}");
    let (places, connections) = worker.places;
    assert_eq!((places as u64, connections as usize), (worker.next - first, numbers.len()));
    assert_eq!(worker.goes_on_with, worker.next);
    (places - numbers.len()) as u64
}
