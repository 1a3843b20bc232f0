//! Offers without an answer, on their way from one router to the next: with their numbers, since the
//! worker's answer names nothing else.
//!
//! The numbers are the old router's word, and a place is kept for each: so they are judged as they come.

use std::time::Instant;

use super::{Entry, Handoff, LAST, Offer, Place};

/// What one worker was sent and has not answered.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// Oldest first.
    offers: Vec<Unsettled>,
    /// Sequence of the next entry that is sent.
    next: u64,
    /// Sequence whose descriptor was the last to be missed.
    missed: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) sequence: u64,
    pub(crate) entry: Entry,
    pub(crate) since: Instant,
    /// Another stands before it in the same packet.
    pub(crate) follows: bool,
    /// Of the router that sent it.
    pub(crate) epoch: u16,
}

/// Numbers that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misnumbered {
    /// There is no room for those that follow.
    #[error("the next sequence of a worker is {0}")]
    Next(u64),
    /// It does not stand between those before it and the next one to be sent.
    #[error("sequence {sequence} does not stand between {after} and {next}")]
    Order { sequence: u64, after: u64, next: u64 },
    /// More were answered out of turn than may be.
    #[error("behind sequence {sequence} {gaps} have no connection, more than may be: {most}")]
    Gaps { sequence: u64, gaps: u64, most: u64 },
}

impl Unanswered {
    /// None yet.
    ///
    /// # Errors
    /// [`Misnumbered::Next`].
    pub(crate) fn new(next: u64, missed: u64) -> Result<Self, Misnumbered> {
        match next {
            1..=LAST => Ok(Self { offers: Vec::new(), next, missed }),
            _ => Err(Misnumbered::Next(next)),
        }
    }

    /// One more. Between the first and `next` a place is kept for each number, its own connection or
    /// not: `spare` is how many more without one there may be, and is changed by what this one brings.
    ///
    /// # Errors
    /// [`Misnumbered`]: nothing has changed then, and this copy of its connection is closed.
    pub(crate) fn push(&mut self, offer: Unsettled, spare: &mut u64) -> Result<(), Misnumbered> {
        let (sequence, next) = (offer.sequence, self.next);
        let after = self.offers.last().map_or(0, |last| last.sequence);
        if sequence <= after || sequence >= next {
            return Err(Misnumbered::Order { sequence, after, next });
        }
        if self.offers.is_empty() {
            let (gaps, most) = (next - sequence - 1, *spare);
            if gaps > most {
                return Err(Misnumbered::Gaps { sequence, gaps, most });
            }
            *spare -= gaps;
        } else {
            // It stands where the first one has reckoned with none.
            *spare += 1;
        }
        self.offers.push(offer);
        Ok(())
    }

    /// Oldest first.
    pub(crate) fn offers(&self) -> &[Unsettled] {
        &self.offers
    }

    /// Their entries, to be completed.
    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.offers.iter_mut().map(|offer| &mut offer.entry)
    }

    /// What was sent, without its numbers.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.offers.into_iter().map(|offer| offer.entry)
    }

    /// Sequence of the next entry that is sent, and the one whose descriptor was the last to be missed.
    pub(crate) fn numbers(&self) -> (u64, u64) {
        (self.next, self.missed)
    }
}

impl Handoff {
    /// Takes out what was sent and not answered; `None` if there is nothing.
    pub(crate) fn take_unanswered(&mut self) -> Option<Unanswered> {
        let (first, next, missed) = (self.first, self.next_sequence(), self.missed);
        let places = self.queue.drain(..self.offered);
        let offers = (first..).zip(places).filter_map(|(sequence, place)| {
            let Offer { since, follows, epoch } = place.offer?;
            let entry = place.entry?;
            Some(Unsettled { sequence, entry, since, follows, epoch })
        });
        let offers: Vec<_> = offers.collect();
        self.offered = 0;
        self.first = next;
        for offer in &offers {
            self.forget(&offer.entry);
        }
        (!offers.is_empty()).then_some(Unanswered { offers, next, missed })
    }

