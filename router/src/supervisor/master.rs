//! The supervisor's process: one thread that owns listeners, ports and processes, and never a byte of
//! a client.

mod administer;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use vestibule_protocol::supervision::{
    Exit, FromRouter, ListenerSetup, PoolSetup, RuleSetup, ScriptSetup, Setup, ToRouter,
};

use self::administer::worker_name;
use super::admin::socket::AdminSocket;
use super::admin::{Admin, Loads, Request};
use super::life::Order;
use super::notify::Notifier;
use super::orphans::Orphans;
use super::process_table::ProcessTable;
use super::router_process::{RouterEvent, RouterProcess};
use super::router_user::{self, SharedUser};
use crate::listener::Bound;
use crate::metrics::Metrics;
use crate::options::WorkerOptions;

/// Routers in a row that may end before they accept: then something is wrong that no restart mends.
const ROUTER_ATTEMPTS: u32 = 5;
/// How long to wait before the next router after one that never accepted, times the failures.
const ROUTER_DELAY: Duration = Duration::from_millis(100);
/// How often the router is asked whether it lives.
const PING: Duration = Duration::from_secs(1);
/// How long it may take to answer, or to accept after its start: its turns are milliseconds.
const ROUTER_PATIENCE: Duration = Duration::from_secs(5);

/// Everything that a run needs, whole and checked.
#[derive(Debug)]
pub struct Plan {
    /// Listening sockets, with what the router is to know of them.
    pub listeners: Vec<(ListenerSetup, Bound)>,
    /// The pools.
    pub pools: Vec<PoolPlan>,
    /// The route table, first match first. Empty, with one pool: everything goes there.
    pub rules: Vec<RuleSetup>,
    /// What is asked before the routes.
    pub script: Option<ScriptSetup>,
    /// User and group of the router; `None`: it stays who this process is.
    pub router_identity: Option<(u32, u32)>,
    /// Whether it comes from a file. Without one somebody types a command and waits: it ends when
    /// every worker's first start failed, and with the terminal (SIGHUP).
    pub from_file: bool,
    /// What the router logs: the supervisor's filter.
    pub log: String,
    /// Where `vestibule status` and the other commands ask, if anywhere.
    pub admin: Option<AdminSocket>,
    /// What to tell a person once connections are accepted.
    pub announcement: String,
}

/// One pool of a plan.
#[derive(Debug)]
pub struct PoolPlan {
    /// How many workers it has.
    pub workers: usize,
    /// What they run.
    pub options: WorkerOptions,
}

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
    router_user::check(plan.router_identity, &plan.pools)?;
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
    plan: Plan,
    /// What each pool's workers run.
    options: Vec<Arc<WorkerOptions>>,
    table: ProcessTable,
    router: Option<RouterProcess>,
    epoch: u16,
    /// Routers in a row that ended before they accepted.
    failures: u32,
    /// When the next router is started, if there is none.
    restart_at: Instant,
    announced: bool,
    metrics: Metrics,
    /// The metrics' memory, for each router.
    counters: OwnedFd,
    stopping: bool,
    /// Slots whose first process ended before it was ready.
    first_failed: HashSet<(u32, u32)>,
    notifier: Notifier,
    admin: Option<Admin>,
    started: Instant,
    /// Routers that were started.
    routers: u64,
    /// How the last router ended.
    router_exit: Option<Exit>,
    /// The router was asked for its loads so often.
    asked: u64,
    /// Who waits for an answer to which of these questions.
    waiting_for_loads: BTreeMap<u64, oneshot::Sender<Loads>>,
}

/// What wakes the supervisor.
enum Event {
    Report(Option<super::process_table::Report>),
    Router(RouterEvent),
    RouterDue,
    Tick,
    Signal(SignalKind),
    Admin(Request),
}

