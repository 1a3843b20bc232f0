//! From a listener's burst to the pools that its connections belong to.

#[cfg(feature = "script")]
pub(crate) mod script;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vestibule_protocol::supervision::Setup;

use crate::accept;
use crate::connection::{Connection, Orders};
use crate::event::WorkerEvent;
use crate::metrics::Metrics;
use crate::pool::Shared;
use crate::reject::{Reason, Rejection};
use crate::route::{Facts, Outcome, RuleError, Table, Target, Why};

/// The table that decides now. Another one takes its place as a whole, between two bursts.
pub(crate) struct Switch {
    present: Mutex<Arc<Dispatch>>,
}

impl Switch {
    /// One that leads nowhere yet.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let nowhere = Dispatch {
            listeners: Vec::new(),
            pools: Vec::new(),
            table: Table::only_pool(0),
            metrics,
            #[cfg(feature = "script")]
            script: None,
            parts: Mutex::default(),
        };
        Self { present: Mutex::new(Arc::new(nowhere)) }
    }

    /// The present table.
    pub(crate) fn present(&self) -> Arc<Dispatch> {
        Arc::clone(&self.lock())
    }

    /// From now on this one.
    pub(crate) fn turn(&self, dispatch: Dispatch) {
        *self.lock() = Arc::new(dispatch);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Dispatch>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The route table and the pools that it names.
pub(crate) struct Dispatch {
    /// The listeners that the table was compiled for, in its order.
    listeners: Vec<u32>,
    pools: Vec<Arc<Shared>>,
    table: Table,
    metrics: Arc<Metrics>,
    #[cfg(feature = "script")]
    script: Option<script::Script>,
    /// What of a burst goes to each pool; kept, so that a burst allocates nothing.
    parts: Mutex<Vec<Vec<Connection>>>,
}

impl Dispatch {
    /// Compiles the rules.
    ///
    /// # Errors
    /// A text that is no pattern: the supervisor has checked them.
    pub(crate) fn new(
        setup: &Setup,
        pools: Vec<Arc<Shared>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RuleError> {
        let table = Table::of(setup)?;
        let listeners = setup.listeners.iter().map(|listener| listener.id).collect();
        let parts = Mutex::new(pools.iter().map(|_| Vec::new()).collect());
        Ok(Self {
            listeners,
            pools,
            table,
            metrics,
            parts,
            #[cfg(feature = "script")]
            script: None,
        })
    }

    /// Asks this script before the rules.
    #[cfg(feature = "script")]
    pub(crate) fn asking(mut self, script: script::Script) -> Self {
        self.script = Some(script);
        self
    }

    /// Slots of a pool came or went.
    pub(crate) fn slots_changed(&self) {
        #[cfg(feature = "script")]
        if let Some(script) = &self.script {
            script.slots_changed();
        }
    }

    /// Hands over what one burst of a listener brought; what nobody takes is rejected.
    pub(crate) fn hand_over(&self, listener: u32, burst: &mut Vec<Connection>) {
        self.metrics.accepted(burst.len());
        let listener = self.listeners.iter().position(|id| *id == listener).unwrap_or(usize::MAX);
        // Nothing within can leave it half done.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in burst.drain(..) {
            // What is said where nobody wrote a rule that decides.
            let (mut connection, unruled) = match self.ask(connection) {
                Some(asked) => asked,
                None => continue,
            };
            let peer = connection.peer_addr().map(|peer| peer.ip());
            let facts = Facts::of_address(listener, peer);
            let Outcome::Decided(decision) = self.table.decide(&facts) else {
                self.reject(connection, Rejection::because(Reason::UnknownFact));
                continue;
            };
            if let Some(reason) = unruled
                && matches!(decision.why, Why::OnlyPool | Why::NoMatch)
            {
                self.reject(connection, Rejection::because(reason));
                continue;
            }
            connection.set_route(decision.route);
            connection.order(Orders {
                affinity: self.table.affinity(decision.target, &facts),
                message: decision.message.cloned(),
            });
            if let Some(rejection) = decision.rejection() {
                self.reject(connection, rejection);
                continue;
            }
            if let Target::Pool(pool) = decision.target
                && let Some(part) = parts.get_mut(pool)
            {
                part.push(connection);
            }
        }
        for (pool, part) in self.pools.iter().zip(parts.iter_mut()) {
            if part.is_empty() {
                if self.posts_by_script() {
                    pool.flush();
                }
                continue;
            }
            for (refused, connection) in pool.hand_over(part) {
                self.reject(connection, accept::rejection(refused));
            }
        }
    }

    /// Whether a burst may have put something before a pool's workers that is not sent yet.
    fn posts_by_script(&self) -> bool {
        #[cfg(feature = "script")]
        return self.script.is_some();
        #[cfg(not(feature = "script"))]
        return false;
    }

    /// Asks the script, if there is one. The connection comes back where the rules decide, after a
    /// script with what is said if none does.
    fn ask(&self, connection: Connection) -> Option<(Connection, Option<Reason>)> {
        #[cfg(feature = "script")]
        if let Some(script) = &self.script {
            return match script.ask(connection) {
                script::Asked::Posted | script::Asked::Gone => None,
                script::Asked::Refused(refused, connection) => {
                    self.reject(connection, accept::rejection(refused));
                    None
                }
                script::Asked::Rejected(connection, refusal) => {
                    self.reject(connection, refusal.rejection());
                    None
                }
                script::Asked::Rules(connection, reason) => Some((connection, Some(reason))),
            };
        }
        Some((connection, None))
    }

    pub(crate) fn reject(&self, connection: Connection, rejection: Rejection) {
        self.metrics.rejected(rejection.reason());
        connection.reject_with(rejection);
    }
}

/// Logs what a pool's workers do, and answers clients whose connection came back. Ends with the pool,
/// and says which it was.
pub(crate) async fn watch(id: u32, pool: Arc<Shared>, metrics: Arc<Metrics>) -> u32 {
    loop {
        let Some((slot, event)) = crate::worker::next_event(&pool, None).await else {
            if pool.core().is_done() {
                return id;
            }
            // Every worker is gone for good; a new slot may come.
            pool.changed.notified().await;
            continue;
        };
        let name = pool.core().slot(slot).map(|slot| Arc::clone(&slot.name));
        let worker = name.as_deref().unwrap_or_default();
        match event {
            WorkerEvent::Undelivered(undelivered) => {
                // Without its connection it had to be closed.
                metrics.rejected(undelivered.reason.rejection().reason());
                undelivered.reject();
            }
            WorkerEvent::Error(error) => {
                tracing::warn!(worker, %error, "worker reported an error")
            }
            WorkerEvent::MessageError(error) => {
                tracing::warn!(worker, error, "worker sent what cannot be read");
            }
            WorkerEvent::Message(_) => {
                tracing::debug!(worker, "worker sent a message to nobody")
            }
            WorkerEvent::Exit(exit) => tracing::debug!(worker, %exit, "worker is gone"),
        }
    }
}
