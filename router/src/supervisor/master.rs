//! The supervisor's process: one thread that owns listeners, ports and processes, and never a byte of
//! a client.

//!
//! [`plan`] is what it is given, `pools` what it makes of it; `router` starts, asks and replaces the
//! router; `roll` replaces workers, `reload` everything; `signals` and `administer` are who asks, and
//! `status` what is answered.

mod administer;
pub(crate) mod former;
pub mod plan;
mod pools;
mod reload;
mod removed;
mod roll;
mod router;
mod signals;
mod status;
mod succession;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use vestibule_protocol::supervision::{
    Exit, FromRouter, InspectSetup, RuleSetup, ScriptSetup, ToRouter, TraceEntry,
};

use self::former::FormerSetups;
pub use self::plan::{Layout, ListenerPlan, Plan, PoolPlan, Present, Source};
use self::pools::{Listening, Numbers, Pool};
use self::reload::Trying;
use self::removed::Removed;
use self::signals::Signals;
use self::succession::{Keeper, Parting, Succession};
use super::admin::socket::AdminSocket;
use super::admin::{Admin, Loads, Request};
use super::notify::Notifier;
use super::orphans::Orphans;
use super::process_table::{ProcessTable, Report};
use super::router_process::{RouterEvent, RouterProcess};
use super::router_user::{self, SharedUser};
use super::unburied::Unburied;
use crate::metrics::Metrics;

/// Routers in a row that may end before they accept: then something is wrong that no restart mends.
const ROUTER_ATTEMPTS: u32 = 5;
/// How long the router may take, once every worker has ended, to turn away whom it is turning away: a
/// rejection takes 2.2 s at most.
const FAREWELL: Duration = Duration::from_secs(3);
/// How often the router is asked whether it lives.
const PING: Duration = Duration::from_secs(1);

