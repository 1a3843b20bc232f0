//! One router after the other, in the planned way: nothing is lost.
//!
//! The next router is started and drops its privileges first, so that one that cannot costs nothing. Then
//! the two get the ends of one channel. The present one accepts nothing more, and passes on what waits and
//! what workers have not answered; it keeps all of that, too, and does nothing any more. The next one
//! is told what there is, and begins; with its first step it tells the one before, which ends. So one of
//! the two acts at any time. If the next one dies before its first step another is started, and what
//! waits is passed on again. Clients that come meanwhile wait in the kernel's queues.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;
use vestibule_protocol::supervision::{FromRouter, Setup, ToRouter};
use vestibule_protocol::sys::seqpacket_pair;

use super::router::{ROUTER_DELAY, next_epoch};
use super::{Master, MasterError, removed};
use crate::supervisor::life::Order;
use crate::supervisor::router_process::{RouterEvent, RouterProcess};

/// How many questions, one a second, both routers may answer until one has handed over: 2 s for the ports
/// of the dead, 1 s for what came back, and for what is passed on many times what 100,000 connections take.
const HAND_OVER: u32 = 20;
/// How long a router that has passed on everything may take to say whether the next one has acted, once
/// that one is dead, and to end, once that one accepts: it hears of both by a channel. Whoever it is
/// turning away has 2.2 s to read it.
const VERDICT: Duration = Duration::from_secs(5);

/// Users and groups that a router can become.
type Identity = Option<(u32, u32)>;

/// A router that is to take over.
#[derive(Debug)]
pub(super) struct Succession {
    router: RouterProcess,
    /// Which one, of all routers.
    number: u64,
    epoch: u16,
    /// Who it became.
    identity: Identity,
    /// How often it was asked whether it lives, since what waits is to be passed on to it.
    handing_over: Option<u32>,
    /// The end of the channel by which that comes that the present router has.
    channel: Option<OwnedFd>,
}

/// The present router accepts nothing more: another has to take over, whoever dies meanwhile.
#[derive(Debug)]
pub(super) struct Parting {
    /// Who the next one becomes.
    pub(super) identity: Identity,
}

/// The router before the present one, which has everything until that one acts.
#[derive(Debug)]
pub(super) struct Keeper {
    router: RouterProcess,
    /// The router after it.
    number: u64,
    /// That one has not acted, and will not.
    kept: bool,
    /// When it is killed, once that one accepts.
    until: Option<Instant>,
}

impl Succession {
    pub(super) fn router(&mut self) -> &mut RouterProcess {
        &mut self.router
    }
}

impl Keeper {
    pub(super) fn router(&mut self) -> &mut RouterProcess {
        &mut self.router
    }
}

impl Master {
    /// Starts the router that is to take over, as another user.
    pub(super) fn begin_succession(&mut self, identity: Identity) {
        self.give_up_succession("another one is wanted");
        if self.router.is_none() {
            // Between two routers: the next one is started as this user anyway.
            self.identity = identity;
            return;
        }
        if let Err(error) = self.start_successor_router(identity) {
            tracing::error!(%error, "the next router cannot be started: the present one stays");
            self.reloaded();
        }
    }

    fn start_successor_router(&mut self, identity: Identity) -> std::io::Result<()> {
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
        let router = self.spawn_router(setup)?;
        let number = self.routers;
        self.succession =
            Some(Succession { router, number, epoch, identity, handing_over: None, channel: None });
        Ok(())
    }

    /// Whether the present router waits for another, and none is under way.
    pub(super) fn wants_successor(&self) -> bool {
        self.parting.is_some() && self.succession.is_none()
    }

    /// Another one, in place of one that has died.
    pub(super) fn start_another_successor(&mut self) -> Result<(), MasterError> {
        let Some(Parting { identity }) = self.parting else { return Ok(()) };
        if let Err(error) = self.start_successor_router(identity) {
            tracing::error!(%error, "the next router cannot be started");
            self.try_another_successor()?;
        }
        Ok(())
    }

    fn try_another_successor(&mut self) -> Result<(), MasterError> {
        self.failed()?;
        self.restart_at = Instant::now() + ROUTER_DELAY * self.failures;
        Ok(())
    }

    /// Whether a router takes over: one reload at a time.
    pub(super) fn is_succeeding(&self) -> bool {
        let begins = self.router.as_ref().is_none_or(|router| !router.accepting);
        self.succession.is_some() || self.parting.is_some() || (self.keeper.is_some() && begins)
    }

