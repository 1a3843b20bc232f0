//! Becoming another configuration, in place: the setup is whole before anything is touched, and
//! nothing that is on its way is lost by the step.

use std::sync::Arc;

use vestibule_protocol::supervision::{FromRouter, PoolSetup, Setup, SlotMode};

use super::{End, RoleError, Router};
use crate::dispatch::{self, Dispatch};
use crate::pool::Shared;

/// A table that another has replaced, and that may still decide about somebody.
pub(super) struct Former {
    pub(super) table: Arc<Dispatch>,
    /// The number of what it was made of, for another router.
    pub(super) number: u64,
}

impl Router {
    /// Another configuration: pools and table at once, then listeners.
    pub(super) fn change(&mut self, setup: Setup) {
        let before = self.switch.present();
        let former = Former { table: Arc::clone(&before), number: self.setup.number };
        let had: Vec<u32> = self.setup.listeners.iter().map(|listener| listener.id).collect();
        let mut again = setup.clone();
        if let Err(error) = self.become_as(setup) {
            // The supervisor has compiled the same rules, but never runs a script: the one before it
            // goes on.
            self.tell(FromRouter::Unusable { reason: error.to_string() });
            again.script.clone_from(&self.setup.script);
            if let Err(error) = self.become_as(again) {
                tracing::error!(%error, "another configuration cannot be used");
                return;
            }
        }
        let setup = &self.setup;
        self.listeners
            .dry_others(|id| setup.listeners.iter().any(|listener| listener.id == id), &before);
        let gone = had.into_iter();
        let gone = gone.filter(|id| !setup.listeners.iter().any(|listener| listener.id == *id));
        // Of those that could not be accepted from nothing more will be said.
        for listener in gone.filter(|id| self.listeners.is_over(*id)) {
            self.tell(FromRouter::Dry { listener });
        }
        self.listeners.set_defer(&self.switch.present());
        self.replaced.push(former);
        // Another router still has what this one is to take over.
        if self.inheritance.is_none() {
            self.listen();
            self.look_at_replaced();
        }
        self.tell(FromRouter::Changed);
    }

    /// Has the pools and the table of a setup.
    ///
    /// # Errors
    /// The table cannot be used; nothing has changed then.
    pub(super) fn become_as(&mut self, setup: Setup) -> Result<(), RoleError> {
        let (pools, dispatch) = self.prepare(&setup)?;
        for (at, (setup, pool)) in setup.pools.iter().zip(pools).enumerate() {
            pool.step(|core| core.expect_scopes(dispatch.scopes_lead_to(at)));
            if self.ports.pools().contains_key(&setup.id) {
                pool.step(|core| {
                    core.configure(setup.settings.clone());
                    core.flush();
                });
            } else {
                self.ports.add(setup.id, Arc::clone(&pool));
                let metrics = Arc::clone(&self.metrics);
                let switch = Arc::clone(&self.switch);
                self.watching.spawn(dispatch::watch(setup.id, pool, metrics, switch));
            }
        }
        let stays = |id: u32| setup.pools.iter().any(|pool| pool.id == id && !pool.leaving);
        let gone = self.ports.pools().keys();
        let gone = gone.filter(|id| !stays(**id) && !self.removed.contains(*id));
        let gone: Vec<_> = gone.copied().collect();
        self.removed.extend(gone);
        self.switch.turn(dispatch);
        self.setup = setup;
        Ok(())
    }

    /// The pools and the table of a setup, of which nobody knows yet.
    ///
    /// # Errors
    /// The table cannot be used.
    pub(super) fn prepare(&self, setup: &Setup) -> Result<(Vec<Arc<Shared>>, Dispatch), RoleError> {
        let pools = setup.pools.iter().map(|pool| match self.ports.pools().get(&pool.id) {
            Some(shared) => Arc::clone(shared),
            None => self.pool(pool),
        });
        let pools: Vec<_> = pools.collect();
        let dispatch = Dispatch::new(setup, pools.clone(), Arc::clone(&self.metrics))?;
        let dispatch = dispatch.traced_by(&self.tracer);
        let dispatch = super::with_script(dispatch, setup, &pools)?;
        Ok((pools, dispatch))
    }

