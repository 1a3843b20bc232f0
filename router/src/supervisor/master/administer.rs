//! What the supervisor does when somebody asks it over the admin socket. Nothing here waits.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use vestibule_protocol::supervision::{ToRouter, WorkerId};

use super::super::admin::status::{
    Connections, Health, LastExit, Listener, Pool, Router, RouterState, Status, Supervisor,
    VERSION, Worker, WorkerState,
};
use super::super::admin::wire::{Answer, Question, Refusal};
use super::super::admin::{Admin, Loads, Reply, Request};
use super::super::output::Tail;
use super::super::process_table::{Phase, Record};
use super::Master;

/// The most workers that a pool can have, as for `--workers`.
const MOST_WORKERS: u32 = 4096;
/// Names that an error lists: a screenful.
const LISTED: usize = 32;

/// How a command ended. Both sides are an answer: the second is one that refuses.
type Outcome = Result<Answer, Answer>;

impl Master {
    /// Starts to answer on the socket of the plan.
    pub(super) fn open_admin(&mut self) {
        let Some(socket) = self.plan.admin.take() else { return };
        let path = socket.path().display().to_string();
        match Admin::start(socket) {
            Ok(admin) => {
                tracing::info!(path, "the admin socket is open");
                self.admin = Some(admin);
            }
            Err(error) => tracing::warn!(path, %error, "there is no admin socket"),
        }
    }

    /// Does what is asked, and answers.
    pub(super) fn administer(&mut self, Request { question, reply }: Request) {
        let answer = match question {
            Question::Status {} => self.report_status(),
            question => {
                tracing::info!(?question, "administered");
                let (Ok(answer) | Err(answer)) = self.execute(question);
                Reply::Now(answer)
            }
        };
        // Whoever asked may be gone.
        let _ = reply.send(answer);
    }

    fn execute(&mut self, question: Question) -> Outcome {
        match question {
            Question::Restart { .. } => return Err(Answer::not_there_yet("restart")),
            Question::Reload {} => return Err(Answer::not_there_yet("reload")),
            _ => {}
        }
        if self.stopping {
            return match question {
                Question::Stop {} => Ok(Answer::done("it is stopping already")),
                _ => Err(Answer::refused(Refusal::Stopping, "it is stopping")),
            };
        }
        match question {
            Question::Stop {} => {
                self.stop();
                Ok(Answer::done("stopping: workers finish what they have"))
            }
            Question::Drain { worker, hold: true } => self.hold(&worker),
            Question::Drain { worker, hold: false } => self.drain(&worker),
            Question::Ready { worker } => self.take_back(&worker),
            Question::Scale { pool, workers } => self.scale(&pool, workers),
            // Answered before.
            Question::Status {} | Question::Restart { .. } | Question::Reload {} => {
                Err(Answer::refused(Refusal::NotUnderstood, "this is no command"))
            }
        }
    }

    fn drain(&mut self, name: &str) -> Outcome {
        let (worker, phase) = self.find(name)?;
        match phase {
            Phase::Draining => return Ok(Answer::done(format!("{name} drains already"))),
            Phase::Backoff | Phase::Ended => {
                let text = format!("{name} has no process to drain: it is in {}", phase.as_str());
                return Err(Answer::refused(Refusal::State, text));
            }
            Phase::Starting | Phase::Ready => {}
        }
        self.table.drain(worker);
        self.tell_router(ToRouter::Drain { worker, hold: false });
        Ok(Answer::done(format!("{name} drains; another process takes its place when it is empty")))
    }

    fn hold(&mut self, name: &str) -> Outcome {
        let (worker, phase) = self.find(name)?;
        if phase == Phase::Ended {
            let text = format!("{name} has no process to hold: it is over");
            return Err(Answer::refused(Refusal::State, text));
        }
        self.table.hold(worker, true);
        self.tell_router(ToRouter::Drain { worker, hold: true });
        Ok(Answer::done(format!(
            "{name} is held: it keeps what it has and takes nothing new until \
             `vestibule ready {name}`"
        )))
    }

    fn take_back(&mut self, name: &str) -> Outcome {
        let (worker, phase) = self.find(name)?;
        let held = self.table.find(name).is_some_and(|record| record.held);
        if held {
            self.table.hold(worker, false);
            self.tell_router(ToRouter::Undrain { worker });
        }
        match phase {
            Phase::Ready if held => Ok(Answer::done(format!("{name} takes connections again"))),
            Phase::Ready => Ok(Answer::done(format!("{name} takes connections already"))),
            Phase::Starting | Phase::Backoff => {
                Ok(Answer::done(format!("{name} takes connections as soon as it is up")))
            }
            Phase::Draining if held => {
                Ok(Answer::done(format!("{name} drains; whoever follows it takes connections")))
            }
            Phase::Draining | Phase::Ended => {
                let text = format!("{name} cannot be taken back: it is {}", phase.as_str());
                Err(Answer::refused(Refusal::State, text))
            }
        }
    }