impl Master {
    fn new(plan: Plan) -> Result<Self, MasterError> {
        let (metrics, counters) =
            Metrics::new().map_err(|error| MasterError::Router(error.into()))?;
        let mut table = ProcessTable::new();
        let options = plan.pools.iter().map(|setup| Arc::new(setup.options.clone()));
        let options: Vec<_> = options.collect();
        for ((pool, setup), options) in (0u32..).zip(&plan.pools).zip(&options) {
            for slot in 0..setup.workers as u32 {
                let name = worker_name(&options.pool, slot);
                table.add(pool, slot, name.into(), Arc::clone(options));
            }
        }
        Ok(Self {
            plan,
            options,
            table,
            router: None,
            epoch: 0,
            failures: 0,
            restart_at: Instant::now(),
            announced: false,
            metrics,
            counters,
            stopping: false,
            first_failed: HashSet::new(),
            notifier: Notifier::from_env(),
            admin: None,
            started: Instant::now(),
            routers: 0,
            router_exit: None,
            asked: 0,
            waiting_for_loads: BTreeMap::new(),
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
        // Whoever is left is killed and reaped; the router ends with its channel.
        if let Some(router) = self.router.take() {
            router.end().await;
        }
        self.table.end().await;
        result
    }

    async fn next(&mut self, signals: &mut Signals, ticks: &mut tokio::time::Interval) -> Event {
        let Self { table, router, restart_at, stopping, admin, notifier, .. } = self;
        tokio::select! {
            biased;
            never = notifier.keep_alive() => match never {},
            kind = signals.next() => Event::Signal(kind),
            report = table.next_report() => Event::Report(report),
            event = next(router) => Event::Router(event),
            () = tokio::time::sleep_until(*restart_at), if router.is_none() && !*stopping => {
                Event::RouterDue
            }
            _ = ticks.tick() => Event::Tick,
            // Last: however much is asked, everything above goes first.
            request = next_request(admin) => Event::Admin(request),
        }
    }

    /// Returns whether to go on.
    fn handle(&mut self, event: Event) -> Result<bool, MasterError> {
        match event {
            Event::Report(None) if self.stopping => return Ok(false),
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
            Event::Router(RouterEvent::Silent) => self.kill_router("its channel ended"),
            Event::Router(RouterEvent::Ended) => return self.router_ended().map(|()| true),
            Event::RouterDue => self.start_router()?,
            Event::Tick => self.tick(),
            Event::Signal(kind) => return Ok(self.signal(kind)),
            Event::Admin(request) => self.administer(request),
        }
        Ok(true)
    }

    fn report(&mut self, (message, port): super::process_table::Report) -> Result<(), MasterError> {
        let failure = match &message {
            ToRouter::NotStarted { worker, reason, .. } if worker.generation == 0 => {
                Some((*worker, reason.clone()))
            }
            ToRouter::Gone { worker, exit, reason, .. } if worker.generation == 0 => {
                let text = reason.clone().unwrap_or_else(|| format!("it ended with {exit}"));
                Some((*worker, text))
            }
            _ => None,
        };
        if let Some(router) = &self.router {
            router.tell(message, port);
        }
        if let Some((worker, reason)) = failure {
            self.first_failed.insert((worker.pool, worker.slot));
            let slots = self.table.records().count();
            let none_ever = self.table.records().all(|record| !record.was_ready);
            if !self.plan.from_file
                && !self.stopping
                && none_ever
                && self.first_failed.len() >= slots
            {
                return Err(MasterError::NoWorker(format!("the last one: {reason}")));
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: FromRouter) {
        match message {
            FromRouter::Accepting => {
                self.failures = 0;
                if let Some(router) = &mut self.router {
                    router.accepting = true;
                }
                tracing::info!(epoch = self.epoch, "the router accepts connections");
                if !self.announced {
                    self.announced = true;
                    announce(&self.plan.announcement);
                    self.notifier.ready();
                }
            }
            FromRouter::Pong { .. } => {
                if let Some(router) = &mut self.router {
                    router.heard = Instant::now();
                }
            }
            FromRouter::Loads { number: 0, workers, .. } => {
                let open: u32 = workers.iter().map(|(_, open)| open).sum();
                if self.stopping {
                    tell_what_is_left(open);
                }
            }
            FromRouter::Loads { number, workers, queued } => {
                if let Some(asker) = self.waiting_for_loads.remove(&number) {
                    // It may have given up.
                    let _ = asker.send(Loads { workers, queued });
                }
            }
            FromRouter::Stopped => tracing::info!("nothing is accepted any more"),
            FromRouter::Unusable { reason } => {
                tracing::error!("the script cannot be used: {reason}");
                self.kill_router("it cannot use the script");
            }
            other => self.table.obey(other),
        }
    }

    fn tick(&mut self) {
        let Some(router) = &mut self.router else { return };
        if router.heard.elapsed() > ROUTER_PATIENCE {
            self.kill_router("it does not answer");
            return;
        }
        router.ping();
    }

    fn kill_router(&mut self, reason: &str) {
        if let Some(router) = &mut self.router
            && !std::mem::replace(&mut router.killed, true)
        {
            tracing::error!(pid = router.pid(), reason, "the router is killed");
            router.kill();
        }
    }

    fn router_ended(&mut self) -> Result<(), MasterError> {
        let Some(router) = self.router.take() else { return Ok(()) };
        let exit = router.reap();
        self.router_exit = exit;
        // Nobody answers any more.
        self.waiting_for_loads.clear();
        tracing::error!(exit = exit.map(tracing::field::display), "the router ended");
        if self.stopping {
            // Nobody speaks to workers any more: signals do.
            self.table.order_all(&Order::Term);
            return Ok(());
        }
        self.failures = if router.accepting { 0 } else { self.failures + 1 };
        if self.failures >= ROUTER_ATTEMPTS {
            return Err(MasterError::RouterFails);
        }
        let delay = ROUTER_DELAY * self.failures;
        tracing::info!(failures = self.failures, ?delay, "the router is started again");
        self.restart_at = Instant::now() + delay;
        Ok(())
    }

    fn start_router(&mut self) -> Result<(), MasterError> {
        // 0 would be an epoch that no router ever had.
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vestibule").arg("router").env("VESTIBULE_LOG", &self.plan.log);
        // Said to this process alone.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        let router = RouterProcess::start(&mut command).map_err(MasterError::Router)?;
        self.routers += 1;
        tracing::info!(pid = router.pid(), epoch = self.epoch, "the router is started");
        let counters = self.counters.try_clone().map_err(MasterError::Router)?;
        router.tell(ToRouter::Setup(self.setup()), Some(counters));
        for (listener, (_, socket)) in (0u32..).zip(&self.plan.listeners) {
            let socket = socket.socket().try_clone().map_err(MasterError::Router)?;
            router.tell(ToRouter::Listener { listener }, Some(socket));
        }
        for (message, port) in self.table.snapshot() {
            router.tell(message, port);
        }
        router.tell(ToRouter::Begin, None);
        self.router = Some(router);
        Ok(())
    }

    fn setup(&self) -> Setup {
        let pools = (0u32..).zip(&self.plan.pools).map(|(pool, plan)| PoolSetup {
            name: plan.options.pool.clone(),
            settings: plan.options.settings(),
            slots: self.table.slots(pool),
        });
        Setup {
            epoch: self.epoch,
            parent: std::process::id(),
            identity: self.plan.router_identity,
            pools: pools.collect(),
            listeners: self.plan.listeners.iter().map(|(setup, _)| setup.clone()).collect(),
            rules: self.plan.rules.clone(),
            script: self.plan.script.clone(),
        }
    }

    /// Returns whether to go on.
    fn signal(&mut self, kind: SignalKind) -> bool {
        if kind == SignalKind::user_defined2() {
            tracing::warn!("an upgrade in place is not there yet: restart the service instead");
            return true;
        }
        if kind == SignalKind::hangup() && self.plan.from_file {
            tracing::warn!("reload is not there yet: restart the service instead");
            return true;
        }
        if self.stopping {
            return false;
        }
        self.stop();
        true
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.notifier.stopping();
        // No other router will need them: the last one's are the last, and it accepts what waits
        // before it closes them.
        let names = std::mem::take(&mut self.plan.listeners);
        tracing::info!(listeners = names.len(), "stopping");
        drop(names);
        match &self.router {
            Some(router) => {
                // First the slots: a worker that is done at once must not be started again.
                self.table.order_all(&Order::Finishing);
                router.tell(ToRouter::AskLoads { number: 0 }, None);
                router.tell(ToRouter::Stop, None);
            }
            None => self.table.order_all(&Order::Term),
        }
    }
}

/// For a person, whatever is logged.
fn tell_what_is_left(open: u32) {
    use std::io::Write;
    let connections = if open == 1 { "connection is" } else { "connections are" };
    // A closed standard error is no reason not to stop.
    let _ = writeln!(
        io::stderr(),
        "stopping: {open} {connections} left; a second signal stops at once"
    );
}

fn announce(text: &str) {
    use std::io::Write;
    // A closed standard output is no reason not to serve.
    let _ = writeln!(io::stdout(), "{text}");
}

async fn next(router: &mut Option<RouterProcess>) -> RouterEvent {
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

/// The signals that mean something.
struct Signals {
    received: mpsc::UnboundedReceiver<SignalKind>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (note, received) = mpsc::unbounded_channel();
        for kind in [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::hangup(),
            SignalKind::user_defined2(),
        ] {
            let signal = signal(kind)?;
            tokio::spawn(forward(signal, kind, note.clone()));
        }
        Ok(Self { received })
    }

    async fn next(&mut self) -> SignalKind {
        match self.received.recv().await {
            Some(kind) => kind,
            // Every forwarder is gone: so is the runtime.
            None => std::future::pending().await,
        }
    }
}

async fn forward(mut signal: Signal, kind: SignalKind, note: mpsc::UnboundedSender<SignalKind>) {
    while signal.recv().await.is_some() {
        if note.send(kind).is_err() {
            return;
        }
    }
}
