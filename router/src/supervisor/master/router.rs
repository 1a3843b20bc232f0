//! The router's process: started, asked whether it lives, and started again when it ended. How one takes
//! over from another is in [`succession`](super::succession).

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;
use vestibule_protocol::supervision::{Setup, ToRouter};

use super::{Master, MasterError, ROUTER_ATTEMPTS, removed};
use crate::supervisor::life::Order;
use crate::supervisor::router_process::RouterProcess;

/// How long to wait before the next router after one that never accepted, times the failures.
pub(super) const ROUTER_DELAY: Duration = Duration::from_millis(100);

/// How many killed routers that cannot end there may be before another is started. Each keeps its memory and
/// whatever it had open; each was killed by somebody, which no worker can.
const UNBURIED_ROUTERS: usize = 8;

impl Master {
    pub(super) fn tick(&mut self) -> Result<(), MasterError> {
        self.look_at_wear();
        self.look_at_succession()?;
        if self.counts_served() && self.parting.is_none() {
            self.ask_for_wear();
        }
        let Some(router) = &mut self.router else { return Ok(()) };
        if router.is_overdue() {
            return self.router_overdue();
        }
        if router.is_silent() {
            self.kill_router("it does not answer");
        } else {
            router.ping();
        }
        Ok(())
    }

    /// The router was killed and cannot end. It does nothing any more: the next one is started.
    fn router_overdue(&mut self) -> Result<(), MasterError> {
        if self.unburied.count() < UNBURIED_ROUTERS {
            return self.router_ended();
        }
        if !std::mem::replace(&mut self.crowded, true) {
            let most = UNBURIED_ROUTERS;
            tracing::error!(
                most,
                "so many killed routers cannot end: the next waits for one of them"
            );
        }
        Ok(())
    }

    pub(super) fn kill_router(&mut self, reason: &str) {
        if let Some(router) = &mut self.router
            && router.is_spared()
        {
            tracing::error!(pid = router.pid(), reason, "the router is killed");
            router.kill();
        }
    }

    pub(super) fn router_ended(&mut self) -> Result<(), MasterError> {
        let Some(router) = self.router.take() else { return Ok(()) };
        let accepting = router.accepting;
        let exit = router.bury(&self.unburied);
        self.crowded = false;
        self.router_exit = Some(exit);
        self.forget_asked();
        if let Some(parting) = self.parting.take() {
            if self.is_handing_over() {
                tracing::error!(%exit, "the router has not handed over everything");
                self.end_passing_on();
                self.promote();
                return Ok(());
            }
            self.identity = parting.identity;
        }
        self.give_up_succession("the router before it ended by itself");
        tracing::error!(%exit, "the router ended");
        if !accepting && self.keeper.is_some() {
            self.failed()?;
            self.ask_keeper();
            return Ok(());
        }
        if self.stopping {
            // Nobody speaks to workers any more: signals do.
            self.close_listeners();
            self.table.order_all(&Order::Term);
            return Ok(());
        }
        match accepting {
            true => self.failures = 0,
            false => self.failed()?,
        }
        let delay = ROUTER_DELAY * self.failures;
        tracing::info!(failures = self.failures, ?delay, "the router is started again");
        self.restart_at = Instant::now() + delay;
        Ok(())
    }

    /// A router ended before it accepted.
    pub(super) fn failed(&mut self) -> Result<(), MasterError> {
        self.failures += 1;
        match self.failures >= ROUTER_ATTEMPTS {
            true => Err(MasterError::RouterFails),
            false => Ok(()),
        }
    }

    /// The present router answers nothing any more that was asked before.
    pub(super) fn forget_asked(&mut self) {
        self.waiting_for_loads.clear();
        self.give_up_trying();
        self.waiting_for_trace.clear();
        self.keep_wear();
    }

    /// There is to be a router, and none is under way.
    pub(super) fn router_due(&mut self) -> Result<(), MasterError> {
        if self.router.is_some() {
            return self.start_another_successor();
        }
        self.give_up_keeper();
        self.start_router()
    }

    fn start_router(&mut self) -> Result<(), MasterError> {
        self.epoch = next_epoch(self.epoch);
        let router = self.spawn_router(self.setup()).map_err(MasterError::Router)?;
        for listening in &self.listeners {
            let socket = listening.socket.socket().try_clone().map_err(MasterError::Router)?;
            let listener = listening.setup.id;
            router.tell(ToRouter::Listener { listener, before: None }, Some(socket));
        }
        removed::tell(&router, self.removed_for_router().map_err(MasterError::Router)?);
        for (message, port) in self.table.snapshot() {
            router.tell(message, port);
        }
        router.tell(ToRouter::Begin, None);
        self.router = Some(router);
        Ok(())
    }

    /// A router's process with its setup.
    pub(super) fn spawn_router(&mut self, setup: Setup) -> std::io::Result<RouterProcess> {
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
            number: self.number,
        }
    }
}

/// 0 would be an epoch that no router ever had.
pub(super) fn next_epoch(epoch: u16) -> u16 {
    epoch.checked_add(1).unwrap_or(1)
}
