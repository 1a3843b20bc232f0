//! Connections whose rules ask for what their client says, until it has said it.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFdReadyGuard;
use tokio::time::sleep_until;

use super::inspection::{Goal, Inspection, Progress};
use super::{Dispatch, State};
use crate::connection::Connection;
use crate::inspect::Cause;
use crate::inspect::waiting::Token;
use crate::inspect::watch::{Sign, TURN};
use crate::reject::{Reason, Rejection};

/// Connections of all listeners that are looked at at one time, where descriptors allow more: about 50
/// MB of places, and more than a second of new connections at any rate that one router accepts.
const MOST: usize = 65_536;

/// So many inspections leave as many descriptors to what is queued, offered and accepted.
pub(super) fn most_inspections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(MOST, |limit| usize::try_from(limit / 2).unwrap_or(MOST)).min(MOST)
}

/// What a handler that waits holds of its script's memory, in bytes, about.
const HANDLER: u64 = 2048;

/// So many handlers that wait leave a quarter of their script's memory to its values. With one that has no room a
/// script begins anew, and all have waited for nothing: a crowd is to drive out itself here, too.
pub(super) fn most_handlers(memory: u64) -> usize {
    usize::try_from(memory / 4 * 3 / HANDLER).unwrap_or(usize::MAX).max(1)
}

impl Dispatch {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing within can leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that cannot be decided by its address: looked at once, at once; then it waits.
    pub(super) fn inspect(
        self: &Arc<Self>,
        state: &mut State,
        listener: u32,
        connection: Connection,
        goal: Goal,
    ) {
        let Some(gate) = self.gates.get(listener as usize) else {
            return self.reject(connection, Rejection::because(Reason::UnknownFact));
        };
        let now = Instant::now();
        let deadline = now.checked_add(self.timeout).unwrap_or(now);
        self.begin(state, Inspection::new(connection, listener, gate, goal, deadline), now);
    }

    /// The first look.
    pub(super) fn begin(
        self: &Arc<Self>,
        state: &mut State,
        mut inspection: Inspection,
        now: Instant,
    ) {
        let Some(gate) = self.gates.get(inspection.listener as usize) else {
            return self.refuse(inspection, Reason::UnknownFact);
        };
        match inspection.advance(gate, &self.table, &mut state.buffer, now, None) {
            Progress::Ready => self.decided(state, inspection),
            Progress::Refused(reason) => self.refuse(inspection, reason),
            Progress::Waits => self.wait(state, inspection, now),
        }
        if state.waiting.len() > 0 && !std::mem::replace(&mut state.followed, true) {
            tokio::spawn(Arc::clone(self).follow());
        }
    }

    /// Lets one wait for its client.
    fn wait(&self, state: &mut State, mut inspection: Inspection, now: Instant) {
        let listener = inspection.listener;
        let most = self.gates.get(listener as usize).map_or(0, |gate| gate.inspecting);
        self.make_room(state, listener, most);
        inspection.connection.trace().inspected();
        let due = inspection.attend(now);
        if state.waiting.insert(listener, inspection, due) {
            self.sooner.notify_one();
        }
    }

    /// Whoever comes last may well say at once what it wants; who has been silent for longest is
    /// least likely to: a crowd of silent clients drives out itself.
    fn make_room(&self, state: &mut State, listener: u32, most: usize) {
        let crowded = if state.waiting.of_listener(listener) >= most {
            Some(listener)
        } else if state.waiting.len() >= self.most {
            state.waiting.fullest()
        } else {
            None
        };
        let oldest = crowded.and_then(|listener| state.waiting.oldest(listener));
        if let Some(inspection) = oldest.and_then(|oldest| state.waiting.take(oldest)) {
            self.refuse(inspection, Reason::TooMany);
        }
    }

    pub(super) fn refuse(&self, mut inspection: Inspection, reason: Reason) {
        inspection.restore();
        self.forget(inspection.goal);
        self.reject(inspection.connection, Rejection::because(reason));
    }

