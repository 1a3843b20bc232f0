//! `vestibule router`: the process that accepts, chooses and hands over. It has a user of its own and
//! no capabilities, and opens nothing: listeners and ports come from the supervisor.

mod change;
mod estate;
mod inheritance;
mod listeners;
mod passing;
mod succession;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vestibule_protocol::port::SocketError;
use vestibule_protocol::supervision::{FromRouter, Setup, ToRouter, WorkerId, WorkerLoad};

use self::change::Former;
use self::estate::Bounds;
#[cfg(fuzzing)]
pub use self::estate::fuzzing;
use self::inheritance::Inheritance;
use self::listeners::{Ended, Listeners};
use self::succession::Successor;
use crate::control::{ControlError, ControlPort, Parcel};
use crate::dispatch::tracer::Tracer;
use crate::dispatch::{Dispatch, Switch};
use crate::metrics::Metrics;
use crate::pool::ports::Ports;
use crate::pool::{Core, Shared};
use crate::sys::router_privileges::{self, PrivilegeError};
use crate::ticket::Tickets;

/// How long the supervisor may take to say what to do.
const SETUP: Duration = Duration::from_secs(10);

/// Why a router process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// Started by hand.
    #[error("`vestibule router` is started by `vestibule run`, not by hand")]
    ByHand,
    /// There is no event loop.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// What is inherited is no control channel.
    #[error("the inherited descriptor is no control channel")]
    Control(#[from] SocketError),
    /// The supervisor said nothing, or something else, or something that cannot be read.
    #[error("the supervisor did not say what to do")]
    Setup,
    /// Privileges could not be dropped: nothing is accepted with them.
    #[error("cannot drop privileges")]
    Privileges(#[from] PrivilegeError),
    /// The route table that the supervisor sent makes no sense.
    #[error("the supervisor sent a route table that cannot be used")]
    Routes(#[from] crate::dispatch::DispatchError),
    /// The script cannot be used.
    #[error("{0}")]
    Script(String),
}

/// Serves until the supervisor ends the channel.
///
/// # Errors
/// See [`RoleError`].
pub fn run(control: OwnedFd) -> Result<(), RoleError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(crate::moderation::before_park())
        .build()
        .map_err(RoleError::Runtime)?;
    // With an error the channel ends when the process does: a router without one is killed at once, and could not
    // say why it ends.
    let until_the_end = control.try_clone();
    let ended = runtime.block_on(async {
        let mut control = ControlPort::<FromRouter, ToRouter>::new(control)?;
        let (setup, counters) = match tokio::time::timeout(SETUP, control.recv()).await {
            Ok(Ok(Some((ToRouter::Setup(setup), Some(counters))))) => (setup, counters),
            _ => return Err(RoleError::Setup),
        };
        let metrics = Metrics::map(counters).map_err(|_| RoleError::Setup)?;
        // Before the first client's byte can be near: single-threaded, so one call is for all.
        router_privileges::drop_to(setup.identity, setup.parent)?;
        match Router::new(setup, Arc::new(metrics), &control) {
            Ok(router) => router.run(control).await,
            Err(error) => {
                if let RoleError::Script(reason) = &error {
                    let reason = reason.clone();
                    // The supervisor ends the channel when it has heard that.
                    let _ = control.sender().send((FromRouter::Unusable { reason }, None));
                    let _ = tokio::time::timeout(SETUP, async {
                        while let Ok(Some(_)) = control.recv().await {}
                    })
                    .await;
                }
                return Err(error);
            }
        }
        Ok(())
    });
    ended.inspect_err(|_| std::mem::forget(until_the_end))
}

/// Lets the script be asked before the rules.
fn with_script(
    dispatch: Dispatch,
    setup: &Setup,
    pools: &[Arc<Shared>],
) -> Result<Dispatch, RoleError> {
    let Some(script) = &setup.script else { return Ok(dispatch) };
    #[cfg(feature = "script")]
    {
        let names = setup.pools.iter().map(|pool| pool.name.as_str().into()).collect();
        let script = crate::dispatch::script::Script::new(script, names, pools.to_vec())
            .map_err(|failure| RoleError::Script(failure.to_string()))?;
        Ok(dispatch.asking(script))
    }
    #[cfg(not(feature = "script"))]
    {
        let _ = (dispatch, pools);
        Err(RoleError::Script(format!("{}: this program was built without scripts", script.name)))
    }
}

struct Router {
    ports: Ports,
    switch: Arc<Switch>,
    tracer: Arc<Tracer>,
    metrics: Arc<Metrics>,
    /// Sockets of listeners that the next setup names, with the number of who has had them so far.
    sockets: BTreeMap<u32, (OwnedFd, Option<u32>)>,
    /// Listeners that were removed before this router came, with what decides about their clients.
    removed_listeners: Vec<(u32, Setup, OwnedFd)>,
    listeners: Listeners,
    /// What becomes of each pool's events; ends with the pool.
    watching: JoinSet<u32>,
    /// Tables that others have replaced, and that may still decide about somebody.
    replaced: Vec<Former>,
    /// Configurations of such tables, which the router before this one may name.
    former: Vec<Setup>,
    /// Waits for one of them.
    deciding: JoinSet<()>,
    /// Pools that are no more, as soon as nothing comes for them from a listener that is no more.
    removed: Vec<u32>,
    /// What is passed on by the router before this one, until it is this one's turn.
    inheritance: Option<Inheritance>,
    /// The stop that the listeners were told of.
    end: Option<End>,
    tell_pools: mpsc::UnboundedSender<FromRouter>,
    told: mpsc::UnboundedReceiver<FromRouter>,
    sender: mpsc::UnboundedSender<Parcel<FromRouter>>,
    setup: Setup,
}

/// What follows once nothing is accepted any more.
enum End {
    /// Workers finish.
    Stop,
    /// What waits goes to the next router.
    HandOver(Successor),
}

impl Router {
    fn new(
        setup: Setup,
        metrics: Arc<Metrics>,
        control: &ControlPort<FromRouter, ToRouter>,
    ) -> Result<Self, RoleError> {
        let (tell_pools, told) = mpsc::unbounded_channel();
        let mut router = Self {
            ports: Ports::new(setup.epoch, Tickets::new(setup.ticket_key)),
            tracer: Arc::new(Tracer::new(setup.epoch)),
            switch: Arc::new(Switch::new(Arc::clone(&metrics))?),
            metrics,
            sockets: BTreeMap::new(),
            removed_listeners: Vec::new(),
            listeners: Listeners::default(),
            watching: JoinSet::new(),
            replaced: Vec::new(),
            former: Vec::new(),
            deciding: JoinSet::new(),
            removed: Vec::new(),
            inheritance: None,
            end: None,
            tell_pools,
            told,
            sender: control.sender(),
            setup: setup.clone(),
        };
        router.become_as(setup)?;
        router.tell(FromRouter::Prepared);
        Ok(router)
    }

    async fn run(mut self, mut control: ControlPort<FromRouter, ToRouter>) {
        loop {
            tokio::select! {
                message = control.recv() => match message {
                    // Another router may have more room.
                    Ok(Some((ToRouter::Listener { .. } | ToRouter::Removed { .. } | ToRouter::HandOver { .. } | ToRouter::TakeOver { .. }, None))) => {
                        return report(&ControlError::MissingDescriptor);
                    }
                    Ok(Some((ToRouter::Begin, _))) => self.begin().await,
                    Ok(Some((message, descriptor))) => self.take(message, descriptor),
                    // Who is being turned away gets to read it.
                    Ok(None) => return crate::reject::all_said().await,
                    Err(error) => return report(&error),
                },
                Some(message) = self.told.recv() => self.tell(message),
                Some(ended) = self.listeners.next_end() => self.listener_ended(&ended),
                Some(_) = self.deciding.join_next() => self.look_at_replaced(),
                Some(pool) = self.watching.join_next() => {
                    if let Ok(pool) = pool {
                        tracing::info!(pool, "a removed pool is empty");
                        self.ports.remove(pool);
                    }
                }
            }
            if self.listeners.is_empty()
                && let Some(end) = self.end.take()
            {
                match end {
                    End::Stop => self.finish(),
                    End::HandOver(successor) => return self.hand_over(successor, control).await,
                }
            }
        }
    }

    fn take(&mut self, message: ToRouter, descriptor: Option<OwnedFd>) {
        if let Some(inheritance) = &mut self.inheritance
            && !is_for_an_heir(&message)
        {
            return inheritance.later(message, descriptor);
        }
        match message {
            ToRouter::Listener { listener, before } => {
                if let Some(socket) = descriptor {
                    self.sockets.insert(listener, (socket, before));
                }
            }
            ToRouter::Removed { listener, by } => {
                let removed = descriptor.map(|socket| (listener, *by, socket));
                self.removed_listeners.extend(removed);
            }
            ToRouter::Change(setup) => self.change(setup),
            ToRouter::Try(setup) => {
                let problem = self.prepare(&setup).err().map(|error| error.to_string());
                self.tell(FromRouter::Tried { problem });
            }
            ToRouter::Stop => {
                self.listeners.dry_all();
                self.end = Some(End::Stop);
            }
            ToRouter::HandOver { number } => {
                self.listeners.leave_all();
                let successor = descriptor.map(|channel| Successor { number, channel });
                self.end = successor.map(End::HandOver);
            }
            ToRouter::TakeOver { ports } => {
                let bounds = Bounds::of(self.setup.epoch, ports);
                self.inheritance = descriptor.map(|channel| Inheritance::expect(channel, bounds));
            }
            ToRouter::Ping { number } => self.tell(FromRouter::Pong { number }),
            ToRouter::AskLoads { number } => self.tell(self.loads(number)),
            ToRouter::AskTrace { number, rejected, since, peer } => {
                let peers = peer.and_then(|peer| crate::route::pattern::network(&peer).ok());
                let entries = self.tracer.ask(rejected, since, peers);
                self.tell(FromRouter::Trace { number, entries });
            }
            ToRouter::Drain { worker, hold: false } => {
                self.step(worker, |core| core.drain(worker.slot, false));
            }
            ToRouter::Drain { worker, hold: true } => {
                self.step_slot(worker, |core| core.hold(worker.slot, true));
            }
            ToRouter::Undrain { worker } => {
                self.step_slot(worker, |core| core.hold(worker.slot, false));
            }
            ToRouter::AddSlot { pool, slot, name, held } => {
                if let Some(pool) = self.ports.pools().get(&pool) {
                    pool.step(|core| core.add_slot(slot, name.into(), held));
                }
                self.switch.present().slots_changed();
            }
            ToRouter::RetireSlot { worker } => {
                self.step_slot(worker, |core| core.drain(worker.slot, true));
                self.switch.present().slots_changed();
            }
            ToRouter::Former(setup) => self.former.push(setup),
            // Handled before, or said once.
            ToRouter::Setup(_) | ToRouter::Begin => {}
            other => self.ports.take(other, descriptor),
        }
    }

    /// Every worker that there is has been named: connections may come, first those that another
    /// router passed on.
    async fn begin(&mut self) {
        if let Some(inheritance) = self.inheritance.take() {
            self.take_over(inheritance).await;
        }
        self.dry_removed();
        self.listen();
        // Pools that had gone before this router came.
        self.look_at_replaced();
        self.tell(FromRouter::Accepting);
    }

    fn listener_ended(&mut self, ended: &Ended) {
        let Ended { id: listener, dry } = *ended;
        tracing::info!(listener, "nothing is accepted from a listener any more");
        if dry {
            self.tell(FromRouter::Dry { listener });
        }
        self.look_at_replaced();
    }

    /// Nothing is accepted any more: what workers have is all there is.
    fn finish(&mut self) {
        self.replaced.iter().for_each(|former| former.table.end_inspections());
        self.switch.present().end_inspections();
        for pool in self.ports.pools().values() {
            pool.step(|core| {
                core.finish_all();
                core.flush();
            });
        }
        self.tell(FromRouter::Stopped);
    }

    fn loads(&self, number: u64) -> FromRouter {
        let mut workers = Vec::new();
        let mut queued = Vec::new();
        for (id, pool) in self.ports.pools() {
            let core = pool.core();
            workers.extend(core.slots().iter().map(|slot| WorkerLoad {
                worker: slot.id,
                open: slot.handoff.load(),
                served: slot.served,
            }));
            queued.push((*id, u32::try_from(core.queued()).unwrap_or(u32::MAX)));
        }
        FromRouter::Loads { number, workers, queued }
    }

    fn step(&self, worker: WorkerId, step: impl FnOnce(&mut Core)) {
        self.step_slot(worker, |core| {
            // A generation that is gone was meant, not its successor.
            if core.slot(worker.slot).is_some_and(|slot| slot.id == worker) {
                step(core);
            }
        });
    }

    /// For what holds for the slot, whoever is in it.
    fn step_slot(&self, worker: WorkerId, step: impl FnOnce(&mut Core)) {
        if let Some(pool) = self.ports.pools().get(&worker.pool) {
            pool.step(|core| {
                step(core);
                core.flush();
            });
        }
    }

    fn tell(&self, message: FromRouter) {
        // Without a supervisor the channel ends, and so does this process.
        let _ = self.sender.send((message, None));
    }
}

/// Whether a router whose turn has not come does what is said: it touches no worker and no client by
/// that.
fn is_for_an_heir(message: &ToRouter) -> bool {
    matches!(
        message,
        ToRouter::Listener { .. }
            | ToRouter::Removed { .. }
            | ToRouter::Change(_)
            | ToRouter::TakeOver { .. }
            | ToRouter::Ping { .. }
    )
}

fn report(error: &ControlError) {
    tracing::error!(%error, "the supervisor cannot be understood");
}

/// Takes a listening socket that was inherited under this number; `None` if it is none.
pub fn take_listening(number: i32) -> Option<OwnedFd> {
    let socket = crate::sys::process::take_inherited(number)?;
    rustix::net::sockopt::socket_acceptconn(&socket).is_ok_and(|listens| listens).then_some(socket)
}

/// Takes the control channel that the supervisor left in the environment.
///
/// # Errors
/// There is none: the program was started by hand.
pub fn inherited_control() -> Result<OwnedFd, RoleError> {
    let number = std::env::var("VESTIBULE_FD").map_err(|_| RoleError::ByHand)?;
    let number: i32 = number.parse().map_err(|_| RoleError::ByHand)?;
    let control = crate::sys::process::take_inherited(number).ok_or(RoleError::ByHand)?;
    match vestibule_protocol::sys::is_seqpacket(control.as_fd()) {
        Ok(true) => Ok(control),
        _ => Err(RoleError::ByHand),
    }
}
