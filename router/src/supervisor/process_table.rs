//! Every slot of every pool and the process in it: what the supervisor knows, and nothing else does.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vestibule_protocol::supervision::{Exit, FromRouter, ToRouter, WorkerId};

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
            orders,
            port: None,
        };
        self.records.insert((pool, slot), record);
        self.tasks.spawn(life::run(worker, name, options, tail, received, self.report.clone()));
    }

    /// What is known, by pool and slot.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The slot of a worker's name.
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
        let after = |again: bool| if again { Phase::Backoff } else { Phase::Ended };
        record.worker = worker;
        record.since = Instant::now();
        match message {
            ToRouter::Started { pid, .. } => {
                record.phase = Phase::Starting;
                record.pid = Some(*pid);
                record.restarts = worker.generation;
                record.port = port.as_ref().and_then(|port| port.try_clone().ok());
            }
            ToRouter::NotStarted { reason, again, .. } => {
                record.phase = after(*again);
                record.pid = None;
                record.last_error = Some(reason.clone());
                record.port = None;
            }
            ToRouter::Gone { exit, reason, again, .. } => {
                record.phase = after(*again);
                record.pid = None;
                record.last_exit = Some(*exit);
                record.last_error.clone_from(reason);
                record.port = None;
            }
            _ => {}
        }
        port
    }

    /// What a new router has to know: every process with its port, and every slot that is over.
    pub(crate) fn snapshot(&self) -> Vec<Report> {
        let state = |record: &Record| {
            let worker = record.worker;
            match (record.pid, &record.port) {
                (Some(pid), Some(port)) => {
                    Some((ToRouter::Started { worker, pid }, Some(port.try_clone().ok()?)))
                }
                _ if record.phase == Phase::Ended => {
                    let reason = record.last_error.clone().unwrap_or_default();
                    Some((ToRouter::NotStarted { worker, reason, again: false }, None))
                }
                _ => None,
            }
        };
        self.records.values().filter_map(state).collect()
    }

    /// What the router said of a worker: noted, and told to the slot.
    pub(crate) fn obey(&mut self, message: FromRouter) {
        let Some((worker, order)) = Order::from_router(message) else { return };
        let Some(record) = self.records.get_mut(&(worker.pool, worker.slot)) else { return };
        if record.worker == worker {
            match order {
                Order::Ready => {
                    record.phase = Phase::Ready;
                    record.was_ready = true;
                }
                Order::Draining | Order::Finishing | Order::End | Order::Term => {
                    record.phase = Phase::Draining;
                }
                Order::PortEnded | Order::Kill(_) => {}
            }
        }
        // A slot that is over hears nothing more.
        let _ = record.orders.send((worker, order));
    }

    /// Tells every slot, whoever is in it.
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
