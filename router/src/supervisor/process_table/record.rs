//! What is known about one slot.

use std::os::fd::OwnedFd;
#[cfg(feature = "cli")]
use std::sync::Arc;
#[cfg(feature = "cli")]
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc;
use vestibule_protocol::supervision::{Exit, WorkerId};

use super::super::life::Order;
#[cfg(feature = "cli")]
use super::super::output::Tail;
use super::super::unburied::Unburied;
#[cfg(feature = "cli")]
use crate::options::{Recycle, WorkerOptions};

/// Where a slot is in its life, for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A process runs that is not ready.
    Starting,
    /// It serves.
    Ready,
    /// It finishes what it has.
    Draining,
    /// It waits to be started again.
    Backoff,
    /// There is no process and none comes.
    Ended,
}

impl Phase {
    /// The word in `status`.
    #[cfg(feature = "cli")]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Backoff => "backoff",
            Self::Ended => "ended",
        }
    }
}

/// What is known about one slot.
#[derive(Debug)]
pub(crate) struct Record {
    #[cfg(feature = "cli")]
    pub(crate) name: Arc<str>,
    pub(crate) worker: WorkerId,
    pub(crate) phase: Phase,
    pub(crate) pid: Option<u32>,
    pub(crate) since: Instant,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) last_error: Option<String>,
    /// The last lines of its last process.
    #[cfg(feature = "cli")]
    pub(crate) tail: Tail,
    /// Processes that the slot had before this one.
    pub(crate) restarts: u32,
    /// It was ready once, in any generation.
    pub(crate) was_ready: bool,
    /// It is kept out of the choice, and so is whoever follows it.
    #[cfg(feature = "cli")]
    pub(crate) held: bool,
    /// Nobody takes its place.
    pub(crate) retired: bool,
    /// The slot whose worker it is to take over from, until it is ready.
    #[cfg(feature = "cli")]
    pub(crate) takes_over: Option<u32>,
    /// N of `POOL-N`, from 0.
    #[cfg(feature = "cli")]
    pub(crate) number: u32,
    /// Which version of its pool's program it runs.
    #[cfg(feature = "cli")]
    pub(crate) version: u64,
    /// When its process was started.
    #[cfg(feature = "cli")]
    pub(crate) started: Instant,
    /// What it has used up so far.
    #[cfg(feature = "cli")]
    pub(crate) wear: Wear,
    /// Announcements of a drain in a row, each soon after a start.
    #[cfg(feature = "cli")]
    pub(crate) flights: u32,
    /// Generation of the first process, and how many the name had before.
    pub(super) first: (u32, u32),
    #[cfg(feature = "cli")]
    pub(super) options: Arc<WorkerOptions>,
    pub(super) orders: mpsc::UnboundedSender<(WorkerId, Order)>,
    /// Processes of the slot that were killed and cannot end.
    pub(super) unburied: Unburied,
    /// The router's end of the worker's port: a router that crashes closes nothing.
    pub(super) port: Option<OwnedFd>,
    /// A process of the slot that died while no router was there to hear of it.
    #[cfg(feature = "cli")]
    pub(super) unheard: Option<Unheard>,
}

/// A process that was ready and died while one router took over from another: what it had answered is in
/// its port, and the next router still knows what it was sent.
#[cfg(feature = "cli")]
#[derive(Debug)]
pub(super) struct Unheard {
    pub(super) worker: WorkerId,
    pub(super) pid: u32,
    pub(super) port: OwnedFd,
    pub(super) exit: Exit,
}

#[cfg(feature = "cli")]
impl Record {
    /// What a process has left that is gone.
    pub(super) fn last_words(&mut self, worker: WorkerId, exit: Exit) -> Option<Unheard> {
        Some(Unheard { worker, pid: self.pid?, port: self.port.take()?, exit })
    }

    /// Whether the slot is over, and the router knows all of it.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Ended && self.unheard.is_none()
    }

    /// What its processes run.
    pub(crate) fn options(&self) -> &Arc<WorkerOptions> {
        &self.options
    }
}

/// What a process has used up.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wear {
    /// Connections that it took from routers that are gone.
    pub(crate) served_before: u64,
    /// Connections that it took from this router.
    pub(crate) served: u64,
    /// Part of each bound that is not used, so that equal workers do not end together: of 65,536.
    pub(crate) jitter: u16,
}

#[cfg(feature = "cli")]
impl Wear {
    /// Of a process that begins.
    pub(super) fn begin() -> Self {
        use std::hash::{BuildHasher, Hasher};
        // Any part of it is as good as another.
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self { jitter: random as u16, ..Self::default() }
    }

    /// What is used up of its bounds, as the key that sets it, of a process of this age. Its memory is
    /// asked for last.
    pub(crate) fn used_up(
        &self,
        age: Duration,
        memory: impl FnOnce() -> Option<u64>,
        bounds: &Recycle,
    ) -> Option<&'static str> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let is_over = |used: u64, bound: u64| used >= self.part(bound);
        let served = self.served_before + self.served;
        let max_age = bounds.max_age.map(milliseconds);
        if max_age.is_some_and(|bound| is_over(milliseconds(age), bound)) {
            return Some("max-age");
        }
        if bounds.max_served.is_some_and(|bound| served > 0 && is_over(served, bound)) {
            return Some("max-connections-served");
        }
        let bound = bounds.max_memory?;
        memory().is_some_and(|used| is_over(used, bound)).then_some("max-memory")
    }

    /// Up to a tenth less, for each process its own.
    fn part(&self, whole: u64) -> u64 {
        whole - (whole / 10).saturating_mul(self.jitter.into()) / 65_536
    }
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const BOUNDS: Recycle =
        Recycle { max_age: Some(HOUR), max_served: Some(1000), max_memory: Some(1 << 30) };

    fn used_up(wear: &Wear, age: Duration, memory: u64) -> Option<&'static str> {
        wear.used_up(age, || Some(memory), &BOUNDS)
    }

    #[test]
    fn workers_that_began_together_are_not_worn_together() {
        let (last, first) = (Wear::default(), Wear { jitter: u16::MAX, ..Wear::default() });
        for (age, memory, served, word) in [
            (HOUR * 95 / 100, 0, 0, "max-age"),
            (HOUR / 2, 0, 950, "max-connections-served"),
            (HOUR / 2, (1 << 30) * 95 / 100, 0, "max-memory"),
        ] {
            assert_eq!(used_up(&Wear { served, ..last }, age, memory), None, "{word}");
            assert_eq!(used_up(&Wear { served, ..first }, age, memory), Some(word));
            let age = age.mul_f64(0.9);
            let (served, memory) = (served * 9 / 10, memory * 9 / 10);
            assert_eq!(used_up(&Wear { served, ..first }, age, memory), None, "{word}: a tenth");
        }
        assert_eq!(used_up(&last, HOUR, 0), Some("max-age"));
    }

    #[test]
    fn each_process_has_a_part_of_its_own() {
        let jitters: std::collections::BTreeSet<u16> =
            (0..64).map(|_| Wear::begin().jitter).collect();
        assert!(jitters.len() > 32, "{jitters:?}");
    }

    #[test]
    fn a_bound_of_one_connection_is_one() {
        let bounds = Recycle { max_age: None, max_served: Some(1), max_memory: None };
        let worn = |served| {
            let wear = Wear { served, jitter: u16::MAX, ..Wear::default() };
            wear.used_up(HOUR, || None, &bounds)
        };
        assert_eq!((worn(0), worn(1)), (None, Some("max-connections-served")));
    }
}
