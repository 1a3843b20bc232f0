//! What the supervisor says of workers, and their ports: each word goes to its pool, and each port gets a
//! task that reads it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use vestibule_protocol::limits::{MAX_MESSAGE, MAX_TRANSFER_LIST};
use vestibule_protocol::socket::{PacketBuffer, PacketSocket, Readiness};
use vestibule_protocol::supervision::{FromRouter, ToRouter, WorkerId};

#[cfg(feature = "cli")]
use super::core::succession::Legacy;
use super::drive::{Turn, drive, fault, give_up_later, keep_queue, read};
use super::slot::Slot;
use super::{Core, Shared};
use crate::control::ControlPort;
use crate::link::Link;
use crate::ticket::Tickets;

/// The ports of all pools' workers, and the tasks that read them.
#[derive(Debug)]
pub(crate) struct Ports {
    pools: BTreeMap<u32, Arc<Shared>>,
    tasks: JoinSet<()>,
    /// Which router speaks.
    epoch: u16,
    tickets: Tickets,
    /// What workers have not answered that the router before this one sent, until they are named.
    #[cfg(feature = "cli")]
    legacies: BTreeMap<WorkerId, Legacy>,
}

impl Ports {
    /// For no pool yet.
    pub(crate) fn new(epoch: u16, tickets: Tickets) -> Self {
        Self {
            pools: BTreeMap::new(),
            tasks: JoinSet::new(),
            epoch,
            tickets,
            #[cfg(feature = "cli")]
            legacies: BTreeMap::new(),
        }
    }

    /// One more pool; no port of it is known yet.
    pub(crate) fn add(&mut self, pool: u32, shared: Arc<Shared>) {
        self.tasks.spawn(keep_queue(Arc::clone(&shared)));
        self.pools.insert(pool, shared);
    }

    /// A pool's numbers, in order.
    #[cfg(feature = "cli")]
    pub(crate) fn pools(&self) -> &BTreeMap<u32, Arc<Shared>> {
        &self.pools
    }

    /// Forgets a pool whose slots are all over. Its tasks end by themselves.
    #[cfg(feature = "cli")]
    pub(crate) fn remove(&mut self, pool: u32) {
        if let Some(shared) = self.pools.remove(&pool) {
            shared.step(Core::forget);
        }
    }

    /// What a worker has not answered that the router before this one sent: for when it is named.
    #[cfg(feature = "cli")]
    pub(crate) fn inherit(&mut self, legacy: Legacy) {
        self.legacies.insert(legacy.worker, legacy);
    }

    /// Every worker has been named. What was sent to others is closed: nobody can say whether they have
    /// read it.
    #[cfg(feature = "cli")]
    pub(crate) fn end_inheriting(&mut self) {
        let legacies = std::mem::take(&mut self.legacies);
        if let Some(worker) = legacies.keys().next() {
            let (workers, all) = (legacies.len(), legacies.values());
            let count: usize = all.map(|legacy| legacy.unanswered.offers().len()).sum();
            tracing::error!(?worker, workers, count, "connections were sent to who is not there");
        }
        for (worker, legacy) in legacies {
            if let Some(shared) = self.pools.get(&worker.pool) {
                shared.step(|core| core.give_up(legacy.unanswered));
            }
        }
    }

    /// Whether every slot is empty for good.
    pub(crate) fn is_over(&self) -> bool {
        self.pools.values().all(|pool| pool.core().is_over())
    }