    fn scale(&mut self, name: &str, workers: u32) -> Outcome {
        let place = self.plan.pools.iter().position(|pool| pool.options.pool == name);
        let Some((place, pool)) = place.and_then(|at| Some((at, u32::try_from(at).ok()?))) else {
            let names = self.plan.pools.iter().map(|pool| pool.options.pool.as_str());
            let text = format!("there is no pool `{name}`; there is {}", list(names));
            return Err(Answer::refused(Refusal::UnknownPool, text));
        };
        if !(1..=MOST_WORKERS).contains(&workers) {
            let text = format!("a pool has 1 to {MOST_WORKERS} workers, not {workers}");
            return Err(Answer::refused(Refusal::Number, text));
        }
        let before = self.wanted(pool);
        for _ in before..workers {
            self.add_worker(place, pool);
        }
        for _ in workers..before {
            self.retire_worker(pool);
        }
        let plural = if workers == 1 { "" } else { "s" };
        Ok(Answer::done(format!("pool {name} has {workers} worker{plural}, {before} before")))
    }

    /// The slots of a pool that are not retired.
    fn wanted(&self, pool: u32) -> u32 {
        // Slots are numbered with 32 bits.
        self.table.of_pool(pool).filter(|record| !record.retired).count() as u32
    }

    /// The lowest slot that was retired is wanted again; without any there is one more.
    fn add_worker(&mut self, place: usize, pool: u32) {
        let retired = self.table.of_pool(pool).find(|record| record.retired);
        let retired = retired.map(|record| (record.worker, record.name.clone()));
        if let Some((worker, name)) = retired {
            self.table.restore(worker);
            let WorkerId { pool, slot, .. } = worker;
            self.tell_router(ToRouter::AddSlot { pool, slot, name: name.to_string() });
            return;
        }
        let Some(options) = self.options.get(place).cloned() else { return };
        let slot = self.table.of_pool(pool).count() as u32;
        let name = worker_name(&options.pool, slot);
        // Before its process is reported.
        self.tell_router(ToRouter::AddSlot { pool, slot, name: name.clone() });
        self.table.add(pool, slot, name.into(), options);
    }

    /// The highest slot that is left finishes what it has.
    fn retire_worker(&mut self, pool: u32) {
        let highest = self.table.of_pool(pool).rfind(|record| !record.retired);
        let Some(worker) = highest.map(|record| record.worker) else { return };
        self.table.retire(worker);
        self.tell_router(ToRouter::RetireSlot { worker });
    }

    /// A worker that has not been taken out of its pool.
    fn find(&self, name: &str) -> Result<(WorkerId, Phase), Answer> {
        match self.table.find(name) {
            Some(record) if !record.retired => Ok((record.worker, record.phase)),
            Some(record) if record.phase != Phase::Ended => {
                let text = format!("{name} was taken out of its pool and finishes what it has");
                Err(Answer::refused(Refusal::State, text))
            }
            _ => {
                let names = self.table.records().filter(|record| !record.retired);
                let names = list(names.map(|record| &*record.name));
                let text = format!("there is no worker `{name}`; there is {names}");
                Err(Answer::refused(Refusal::UnknownWorker, text))
            }
        }
    }

    /// Without a router the next one is told all of it.
    fn tell_router(&self, message: ToRouter) {
        if let Some(router) = &self.router {
            router.tell(message, None);
        }
    }

    // --- status ----------------------------------------------------------------------------

    fn report_status(&mut self) -> Reply {
        let mut status = self.status();
        match self.ask_loads() {
            Some(loads) => Reply::WithLoads(Box::new(status), loads),
            None => {
                status.judge();
                Reply::Now(Answer::Status { status: Box::new(status) })
            }
        }
    }

    /// Asks the router; `None` if there is none that could answer.
    fn ask_loads(&mut self) -> Option<oneshot::Receiver<Loads>> {
        // Who gave up is forgotten here, so that a silent router costs nothing.
        self.waiting_for_loads.retain(|_, asker| !asker.is_closed());
        let router = self.router.as_ref().filter(|router| router.accepting && !router.killed)?;
        let (tell, told) = oneshot::channel();
        self.asked += 1;
        router.tell(ToRouter::AskLoads { number: self.asked }, None);
        self.waiting_for_loads.insert(self.asked, tell);
        Some(told)
    }

    fn status(&self) -> Status {
        let listeners = self.plan.listeners.iter().map(|(setup, socket)| Listener {
            name: setup.name.clone(),
            address: socket.address(),
        });
        let rejected = self.metrics.rejections();
        let pools = (0u32..).zip(&self.plan.pools);
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
            pools: pools.map(|(pool, plan)| self.pool_status(pool, &plan.options.pool)).collect(),
        }
    }

    fn router_status(&self) -> Router {
        let router = self.router.as_ref();
        let state = match router {
            None => RouterState::None,
            Some(router) if router.killed => RouterState::Silent,
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
        }
    }

    fn pool_status(&self, pool: u32, name: &str) -> Pool {
        let counters = self.metrics.pool(pool);
        let shown = self.table.of_pool(pool);
        let shown = shown.filter(|record| !record.retired || record.phase != Phase::Ended);
        let workers: Vec<Worker> = shown.map(worker_status).collect();
        let ready = workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
        Pool {
            name: name.to_owned(),
            wanted: self.wanted(pool),
            // As many as there are slots at most.
            ready: ready as u32,
            queued: None,
            delivered: counters.delivered,
            moved: counters.moved,
            touched: counters.touched,
            client_gone: counters.client_gone,
            undelivered: counters.undelivered,
            faults: counters.faults,
            workers,
        }
    }
}

/// A worker's name: slots count from 0, names from 1.
pub(super) fn worker_name(pool: &str, slot: u32) -> String {
    format!("{pool}-{}", u64::from(slot) + 1)
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

/// Names for a person, the first of many.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    let shown = names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
