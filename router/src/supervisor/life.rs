//! The life of one slot: start a process, watch it, end it when asked, start the next.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use vestibule_protocol::supervision::{Exit, FromRouter, ToRouter, WorkerId};

use super::backoff::Backoff;
use super::deadlines::Deadline;
use super::identity::Identity;
use super::output::{Capture, Tail};
use super::process_table::Report;
use super::program::StartError;
use super::spawn;
use super::unburied::{Unburied, ended};
use super::worker_state::{Action, Event, Timings, WorkerState};
use crate::options::WorkerOptions;
use crate::sys::process::{self, Started};

/// Processes of one slot that were killed and cannot end, while another is started: a worker that hangs in
/// its end again and again is to leave no more than these.
const UNBURIED: usize = 2;

/// What the router asks of a slot.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// The worker is ready.
    Ready,
    /// The worker drains; it will end.
    Draining,
    /// The worker drains, and nobody takes its place.
    Finishing,
    /// Other times are given; the program is the same.
    #[cfg(feature = "cli")]
    Options(Arc<WorkerOptions>),
    /// The worker was told to end.
    End,
    /// SIGTERM now: nobody is there who could say it in a message. Nobody takes its place.
    #[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "only the program says it"))]
    Term,
    /// Its port ended.
    PortEnded,
    /// It must go now.
    Kill(String),
}

impl Order {
    /// What the router says of a worker; `None` if it speaks of something else.
    pub(crate) fn from_router(message: FromRouter) -> Option<(WorkerId, Self)> {
        Some(match message {
            FromRouter::Ready { worker } => (worker, Self::Ready),
            FromRouter::Draining { worker } => (worker, Self::Draining),
            FromRouter::Finishing { worker } => (worker, Self::Finishing),
            FromRouter::Ending { worker } => (worker, Self::End),
            FromRouter::Ended { worker } => (worker, Self::PortEnded),
            FromRouter::Kill { worker, reason } => (worker, Self::Kill(reason)),
            FromRouter::Prepared
            | FromRouter::Accepting
            | FromRouter::Unusable { .. }
            | FromRouter::Changed
            | FromRouter::Dry { .. }
            | FromRouter::Tried { .. }
            | FromRouter::Pong { .. }
            | FromRouter::HandedOver { .. }
            | FromRouter::Kept { .. }
            | FromRouter::Stopped
            | FromRouter::Trace { .. }
            | FromRouter::Loads { .. } => return None,
        })
    }
}

type Orders = mpsc::UnboundedReceiver<(WorkerId, Order)>;

/// How one process's life ended, for the slot.
struct Ended {
    exit: Exit,
    reason: Option<String>,
    /// It was told to end: no other follows.
    wanted: bool,
    /// It was ready once.
    ready: bool,
    lived: Duration,
}

impl Ended {
    /// A process that was never ready has probably said why.
    fn add_lines(&mut self, tail: &Tail) {
        if self.ready || self.wanted {
            return;
        }
        let said = !tail.lines().is_empty();
        self.reason = match self.reason.take() {
            Some(reason) => Some(tail.explain(reason)),
            None if said => Some(tail.explain(format!("ended before it was ready: {}", self.exit))),
            None => None,
        };
    }
}

/// What a slot begins with.
pub(crate) struct Slot {
    /// Its first process.
    pub(crate) first: WorkerId,
    /// The name of all its processes.
    pub(crate) name: Arc<str>,
    /// N of that name, from 0.
    pub(crate) number: u32,
    /// What they run.
    pub(crate) options: Arc<WorkerOptions>,
    /// What the present one said last.
    pub(crate) tail: Tail,
    /// How long to wait before the first start.
    pub(crate) delay: Duration,
    /// What is left of its processes before.
    pub(crate) unburied: Unburied,
}

