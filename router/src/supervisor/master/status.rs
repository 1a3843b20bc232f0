//! How it goes, put together for whoever asks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use vestibule_protocol::supervision::ToRouter;

use super::super::admin::status::{
    Connections, Health, LastExit, Listener, Pool, Roll, RollState, Router, RouterState, Status,
    Supervisor, VERSION, Worker, WorkerState,
};
use super::super::admin::wire::{Answer, Refusal};
use super::super::admin::{Loads, Reply};
use super::super::output::Tail;
use super::super::process_table::{Phase, Record};
use super::Master;
use super::roll::Stopped;

impl Master {
    pub(super) fn report_status(&mut self) -> Reply {
        let mut status = self.status();
        match self.ask_loads() {
            Some(loads) => Reply::WithLoads(Box::new(status), loads),
            None => {
                status.judge();
                Reply::Now(Answer::Status { status: Box::new(status) })
            }
        }
    }

    /// Asks the router for decisions.
    pub(super) fn ask_trace(&mut self, rejected: bool, since: u64, peer: Option<String>) -> Reply {
        if let Some(Err(error)) = peer.as_deref().map(crate::route::pattern::network) {
            return Reply::Now(Answer::refused(Refusal::NotUnderstood, error.to_string()));
        }
        // Who gave up is forgotten here, so that a silent router costs nothing.
        self.waiting_for_trace.retain(|_, asker| !asker.is_closed());
        let router = self.router.as_ref().filter(|router| router.accepting && !router.given_up);
        let Some(router) = router else {
            let text = "no router accepts connections now";
            return Reply::Now(Answer::refused(Refusal::State, text));
        };
        let (tell, told) = oneshot::channel();
        self.asked += 1;
        let number = self.asked;
        router.tell(ToRouter::AskTrace { number, rejected, since, peer }, None);
        self.waiting_for_trace.insert(number, tell);
        Reply::WithTrace(told)
    }

    /// Asks the router; `None` if there is none that could answer.
    fn ask_loads(&mut self) -> Option<oneshot::Receiver<Loads>> {
        // Who gave up is forgotten here, so that a silent router costs nothing.
        self.waiting_for_loads.retain(|_, asker| !asker.is_closed());
        let router = self.router.as_ref().filter(|router| router.accepting && !router.given_up)?;
        let (tell, told) = oneshot::channel();
        self.asked += 1;
        router.tell(ToRouter::AskLoads { number: self.asked }, None);
        self.waiting_for_loads.insert(self.asked, tell);
        Some(told)
    }

    /// Asks the router for what workers served; the answer is noted when it comes.
    pub(super) fn ask_for_wear(&mut self) {
        if let Some(router) = self.router.as_ref().filter(|router| router.accepting) {
            self.asked += 1;
            router.tell(ToRouter::AskLoads { number: self.asked }, None);
        }
    }

    fn roll_status(&self, state: &super::Pool) -> Option<Roll> {
        let left = self.left_to_roll(state.id, state.version) as u32;
        match state.roll.stopped() {
            Some(Stopped { worker, reason, lines }) => Some(Roll {
                state: RollState::Stopped,
                left,
                worker: Some(worker.clone()),
                reason: Some(reason.clone()),
                last_lines: lines.clone(),
            }),
            None if state.roll.is_active() => Some(Roll {
                state: RollState::Running,
                left,
                worker: None,
                reason: None,
                last_lines: Vec::new(),
            }),
            None => None,
        }
    }

    fn status(&self) -> Status {
        let listeners = self.listeners.iter().map(|listening| Listener {
            name: listening.setup.name.clone(),
            address: listening.socket.address(),
        });
        let rejected = self.metrics.rejections();
        Status {
            version: VERSION,
            health: Health::Degraded,
            problems: Vec::new(),
            supervisor: Supervisor {
                pid: std::process::id(),
                program: env!("CARGO_PKG_VERSION").to_owned(),
                since: unix_time(self.started.into_std()),
                stopping: self.stopping,
            },
            router: self.router_status(),
            listeners: listeners.collect(),
            connections: Connections {
                accepted: self.metrics.total_accepted(),
                rejected: rejected.map(|(reason, count)| (reason.to_owned(), count)).collect(),
            },
            pools: self.pools.iter().map(|pool| self.pool_status(pool)).collect(),
        }
    }

    fn router_status(&self) -> Router {
        let router = self.router.as_ref();
        let state = match router {
            None => RouterState::None,
            Some(router) if router.given_up => RouterState::Silent,
            Some(_) if self.stopping => RouterState::Stopping,
            Some(router) if router.accepting => RouterState::Accepting,
            Some(_) => RouterState::Starting,
        };
        Router {
            state,
            pid: router.map(|router| router.pid()),
            epoch: self.epoch,
            restarts: self.routers.saturating_sub(1),
            since: router.map(|router| unix_time(router.started.into_std())),
            last_exit: self.router_exit.map(LastExit::from),
            // Eight and a few more.
            unburied: self.unburied.count() as u32,
        }
    }

    fn pool_status(&self, state: &super::Pool) -> Pool {
        let counters = self.metrics.pool(state.id);
        let shown = self.table.of_pool(state.id);
        let mut shown: Vec<_> =
            shown.filter(|record| !record.retired || record.phase != Phase::Ended).collect();
        shown.sort_by_key(|r| (r.number, r.retired, r.takes_over.is_some(), r.worker.slot));
        let workers: Vec<Worker> = shown.into_iter().map(worker_status).collect();
        let ready = workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
        Pool {
            name: state.name().to_owned(),
            wanted: self.wanted(state.id),
            // As many as there are slots at most.
            ready: ready as u32,
            queued: None,
            delivered: counters.delivered,
            moved: counters.moved,
            touched: counters.touched,
            client_gone: counters.client_gone,
            undelivered: counters.undelivered,
            faults: counters.faults,
            handed_back: counters.handed_back,
            roll: self.roll_status(state),
            id: state.id,
            workers,
        }
    }
}

fn worker_status(record: &Record) -> Worker {
    let state = match record.phase {
        Phase::Starting => WorkerState::Starting,
        Phase::Ready if record.held => WorkerState::Held,
        Phase::Ready => WorkerState::Ready,
        Phase::Draining => WorkerState::Draining,
        Phase::Backoff => WorkerState::Backoff,
        Phase::Ended => WorkerState::Ended,
    };
    let over = matches!(state, WorkerState::Backoff | WorkerState::Ended);
    let error = record.last_error.as_deref().filter(|_| over);
    Worker {
        name: record.name.to_string(),
        state,
        held: record.held,
        pid: record.pid,
        connections: None,
        restarts: record.restarts,
        since: unix_time(record.since),
        last_exit: record.last_exit.map(LastExit::from),
        last_error: error.map(|error| Tail::without_lines(error).to_owned()),
        last_lines: if over { record.tail.lines() } else { Vec::new() },
        id: Some(record.worker),
    }
}

/// A moment of the monotonic clock as seconds since 1970, by what the wall clock says now.
fn unix_time(moment: Instant) -> u64 {
    let ago = moment.elapsed();
    let then = SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH);
    then.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
