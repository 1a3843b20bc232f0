//! Every slot of every pool and the process in it: what the supervisor knows, and nothing else does.

mod record;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vestibule_protocol::supervision::{FromRouter, ToRouter, WorkerId};
#[cfg(feature = "cli")]
use vestibule_protocol::supervision::{SlotMode, SlotSetup};

#[cfg(feature = "cli")]
use self::record::Unheard;
#[cfg(feature = "cli")]
pub(crate) use self::record::Wear;
pub(crate) use self::record::{Phase, Record};
use super::life::{self, Order};
use super::output::Tail;
use crate::control::Parcel;
use crate::options::WorkerOptions;

/// What a slot's task reports: a message for the router, with the worker's port where one starts.
pub(crate) type Report = Parcel<ToRouter>;

/// A slot, by pool and place.
pub(crate) type Place = (u32, u32);

/// A new slot, or a retired one that is used again.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Which pool.
    pub(crate) pool: u32,
    /// Which place in it.
    pub(crate) slot: u32,
    /// Its workers' name.
    pub(crate) name: Arc<str>,
    /// N of `POOL-N`, from 0.
    pub(crate) number: u32,
    /// What they run.
    pub(crate) options: Arc<WorkerOptions>,
    /// How long to wait before the first start.
    pub(crate) delay: Duration,
    /// Processes that the name had before.
    pub(crate) restarts: u32,
}

impl Seat {
    /// The first of its name.
    pub(crate) fn new(pool: u32, slot: u32, name: Arc<str>, options: Arc<WorkerOptions>) -> Self {
        Self { pool, slot, name, number: slot, options, delay: Duration::ZERO, restarts: 0 }
    }
}

/// The slots, and the tasks that run them.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    records: BTreeMap<Place, Record>,
    tasks: JoinSet<()>,
    report: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// Whether a router takes over from another.
    #[cfg(feature = "cli")]
    unheard: bool,
}