/// Runs a slot until its process is not to be replaced. If the orders end, so does the process.
pub(crate) async fn run(slot: Slot, mut orders: Orders, reports: mpsc::UnboundedSender<Report>) {
    let Slot { first, name, number, mut options, tail, delay, unburied } = slot;
    let mut backoff = options.restart.map(Backoff::new);
    let mut worker = first;
    let mut identity = None;
    // The slot may have had others, see `UNBURIED`.
    let mut wait = Some(delay).filter(|delay| !delay.is_zero() || unburied.count() >= UNBURIED);
    loop {
        if let Some(delay) = wait.take() {
            tracing::info!(worker = &*name, ?delay, "worker is started again");
            if pause(&mut orders, delay, &unburied, &mut options).await {
                let reason = "told to end while it waited to be started again".to_owned();
                let _ = reports.send((ToRouter::NotStarted { worker, reason, again: false }, None));
                return;
            }
        }
        let delay = match start(&name, number, &options, &mut identity, &tail, worker) {
            Ok((process, capture, report)) => {
                // Without a router there is nobody to be told; its end is noticed by the orders.
                let _ = reports.send(report);
                let life = Life::new(worker, Arc::clone(&options), process, unburied.clone());
                let (mut ended, latest) = life.run(&name, &mut orders, &reports).await;
                if latest.restart != options.restart {
                    backoff = latest.restart.map(Backoff::new);
                }
                options = latest;
                if let Some(capture) = capture {
                    capture.finish().await;
                }
                ended.add_lines(&tail);
                let Ended { exit, reason, lived, wanted, ready } = ended;
                let policy = backoff.as_mut().filter(|_| !wanted);
                let delay = policy.and_then(|backoff| backoff.after(lived, ready));
                let again = delay.is_some();
                let _ = reports.send((ToRouter::Gone { worker, exit, reason, again }, None));
                delay
            }
            Err(error) => {
                tracing::error!(worker = &*name, %error, "worker was not started");
                let reason = error.to_string();
                let delay = backoff.as_mut().and_then(|it| it.after(Duration::ZERO, false));
                let again = delay.is_some();
                let _ = reports.send((ToRouter::NotStarted { worker, reason, again }, None));
                delay
            }
        };
        let Some(delay) = delay else { return };
        wait = Some(delay);
        worker.generation += 1;
    }
}

/// Waits before a restart. Returns whether the slot is to end instead.
async fn pause(
    orders: &mut Orders,
    delay: Duration,
    unburied: &Unburied,
    options: &mut Arc<WorkerOptions>,
) -> bool {
    let mut delay = pin!(async {
        tokio::time::sleep(delay).await;
        unburied.fewer_than(UNBURIED).await;
    });
    #[cfg(not(feature = "cli"))]
    let _ = options;
    loop {
        tokio::select! {
            () = &mut delay => return false,
            order = orders.recv() => match order {
                None | Some((_, Order::End | Order::Finishing | Order::Term)) => return true,
                #[cfg(feature = "cli")]
                Some((_, Order::Options(latest))) => *options = latest,
                // Late words about the process that is gone.
                Some(_) => {}
            },
        }
    }
}

/// Starts the slot's next process, as whom the slot found out at its first.
fn start(
    name: &Arc<str>,
    number: u32,
    options: &WorkerOptions,
    identity: &mut Option<Identity>,
    tail: &Tail,
    worker: WorkerId,
) -> Result<(Started, Option<Capture>, Report), StartError> {
    let identity = match identity {
        Some(identity) => identity,
        None => identity.insert(Identity::resolve(&options.identity)?),
    };
    tail.clear();
    let (process, capture, port) = spawn::start(name, number, options, identity, tail)?;
    let pid = process.pid.as_raw_nonzero().get().unsigned_abs();
    tracing::info!(worker = &**name, pid, "worker started");
    Ok((process, capture, (ToRouter::Started { worker, pid }, Some(port))))
}

fn timings(options: &WorkerOptions) -> Timings {
    Timings {
        start: options.start_timeout,
        drain: options.drain_timeout,
        close: options.close_timeout,
        stop: options.stop_timeout,
    }
}

struct Life {
    worker: WorkerId,
    options: Arc<WorkerOptions>,
    process: Started,
    started: Instant,
    state: WorkerState,
    reason: Option<String>,
    /// What is left of the slot's processes.
    unburied: Unburied,
}

impl Life {
    fn new(
        worker: WorkerId,
        options: Arc<WorkerOptions>,
        process: Started,
        unburied: Unburied,
    ) -> Self {
        let state = WorkerState::new(timings(&options), Deadline::now());
        Self { worker, options, process, started: Instant::now(), state, reason: None, unburied }
    }