    /// All that are not the present one.
    pub(super) fn take_other_routers(&mut self) -> impl Iterator<Item = RouterProcess> + use<> {
        let next = self.succession.take().map(|next| next.router);
        next.into_iter().chain(self.keeper.take().map(|keeper| keeper.router))
    }

    /// Asks whether those that take part answer.
    pub(super) fn look_at_succession(&mut self) -> Result<(), MasterError> {
        if let Some(keeper) = &mut self.keeper
            && self.router.as_ref().is_some_and(|router| router.accepting)
            && *keeper.until.get_or_insert_with(|| Instant::now() + VERDICT) <= Instant::now()
        {
            self.give_up_keeper();
        }
        let Some(next) = &mut self.succession else { return Ok(()) };
        if next.router.is_silent() {
            return self.lose_successor("it does not answer");
        }
        next.router.ping();
        if let Some(asked) = &mut next.handing_over {
            *asked += 1;
            if *asked > HAND_OVER {
                self.kill_router("it does not hand over");
            }
        }
        Ok(())
    }

    /// What the router that is to take over does.
    pub(super) fn successor(&mut self, event: RouterEvent) -> Result<(), MasterError> {
        match event {
            RouterEvent::Said(FromRouter::Prepared) => self.tell_predecessor(),
            RouterEvent::Said(FromRouter::Pong { .. }) => {
                if let Some(next) = &mut self.succession {
                    next.router.answered();
                }
                Ok(())
            }
            // Nothing else is asked of it yet.
            RouterEvent::Said(_) => Ok(()),
            RouterEvent::Silent => self.lose_successor("its channel ended"),
            RouterEvent::Ended => self.lose_successor("it ended"),
        }
    }

    /// The next router is able to: the present one may go.
    fn tell_predecessor(&mut self) -> Result<(), MasterError> {
        let removed = self.removed_for_router();
        let (Some(router), Some(next)) = (&self.router, &mut self.succession) else {
            return Ok(());
        };
        if next.handing_over.is_some() {
            return Ok(());
        }
        let sockets: std::io::Result<Vec<_>> = self
            .listeners
            .iter()
            .map(|listener| Ok((listener.setup.id, listener.socket.socket().try_clone()?)))
            .collect();
        let pair = seqpacket_pair().map(|(one, other)| (one.try_clone(), one, other));
        let (Ok((Ok(kept), one, other)), Ok(sockets), Ok(removed)) = (pair, sockets, removed)
        else {
            return self.lose_successor("this process is out of descriptors");
        };
        for (listener, socket) in sockets {
            next.router.tell(ToRouter::Listener { listener, before: None }, Some(socket));
        }
        // The present one leaves them where they are.
        removed::tell(&next.router, removed);
        // One for each slot, and as many again: those who are dead by then have theirs still.
        let ports = 2 * self.table.records().count();
        let ports = u32::try_from(ports).unwrap_or(u32::MAX);
        next.router.tell(ToRouter::TakeOver { ports }, Some(other));
        router.tell(ToRouter::HandOver { number: next.number }, Some(one));
        next.router.answered();
        next.handing_over = Some(0);
        next.channel = Some(kept);
        tracing::info!(from = router.pid(), to = next.router.pid(), "the router hands over");
        self.parting = Some(Parting { identity: next.identity });
        self.table.keep_unheard();
        Ok(())
    }

    /// Whether the present router passes on what waits.
    pub(super) fn is_handing_over(&self) -> bool {
        self.succession.as_ref().is_some_and(|next| next.handing_over.is_some())
    }

    /// Its channel has ended, so it is about to end; what it says no more need not be waited for.
    pub(super) fn end_predecessor(&mut self) {
        if let Some(router) = &mut self.router
            && !std::mem::replace(&mut router.given_up, true)
        {
            router.close();
        }
    }

    /// The router that was to take over does not. If the present one has parted already, it keeps what
    /// it has for another; else it stays.
    fn lose_successor(&mut self, reason: &str) -> Result<(), MasterError> {
        self.give_up_succession(reason);
        match self.parting {
            Some(_) => self.try_another_successor(),
            None => Ok(()),
        }
    }

    pub(super) fn give_up_succession(&mut self, reason: &str) {
        let Some(mut next) = self.succession.take() else { return };
        tracing::error!(pid = next.router.pid(), reason, "the next router does not take over");
        next.router.kill();
        // A process that was killed ends at once; nobody waits for it here.
        tokio::spawn(next.router.end(self.unburied.clone()));
        if !self.router.as_ref().is_some_and(|router| router.given_up) {
            self.reloaded();
        }
    }

