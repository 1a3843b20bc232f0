//! The router's process: started, asked whether it lives, started again when it ended, and replaced in
//! the planned way.
//!
//! A planned change loses nothing: the next router is started and drops its privileges first, so that
//! one that cannot costs nothing. Then the two get the ends of one channel. The old one accepts nothing
//! more, settles what it has offered, passes on what waits, and ends; then the new one is told what
//! there is, and begins. Clients that come meanwhile wait in the kernel's queues.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;
use vestibule_protocol::supervision::{FromRouter, Setup, ToRouter};
use vestibule_protocol::sys::seqpacket_pair;

use super::{Master, MasterError, ROUTER_ATTEMPTS};
use crate::supervisor::life::Order;
use crate::supervisor::router_process::{RouterEvent, RouterProcess};

/// How long to wait before the next router after one that never accepted, times the failures.
const ROUTER_DELAY: Duration = Duration::from_millis(100);
/// How long it may take to answer, or to accept after its start: its turns are milliseconds.
const ROUTER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a router may take to hand over: 3 s for its workers, 1 s for what they handed back, 3 s for
/// the next one, and the time that a client has who is turned away.
const HAND_OVER: Duration = Duration::from_secs(10);

/// A router that is to take over.
#[derive(Debug)]
pub(super) struct Succession {
    router: RouterProcess,
    epoch: u16,
    /// Who it became.
    identity: Option<(u32, u32)>,
    /// Until when the router before it may take, once it was told.
    handing_over: Option<Instant>,
}

impl Succession {
    pub(super) fn router(&mut self) -> &mut RouterProcess {
        &mut self.router
    }
}

impl Master {
    pub(super) fn tick(&mut self) {
        self.look_at_wear();
        if let Some(until) = self.succession.as_ref().and_then(|next| next.handing_over) {
            if Instant::now() >= until {
                self.kill_router("it does not hand over");
            }
            return;
        }
        let late = |next: &super::Succession| next.router.started.elapsed() > ROUTER_PATIENCE;
        if self.succession.as_ref().is_some_and(late) {
            self.give_up_succession("it was not prepared in time");
        }
        if self.counts_served() {
            self.ask_for_wear();
        }
        let Some(router) = &mut self.router else { return };
        if router.heard.elapsed() > ROUTER_PATIENCE {
            self.kill_router("it does not answer");
            return;
        }
        router.ping();
    }

    pub(super) fn kill_router(&mut self, reason: &str) {
        if let Some(router) = &mut self.router
            && !std::mem::replace(&mut router.killed, true)
        {
            tracing::error!(pid = router.pid(), reason, "the router is killed");
            router.kill();
        }
    }

    pub(super) fn router_ended(&mut self) -> Result<(), MasterError> {
        let Some(router) = self.router.take() else { return Ok(()) };
        let exit = router.reap();
        self.router_exit = exit;
        // Nobody answers any more.
        self.waiting_for_loads.clear();
        self.give_up_trying();
        self.waiting_for_trace.clear();
        self.keep_wear();
        if self.is_handing_over() {
            tracing::info!(exit = exit.map(tracing::field::display), "the router has handed over");
            return self.promote();
        }
        self.give_up_succession("the router before it ended by itself");
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

    pub(super) fn start_router(&mut self) -> Result<(), MasterError> {
        self.epoch = next_epoch(self.epoch);
        let router = self.spawn_router(self.setup()).map_err(MasterError::Router)?;
        for listener in &self.listeners {
            let socket = listener.socket.socket().try_clone().map_err(MasterError::Router)?;
            router.tell(ToRouter::Listener { listener: listener.setup.id }, Some(socket));
        }
        for (message, port) in self.table.snapshot() {
            router.tell(message, port);
        }
        router.tell(ToRouter::Begin, None);
        self.router = Some(router);
        Ok(())
    }

    /// A router's process with its setup.
    fn spawn_router(&mut self, setup: Setup) -> std::io::Result<RouterProcess> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vestibule").arg("router").env("VESTIBULE_LOG", &self.log);
        // Said to this process alone.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        let counters = self.counters.try_clone()?;
        let router = RouterProcess::start(&mut command)?;
        self.routers += 1;
        tracing::info!(pid = router.pid(), epoch = setup.epoch, "the router is started");
        router.tell(ToRouter::Setup(setup), Some(counters));
        Ok(router)
    }

    pub(super) fn setup(&self) -> Setup {
        let pools = self.pools.iter().map(|pool| pool.setup(&self.table, false));
        // Rules name those above by their places.
        let leaving = self.leaving.iter().map(|pool| pool.setup(&self.table, true));
        Setup {
            epoch: self.epoch,
            parent: std::process::id(),
            identity: self.identity,
            ticket_key: self.ticket_key,
            pools: pools.chain(leaving).collect(),
            listeners: self.listeners.iter().map(|listening| listening.setup.clone()).collect(),
            inspect: self.inspect,
            rules: self.rules.clone(),
            script: self.script.clone(),
        }
    }

