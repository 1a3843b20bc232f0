//! Every slot of every pool and the process in it: what the supervisor knows, and nothing else does.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vestibule_protocol::supervision::{Exit, FromRouter, ToRouter, WorkerId};
#[cfg(feature = "cli")]
use vestibule_protocol::supervision::{SlotMode, SlotSetup};

use super::life::{self, Order};
use super::output::Tail;
use crate::control::Parcel;
use crate::options::WorkerOptions;

/// What a slot's task reports: a message for the router, with the worker's port where one starts.
pub(crate) type Report = Parcel<ToRouter>;

/// A slot, by pool and place.
pub(crate) type Place = (u32, u32);

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
    pub(crate) name: Arc<str>,
    pub(crate) worker: WorkerId,
    pub(crate) phase: Phase,
    pub(crate) pid: Option<u32>,
    pub(crate) since: Instant,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) last_error: Option<String>,
    /// The last lines of its last process.
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
    /// It was retired and is wanted again, though a process of it still finishes what it has: the
    /// words of its retirement may still be under way.
    returned: bool,
    options: Arc<WorkerOptions>,
    orders: mpsc::UnboundedSender<(WorkerId, Order)>,
    /// The router's end of the worker's port: a router that crashes closes nothing.
    port: Option<OwnedFd>,
}

/// The slots, and the tasks that run them.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    records: BTreeMap<Place, Record>,
    tasks: JoinSet<()>,
    report: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl ProcessTable {
    pub(crate) fn new() -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        Self { records: BTreeMap::new(), tasks: JoinSet::new(), report, reports }
    }

    /// Adds a slot and starts its first process.
    pub(crate) fn add(
        &mut self,
        pool: u32,
        slot: u32,
        name: Arc<str>,
        options: Arc<WorkerOptions>,
    ) {
        let (orders, received) = mpsc::unbounded_channel();
        let worker = WorkerId { pool, slot, generation: 0 };
        let tail = Tail::default();
        let record = Record {
            name: Arc::clone(&name),
            worker,
            phase: Phase::Starting,
            pid: None,
            since: Instant::now(),
            last_exit: None,
            last_error: None,
            tail: tail.clone(),
            restarts: 0,
            was_ready: false,
            #[cfg(feature = "cli")]
            held: false,
            retired: false,
            returned: false,
            options: Arc::clone(&options),
            orders,
            port: None,
        };
        self.records.insert((pool, slot), record);
        self.tasks.spawn(life::run(worker, name, options, tail, received, self.report.clone()));
    }

    /// What is known, by pool and slot.
    #[cfg(feature = "cli")]
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
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
        record.returned = false;
        record.held = false;
        if record.pid.is_some() {
            record.phase = Phase::Draining;
        }
        let _ = record.orders.send((record.worker, Order::Finishing));
    }

    /// Wants a retired slot again: starts a process, or lets one follow that still finishes.
    #[cfg(feature = "cli")]
    pub(crate) fn restore(&mut self, worker: WorkerId) {
        let Some(record) = self.record(worker) else { return };
        record.retired = false;
        if record.phase == Phase::Ended {
            self.start_again(worker);
        } else {
            record.returned = true;
            let _ = record.orders.send((record.worker, Order::Wanted));
        }
    }

    fn record(&mut self, worker: WorkerId) -> Option<&mut Record> {
        self.records.get_mut(&(worker.pool, worker.slot))
    }

    /// Runs a slot anew whose task has ended.
    fn start_again(&mut self, worker: WorkerId) {
        let report = self.report.clone();
        let Some(record) = self.record(worker) else { return };
        let (orders, received) = mpsc::unbounded_channel();
        record.worker.generation += 1;
        record.phase = Phase::Starting;
        record.since = Instant::now();
        record.orders = orders;
        record.returned = false;
        let (worker, name) = (record.worker, Arc::clone(&record.name));
        let (options, tail) = (Arc::clone(&record.options), record.tail.clone());
        self.tasks.spawn(life::run(worker, name, options, tail, received, report));
    }

    /// The slot of a worker's name.
    #[cfg(feature = "cli")]
    pub(crate) fn find(&self, name: &str) -> Option<&Record> {
        self.records.values().find(|record| &*record.name == name)
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
        let (mut message, port) = self.reports.recv().await?;
        let port = self.note(&mut message, port);
        Some((message, port))
    }

    /// Notes what happened; keeps a duplicate of a new worker's port.
    fn note(&mut self, message: &mut ToRouter, port: Option<OwnedFd>) -> Option<OwnedFd> {
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
                record.restarts = worker.generation;
                record.port = port.as_ref().and_then(|port| port.try_clone().ok());
                record.returned = false;
                if record.retired {
                    // Its retirement met it between two processes.
                    record.phase = Phase::Draining;
                    let _ = record.orders.send((worker, Order::Finishing));
                }
            }
            ToRouter::NotStarted { reason, again, .. } => {
                record.last_error = Some(reason.clone());
                Self::emptied(record, again);
            }
            ToRouter::Gone { exit, reason, again, .. } => {
                record.last_exit = Some(*exit);
                record.last_error.clone_from(reason);
                Self::emptied(record, again);
            }
            _ => {}
        }
        if record.phase == Phase::Ended && record.returned {
            self.start_again(worker);
        }
        port
    }

    /// There is no process in the slot. `again`: the slot's task will start another.
    fn emptied(record: &mut Record, again: &mut bool) {
        record.phase = if *again { Phase::Backoff } else { Phase::Ended };
        record.pid = None;
        record.port = None;
        if *again && record.retired {
            let _ = record.orders.send((record.worker, Order::Finishing));
        }
        // It ends because it was retired; for the router it goes on.
        *again |= record.returned;
    }

    /// What a new router has to know of the slots that its setup names: every process with its
    /// port, whether it is to drain, and every slot that is over.
    #[cfg(feature = "cli")]
    pub(crate) fn snapshot(&self) -> Vec<Report> {
        let mut parcels = Vec::new();
        for record in self.records.values() {
            let worker = record.worker;
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
                Record { retired: true, .. } => SlotMode::Retired,
                Record { held: true, .. } => SlotMode::Held,
                _ => SlotMode::Wanted,
            },
        };
        self.of_pool(pool).map(setup).collect()
    }

    /// What the router said of a worker: noted, and told to the slot.
    pub(crate) fn obey(&mut self, message: FromRouter) {
        let Some((worker, mut order)) = Order::from_router(message) else { return };
        let Some(record) = self.record(worker) else { return };
        if order == Order::Finishing && record.returned {
            // Said before the router heard that the slot is wanted again.
            order = Order::Draining;
        }
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
                Order::Wanted | Order::PortEnded | Order::Kill(_) => {}
            }
        }
        // A slot that is over hears nothing more.
        let _ = record.orders.send((worker, order));
    }

    /// Tells every slot, whoever is in it.
    #[cfg(feature = "cli")]
    pub(crate) fn order_all(&mut self, order: &Order) {
        for record in self.records.values_mut() {
            record.returned = false;
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