impl ProcessTable {
    pub(crate) fn new() -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        Self {
            records: BTreeMap::new(),
            tasks: JoinSet::new(),
            report,
            reports,
            #[cfg(feature = "cli")]
            unheard: false,
        }
    }

    /// From now on the present router may hear nothing, and the next one has not begun: what ports of the
    /// dead still hold is kept for it. One process a slot at most, as who follows it was offered nothing.
    #[cfg(feature = "cli")]
    pub(crate) fn keep_unheard(&mut self) {
        self.unheard = true;
    }

    /// A router hears what happens.
    #[cfg(feature = "cli")]
    pub(crate) fn is_heard(&mut self) {
        self.unheard = false;
        self.records.values_mut().for_each(|record| record.unheard = None);
    }

    /// Adds a slot, or uses one again whose task has ended, and starts its first process.
    pub(crate) fn add(&mut self, seat: Seat) {
        let Seat { pool, slot, name, number, options, delay, restarts } = seat;
        let (orders, received) = mpsc::unbounded_channel();
        let before = self.records.remove(&(pool, slot));
        // Late words about the slot's last process are not about this one.
        let generation = before.as_ref().map_or(0, |record| record.worker.generation + 1);
        let worker = WorkerId { pool, slot, generation };
        let tail = Tail::default();
        let unburied = before.as_ref().map(|record| record.unburied.clone()).unwrap_or_default();
        let record = Record {
            #[cfg(feature = "cli")]
            name: Arc::clone(&name),
            worker,
            phase: if delay.is_zero() { Phase::Starting } else { Phase::Backoff },
            pid: None,
            since: Instant::now(),
            last_exit: None,
            last_error: None,
            #[cfg(feature = "cli")]
            tail: tail.clone(),
            restarts,
            was_ready: false,
            #[cfg(feature = "cli")]
            held: false,
            retired: false,
            #[cfg(feature = "cli")]
            takes_over: None,
            #[cfg(feature = "cli")]
            number,
            #[cfg(feature = "cli")]
            version: 0,
            #[cfg(feature = "cli")]
            started: Instant::now(),
            #[cfg(feature = "cli")]
            wear: Wear::default(),
            #[cfg(feature = "cli")]
            flights: 0,
            first: (generation, restarts),
            #[cfg(feature = "cli")]
            options: Arc::clone(&options),
            orders,
            unburied: unburied.clone(),
            port: None,
            #[cfg(feature = "cli")]
            unheard: before.and_then(|record| record.unheard),
        };
        self.records.insert((pool, slot), record);
        let slot = life::Slot { first: worker, name, number, options, tail, delay, unburied };
        self.tasks.spawn(life::run(slot, received, self.report.clone()));
    }

    /// What is known, by pool and slot.
    #[cfg(feature = "cli")]
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// As [`records`](Self::records), to be changed.
    #[cfg(feature = "cli")]
    pub(crate) fn records_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.records.values_mut()
    }

    /// Nobody follows whoever is in a pool's slots: the pool is no more. The router says when they
    /// finish.
    #[cfg(feature = "cli")]
    pub(crate) fn abandon(&mut self, pool: u32) {
        for record in self.records.values_mut().filter(|record| record.worker.pool == pool) {
            record.retired = true;
            record.takes_over = None;
            if record.pid.is_none() {
                // There is nobody who could finish.
                let _ = record.orders.send((record.worker, Order::Finishing));
            }
        }
    }

    /// The slots of a pool, by place, those that are retired included.
    #[cfg(feature = "cli")]
    pub(crate) fn of_pool(&self, pool: u32) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.range((pool, 0)..=(pool, u32::MAX)).map(|(_, record)| record)
    }

    /// Lets a slot's process finish what it has; another takes its place. The router says it.
    #[cfg(feature = "cli")]
    pub(crate) fn drain(&mut self, worker: WorkerId) {
        if let Some(record) = self.record(worker) {
            record.phase = Phase::Draining;
        }
    }

    /// Keeps a slot out of the choice, or takes it back in. The router does it.
    #[cfg(feature = "cli")]
    pub(crate) fn hold(&mut self, worker: WorkerId, held: bool) {
        if let Some(record) = self.record(worker) {
            record.held = held;
        }
    }

    /// Lets a slot's process finish what it has; nobody takes its place. The router says it.
    #[cfg(feature = "cli")]
    pub(crate) fn retire(&mut self, worker: WorkerId) {
        let Some(record) = self.record(worker) else { return };
        record.retired = true;
        record.held = false;
        record.takes_over = None;
        if record.pid.is_some() {
            record.phase = Phase::Draining;
        }
        let _ = record.orders.send((record.worker, Order::Finishing));
    }

    /// What a slot's workers run.
    #[cfg(feature = "cli")]
    pub(crate) fn options(&self, worker: WorkerId) -> Option<&Arc<WorkerOptions>> {
        self.records.get(&(worker.pool, worker.slot)).map(|record| &record.options)
    }

    /// Other times for the processes of a slot, the present one included. What they run is the same.
    #[cfg(feature = "cli")]
    pub(crate) fn change(&mut self, worker: WorkerId, options: &Arc<WorkerOptions>) {
        if let Some(record) = self.record(worker) {
            record.options = Arc::clone(options);
            let _ = record.orders.send((record.worker, Order::Options(Arc::clone(options))));
        }
    }

    /// Forgets the slots of a pool, all of which are over.
    #[cfg(feature = "cli")]
    pub(crate) fn forget(&mut self, pool: u32) {
        self.records.retain(|(of, _), _| *of != pool);
    }

    pub(crate) fn record(&mut self, worker: WorkerId) -> Option<&mut Record> {
        self.records.get_mut(&(worker.pool, worker.slot))
    }

    /// The slot of a worker's name: of several the one that is wanted, and then the one that was
    /// there first.
    #[cfg(feature = "cli")]
    pub(crate) fn find(&self, name: &str) -> Option<&Record> {
        let named = self.records.values().filter(|record| &*record.name == name);
        named.min_by_key(|record| {
            (record.retired, record.takes_over.is_some(), record.phase == Phase::Ended)
        })
    }

    /// The next thing that happened to a process, already noted here; `None` when every slot is
    /// empty for good.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next_report(&mut self) -> Option<Report> {
        if self.records.values().all(|record| record.phase == Phase::Ended) {
            return None;
        }
        // Not `None`: this holds a sender.
        let (message, port) = self.reports.recv().await?;
        let port = self.note(&message, port);
        Some((message, port))
    }

    /// Notes what happened; keeps a duplicate of a new worker's port.
    fn note(&mut self, message: &ToRouter, port: Option<OwnedFd>) -> Option<OwnedFd> {
        let worker = match message {
            ToRouter::Started { worker, .. }
            | ToRouter::NotStarted { worker, .. }
            | ToRouter::Gone { worker, .. } => *worker,
            _ => return port,
        };
        let Some(record) = self.records.get_mut(&(worker.pool, worker.slot)) else { return port };
        record.worker = worker;
        record.since = Instant::now();
        match message {
            ToRouter::Started { pid, .. } => {
                record.phase = Phase::Starting;
                record.pid = Some(*pid);
                let (first, before) = record.first;
                record.restarts = before + worker.generation.saturating_sub(first);
                record.port = port.as_ref().and_then(|port| port.try_clone().ok());
                #[cfg(feature = "cli")]
                {
                    record.started = Instant::now();
                    record.wear = Wear::begin();
                }
                if record.retired {
                    // Its retirement met it between two processes.
                    record.phase = Phase::Draining;
                    let _ = record.orders.send((worker, Order::Finishing));
                }
            }
            ToRouter::NotStarted { reason, again, .. } => {
                record.last_error = Some(reason.clone());
                Self::emptied(record, *again);
            }
            ToRouter::Gone { exit, reason, again, .. } => {
                #[cfg(feature = "cli")]
                if self.unheard && record.unheard.is_none() && record.phase != Phase::Starting {
                    record.unheard = record.last_words(worker, *exit);
                }
                record.last_exit = Some(*exit);
                record.last_error.clone_from(reason);
                Self::emptied(record, *again);
            }
            _ => {}
        }
        port
    }

    /// There is no process in the slot. `again`: the slot's task will start another.
    fn emptied(record: &mut Record, again: bool) {
        record.phase = if again { Phase::Backoff } else { Phase::Ended };
        record.pid = None;
        record.port = None;
        if again && record.retired {
            let _ = record.orders.send((record.worker, Order::Finishing));
        }
    }

    /// What a new router has to know of the slots that its setup names: every process with its
    /// port, whether it is to drain, and every slot that is over; and processes whose end no router has
    /// heard of.
    #[cfg(feature = "cli")]
    pub(crate) fn snapshot(&self) -> Vec<Report> {
        let mut parcels = Vec::new();
        for record in self.records.values() {
            let worker = record.worker;
            if let Some(Unheard { worker, pid, port, exit }) = &record.unheard
                && let Ok(port) = port.try_clone()
            {
                let (worker, again) = (*worker, record.phase != Phase::Ended);
                parcels.push((ToRouter::Started { worker, pid: *pid }, Some(port)));
                parcels.push((ToRouter::Gone { worker, exit: *exit, reason: None, again }, None));
            }
            match (record.pid, &record.port) {
                (Some(pid), Some(port)) => {
                    let Ok(port) = port.try_clone() else { continue };
                    parcels.push((ToRouter::Started { worker, pid }, Some(port)));
                    if record.phase == Phase::Draining && !record.retired {
                        parcels.push((ToRouter::Drain { worker, hold: false }, None));
                    }
                }
                _ if record.phase == Phase::Ended && !record.retired => {
                    let reason = record.last_error.clone().unwrap_or_default();
                    parcels.push((ToRouter::NotStarted { worker, reason, again: false }, None));
                }
                _ => {}
            }
        }
        parcels
    }

    /// The slots of a pool as a new router has to know them.
    #[cfg(feature = "cli")]
    pub(crate) fn slots(&self, pool: u32) -> Vec<SlotSetup> {
        let setup = |record: &Record| SlotSetup {
            name: record.name.to_string(),
            mode: match record {
                // Of a pool that is no more: it goes on until the router says.
                Record {
                    retired: true,
                    phase: Phase::Starting | Phase::Ready,
                    pid: Some(_),
                    ..
                } => SlotMode::Wanted,
                Record { retired: true, .. } => SlotMode::Retired,
                Record { held: true, .. } => SlotMode::Held,
                _ => SlotMode::Wanted,
            },
        };
        self.of_pool(pool).map(setup).collect()
    }

    /// What the router said of a worker: noted, and told to the slot.
    pub(crate) fn obey(&mut self, message: FromRouter) {
        let Some((worker, order)) = Order::from_router(message) else { return };
        let Some(record) = self.record(worker) else { return };
        // Late words about a process that is gone change nothing.
        if record.worker == worker && record.pid.is_some() {
            match order {
                Order::Ready => {
                    // A draining worker that meets another router is still draining.
                    if record.phase == Phase::Starting {
                        record.phase = Phase::Ready;
                        record.since = Instant::now();
                    }
                    record.was_ready = true;
                }
                Order::Draining | Order::Finishing | Order::End | Order::Term => {
                    record.phase = Phase::Draining;
                }
                #[cfg(feature = "cli")]
                Order::Options(_) => {}
                Order::PortEnded | Order::Kill(_) => {}
            }
        }
        // A slot that is over hears nothing more.
        let _ = record.orders.send((worker, order));
    }

    /// Tells every slot, whoever is in it.
    #[cfg(feature = "cli")]
    pub(crate) fn order_all(&mut self, order: &Order) {
        for record in self.records.values_mut() {
            let _ = record.orders.send((record.worker, order.clone()));
        }
    }

    /// Kills every process group that is left and reaps it: a slot whose orders end does so.
    pub(crate) async fn end(mut self) {
        self.records.clear();
        self.reports.close();
        while self.tasks.join_next().await.is_some() {}
    }
}
