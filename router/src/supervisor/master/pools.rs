//! Listeners and pools as the supervisor holds them: by numbers that nothing else ever has, so that
//! what is said of one that is no more is about nothing else.

use std::sync::Arc;

use vestibule_protocol::supervision::{ListenerSetup, PoolSetup, ToRouter, WorkerId};

use super::Master;
use super::plan::{ListenerPlan, PoolPlan};
use super::roll::Roll;
use crate::listener::Bound;
use crate::options::WorkerOptions;
use crate::supervisor::process_table::{Phase, ProcessTable, Record, Seat};

/// What was given so far.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    listeners: u32,
    pools: u32,
}

/// A listener. With another name it is another one.
#[derive(Debug)]
pub(super) struct Listening {
    /// Its number and name among it.
    pub(super) setup: ListenerSetup,
    /// As it is written.
    pub(super) address: String,
    pub(super) backlog: Option<u32>,
    pub(super) socket: Bound,
}

impl Listening {
    /// `present`: the socket of its address that is there already.
    pub(super) fn new(
        numbers: &mut Numbers,
        plan: ListenerPlan,
        present: Option<Bound>,
    ) -> Option<Self> {
        let id = numbers.listeners;
        numbers.listeners += 1;
        let ListenerPlan { setup, address, backlog, socket } = plan;
        let setup = ListenerSetup { id, ..setup };
        Some(Self { setup, address, backlog, socket: socket.or(present)? })
    }
}

/// A pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: u32,
    /// How many workers the configuration says.
    pub(super) workers: usize,
    /// What new workers run.
    pub(super) options: Arc<WorkerOptions>,
    /// Which of its programs that is: workers of an older one are replaced.
    pub(super) version: u64,
    pub(super) roll: Roll,
}

impl Pool {
    pub(super) fn new(numbers: &mut Numbers, plan: PoolPlan) -> Self {
        let id = numbers.pools;
        numbers.pools += 1;
        let PoolPlan { workers, options } = plan;
        Self { id, workers, options: Arc::new(options), version: 0, roll: Roll::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.options.pool
    }

    /// Starts its workers.
    pub(super) fn fill(&self, table: &mut ProcessTable) {
        for slot in 0..self.workers as u32 {
            let name = worker_name(self.name(), slot).into();
            table.add(Seat::new(self.id, slot, name, Arc::clone(&self.options)));
        }
    }

    /// For a router. Its place among the counters is its number: what is beyond the page is not
    /// counted.
    pub(super) fn setup(&self, table: &ProcessTable, leaving: bool) -> PoolSetup {
        PoolSetup {
            id: self.id,
            counters: self.id,
            name: self.name().to_owned(),
            settings: self.options.settings(),
            slots: table.slots(self.id),
            leaving,
        }
    }
}

/// A worker's name: slots count from 0, names from 1.
pub(super) fn worker_name(pool: &str, number: u32) -> String {
    format!("{pool}-{}", u64::from(number) + 1)
}

impl Master {
    /// The slots of a pool that are wanted, each name once.
    pub(super) fn current(&self, pool: u32) -> impl Iterator<Item = &Record> {
        self.table.of_pool(pool).filter(|record| record.is_current())
    }

    pub(super) fn wanted(&self, pool: u32) -> u32 {
        // Slots are numbered with 32 bits.
        self.current(pool).count() as u32
    }

    /// Another number of workers: the lowest names that are free, or the highest that are not.
    pub(super) fn resize(&mut self, pool: u32, workers: u32) {
        let before = self.wanted(pool);
        for _ in before..workers {
            let taken: Vec<u32> = self.current(pool).map(|record| record.number).collect();
            let free = (0..).find(|number| !taken.contains(number));
            self.add_worker(pool, free.unwrap_or(before));
        }
        for _ in workers..before {
            let highest = self.current(pool).max_by_key(|record| record.number);
            let Some(worker) = highest.map(|record| record.worker) else { return };
            let successor = self.successor_of(worker);
            self.retire(worker);
            if let Some(successor) = successor {
                self.retire(successor);
            }
        }
    }

    /// One more worker, of the program that the others have.
    fn add_worker(&mut self, pool: u32, number: u32) {
        let Some(state) = self.pools.iter().find(|state| state.id == pool) else { return };
        let mut what = (Arc::clone(&state.options), state.version);
        if state.roll.is_stopped()
            && let Some(old) = self.current(pool).next()
            && let Some(options) = self.table.options(old.worker)
        {
            // The newest does not become ready.
            what = (Arc::clone(options), old.version);
        }
        let name = worker_name(&what.0.pool, number).into();
        let seat = Seat { number, ..Seat::new(pool, self.free_slot(pool), name, what.0) };
        self.seat(seat, what.1, false, None);
    }

    /// A place for a process: that of a retired one that is over, or a new one.
    pub(super) fn free_slot(&self, pool: u32) -> u32 {
        let over = |record: &&Record| record.retired && record.phase == Phase::Ended;
        let free = self.table.of_pool(pool).find(over).map(|record| record.worker.slot);
        free.unwrap_or_else(|| self.table.of_pool(pool).count() as u32)
    }

    /// Starts a process in a free slot.
    pub(super) fn seat(&mut self, seat: Seat, version: u64, held: bool, takes_over: Option<u32>) {
        let (pool, slot, name) = (seat.pool, seat.slot, seat.name.to_string());
        // Before its process is reported.
        self.tell_router(ToRouter::AddSlot { pool, slot, name, held });
        self.table.add(seat);
        let id = WorkerId { pool, slot, generation: 0 };
        if let Some(record) = self.table.record(id) {
            record.version = version;
            record.held = held;
            record.takes_over = takes_over;
        }
    }

    /// A slot's worker finishes what it has, and nobody takes its place there.
    pub(super) fn retire(&mut self, worker: WorkerId) {
        self.table.retire(worker);
        self.tell_router(ToRouter::RetireSlot { worker });
    }

    /// Who is to take over from a worker.
    pub(super) fn successor_of(&self, worker: WorkerId) -> Option<WorkerId> {
        let mut all = self.table.of_pool(worker.pool);
        let is = |record: &&Record| record.takes_over == Some(worker.slot) && !record.retired;
        all.find(is).map(|record| record.worker)
    }

    /// Without a router the next one is told all of it.
    pub(super) fn tell_router(&self, message: ToRouter) {
        if let Some(router) = &self.router {
            router.tell(message, None);
        }
    }
}
