//! `vestibule router`: the process that accepts, chooses and hands over. It has a user of its own and
//! no capabilities, and opens nothing: listeners and ports come from the supervisor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use vestibule_protocol::port::SocketError;
use vestibule_protocol::supervision::{FromRouter, Setup, ToRouter, WorkerId};

use crate::control::{ControlError, ControlPort, Parcel};
use crate::dispatch::Dispatch;
use crate::listener::{BURST, Listener};
use crate::metrics::Metrics;
use crate::pool::drive::Ports;
use crate::pool::{Core, Shared};
use crate::sys::router_privileges::{self, PrivilegeError};

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
    Routes(#[from] crate::route::RuleError),
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
        .build()
        .map_err(RoleError::Runtime)?;
    runtime.block_on(async {
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
    })
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
    names: Vec<String>,
    pools: Vec<Arc<Shared>>,
    ports: Ports,
    dispatch: Arc<Dispatch>,
    listeners: Vec<(u32, OwnedFd)>,
    accepting: JoinSet<()>,
    stop: watch::Sender<bool>,
    sender: mpsc::UnboundedSender<Parcel<FromRouter>>,
    told: mpsc::UnboundedReceiver<FromRouter>,
}

impl Router {
    fn new(
        setup: Setup,
        metrics: Arc<Metrics>,
        control: &ControlPort<FromRouter, ToRouter>,
    ) -> Result<Self, RoleError> {
        let (tell, told) = mpsc::unbounded_channel();
        let pool = |(pool, setup): (u32, &vestibule_protocol::supervision::PoolSetup)| {
            let names = setup.slots.iter().map(|slot| slot.name.as_str().into()).collect();
            let shared = Shared::new(pool, setup.settings.clone(), names, tell.clone());
            shared.step(|core| {
                for (slot, setup) in (0u32..).zip(&setup.slots) {
                    core.begin_as(slot, setup.mode);
                }
            });
            Arc::new(shared.counting_in(Arc::clone(&metrics), pool))
        };
        let pools: Vec<_> = (0u32..).zip(&setup.pools).map(pool).collect();
        let dispatch = Dispatch::new(&setup, pools.clone(), Arc::clone(&metrics))?;
        let dispatch = with_script(dispatch, &setup, &pools)?;
        Ok(Self {
            names: setup.listeners.into_iter().map(|listener| listener.name).collect(),
            ports: Ports::new(pools.clone(), setup.epoch),
            pools,
            dispatch: Arc::new(dispatch),
            listeners: Vec::new(),
            accepting: JoinSet::new(),
            stop: watch::Sender::new(false),
            sender: control.sender(),
            told,
        })
    }

    async fn run(mut self, mut control: ControlPort<FromRouter, ToRouter>) {
        let mut watching = JoinSet::new();
        for pool in &self.pools {
            watching.spawn(Arc::clone(&self.dispatch).watch(Arc::clone(pool)));
        }
        let mut stopping = false;
        loop {
            tokio::select! {
                message = control.recv() => match message {
                    Ok(Some((ToRouter::Stop, _))) => {
                        stopping = true;
                        self.stop.send_replace(true);
                    }
                    // Another router may have more room.
                    Ok(Some((ToRouter::Listener { .. }, None))) => {
                        return report(&ControlError::MissingDescriptor);
                    }
                    Ok(Some((message, descriptor))) => self.take(message, descriptor),
                    Ok(None) => return,
                    Err(error) => return report(&error),
                },
                Some(message) = self.told.recv() => self.tell(message),
                Some(_) = self.accepting.join_next() => {}
                () = std::future::ready(()), if stopping && self.accepting.is_empty() => {
                    stopping = false;
                    self.finish();
                }
            }
        }
    }

    fn take(&mut self, message: ToRouter, descriptor: Option<OwnedFd>) {
        match message {
            ToRouter::Listener { listener } => {
                if let Some(socket) = descriptor {
                    self.listeners.push((listener, socket));
                }
            }
            ToRouter::Begin => self.begin(),
            ToRouter::Ping { number } => self.tell(FromRouter::Pong { number }),
            ToRouter::AskLoads { number } => self.tell(self.loads(number)),
            ToRouter::Drain { worker, hold: false } => {
                self.step(worker, |core| core.drain(worker.slot, false));
            }
            ToRouter::Drain { worker, hold: true } => {
                self.step_slot(worker, |core| core.hold(worker.slot, true));
            }
            ToRouter::Undrain { worker } => {
                self.step_slot(worker, |core| core.hold(worker.slot, false));
            }
            ToRouter::AddSlot { pool, slot, name } => {
                if let Some(pool) = self.pools.get(pool as usize) {
                    pool.step(|core| core.add_slot(slot, name.into()));
                }
                self.dispatch.slots_changed();
            }
            ToRouter::RetireSlot { worker } => {
                self.step_slot(worker, |core| core.drain(worker.slot, true));
                self.dispatch.slots_changed();
            }
            // Handled before, or said once.
            ToRouter::Setup(_) | ToRouter::Stop => {}
            other => self.ports.take(other, descriptor),
        }
    }

    /// Every worker that there is has been named: connections may come.
    fn begin(&mut self) {
        for (listener, socket) in self.listeners.drain(..) {
            let name = self.names.get(listener as usize).map_or("", String::as_str);
            match Listener::from_socket(socket) {
                Ok(socket) => {
                    let dispatch = Arc::clone(&self.dispatch);
                    let stop = self.stop.subscribe();
                    self.accepting.spawn(accept(socket.named(name), listener, dispatch, stop));
                }
                Err(error) => tracing::error!(listener = name, %error, "cannot accept"),
            }
        }
        self.tell(FromRouter::Accepting);
    }

    /// Nothing is accepted any more: what workers have is all there is.
    fn finish(&mut self) {
        for pool in &self.pools {
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
        for pool in &self.pools {
            let core = pool.core();
            workers.extend(core.slots().iter().map(|slot| (slot.id, slot.handoff.load())));
            queued.push(u32::try_from(core.queued()).unwrap_or(u32::MAX));
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
        if let Some(pool) = self.pools.get(worker.pool as usize) {
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

fn report(error: &ControlError) {
    tracing::error!(%error, "the supervisor cannot be understood");
}

/// Accepts until told to stop; then what the kernel has accepted already, for closing the listener
/// would reset it.
async fn accept(
    mut listener: Listener,
    index: u32,
    dispatch: Arc<Dispatch>,
    mut stop: watch::Receiver<bool>,
) {
    let mut burst = Vec::with_capacity(BURST);
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            result = listener.accept_burst(&mut burst) => {
                if let Err(error) = result {
                    tracing::error!(%error, "a listener is unusable");
                    return;
                }
                let full = burst.len() == BURST;
                dispatch.hand_over(index, &mut burst);
                if !full {
                    continue;
                }
            }
        }
        // Acknowledgements are read before the next burst: they free descriptors and windows. After
        // a burst that took all there was, that is so without a look at the reactor in between.
        tokio::task::yield_now().await;
    }
    loop {
        let more = listener.take_present(&mut burst);
        // Closed right after a look that found nobody: who comes in between is reset.
        if burst.is_empty() && !more {
            return;
        }
        dispatch.hand_over(index, &mut burst);
        tokio::task::yield_now().await;
    }
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
