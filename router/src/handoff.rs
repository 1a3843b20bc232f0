//! What was given to one worker and not yet settled: sequences, copies, load.
//!
//! Pure: packets are built and read elsewhere. Entries stand in one queue, first those that were sent
//! (offered), then those that wait to be sent. The router keeps its copy of everything in an entry
//! until the worker acknowledges it; every sequence is settled once.

#[cfg(feature = "cli")]
pub(crate) mod unanswered;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use vestibule_protocol::codec::Data;
use vestibule_protocol::discard::discard;
use vestibule_protocol::envelope::Transferable;
use vestibule_protocol::handshake::Acks;
use vestibule_protocol::limits::{QUEUE_BYTES, QUEUE_MESSAGES};
use vestibule_protocol::message::RefusalReason;

use crate::connection::Connection;
use crate::route::Affinity;

/// One posted message with what it carries.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The user's message.
    pub(crate) data: Data,
    /// What it carries.
    pub(crate) cargo: Cargo,
    /// Workers that were offered this before.
    pub(crate) attempts: u32,
    /// Slots among them, so that none is tried twice. Empty, without an allocation, until it moves.
    pub(crate) tried: Vec<u32>,
    /// Its descriptor was lost in a batch: it travels in a packet of its own now.
    pub(crate) alone: bool,
}

/// What a message carries.
#[derive(Debug)]
pub(crate) enum Cargo {
    /// One connection: the common case, batched with others.
    Connection(Connection),
    /// Any other transfer list, none among them.
    List(Vec<Transferable>),
}

impl Entry {
    /// A message that was not offered to any worker yet.
    pub(crate) fn new(data: Data, cargo: Cargo) -> Self {
        Self { data, cargo, attempts: 0, tried: Vec::new(), alone: false }
    }

    /// Whether it counts in a worker's load.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self.cargo, Cargo::Connection(_))
    }

    /// What was read of the connection that it carries.
    pub(crate) fn prefix(&self) -> &[u8] {
        match &self.cargo {
            Cargo::Connection(connection) => connection.prefix(),
            Cargo::List(_) => &[],
        }
    }

    /// The peer's address, where affinity hangs on it.
    pub(crate) fn key(&self) -> Option<IpAddr> {
        match &self.cargo {
            Cargo::Connection(connection) => connection.peer_addr().map(|peer| peer.ip()),
            Cargo::List(_) => None,
        }
    }

    /// The worker that it belongs to, where its pool's balance looks at more than the address.
    pub(crate) fn affinity(&self) -> Option<&Affinity> {
        match &self.cargo {
            Cargo::Connection(connection) => connection.affinity(),
            Cargo::List(_) => None,
        }
    }

    /// Everything in it as a transfer list, for giving it back.
    pub(crate) fn into_parts(self) -> (Data, Vec<Transferable>) {
        let transfer = match self.cargo {
            Cargo::Connection(connection) => vec![connection.into()],
            Cargo::List(list) => list,
        };
        (self.data, transfer)
    }

    /// The worker has taken everything: this side's copies go.
    fn settle(self) {
        match self.cargo {
            Cargo::Connection(connection) => {
                connection.trace().acknowledged();
                connection.release();
            }
            Cargo::List(list) => discard_list(list),
        }
    }
}

/// Closes a list that a worker has, too: it could make the close of any file wait.
fn discard_list(list: Vec<Transferable>) {
    let strangers = list.into_iter().filter_map(|item| match item {
        Transferable::Connection(_) | Transferable::Port(_) => None,
        Transferable::Listener(descriptor) | Transferable::Descriptor(descriptor) => {
            Some(descriptor)
        }
    });
    discard(strangers.collect());
}

/// Numbers below this one leave room for all that is added to them: at a million connections a second no
/// worker is sent so many in a hundred thousand years.
const LAST: u64 = 1 << 62;

/// A worker said what it cannot have meant. Its port is closed and its process killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It acknowledged or refused a sequence that was never offered.
    #[error("worker settled sequence {sequence}, of which only those below {next} were offered")]
    NeverOffered { sequence: u64, next: u64 },
    /// It settled a sequence twice.
    #[error("worker settled sequence {0} twice")]
    Twice(u64),
    /// It says that a descriptor was lost with the one before it, which it did not miss.
    #[error("worker refused sequence {0} as standing behind a missing descriptor, and it does not")]
    NotBehind(u64),
    /// It has received more or less than the router before this one sent it.
    #[error("worker received sequences up to {received}, of up to {last} that were sent to it")]
    Received { received: u64, last: u64 },
    /// It has received more than anybody can have sent.
    #[error("worker received sequences up to {0}, and nobody sends so many")]
    TooMany(u64),
}