    /// Waits until the ports of processes that are known to be dead are read to their ends: the
    /// supervisor may be done before that.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn last_words(&self) {
        for pool in self.pools.values() {
            loop {
                let changed = pool.changed.notified();
                let mut changed = pin!(changed);
                changed.as_mut().enable();
                if !pool.core().slots().iter().any(|slot| slot.gone.is_some()) {
                    break;
                }
                changed.await;
            }
        }
    }

    /// Takes what the supervisor says of a worker.
    pub(crate) fn take(&mut self, message: ToRouter, port: Option<OwnedFd>) {
        // Tasks of processes that are gone.
        while self.tasks.try_join_next().is_some() {}
        match message {
            ToRouter::Started { worker, pid } => {
                self.bury_last(worker);
                self.started(worker, pid, port);
            }
            ToRouter::NotStarted { worker, reason, again } => {
                self.bury_last(worker);
                self.step(worker, |core| core.not_started(worker, reason, again));
            }
            ToRouter::Gone { worker, exit, reason, again } => {
                self.step(worker, |core| core.gone(worker, exit, reason, again));
                let Some(shared) = self.pools.get(&worker.pool) else { return };
                let unburied = |slot: &Slot| slot.id == worker && slot.gone.is_some();
                if shared.core().slot(worker.slot).is_some_and(unburied) {
                    self.tasks.spawn(give_up_later(Arc::clone(shared), worker));
                }
            }
            ToRouter::KillFailed { worker, reason } => tracing::error!(
                worker = ?worker,
                reason,
                "a worker cannot be killed; what it was offered stays with it"
            ),
            other => tracing::error!(message = ?other, "a message that concerns no worker"),
        }
    }

    /// The slot's next process is there, and what the last one left has to be settled before: its
    /// port is read as far as it goes. If that is not the end, somebody else holds it.
    ///
    /// Its own task may be reading too. What that one has received and not taken in is heard too
    /// late: an acknowledgement less, of a worker that is certainly dead.
    fn bury_last(&self, next: WorkerId) {
        let Some(shared) = self.pools.get(&next.pool) else { return };
        let unburied = |slot: &&Slot| slot.gone.is_some();
        let last = shared.core().slot(next.slot).filter(unburied).map(|slot| slot.id);
        let Some(last) = last else { return };
        let link = shared.core().slot(next.slot).and_then(|slot| slot.link.clone());
        let mut buffer = PacketBuffer::new(MAX_MESSAGE - MAX_TRANSFER_LIST);
        while let Some(link) = &link {
            match read(shared, last, link, &mut buffer, &mut NeverMind) {
                Turn::More => {}
                Turn::Done => break,
                Turn::Closed => return self.step(last, |core| core.ended(last)),
                Turn::Fault(reason) => {
                    fault(shared, last, link, &reason);
                    break;
                }
            }
        }
        self.step(last, |core| core.give_up_on(last));
    }

    fn started(&mut self, worker: WorkerId, pid: u32, port: Option<OwnedFd>) {
        let Some(shared) = self.pools.get(&worker.pool) else { return };
        let shared = Arc::clone(shared);
        let Some(Ok(socket)) = port.map(PacketSocket::new) else {
            tracing::error!(?worker, "a worker's port did not arrive: out of descriptors?");
            return self.step(worker, |core| core.started_without_port(worker, pid));
        };
        let link = Arc::new(Link::new(socket, self.epoch, self.tickets));
        #[cfg(feature = "cli")]
        let legacy = self.legacies.remove(&worker);
        self.step(worker, |core| {
            core.started(worker, pid, Arc::clone(&link));
            #[cfg(feature = "cli")]
            if let Some(legacy) = legacy {
                core.inherit(legacy);
            }
        });
        // Afterwards: it ends at once where its slot has another process.
        self.tasks.spawn(drive(shared, worker, link));
    }

    fn step(&self, worker: WorkerId, step: impl FnOnce(&mut Core)) {
        if let Some(shared) = self.pools.get(&worker.pool) {
            shared.step(|core| {
                step(core);
                core.flush();
            });
        }
    }
}

/// The router's half of a library's pool: until every worker is gone for good and every handle
/// dropped, or the supervisor ends.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut control: ControlPort<FromRouter, ToRouter>,
    mut outgoing: mpsc::UnboundedReceiver<FromRouter>,
    closing: Arc<Notify>,
    tickets: Tickets,
) {
    // One router for the life of the pool.
    let mut ports = Ports::new(1, tickets);
    ports.add(0, Arc::clone(&shared));
    let sender = control.sender();
    loop {
        tokio::select! {
            message = control.recv() => match message {
                Ok(Some((message, port))) => ports.take(message, port),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the supervisor cannot be understood");
                    break;
                }
            },
            Some(message) = outgoing.recv() => {
                // Without a supervisor the next message is its end.
                let _ = sender.send((message, None));
            }
            () = closing.notified() => shared.step(|core| {
                core.close();
                core.flush();
            }),
        }
        if ports.is_over() {
            break;
        }
    }
    ports.last_words().await;
    shared.step(Core::orphaned);
    shared.changed.notify_waiters();
}

/// Readiness for a look that nobody waits for.
struct NeverMind;

impl Readiness for NeverMind {
    fn clear_ready(&mut self) {}
}