/// Why the supervisor ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// There is no event loop.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The router cannot be started.
    #[error("cannot start the router")]
    Router(#[source] io::Error),
    /// Routers end before they accept.
    #[error("{ROUTER_ATTEMPTS} routers in a row ended before they accepted a connection")]
    RouterFails,
    /// The router would be the user of a pool's workers.
    #[error(transparent)]
    SharedUser(#[from] SharedUser),
    /// The router cannot use the script.
    #[error("the script cannot be used: {0}")]
    Script(String),
    /// Every worker's first start failed.
    #[error("no worker came up; {0}")]
    NoWorker(String),
}

/// Runs until a signal, or until nothing can be served any more.
///
/// # Errors
/// See [`MasterError`].
pub fn run(plan: Plan) -> Result<(), MasterError> {
    router_user::check(plan.layout.router_identity, &plan.layout.pools)?;
    // One thread: it alone forks, and a fork copies no other thread's locks.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MasterError::Runtime)?;
    runtime.block_on(async {
        let orphans = Orphans::adopt().map_err(MasterError::Signals)?;
        let orphans = tokio::spawn(orphans.run());
        let result = Master::new(plan)?.run().await;
        orphans.abort();
        result
    })
}

struct Master {
    listeners: Vec<Listening>,
    /// Listeners that are no more, from which not everything is accepted yet.
    removed: Vec<Removed>,
    /// Sockets from whoever started this that no listener has, each with the address that names it.
    inherited: Vec<(String, OwnedFd)>,
    /// In the order of the configuration.
    pools: Vec<Pool>,
    /// Pools that are no more and still finish what they have.
    leaving: Vec<Pool>,
    inspect: InspectSetup,
    rules: Vec<RuleSetup>,
    routes: Vec<(String, String)>,
    /// What is asked before the rules.
    script: Option<ScriptSetup>,
    /// What was asked before a reload, until the router has said that it can use the new one.
    script_before: Option<Option<ScriptSetup>>,
    /// Who routers become.
    identity: Option<(u32, u32)>,
    source: Option<Box<dyn Source>>,
    admin_path: Option<PathBuf>,
    log: String,
    announcement: String,
    /// Numbers of listeners and pools that were given so far, and places of counters.
    numbers: Numbers,
    table: ProcessTable,
    router: Option<RouterProcess>,
    succession: Option<Succession>,
    /// The present router accepts nothing more: another takes over.
    parting: Option<Parting>,
    /// The router before the present one, until that one acts.
    keeper: Option<Keeper>,
    /// A configuration that is about to be, if the router can use its script.
    trying: Option<Trying>,
    /// Somebody wants the configuration read again as soon as that can be.
    reload_wanted: bool,
    /// The service manager was told of a reload and waits for its end.
    reloading: bool,
    epoch: u16,
    /// Counts the configurations.
    number: u64,
    /// Those that another has replaced, while clients may go by them.
    former: FormerSetups,
    /// Routers in a row that ended before they accepted.
    failures: u32,
    /// When the next router is started, if there is none.
    restart_at: Instant,
    announced: bool,
    metrics: Metrics,
    /// The metrics' memory, for each router.
    counters: OwnedFd,
    /// With what every router knows connections again that workers hand back.
    ticket_key: [u8; 16],
    stopping: bool,
    /// Every worker has ended after a stop: nothing is left to be waited for but the router's last words.
    done: bool,
    /// Slots whose first process ended before it was ready.
    first_failed: HashSet<(u32, u32)>,
    notifier: Notifier,
    admin_socket: Option<AdminSocket>,
    admin: Option<Admin>,
    started: Instant,
    /// Routers that were started.
    routers: u64,
    /// How the last router ended.
    router_exit: Option<Exit>,
    /// Routers that were killed and cannot end.
    unburied: Unburied,
    /// So many that the next one waits, which was said.
    crowded: bool,
    /// The router was asked for its loads so often.
    asked: u64,
    /// Who waits for an answer to which of these questions.
    waiting_for_loads: BTreeMap<u64, oneshot::Sender<Loads>>,
    waiting_for_trace: BTreeMap<u64, oneshot::Sender<Vec<TraceEntry>>>,
}

/// What wakes the supervisor.
enum Event {
    Report(Option<Report>),
    Router(RouterEvent),
    /// Of the router that is to take over.
    NextRouter(RouterEvent),
    /// Of the one before, which keeps what it has passed on.
    Keeper(RouterEvent),
    RouterDue,
    Tick,
    Signal(SignalKind),
    Admin(Request),
}

impl Master {
    fn new(plan: Plan) -> Result<Self, MasterError> {
        let (metrics, counters) =
            Metrics::new().map_err(|error| MasterError::Router(error.into()))?;
        let Plan { layout, source, inherited, log, admin, announcement } = plan;
        let Layout {
            listeners,
            pools,
            inspect,
            rules,
            routes,
            script,
            router_identity,
            admin: admin_path,
        } = layout;
        let mut numbers = Numbers::default();
        let new = |plan| Listening::new(&mut numbers, plan, None);
        let listeners = listeners.into_iter().filter_map(new).collect();
        let mut table = ProcessTable::new();
        let pools: Vec<_> = pools.into_iter().map(|plan| Pool::new(&mut numbers, plan)).collect();
        for pool in &pools {
            pool.fill(&mut table);
        }
        Ok(Self {
            listeners,
            removed: Vec::new(),
            inherited,
            pools,
            leaving: Vec::new(),
            inspect,
            rules,
            routes,
            script,
            script_before: None,
            identity: router_identity,
            ticket_key: crate::ticket::new_key()
                .map_err(|error| MasterError::Router(error.into()))?,
            source,
            admin_path,
            log,
            announcement,
            numbers,
            table,
            router: None,
            succession: None,
            parting: None,
            keeper: None,
            trying: None,
            reload_wanted: false,
            reloading: false,
            epoch: 0,
            number: 1,
            former: FormerSetups::default(),
            failures: 0,
            restart_at: Instant::now(),
            announced: false,
            metrics,
            counters,
            stopping: false,
            done: false,
            first_failed: HashSet::new(),
            notifier: Notifier::from_env(),
            admin_socket: admin,
            admin: None,
            started: Instant::now(),
            routers: 0,
            router_exit: None,
            unburied: Unburied::default(),
            crowded: false,
            asked: 0,
            waiting_for_loads: BTreeMap::new(),
            waiting_for_trace: BTreeMap::new(),
        })
    }

    async fn run(mut self) -> Result<(), MasterError> {
        let mut signals = Signals::new().map_err(MasterError::Signals)?;
        self.open_admin();
        let mut ticks = tokio::time::interval(PING);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            let event = self.next(&mut signals, &mut ticks).await;
            match self.handle(event) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.notifier.stopping();
        if self.done
            && let Some(router) = self.router.take()
        {
            router.close();
            // A second signal still stops at once: the router dies with this process.
            tokio::select! {
                () = router.end_within(FAREWELL, self.unburied.clone()) => {}
                _ = signals.next() => {}
            }
        }
        // Whoever is left is killed and reaped; the router ends with its channel.
        for router in self.take_other_routers().chain(self.router.take()) {
            router.end(self.unburied.clone()).await;
        }
        self.table.end().await;
        result
    }

    async fn next(&mut self, signals: &mut Signals, ticks: &mut tokio::time::Interval) -> Event {
        let due = match self.router {
            Some(_) => self.wants_successor(),
            None => !self.stopping,
        };
        let Self { table, router, succession, keeper, restart_at, admin, notifier, .. } = self;
        let successor = succession.as_mut().map(Succession::router);
        let keeper = keeper.as_mut().map(Keeper::router);
        tokio::select! {
            biased;
            never = notifier.keep_alive() => match never {},
            kind = signals.next() => Event::Signal(kind),
            report = table.next_report() => Event::Report(report),
            event = next(router.as_mut()) => Event::Router(event),
            event = next(successor) => Event::NextRouter(event),
            event = next(keeper) => Event::Keeper(event),
            () = tokio::time::sleep_until(*restart_at), if due => Event::RouterDue,
            _ = ticks.tick() => Event::Tick,
            // Last: however much is asked, everything above goes first.
            request = next_request(admin) => Event::Admin(request),
        }
    }

    /// Returns whether to go on.
    fn handle(&mut self, event: Event) -> Result<bool, MasterError> {
        match event {
            Event::Report(None) if self.stopping => {
                self.done = true;
                return Ok(false);
            }
            Event::Report(None) => {
                let last =
                    self.table.records().filter_map(|record| record.last_error.clone()).last();
                let last = last.unwrap_or_else(|| "every worker ended for good".to_owned());
                return Err(MasterError::NoWorker(last));
            }
            Event::Report(Some(report)) => return self.report(report).map(|()| true),
            Event::Router(RouterEvent::Said(FromRouter::Unusable { reason }))
                if !self.announced =>
            {
                return Err(MasterError::Script(reason));
            }
            Event::Router(RouterEvent::Said(message)) => self.hear(message),
            Event::Router(RouterEvent::Silent) if self.parting.is_some() => self.end_predecessor(),
            Event::Router(RouterEvent::Silent) => self.kill_router("its channel ended"),
            Event::Router(RouterEvent::Ended) => return self.router_ended().map(|()| true),
            Event::NextRouter(event) => self.successor(event)?,
            Event::Keeper(event) => self.keeper(event),
            Event::RouterDue => self.router_due()?,
            Event::Tick => self.tick()?,
            Event::Signal(kind) => return Ok(self.signal(kind)),
            Event::Admin(request) => self.administer(request),
        }
        Ok(true)
    }

    fn report(&mut self, (message, port): Report) -> Result<(), MasterError> {
        let (worker, failure) = match &message {
            ToRouter::NotStarted { worker, reason, .. } => (Some(*worker), Some(reason.clone())),
            ToRouter::Gone { worker, exit, reason, .. } => {
                let text = reason.clone().unwrap_or_else(|| format!("it ended with {exit}"));
                (Some(*worker), Some(text))
            }
            ToRouter::Started { worker, .. } => (Some(*worker), None),
            _ => (None, None),
        };
        if let Some(router) = &self.router {
            router.tell(message, port);
        }
        let Some(worker) = worker else { return Ok(()) };
        if let Some(reason) = failure {
            self.failed_start(worker, &reason);
            if worker.generation == 0 {
                self.first_failed.insert((worker.pool, worker.slot));
            }
            let slots = self.table.records().count();
            let none_ever = self.table.records().all(|record| !record.was_ready);
            if self.source.is_none()
                && !self.stopping
                && none_ever
                && self.first_failed.len() >= slots
            {
                return Err(MasterError::NoWorker(format!("the last one: {reason}")));
            }
        }
        self.forget_left();
        self.roll_on(worker.pool);
        Ok(())
    }

    fn hear(&mut self, message: FromRouter) {
        match message {
            FromRouter::Prepared => {}
            FromRouter::Accepting => {
                self.failures = 0;
                if let Some(router) = &mut self.router {
                    router.accepting = true;
                }
                tracing::info!(epoch = self.epoch, "the router accepts connections");
                self.table.is_heard();
                self.forget_left();
                if !self.announced {
                    self.announced = true;
                    announce(&self.announcement);
                    self.notifier.ready();
                }
                self.reloaded();
            }
            FromRouter::HandedOver { number } => self.handed_over(number),
            // Another is under way already: the end of this one's successor was noticed.
            FromRouter::Kept { .. } => {}
            FromRouter::Dry { listener } => self.is_dry(listener),
            FromRouter::Tried { problem } => self.tried(problem),
            FromRouter::Changed => {
                self.script_before = None;
                self.reloaded();
            }
            FromRouter::Pong { .. } => {
                if let Some(router) = &mut self.router {
                    router.answered();
                }
            }
            FromRouter::Loads { number: 0, workers, .. } => {
                let open: u32 = workers.iter().map(|load| load.open).sum();
                if self.stopping {
                    signals::tell_what_is_left(open);
                }
            }
            FromRouter::Loads { number, workers, queued } => {
                if self.parting.is_none() {
                    self.note_wear(&workers);
                }
                if let Some(asker) = self.waiting_for_loads.remove(&number) {
                    // It may have given up.
                    let _ = asker.send(Loads { workers, queued });
                }
            }
            FromRouter::Trace { number, entries } => {
                if let Some(asker) = self.waiting_for_trace.remove(&number) {
                    // It may have given up.
                    let _ = asker.send(entries);
                }
            }
            FromRouter::Stopped => tracing::info!("nothing is accepted any more"),
            FromRouter::Unusable { reason } => match self.script_before.take() {
                Some(before) => {
                    tracing::error!(
                        "the script cannot be used, and the one before it goes on: {reason}"
                    );
                    self.script = before;
                }
                None => {
                    tracing::error!("the script cannot be used: {reason}");
                    self.kill_router("it cannot use the script");
                }
            },
            FromRouter::Draining { worker } => {
                let by_itself = self.drains_by_itself(worker);
                self.table.obey(FromRouter::Draining { worker });
                if by_itself {
                    self.replace(worker);
                }
            }
            FromRouter::Ready { worker } => {
                self.table.obey(FromRouter::Ready { worker });
                self.is_ready(worker);
            }
            other => self.table.obey(other),
        }
    }
}

fn announce(text: &str) {
    use std::io::Write;
    // A closed standard output is no reason not to serve.
    let _ = writeln!(io::stdout(), "{text}");
}

async fn next(router: Option<&mut RouterProcess>) -> RouterEvent {
    match router {
        Some(router) => router.next().await,
        None => std::future::pending().await,
    }
}

async fn next_request(admin: &mut Option<Admin>) -> Request {
    match admin {
        Some(admin) => admin.next().await,
        None => std::future::pending().await,
    }
}