/// An entry's place in the queue, which it keeps from when it was given to the worker until it is
/// settled: entries are large, and moving them is a good part of what a hand-over costs.
#[derive(Debug)]
struct Place {
    /// `None` where a refusal came before the acknowledgement.
    entry: Option<Entry>,
    /// `None` while it waits to be sent.
    offer: Option<Offer>,
}

#[derive(Clone, Copy, Debug)]
struct Offer {
    since: Instant,
    /// Another stands before it in the same packet.
    follows: bool,
    /// Of the router that sent it.
    epoch: u16,
}

/// The state of one worker's hand-over.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// Offered entries, oldest first, then those that wait to be sent.
    queue: VecDeque<Place>,
    /// How many of them are offered.
    offered: usize,
    waiting_bytes: usize,
    /// Sequence of the oldest offered entry.
    first: u64,
    /// Connections among offered and waiting entries.
    connections: u32,
    /// Open connections in the worker's last report.
    reported: u32,
    /// Sequence whose descriptor was the last to be missed.
    missed: u64,
}

impl Default for Handoff {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            offered: 0,
            waiting_bytes: 0,
            first: 1,
            connections: 0,
            reported: 0,
            missed: 0,
        }
    }
}

impl Handoff {
    /// A worker said hello: sequences go on after the last that it received, and this is its load.
    ///
    /// What an earlier router sent stands before the `Attach` that is answered. So all of it was
    /// received, and, where one number covers everything before it, what was not refused is taken:
    /// returns how many. Where processes share a port, each answers for itself.
    ///
    /// # Errors
    /// [`Fault::Received`], [`Fault::TooMany`]: it cannot be so. Nothing has changed then.
    pub(crate) fn begin(&mut self, received: u64, open: u32, acks: Acks) -> Result<usize, Fault> {
        let last = self.next_sequence() - 1;
        let settled = match acks {
            _ if received >= LAST => return Err(Fault::TooMany(received)),
            _ if self.offered == 0 => {
                self.first = received + 1;
                0
            }
            Acks::Cumulative if received == last => self.acknowledge_up_to(received)?,
            Acks::Each if received <= last => 0,
            _ => return Err(Fault::Received { received, last }),
        };
        self.reported = open;
        Ok(settled)
    }

    /// Whether something is without an answer that the router of this epoch sent.
    pub(crate) fn awaits(&self, epoch: u16) -> bool {
        let mut offered = self.queue.range(..self.offered);
        offered.any(|place| {
            place.entry.is_some() && place.offer.is_some_and(|offer| offer.epoch == epoch)
        })
    }

    /// Open connections as last reported, and everything on its way.
    pub(crate) fn load(&self) -> u32 {
        self.reported.saturating_add(self.connections)
    }

    /// Open connections in the worker's last report.
    pub(crate) fn reported(&self) -> u32 {
        self.reported
    }

