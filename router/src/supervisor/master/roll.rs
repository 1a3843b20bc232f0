//! Replacing workers, one at a time: the next one is ready before the last one drains.
//!
//! For a while there are two processes of one name, in two slots of the pool: a slot has one process
//! at a time, as everything that router and supervisor say of it is about one; a name is given on. A
//! successor that does not become ready stops the roll; the workers that are there stay.

mod progress;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vestibule_protocol::supervision::{WorkerId, WorkerLoad};

pub(super) use self::progress::{Roll, Stopped};
use super::Master;
use crate::options::Recycle;
use crate::supervisor::process_table::{Phase, Record, Seat};

/// A worker that lived at least this long before it announced its drain is replaced at once.
const HEALTHY: Duration = Duration::from_secs(10);
impl Master {
    /// Every worker of a pool is replaced, by one of the present program. Returns how many.
    pub(super) fn roll(&mut self, pool: u32) -> usize {
        let Some(state) = self.pools.iter_mut().find(|state| state.id == pool) else { return 0 };
        state.version += 1;
        state.roll.begin();
        // Whoever was to take over has the last program.
        let late: Vec<_> = self.table.of_pool(pool).filter(|r| r.takes_over.is_some()).collect();
        for worker in late.into_iter().map(|record| record.worker).collect::<Vec<_>>() {
            self.retire(worker);
        }
        self.roll_on(pool);
        self.current(pool).count()
    }

    /// How many of a pool are still to be replaced.
    pub(super) fn left_to_roll(&self, pool: u32, version: u64) -> usize {
        self.current(pool).filter(|record| record.version < version).count()
    }

    /// Takes the next step of a pool's roll, if there is one and nobody is under way.
    pub(super) fn roll_on(&mut self, pool: u32) {
        let Some(state) = self.pools.iter().find(|state| state.id == pool) else { return };
        let under_way = self.table.of_pool(pool).any(|r| r.takes_over.is_some() && !r.retired);
        let finishes = state.roll.finishing().is_some_and(|worker| {
            let mut all = self.table.of_pool(pool);
            all.any(|record| record.worker == worker && record.phase != Phase::Ended)
        });
        if self.stopping || under_way || finishes {
            return;
        }
        let (version, recycle, now) = (state.version, state.options.recycle, Instant::now());
        let next = self
            .current(pool)
            .filter(|record| {
                let is_worn = || record.is_worn(&recycle).is_some();
                state.roll.replaces(now, record.version < version, is_worn)
            })
            .min_by_key(|record| record.number);
        let next = next.map(|record| (record.worker, record.is_worn(&recycle)));
        let Some(state) = self.pools.iter_mut().find(|state| state.id == pool) else { return };
        if state.roll.step(next.is_some()) {
            tracing::info!(pool = state.name(), "every worker of the pool is a new one");
        }
        if let Some((worker, worn)) = next {
            self.start_successor(worker, worn);
        }
    }

    /// Starts the process that is to take over from a worker.
    fn start_successor(&mut self, worker: WorkerId, worn: Option<&'static str>) {
        let Some(state) = self.pools.iter().find(|state| state.id == worker.pool) else { return };
        let newest = (Arc::clone(&state.options), state.version);
        let stopped = state.roll.is_stopped();
        let slot = self.free_slot(worker.pool);
        let Some(record) = self.table.record(worker) else { return };
        tracing::info!(worker = &*record.name, worn, "a successor is started");
        let (options, version) = match stopped {
            // The newest program does not become ready: what is worn is replaced by its own.
            true => (Arc::clone(record.options()), record.version),
            false => newest,
        };
        let (held, takes_over) = (record.held, Some(worker.slot));
        let seat = record.successor(slot, options, Duration::ZERO);
        self.seat(seat, version, held, takes_over);
    }

    /// A worker is ready: if it is a successor, the one before it drains now.
    pub(super) fn is_ready(&mut self, worker: WorkerId) {
        let Some(record) = self.table.record(worker).filter(|record| record.worker == worker)
        else {
            return;
        };
        if record.retired {
            return;
        }
        let Some(slot) = record.takes_over.take() else { return };
        let name = Arc::clone(&record.name);
        let old = self.table.of_pool(worker.pool).find(|record| record.worker.slot == slot);
        let Some(old) = old.filter(|old| !old.retired).map(|old| old.worker) else { return };
        tracing::info!(worker = &*name, "a successor is ready; the one before it drains");
        self.retire(old);
        if let Some(state) = self.pools.iter_mut().find(|state| state.id == worker.pool) {
            let record = self.table.record(worker);
            state.roll.replaced(old, record.is_some_and(|record| record.version == state.version));
        }
        self.roll_on(worker.pool);
    }