    // --- the planned change -----------------------------------------------------------------

    /// Starts the router that is to take over, as another user.
    pub(super) fn begin_succession(&mut self, identity: Option<(u32, u32)>) {
        self.give_up_succession("another one is wanted");
        if self.router.is_none() {
            // Between two routers: the next one is started as this user anyway.
            self.identity = identity;
            return;
        }
        let epoch = next_epoch(self.epoch);
        // What there is, it is told when it begins: slots and processes may be others by then.
        let setup = Setup {
            epoch,
            identity,
            pools: Vec::new(),
            listeners: Vec::new(),
            rules: Vec::new(),
            script: None,
            ..self.setup()
        };
        match self.spawn_router(setup) {
            Ok(router) => {
                let handing_over = None;
                self.succession = Some(Succession { router, epoch, identity, handing_over });
            }
            Err(error) => {
                tracing::error!(%error, "the next router cannot be started: the present one stays");
                self.reloaded();
            }
        }
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.succession.as_ref().is_some_and(|next| next.handing_over.is_some())
    }

    pub(super) fn take_successor(&mut self) -> Option<RouterProcess> {
        self.succession.take().map(|next| next.router)
    }

    /// What the router that is to take over does.
    pub(super) fn successor(&mut self, event: RouterEvent) {
        match event {
            RouterEvent::Said(FromRouter::Prepared) => self.tell_predecessor(),
            // Nothing else is asked of it yet.
            RouterEvent::Said(_) => {}
            RouterEvent::Silent => self.give_up_succession("its channel ended"),
            RouterEvent::Ended => self.give_up_succession("it ended"),
        }
    }

    /// The next router is able to: the present one may go.
    fn tell_predecessor(&mut self) {
        let (Some(router), Some(next)) = (&self.router, &mut self.succession) else { return };
        if next.handing_over.is_some() {
            return;
        }
        let sockets: std::io::Result<Vec<_>> = self
            .listeners
            .iter()
            .map(|listener| Ok((listener.setup.id, listener.socket.socket().try_clone()?)))
            .collect();
        let (Ok((one, other)), Ok(sockets)) = (seqpacket_pair(), sockets) else {
            return self.give_up_succession("this process is out of descriptors");
        };
        for (listener, socket) in sockets {
            next.router.tell(ToRouter::Listener { listener }, Some(socket));
        }
        next.router.tell(ToRouter::TakeOver, Some(other));
        router.tell(ToRouter::HandOver, Some(one));
        next.handing_over = Some(Instant::now() + HAND_OVER);
        tracing::info!(from = router.pid(), to = next.router.pid(), "the router hands over");
    }

    /// Its channel has ended, so it is about to end; what it says no more need not be waited for.
    pub(super) fn end_predecessor(&mut self) {
        if let Some(router) = &mut self.router
            && !std::mem::replace(&mut router.killed, true)
        {
            router.close();
        }
    }

    /// The router that was to take over does not, if it was not told to yet.
    pub(super) fn give_up_succession(&mut self, reason: &str) {
        let Some(next) = self.succession.take() else { return };
        tracing::error!(pid = next.router.pid(), reason, "the next router does not take over");
        next.router.kill();
        // A process that was killed ends at once; nobody waits for it here.
        tokio::spawn(next.router.end());
        if !self.router.as_ref().is_some_and(|router| router.killed) {
            self.reloaded();
        }
    }

    /// As [`give_up_succession`](Self::give_up_succession): everything ends.
    pub(super) fn forget_unprepared(&mut self) {
        if !self.is_handing_over()
            && let Some(next) = self.succession.take()
        {
            tokio::spawn(next.router.end());
        }
    }

    /// The router before it has ended: the next one is told what there is, and begins.
    fn promote(&mut self) -> Result<(), MasterError> {
        let Some(Succession { mut router, epoch, identity, .. }) = self.succession.take() else {
            return Ok(());
        };
        self.epoch = epoch;
        self.identity = identity;
        router.heard = Instant::now();
        router.tell(ToRouter::Change(self.setup()), None);
        for (message, port) in self.table.snapshot() {
            router.tell(message, port);
        }
        router.tell(ToRouter::Begin, None);
        if self.stopping {
            router.tell(ToRouter::AskLoads { number: 0 }, None);
            router.tell(ToRouter::Stop, None);
        }
        self.router = Some(router);
        Ok(())
    }
}

/// 0 would be an epoch that no router ever had.
fn next_epoch(epoch: u16) -> u16 {
    epoch.checked_add(1).unwrap_or(1)
}