    /// Offers without an answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.offered
    }

    /// Messages that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len() - self.offered
    }

    /// Whether the queue before this worker takes no more (1,024 messages or 1 MiB; a single larger
    /// message is taken when nothing waits before it).
    pub(crate) fn is_full(&self, entry: &Entry) -> bool {
        self.waiting() >= QUEUE_MESSAGES
            || (self.waiting() > 0 && self.waiting_bytes + entry.data.len() > QUEUE_BYTES)
    }

    /// Puts an entry at the end of the queue.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.connections += u32::from(entry.is_connection());
        self.waiting_bytes += entry.data.len();
        self.queue.push_back(Place { entry: Some(entry), offer: None });
    }

    /// Sequence of the next entry that is sent.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.first + self.offered as u64
    }

    /// The entries that wait, oldest first.
    pub(crate) fn waiting_entries(&self) -> impl Iterator<Item = &Entry> {
        self.queue.range(self.offered..).filter_map(|place| place.entry.as_ref())
    }

    /// The first `count` waiting entries were sent to the worker of this name, in one packet of this
    /// epoch.
    pub(crate) fn sent(&mut self, count: usize, now: Instant, worker: &str, epoch: u16) {
        let mut follows = false;
        let count = count.min(self.waiting());
        for place in self.queue.range_mut(self.offered..self.offered + count) {
            if let Some(entry) = &place.entry {
                self.waiting_bytes -= entry.data.len();
                if let Cargo::Connection(connection) = &entry.cargo {
                    connection.trace().handed_over(worker);
                }
            }
            place.offer = Some(Offer { since: now, follows, epoch });
            follows = true;
        }
        self.offered += count;
    }

    /// Takes out the first waiting entry: it can never be sent.
    pub(crate) fn take_unsendable(&mut self) -> Option<Entry> {
        let entry = self.queue.remove(self.offered)?.entry?;
        self.forget(&entry);
        self.waiting_bytes -= entry.data.len();
        Some(entry)
    }

    /// When the oldest offer without an answer was made.
    pub(crate) fn oldest_offer(&self) -> Option<Instant> {
        self.queue.front()?.offer.map(|offer| offer.since)
    }

    /// The worker reported how many connections it holds.
    pub(crate) fn report(&mut self, open: u32) {
        self.reported = open;
    }

    /// The worker has taken everything up to `sequence`. Returns how many entries that settled.
    ///
    /// # Errors
    /// [`Fault::NeverOffered`]; nothing is settled then.
    pub(crate) fn acknowledge_up_to(&mut self, sequence: u64) -> Result<usize, Fault> {
        if sequence >= self.next_sequence() {
            let next = self.next_sequence();
            return Err(Fault::NeverOffered { sequence, next });
        }
        // An older number repeats what is known: a report of the load alone.
        let count = (sequence + 1).saturating_sub(self.first) as usize;
        let mut settled = 0;
        for _ in 0..count {
            if let Some(Place { entry: Some(entry), .. }) = self.queue.pop_front() {
                self.forget(&entry);
                entry.settle();
                settled += 1;
            }
        }
        self.offered -= count;
        self.first += count as u64;
        Ok(settled)
    }

    /// The worker has taken this one.
    ///
    /// # Errors
    /// [`Fault`]: it was never offered, or is settled.
    pub(crate) fn acknowledge(&mut self, sequence: u64) -> Result<(), Fault> {
        let entry = self.take(sequence)?;
        entry.settle();
        Ok(())
    }

    /// The worker does not take this one; here it is back.
    ///
    /// [`RefusalReason::BehindMissing`] costs no attempt, so it is believed only of what stands
    /// directly behind a missed one of the same packet: else a worker that says it of everything
    /// would be offered the same connection for ever.
    ///
    /// # Errors
    /// [`Fault`]: it was never offered, is settled, or is not where the reason says. Nothing has
    /// changed then.
    pub(crate) fn refuse(&mut self, sequence: u64, reason: RefusalReason) -> Result<Entry, Fault> {
        match reason {
            RefusalReason::MissingDescriptor => {}
            RefusalReason::BehindMissing => {
                if !self.follows(sequence)? || self.missed.checked_add(1) != Some(sequence) {
                    return Err(Fault::NotBehind(sequence));
                }
            }
            _ => return self.take(sequence),
        }
        let entry = self.take(sequence)?;
        self.missed = sequence;
        Ok(entry)
    }

    /// Whether an offer without an answer stands behind another in its packet.
    fn follows(&self, sequence: u64) -> Result<bool, Fault> {
        let index = self.index(sequence)?;
        let offer = self.queue.get(index).and_then(|place| place.offer);
        offer.map(|offer| offer.follows).ok_or(Fault::Twice(sequence))
    }

    /// Where a sequence stands among the offers.
    fn index(&self, sequence: u64) -> Result<usize, Fault> {
        let next = self.next_sequence();
        if sequence >= next {
            return Err(Fault::NeverOffered { sequence, next });
        }
        Ok(sequence.checked_sub(self.first).ok_or(Fault::Twice(sequence))? as usize)
    }

    fn take(&mut self, sequence: u64) -> Result<Entry, Fault> {
        let index = self.index(sequence)?;
        let entry = self.queue.get_mut(index).and_then(|place| place.entry.take());
        let entry = entry.ok_or(Fault::Twice(sequence))?;
        self.forget(&entry);
        while self.queue.front().is_some_and(|place| place.entry.is_none()) {
            self.queue.pop_front();
            self.offered -= 1;
            self.first += 1;
        }
        Ok(entry)
    }

    /// The worker is gone: what was offered and never answered, and what was never sent.
    pub(crate) fn abandon(&mut self) -> (Vec<Entry>, Vec<Entry>) {
        let waiting = self.abandon_waiting();
        let offered: Vec<Entry> = self.queue.drain(..).filter_map(|place| place.entry).collect();
        self.offered = 0;
        self.first += offered.len() as u64;
        self.connections = 0;
        self.reported = 0;
        (offered, waiting)
    }

    /// The worker takes nothing new: what was never sent.
    pub(crate) fn abandon_waiting(&mut self) -> Vec<Entry> {
        let waiting: Vec<Entry> =
            self.queue.drain(self.offered..).filter_map(|place| place.entry).collect();
        for entry in &waiting {
            self.forget(entry);
        }
        self.waiting_bytes = 0;
        waiting
    }

    fn forget(&mut self, entry: &Entry) {
        self.connections -= u32::from(entry.is_connection());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(counts: &[usize]) -> Handoff {
        let mut handoff = Handoff::default();
        for count in counts {
            for _ in 0..*count {
                handoff.push(Entry::new(Data::NONE, Cargo::List(Vec::new())));
            }
            handoff.sent(*count, Instant::now(), "app-1", 1);
        }
        handoff
    }

    fn refuse(handoff: &mut Handoff, sequence: u64, reason: RefusalReason) -> Result<(), Fault> {
        handoff.refuse(sequence, reason).map(drop)
    }

    #[test]
    fn what_stands_behind_a_missing_descriptor_is_refused_with_it() {
        let mut handoff = packets(&[4]);
        assert_eq!(handoff.acknowledge_up_to(1), Ok(1));
        assert_eq!(refuse(&mut handoff, 2, RefusalReason::MissingDescriptor), Ok(()));
        assert_eq!(refuse(&mut handoff, 3, RefusalReason::BehindMissing), Ok(()));
        assert_eq!(refuse(&mut handoff, 4, RefusalReason::BehindMissing), Ok(()));
        assert_eq!(handoff.in_flight(), 0);
    }

    #[test]
    fn nothing_is_behind_a_missing_descriptor_that_none_missed() {
        let behind = RefusalReason::BehindMissing;
        // The first of a packet; another reason before it; one between; another packet; never.
        assert_eq!(refuse(&mut packets(&[2]), 1, behind), Err(Fault::NotBehind(1)));
        let mut handoff = packets(&[3, 2]);
        assert_eq!(refuse(&mut handoff, 1, RefusalReason::Full), Ok(()));
        assert_eq!(refuse(&mut handoff, 2, behind), Err(Fault::NotBehind(2)));
        assert_eq!(refuse(&mut handoff, 2, RefusalReason::MissingDescriptor), Ok(()));
        assert_eq!(refuse(&mut handoff, 5, behind), Err(Fault::NotBehind(5)));
        assert_eq!(refuse(&mut handoff, 3, RefusalReason::MissingDescriptor), Ok(()));
        assert_eq!(refuse(&mut handoff, 4, behind), Err(Fault::NotBehind(4)));
        assert_eq!(
            refuse(&mut handoff, 6, behind),
            Err(Fault::NeverOffered { sequence: 6, next: 6 })
        );
        assert_eq!(refuse(&mut handoff, 3, behind), Err(Fault::Twice(3)));
    }

    #[test]
    fn a_number_that_leaves_no_room_for_others_is_not_believed() {
        let mut handoff = Handoff::default();
        assert_eq!(handoff.begin(u64::MAX, 0, Acks::Each), Err(Fault::TooMany(u64::MAX)));
        assert_eq!(handoff.begin(LAST - 1, 0, Acks::Each), Ok(0));
        handoff.push(Entry::new(Data::NONE, Cargo::List(Vec::new())));
        handoff.sent(1, Instant::now(), "app-1", 1);
        assert_eq!(handoff.acknowledge_up_to(LAST), Ok(1));
    }

    #[test]
    fn a_fault_takes_nothing() {
        let mut handoff = packets(&[2]);
        assert!(refuse(&mut handoff, 2, RefusalReason::BehindMissing).is_err());
        let (offered, _) = handoff.abandon();
        assert_eq!(offered.len(), 2);
    }
}
