//! What the router before this one passes on, as it comes, and how much of it is taken.
//!
//! That router faces clients and has no rights, so what it says may be anybody's: it is not to bring down
//! the next one, whatever it says. What cannot be is left out, with an error in the log, and the planned
//! change goes on with all else: a change that were given up would lose everybody who waits.
//! Each bound is more than a router that keeps the rules can have.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::{AsRawFd, OwnedFd};

use vestibule_protocol::connection_info::Names;
use vestibule_protocol::limits::MAX_MESSAGE;
use vestibule_protocol::supervision::{PoolSettings, WorkerId};

use super::passing::{Inherited, Passed, Wrong};
use crate::handoff::unanswered::Unsettled;
use crate::pool::core::succession::Legacy;

/// Bytes that all connections together may have with them: messages, and what was read of them. Sixteen
/// thousand of the longest beginnings, or sixty of the longest messages; as a rule it is some hundred
/// bytes each.
const BYTES: usize = 64 * MAX_MESSAGE;
/// Sequences of all workers together that were answered before one that was not: a whole window of the
/// largest. Each has a place until then, some 400 bytes.
const GAPS: u64 = PoolSettings::MOST_WINDOW as u64;
/// Peers of which it is said what they have used up: all that sixteen listeners tell apart. Who is not
/// among them begins anew, and nobody is lost.
const RATES: usize = 16 * 65_536;
/// Configurations of removed listeners: the supervisor keeps no more.
const FORMER: usize = crate::supervisor::master::former::MOST_FORMER;

/// How much is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Of the router that takes it.
    pub(super) epoch: u16,
    /// Number of the first descriptor that is kept for what this router needs itself.
    pub(super) reserved_from: u64,
    pub(super) bytes: usize,
    pub(super) gaps: u64,
    pub(super) rates: usize,
    pub(super) former: usize,
}

impl Bounds {
    /// For the router of this epoch, which is to get so many ports when it has all of this: one that does
    /// not arrive costs a worker its life. Listeners have come before.
    pub(super) fn of(epoch: u16, ports: u32) -> Self {
        let reserved_from = crate::listener::first_reserved().saturating_sub(ports.into());
        Self { epoch, reserved_from, bytes: BYTES, gaps: GAPS, rates: RATES, former: FORMER }
    }
}

/// Everything that has come.
#[derive(Debug)]
pub(super) struct Estate {
    bounds: Bounds,
    /// What is left of them.
    left: Bounds,
    names: Names,
    /// What workers have not answered.
    legacies: BTreeMap<WorkerId, Legacy>,
    /// The last one that was named, unless that was wrong.
    worker: Option<WorkerId>,
    /// All else, in its order.
    things: Vec<Inherited>,
    /// How often something was left out.
    wrong: u64,
}

impl Estate {
    /// Nothing yet.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            left: bounds,
            names: Names::default(),
            legacies: BTreeMap::new(),
            worker: None,
            things: Vec::new(),
            wrong: 0,
        }
    }

    /// Takes what is said, with its descriptor, or leaves it out.
    pub(super) fn take(&mut self, passed: Passed, descriptor: Option<OwnedFd>) {
        if let Err(wrong) = self.judge(passed, descriptor) {
            self.leave_out(&wrong);
        }
    }

    /// Something is of no use. The first time is told: whoever says wrong things may say many.
    pub(super) fn leave_out(&mut self, wrong: &Wrong) {
        self.wrong += 1;
        if self.wrong == 1 {
            let error = wrong as &dyn Error;
            tracing::error!(error, "what the router before says cannot be, and is left out");
        }
    }

    /// What has come, workers first.
    pub(super) fn end(mut self) -> (Vec<Legacy>, Vec<Inherited>) {
        self.drop_empty();
        if self.wrong > 1 {
            let count = self.wrong;
            tracing::error!(count, "more of what the router before said was left out");
        }
        (self.legacies.into_values().collect(), self.things)
    }

    fn judge(&mut self, passed: Passed, descriptor: Option<OwnedFd>) -> Result<(), Wrong> {
        let weight = passed.weight();
        if weight > self.left.bytes {
            drop(Inherited::new(passed, descriptor, &mut self.names)?);
            return Err(Wrong::Bytes(self.bounds.bytes));
        }
        let number = descriptor.as_ref().map(AsRawFd::as_raw_fd);
        let thing = Inherited::new(passed, descriptor, &mut self.names)?;
        // The system gives out the lowest free number.
        let number = number.and_then(|number| u64::try_from(number).ok());
        if number.is_some_and(|number| number >= self.bounds.reserved_from) {
            return Err(Wrong::Descriptors);
        }
        match thing {
            Inherited::Worker(legacy) => self.worker(legacy)?,
            Inherited::Offered(offer) => self.offer(offer)?,
            Inherited::Used(used) => self.rates(used)?,
            Inherited::Former(number) => {
                let left = self.left.former.checked_sub(1);
                self.left.former = left.ok_or(Wrong::Former(self.bounds.former))?;
                self.things.push(Inherited::Former(number));
            }
            thing => self.things.push(thing),
        }
        self.left.bytes -= weight;
        Ok(())
    }

    fn worker(&mut self, legacy: Legacy) -> Result<(), Wrong> {
        self.drop_empty();
        let worker = legacy.worker;
        if self.legacies.contains_key(&worker) {
            return Err(Wrong::Twice(worker));
        }
        self.legacies.insert(worker, legacy);
        self.worker = Some(worker);
        Ok(())
    }

    /// Nothing is passed on of a worker that has answered everything: one costs a connection at least.
    fn drop_empty(&mut self) {
        if let Some(worker) = self.worker.take()
            && self.legacies.get(&worker).is_some_and(|it| it.unanswered.offers().is_empty())
        {
            self.legacies.remove(&worker);
        }
    }

    fn offer(&mut self, offer: Unsettled) -> Result<(), Wrong> {
        if offer.epoch == self.bounds.epoch {
            return Err(Wrong::OwnEpoch(offer.epoch));
        }
        let legacy = self.worker.and_then(|worker| self.legacies.get_mut(&worker));
        let legacy = legacy.ok_or(Wrong::NoWorker)?;
        Ok(legacy.unanswered.push(offer, &mut self.left.gaps)?)
    }

    fn rates(&mut self, mut used: Vec<crate::dispatch::Used>) -> Result<(), Wrong> {
        let most = self.left.rates;
        let enough = if used.len() > most { Err(Wrong::Rates(self.bounds.rates)) } else { Ok(()) };
        used.truncate(most);
        self.left.rates -= used.len();
        match self.things.last_mut() {
            _ if used.is_empty() => {}
            Some(Inherited::Used(before)) => before.append(&mut used),
            _ => self.things.push(Inherited::Used(used)),
        }
        enough
    }
}

#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod tests;