    /// A process did not start, or ended: if it was to take over and was never ready, the roll stops.
    pub(super) fn failed_start(&mut self, worker: WorkerId, reason: &str) {
        let Some(record) = self.table.record(worker) else { return };
        if record.retired || record.takes_over.is_none() {
            return;
        }
        let stopped = Stopped {
            worker: record.name.to_string(),
            reason: crate::supervisor::output::Tail::without_lines(reason).to_owned(),
            lines: record.tail.lines(),
        };
        let id = record.worker;
        self.retire(id);
        let Some(state) = self.pools.iter_mut().find(|state| state.id == worker.pool) else {
            return;
        };
        tracing::error!(
            pool = state.name(),
            worker = stopped.worker,
            reason = stopped.reason,
            "a successor does not become ready: the roll stops, and the workers that are there stay"
        );
        state.roll.stop(stopped, Instant::now());
    }

    /// Whether what the router says of a worker was asked for by nobody here.
    pub(super) fn drains_by_itself(&mut self, worker: WorkerId) -> bool {
        !self.stopping
            && self.pools.iter().any(|state| state.id == worker.pool)
            && self.table.record(worker).is_some_and(|record| {
                record.worker == worker
                    && !record.retired
                    && record.takes_over.is_none()
                    && matches!(record.phase, Phase::Starting | Phase::Ready)
            })
    }

    /// A worker has announced that it takes nothing more: another takes its place now, before it has
    /// ended.
    pub(super) fn replace(&mut self, worker: WorkerId) {
        let successor = self.successor_of(worker);
        let slot = self.free_slot(worker.pool);
        let Some(state) = self.pools.iter().find(|state| state.id == worker.pool) else { return };
        let newest = (Arc::clone(&state.options), state.version);
        let stopped = state.roll.is_stopped();
        let Some(record) = self.table.record(worker) else { return };
        let early = record.started.elapsed() < HEALTHY;
        // One that does so again and again is started as seldom as one that ends again and again.
        let flights = if early { record.flights + 1 } else { 0 };
        let delay = match (record.options().restart, flights) {
            (_, 0) | (None, _) => Duration::ZERO,
            (Some(restart), flights) => {
                let factor = 1u32.checked_shl(flights - 1).unwrap_or(u32::MAX);
                restart.delay.saturating_mul(factor).min(restart.max_delay)
            }
        };
        tracing::info!(worker = &*record.name, ?delay, "a worker drains by itself and is replaced");
        let (options, version) = match stopped {
            true => (Arc::clone(record.options()), record.version),
            false => newest,
        };
        let held = record.held;
        let seat = record.successor(slot, options, delay);
        match successor {
            // It is under way; whether it becomes ready or not, nobody else is left.
            Some(successor) => {
                if let Some(record) = self.table.record(successor) {
                    record.takes_over = None;
                }
            }
            None => {
                let id = WorkerId { pool: seat.pool, slot: seat.slot, generation: 0 };
                self.seat(seat, version, held, None);
                if let Some(record) = self.table.record(id) {
                    record.flights = flights;
                }
            }
        }
        self.retire(worker);
    }

    /// Looks at what workers have used up, and replaces one that has had enough.
    pub(super) fn look_at_wear(&mut self) {
        let watched: Vec<u32> = self
            .pools
            .iter()
            .filter(|state| state.options.recycle != Recycle::default())
            .map(|state| state.id)
            .collect();
        for pool in watched {
            self.roll_on(pool);
        }
    }

    /// Whether the router has to be asked what workers served.
    pub(super) fn counts_served(&self) -> bool {
        self.pools.iter().any(|state| state.options.recycle.max_served.is_some())
    }

    /// The router has said what workers took.
    pub(super) fn note_wear(&mut self, loads: &[WorkerLoad]) {
        for load in loads {
            if let Some(record) = self.table.record(load.worker)
                && record.worker == load.worker
            {
                record.wear.served = load.served;
            }
        }
    }

    /// Another router counts from zero.
    pub(super) fn keep_wear(&mut self) {
        for record in self.table.records_mut() {
            record.wear.served_before += std::mem::take(&mut record.wear.served);
        }
    }
}

impl Record {
    /// Whether it is the one of its name that is wanted.
    pub(super) fn is_current(&self) -> bool {
        !self.retired && self.takes_over.is_none()
    }

    /// A seat of the same name.
    fn successor(
        &self,
        slot: u32,
        options: Arc<crate::options::WorkerOptions>,
        delay: Duration,
    ) -> Seat {
        let (pool, name) = (self.worker.pool, Arc::clone(&self.name));
        let restarts = self.restarts + 1;
        Seat { pool, slot, name, number: self.number, options, delay, restarts }
    }

    /// What of it is used up, as the key that bounds it.
    fn is_worn(&self, bounds: &Recycle) -> Option<&'static str> {
        if self.phase != Phase::Ready {
            return None;
        }
        let memory = || self.pid.and_then(crate::sys::process::resident);
        self.wear.used_up(self.started.elapsed(), memory, bounds)
    }
}