    async fn run(
        self,
        name: &str,
        orders: &mut Orders,
        reports: &mpsc::UnboundedSender<Report>,
    ) -> (Ended, Arc<WorkerOptions>) {
        let exited = crate::sys::reactor::readable_duplicate(self.process.pidfd.as_fd());
        self.watch(&exited, name, orders, reports).await
    }

    async fn watch(
        mut self,
        exited: &io::Result<AsyncFd<OwnedFd>>,
        name: &str,
        orders: &mut Orders,
        reports: &mpsc::UnboundedSender<Report>,
    ) -> (Ended, Arc<WorkerOptions>) {
        let mut orphaned = false;
        let mut timer = pin!(sleep_until(Deadline::now()));
        loop {
            let next = self.state.next();
            if let Some(next) = next
                && timer.deadline() != next
            {
                timer.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = ended(exited) => {
                    // Without a descriptor to wait with, it was only time to look.
                    if !process::has_ended(&self.process) {
                        continue;
                    }
                    self.on(Event::Exited, name, reports);
                    if let Ok(Some(exit)) = process::reap(&self.process) {
                        tracing::info!(worker = name, %exit, "worker ended");
                        return self.over(|_| exit);
                    }
                }
                order = orders.recv(), if !orphaned => match order {
                    #[cfg(feature = "cli")]
                    Some((_, Order::Options(latest))) => {
                        self.state.set_timings(timings(&latest));
                        self.options = latest;
                    }
                    Some((worker, order)) if worker == self.worker => {
                        self.obey(order, name, reports);
                    }
                    Some(_) => {}
                    None => {
                        orphaned = true;
                        let reason = "the router is gone";
                        tracing::warn!(worker = name, reason, "worker is killed");
                        self.on(Event::Orphaned, name, reports);
                    }
                },
                () = &mut timer, if next.is_some() => {
                    if self.on(Event::Due, name, reports) == Some(Action::Leave) {
                        let unburied = self.unburied.clone();
                        return self.over(|process| unburied.leave(name, process));
                    }
                }
            }
        }
    }

    fn over(self, exit: impl FnOnce(Started) -> Exit) -> (Ended, Arc<WorkerOptions>) {
        let lived = self.started.elapsed();
        let (ready, wanted) = (self.state.ready, self.state.last);
        let exit = exit(self.process);
        (Ended { exit, reason: self.reason, wanted, ready, lived }, self.options)
    }

    fn obey(&mut self, order: Order, name: &str, reports: &mpsc::UnboundedSender<Report>) {
        let event = match order {
            Order::Ready => Event::Ready,
            Order::Draining => Event::Draining,
            Order::Finishing => Event::Finishing,
            // Taken before.
            #[cfg(feature = "cli")]
            Order::Options(_) => return,
            Order::End => Event::End,
            Order::Term => Event::Term,
            Order::PortEnded => Event::PortEnded,
            Order::Kill(reason) => {
                tracing::warn!(worker = name, reason, "worker is killed");
                Event::Kill
            }
        };
        self.on(event, name, reports);
    }

    fn on(
        &mut self,
        event: Event,
        name: &str,
        reports: &mpsc::UnboundedSender<Report>,
    ) -> Option<Action> {
        let (state, action) = self.state.on(event, Deadline::now());
        self.state = state;
        match action {
            // What is left cannot be helped along.
            None | Some(Action::Leave) => {}
            Some(Action::TooLate) => {
                let reason = format!("was not ready within {:?}", self.options.start_timeout);
                tracing::warn!(worker = name, reason, "worker is killed");
                self.reason = Some(reason);
            }
            Some(Action::Stop) => {
                // Fails only if it is gone, which is noticed by itself.
                let _ = process::signal(&self.process, self.options.stop_signal);
            }
            // While the leader is not reaped the group's number is its own: whoever it forked goes
            // with it, before anything it was offered moves.
            Some(Action::Kill | Action::Bury) => {
                if let Err(error) = process::kill_group(&self.process) {
                    self.report_failure(reports, &error.to_string());
                    self.on(Event::KillFailed, name, reports);
                }
            }
        }
        action
    }

    fn report_failure(&self, reports: &mpsc::UnboundedSender<Report>, reason: &str) {
        let (worker, reason) = (self.worker, reason.to_owned());
        let _ = reports.send((ToRouter::KillFailed { worker, reason }, None));
    }
}

#[cfg(test)]
mod tests;