    /// As [`give_up_succession`](Self::give_up_succession): everything ends. One that has to take over
    /// still does.
    pub(super) fn forget_unprepared(&mut self) {
        if self.parting.is_none()
            && let Some(next) = self.succession.take()
        {
            tokio::spawn(next.router.end(self.unburied.clone()));
        }
    }

    /// The present router is gone: what it has passed on by now is all. Its end of the channel may stay
    /// open with what is left of it.
    pub(super) fn end_passing_on(&mut self) {
        if let Some(channel) = self.succession.as_mut().and_then(|next| next.channel.take()) {
            // It may be over already.
            let _ = rustix::net::shutdown(&channel, rustix::net::Shutdown::Both);
        }
    }

    /// The next router has everything: it is the present one from now on.
    pub(super) fn handed_over(&mut self, number: u64) {
        let is_it = |next: &Succession| next.number == number && next.handing_over.is_some();
        if !self.succession.as_ref().is_some_and(is_it) {
            // It has died meanwhile.
            return;
        }
        self.parting = None;
        self.forget_asked();
        if let Some(router) = self.router.take() {
            let keeper = Keeper { router, number, kept: false, until: None };
            if let Some(before) = self.keeper.replace(keeper) {
                // Nobody needs it any more.
                tokio::spawn(before.router.end_within(VERDICT, self.unburied.clone()));
            }
        }
        self.promote();
    }

    /// It is told what there is, and begins.
    pub(super) fn promote(&mut self) {
        let Some(Succession { mut router, epoch, identity, .. }) = self.succession.take() else {
            return;
        };
        self.epoch = epoch;
        self.identity = identity;
        router.answered();
        router.tell(ToRouter::Change(self.setup()), None);
        for former in self.former.young(Instant::now()) {
            router.tell(ToRouter::Former(former.clone()), None);
        }
        for (message, port) in self.table.snapshot() {
            router.tell(message, port);
        }
        router.tell(ToRouter::Begin, None);
        if self.stopping {
            self.tell_to_stop(&router);
        }
        self.router = Some(router);
    }

    // --- the router before ------------------------------------------------------------------

    /// What the router before the present one does, which keeps everything until that one acts.
    pub(super) fn keeper(&mut self, event: RouterEvent) {
        let Some(keeper) = &mut self.keeper else { return };
        match event {
            RouterEvent::Said(FromRouter::Kept { number }) if number == keeper.number => {
                keeper.kept = true;
                match &self.router {
                    None => self.part_again(),
                    // It is about to be found dead; or it does not know that it is to act.
                    Some(_) => self.kill_router("it did not take over"),
                }
            }
            // What it says of workers, the next one knows by itself.
            RouterEvent::Said(_) => {}
            RouterEvent::Silent => {
                keeper.router.given_up = true;
                keeper.router.close();
            }
            RouterEvent::Ended => {
                let Some(keeper) = self.keeper.take() else { return };
                let exit = keeper.router.bury(&self.unburied);
                tracing::info!(%exit, "the router has handed over");
                self.router_exit = Some(exit);
                if self.router.is_none() {
                    // The next one has acted, and has died since.
                    self.restart_at = Instant::now();
                    if self.stopping {
                        self.table.order_all(&Order::Term);
                    }
                }
            }
        }
    }

    /// The present router has ended before it accepted: the one before knows whether it had begun.
    pub(super) fn ask_keeper(&mut self) {
        self.restart_at = Instant::now() + VERDICT;
        if self.keeper.as_ref().is_some_and(|keeper| keeper.kept) {
            self.part_again();
        }
    }

    /// The router that followed has touched nothing: the one before it has everything still, for another.
    fn part_again(&mut self) {
        let Some(Keeper { router, .. }) = self.keeper.take() else { return };
        tracing::warn!(pid = router.pid(), "the router before it hands over again");
        let mut router = router;
        router.answered();
        self.router = Some(router);
        self.parting = Some(Parting { identity: self.identity });
        self.restart_at = Instant::now() + ROUTER_DELAY * self.failures;
    }

    /// Nobody waits for its word any longer.
    pub(super) fn give_up_keeper(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            tracing::error!(pid = keeper.router.pid(), "a router that had handed over is killed");
            tokio::spawn(keeper.router.end(self.unburied.clone()));
        }
    }
}