    /// Enough is known for the next step; a script may ask for more, or leave it to the rules.
    fn decided(&self, state: &mut State, mut inspection: Inspection) {
        loop {
            inspection.restore();
            let Some(mut next) = inspection.step(|connection, facts, goal| {
                self.settle(&mut state.parts, connection, facts, goal)
            }) else {
                return;
            };
            let Some(gate) = self.gates.get(next.listener as usize) else {
                return self.refuse(next, Reason::UnknownFact);
            };
            let now = Instant::now();
            match next.advance(gate, &self.table, &mut state.buffer, now, None) {
                Progress::Ready => inspection = next,
                Progress::Refused(reason) => return self.refuse(next, reason),
                Progress::Waits => return self.wait(state, next, now),
            }
        }
    }

    /// Follows what clients say that are looked at, until there is none left.
    async fn follow(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                if state.waiting.len() == 0 {
                    state.followed = false;
                    self.decided.notify_waiters();
                    return;
                }
                state.waiting.next_due()
            };
            tokio::select! {
                ready = self.watch.readable() => {
                    // Without a runtime there is nobody to speak to.
                    let Ok(ready) = ready else { return };
                    self.heard(ready);
                }
                () = sleep_until(next.unwrap_or_else(far).into()), if next.is_some() => self.due(),
                () = self.sooner.notified() => {}
            }
            // New connections, and acknowledgements, get their turn.
            tokio::task::yield_now().await;
        }
    }

    fn heard(&self, mut ready: AsyncFdReadyGuard<'_, std::os::fd::OwnedFd>) {
        let mut state = self.state();
        let mut signs = std::mem::take(&mut state.signs);
        match self.watch.take_signs(&mut signs) {
            Ok(TURN) => {}
            Ok(_) => ready.clear_ready(),
            Err(error) => {
                tracing::error!(%error, "nobody can be listened to");
                ready.clear_ready();
            }
        }
        for sign in signs.drain(..) {
            self.follow_sign(&mut state, sign);
        }
        state.signs = signs;
        self.flush(&mut state.parts);
    }

    fn follow_sign(&self, state: &mut State, sign: Sign) {
        let State { waiting, buffer, .. } = state;
        let Some(inspection) = waiting.get_mut(sign.token) else { return };
        let ended = match (sign.is_urgent(), sign.is_end()) {
            // Neither TLS nor HTTP has such a thing.
            (true, _) | (_, true) => Some(Cause::NotHttp),
            (false, false) => None,
        };
        // A Unix-domain socket tells of each arrival.
        if ended.is_none() && !inspection.is_due() {
            return;
        }
        let Some(gate) = self.gates.get(inspection.listener as usize) else { return };
        let now = Instant::now();
        let progress = inspection.advance(gate, &self.table, buffer, now, ended);
        self.go_on(state, sign.token, progress, now);
    }

    /// Everybody whose time has come.
    fn due(&self) {
        let now = Instant::now();
        let mut state = self.state();
        // As many as there are now: none is due twice in one turn.
        for _ in 0..state.waiting.len() {
            let Some(token) = state.waiting.due(now) else { break };
            let State { waiting, buffer, .. } = &mut *state;
            let Some(inspection) = waiting.get_mut(token) else { break };
            let progress = if inspection.deadline <= now {
                inspection.give_up(&self.table, Cause::TimedOut)
            } else if !inspection.has_news() {
                Progress::Waits
            } else if let Some(gate) = self.gates.get(inspection.listener as usize) {
                inspection.advance(gate, &self.table, buffer, now, None)
            } else {
                Progress::Waits
            };
            self.go_on(&mut state, token, progress, now);
        }
        self.flush(&mut state.parts);
    }

    fn go_on(&self, state: &mut State, token: Token, progress: Progress, now: Instant) {
        match progress {
            Progress::Waits => {
                if let Some(inspection) = state.waiting.get_mut(token) {
                    let due = inspection.attend(now);
                    state.waiting.set_due(token, due);
                }
            }
            Progress::Ready => {
                if let Some(inspection) = state.waiting.take(token) {
                    self.decided(state, inspection);
                }
            }
            Progress::Refused(reason) => {
                if let Some(inspection) = state.waiting.take(token) {
                    self.refuse(inspection, reason);
                }
            }
        }
    }
}

/// A time that no process lives to see.
fn far() -> Instant {
    let now = Instant::now();
    now.checked_add(Duration::from_secs(365 * 24 * 3600)).unwrap_or(now)
}
