//! Offers without an answer, on their way from one router to the next: with their numbers, since the
//! worker's answer names nothing else.

use std::time::Instant;

use super::{Entry, Handoff, Offer, Place};

/// What one worker was sent and has not answered.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// Oldest first.
    pub(crate) offers: Vec<Unsettled>,
    /// Sequence of the next entry that is sent.
    pub(crate) next: u64,
    /// Sequence whose descriptor was the last to be missed.
    pub(crate) missed: u64,
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
