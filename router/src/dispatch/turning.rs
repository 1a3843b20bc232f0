//! Clients who are looked at while another table, or another router, takes over: each goes on there
//! from the first look, by what decides from then on. Nothing that was sent is lost: all of it is still
//! unread, but for a PROXY header, and what that said goes along.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inspection::{Before, Gate, Goal, Inspection};
use super::{Dispatch, Switch};
use crate::connection::Connection;
use crate::reject::{Reason, Rejection};

/// What a peer has used up of the rate of a listener.
pub(crate) type Used = (u32, IpAddr, Duration);

impl Switch {
    /// From now on this one. Whoever is looked at goes on by it, but those whose listener it does not
    /// know: the one before, which is returned, decides about them.
    pub(crate) fn turn(&self, mut dispatch: Dispatch) -> Arc<Dispatch> {
        dispatch.keep_counts(&self.present());
        let next = Arc::new(dispatch);
        let before = std::mem::replace(&mut *self.lock(), Arc::clone(&next));
        next.take_over(&before);
        before
    }
}

impl Dispatch {
    /// What peers have counts on, listener by listener.
    fn keep_counts(&mut self, before: &Self) {
        for place in 0..self.gates.len() {
            let before = before.place_in_next(self, place).and_then(|at| before.gates.get(at));
            if let (Some(gate), Some(before)) = (self.gates.get_mut(place), before) {
                gate.go_on_from(before);
            }
        }
    }

    /// Goes on with those who were looked at by the table before.
    fn take_over(self: &Arc<Self>, before: &Self) {
        for (listener, place) in (0u32..).zip(0..self.listeners.len()) {
            let Some(at) = before.place_in_next(self, place) else { continue };
            let looked_at = before.take_looked_at(at);
            if looked_at.is_empty() {
                continue;
            }
            let mut state = self.state();
            for one in looked_at {
                self.look_again(&mut state, listener, one);
            }
            self.flush(&mut state.parts);
        }
    }

    fn look_again(self: &Arc<Self>, state: &mut super::State, listener: u32, one: Before) {
        let Some(gate) = self.gates.get(listener as usize) else {
            // The listener was removed meanwhile: no rule is about it.
            return self.reject(one.connection, Rejection::because(Reason::NoRoute));
        };
        let mut one = one;
        if let Some(name) = self.names.get(listener as usize)
            && *one.connection.info().listener != **name
        {
            one.connection.info_mut().listener = name.as_str().into();
        }
        let inspection = Inspection::again(one, listener, gate, self.first_goal());
        self.begin(state, inspection, Instant::now());
    }

    /// Takes out whoever is looked at of the listener at this place, who waits longest first.
    fn take_looked_at(&self, listener: usize) -> Vec<Before> {
        // There are never as many.
        let listener = u32::try_from(listener).unwrap_or(u32::MAX);
        let mut state = self.state();
        let mut all = Vec::with_capacity(state.waiting.of_listener(listener));
        while let Some(inspection) = state.waiting.take_oldest(listener) {
            self.forget(inspection.goal);
            all.push(inspection.into_before());
        }
        drop(state);
        // Whoever follows them may be done.
        self.sooner.notify_one();
        all
    }

    /// Nothing of what was asked for will come.
    pub(super) fn forget(&self, goal: Goal) {
        #[cfg(feature = "script")]
        if let (Goal::Speech(ticket), Some(script)) = (goal, &self.script) {
            script.forget(ticket);
        }
        #[cfg(not(feature = "script"))]
        let _ = goal;
    }

    /// Takes out whoever is looked at, with the number of the listener, for the next router.
    pub(crate) fn take_all_looked_at(&self) -> Vec<(u32, Before)> {
        let places = self.listeners.iter().enumerate();
        let of = |(place, id): (usize, &u32)| {
            self.take_looked_at(place).into_iter().map(|one| (*id, one)).collect::<Vec<_>>()
        };
        places.flat_map(of).collect()
    }

    /// Goes on with what the router before this one looked at.
    pub(crate) fn resume(self: &Arc<Self>, listener: u32, one: Before) {
        let listener = self.place(listener);
        let mut state = self.state();
        self.look_again(&mut state, listener, one);
        self.flush(&mut state.parts);
    }

    /// Counts a connection of a peer's that another router let in, which waits for a worker.
    pub(crate) fn count_again(&self, connection: &mut Connection) {
        let place = self.place_of_name(&connection.info().listener);
        if let Some(gate) = place.and_then(|place| self.gates.get(place)) {
            gate.count(connection, Instant::now());
        }
    }

    /// What peers have used up of their rates, for the next router.
    pub(crate) fn used_rates(&self) -> Vec<Used> {
        let now = Instant::now();
        let limits = self.listeners.iter().zip(&self.gates);
        let limits = limits.filter_map(|(id, gate)| Some((*id, gate.limits()?)));
        let of = |(id, limits): (u32, &crate::limits::Limits)| {
            limits.used(now).into_iter().map(move |(network, ahead)| (id, network, ahead))
        };
        limits.flat_map(of).collect()
    }

    /// Takes what the router before this one says of rates.
    pub(crate) fn take_used_rates(&self, used: &[Used]) {
        let now = Instant::now();
        for (listener, network, ahead) in used {
            if let Some(limits) = self.gate_of(*listener).and_then(Gate::limits) {
                limits.has_used(*network, *ahead, now);
            }
        }
    }

    /// Where the listener stands here that has this place in the next table: it may have had another
    /// number, with another name.
    fn place_in_next(&self, next: &Self, place: usize) -> Option<usize> {
        let find = |id: u32| self.listeners.iter().position(|known| *known == id);
        let former = next.former.get(place).into_iter().flatten();
        let mut numbers = next.listeners.get(place).into_iter().chain(former.map(|(id, _)| id));
        numbers.find_map(|id| find(*id))
    }

    /// Where the listener stands that has this name, or had it before.
    pub(super) fn place_of_name(&self, name: &str) -> Option<usize> {
        let had = |former: &Vec<(u32, String)>| former.iter().any(|(_, known)| known == name);
        self.names
            .iter()
            .position(|known| known == name)
            .or_else(|| self.former.iter().position(had))
    }

    fn gate_of(&self, listener: u32) -> Option<&Gate> {
        self.gates.get(self.place(listener) as usize)
    }

    /// Whether anybody is looked at.
    pub(crate) fn looks(&self) -> bool {
        self.state().waiting.len() > 0
    }

    /// Waits until nobody is looked at any more: each has a deadline.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn all_decided(self: Arc<Self>) {
        loop {
            let decided = self.decided.notified();
            if !self.looks() {
                return;
            }
            decided.await;
        }
    }

    /// Turns away whoever is being looked at: nothing is accepted any more.
    pub(crate) fn end_inspections(&self) {
        let mut state = self.state();
        while let Some(inspection) = state.waiting.take_any() {
            self.refuse(inspection, Reason::ShuttingDown);
        }
    }
}