    /// A table that the router before this one had replaced. Pools of which nothing is left take nobody.
    ///
    /// # Errors
    /// The table cannot be used.
    pub(super) fn prepare_former(&self, setup: &Setup) -> Result<Arc<Dispatch>, RoleError> {
        let mut setup = setup.clone();
        for pool in &mut setup.pools {
            if !self.ports.pools().contains_key(&pool.id) {
                pool.slots.iter_mut().for_each(|slot| slot.mode = SlotMode::Retired);
            }
        }
        let (_, dispatch) = self.prepare(&setup)?;
        Ok(Arc::new(dispatch))
    }

    fn pool(&self, setup: &PoolSetup) -> Arc<Shared> {
        let names = setup.slots.iter().map(|slot| slot.name.as_str().into()).collect();
        let settings = setup.settings.clone();
        let shared = Shared::new(setup.id, settings, names, self.tell_pools.clone());
        shared.step(|core| {
            for (slot, setup) in (0u32..).zip(&setup.slots) {
                core.begin_as(slot, setup.mode);
            }
        });
        Arc::new(shared.counting_in(Arc::clone(&self.metrics), setup.counters))
    }

    /// Takes what is left of listeners that were removed before this router came, by the rules of those days.
    pub(super) fn dry_removed(&mut self) {
        let mut last: Option<Former> = None;
        for (listener, by, socket) in std::mem::take(&mut self.removed_listeners) {
            // Most went together.
            let former = match last.take() {
                Some(former) if former.number == by.number => Ok(former),
                before => {
                    self.replaced.extend(before);
                    let number = by.number;
                    self.prepare_former(&by).map(|table| Former { table, number })
                }
            };
            let begun = former.map_err(|error| error.to_string()).and_then(|former| {
                let mut all = by.listeners.iter();
                let name = all.find(|known| known.id == listener).map(|known| known.name.as_str());
                let begun = self.listeners.begin_dry(
                    listener,
                    name.unwrap_or_default(),
                    socket,
                    &former.table,
                );
                last = Some(former);
                begun.map_err(|error| error.to_string())
            });
            if let Err(error) = begun {
                tracing::error!(listener, error, "who waits at a removed listener is lost");
                self.tell(FromRouter::Dry { listener });
            }
        }
        self.replaced.extend(last);
    }

    /// Begins to accept on every listener of the setup whose socket is there.
    pub(super) fn listen(&mut self) {
        for listener in &self.setup.listeners {
            if !self.listeners.has(listener.id)
                && let Some((socket, before)) = self.sockets.remove(&listener.id)
            {
                // Who waits in it goes by its new name.
                before.into_iter().for_each(|before| self.listeners.leave(before));
                self.listeners.begin(listener.id, &listener.name, socket, &self.switch);
            }
        }
    }

    /// A table that was replaced still decides about clients of listeners that are no more; once it has,
    /// nothing comes for removed pools any more.
    pub(super) fn look_at_replaced(&mut self) {
        // What this one leaves of them is accepted by the next router.
        if self.listeners.are_drying() || matches!(self.end, Some(End::HandOver(_))) {
            return;
        }
        self.replaced.retain(|former| former.table.looks());
        match self.replaced.first() {
            None => self.finish_removed(),
            Some(former) if self.deciding.is_empty() => {
                self.deciding.spawn(Arc::clone(&former.table).all_decided());
            }
            // It is looked at when the one before has decided.
            Some(_) => {}
        }
    }

    /// Nothing comes for removed pools any more: once nobody waits, their workers finish.
    fn finish_removed(&mut self) {
        for id in self.removed.drain(..) {
            if let Some(pool) = self.ports.pools().get(&id) {
                pool.step(|core| core.finish_when_idle());
            }
        }
    }
}