    /// Takes what the router before this one sent. Nothing was given to the worker yet by this one.
    pub(crate) fn inherit(&mut self, unanswered: Unanswered) {
        let Unanswered { offers, next, missed } = unanswered;
        debug_assert!(self.offered == 0, "nothing is offered before hello");
        let Some(oldest) = offers.first() else { return };
        (self.first, self.missed) = (oldest.sequence, missed);
        let mut offer = Offer { since: oldest.since, follows: false, epoch: oldest.epoch };
        let mut offers = offers.into_iter().peekable();
        let mut places = Vec::new();
        // As many without an entry as `Unanswered::push` let be.
        for sequence in self.first..next {
            // What is not among them was refused; or it was lost with the router before this one, and
            // the worker's answer to it concerns nobody.
            let mut entry = None;
            if let Some(one) = offers.next_if(|one| one.sequence == sequence) {
                self.connections += u32::from(one.entry.is_connection());
                offer = Offer { since: one.since, follows: one.follows, epoch: one.epoch };
                entry = Some(one.entry);
            }
            places.push(Place { entry, offer: Some(offer) });
        }
        self.offered = places.len();
        places.into_iter().rev().for_each(|place| self.queue.push_front(place));
    }
}

#[cfg(test)]
mod tests {
    use vestibule_protocol::codec::Data;

    use super::*;
    use crate::handoff::Cargo;

    fn offer(sequence: u64) -> Unsettled {
        let entry = Entry::new(Data::NONE, Cargo::List(Vec::new()));
        Unsettled { sequence, entry, since: Instant::now(), follows: false, epoch: 1 }
    }

    fn push(
        unanswered: &mut Unanswered,
        sequence: u64,
        spare: &mut u64,
    ) -> Result<(), Misnumbered> {
        unanswered.push(offer(sequence), spare)
    }

    #[test]
    fn offers_come_in_order_and_below_the_next_one() {
        let mut spare = 10;
        let mut all = Unanswered::new(8, 0).unwrap();
        let order = |sequence, after| Err(Misnumbered::Order { sequence, after, next: 8 });
        assert_eq!(push(&mut all, 0, &mut spare), order(0, 0));
        assert_eq!(push(&mut all, 8, &mut spare), order(8, 0));
        assert_eq!(push(&mut all, u64::MAX, &mut spare), order(u64::MAX, 0));
        assert_eq!(push(&mut all, 3, &mut spare), Ok(()));
        assert_eq!(push(&mut all, 3, &mut spare), order(3, 3));
        assert_eq!(push(&mut all, 2, &mut spare), order(2, 3));
        assert_eq!(push(&mut all, 5, &mut spare), Ok(()));
        // 4, 6 and 7 have none.
        assert_eq!(spare, 7);
        let mut handoff = Handoff::default();
        handoff.inherit(all);
        assert_eq!((handoff.next_sequence(), handoff.in_flight()), (8, 5));
        assert_eq!(handoff.acknowledge_up_to(7), Ok(2));
    }

    #[test]
    fn a_number_that_is_far_from_the_next_one_makes_no_places() {
        let mut spare = 100;
        let mut all = Unanswered::new(LAST, 0).unwrap();
        let gaps = Misnumbered::Gaps { sequence: 1, gaps: LAST - 2, most: 100 };
        assert_eq!(push(&mut all, 1, &mut spare), Err(gaps));
        assert_eq!(push(&mut all, LAST - 101, &mut spare), Ok(()));
        // Whoever comes then has to do with what is left.
        let mut other = Unanswered::new(3, 0).unwrap();
        assert!(push(&mut other, 1, &mut spare).is_err());
        assert_eq!(push(&mut other, 2, &mut spare), Ok(()));
        let mut handoff = Handoff::default();
        handoff.inherit(all);
        assert_eq!(handoff.in_flight(), 101);
    }

    #[test]
    fn a_next_one_that_cannot_be_is_refused() {
        for next in [0, LAST + 1, u64::MAX] {
            assert_eq!(Unanswered::new(next, 0).err(), Some(Misnumbered::Next(next)));
        }
    }
}
