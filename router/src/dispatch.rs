//! From a listener's burst to the pools that its connections belong to.

use std::sync::{Arc, Mutex, PoisonError};

use vestibule_protocol::supervision::Setup;

use crate::accept;
use crate::connection::{Connection, Orders};
use crate::event::WorkerEvent;
use crate::metrics::Metrics;
use crate::pool::Shared;
use crate::reject::{Reason, Rejection};
use crate::route::{Facts, Outcome, RuleError, Table, Target};

/// The route table and the pools that it names.
pub(crate) struct Dispatch {
    pools: Vec<Arc<Shared>>,
    table: Table,
    metrics: Arc<Metrics>,
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
        let parts = Mutex::new(pools.iter().map(|_| Vec::new()).collect());
        Ok(Self { pools, table, metrics, parts })
    }

    /// Hands over what one burst of a listener brought; what nobody takes is rejected.
    pub(crate) fn hand_over(&self, listener: u32, burst: &mut Vec<Connection>) {
        // Nothing within can leave it half done.
        self.metrics.accepted(burst.len());
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for mut connection in burst.drain(..) {
            let peer = connection.peer_addr().map(|peer| peer.ip());
            let facts = Facts::of_address(listener as usize, peer);
            let Outcome::Decided(decision) = self.table.decide(&facts) else {
                self.reject(connection, Rejection::because(Reason::UnknownFact));
                continue;
            };
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
                continue;
            }
            for (refused, connection) in pool.hand_over(part) {
                self.reject(connection, accept::rejection(refused));
            }
        }
    }

    fn reject(&self, connection: Connection, rejection: Rejection) {
        self.metrics.rejected(rejection.reason());
        connection.reject_with(rejection);
    }

    /// Logs what a pool's workers do, and answers clients whose connection came back. Never ends.
    pub(crate) async fn watch(self: Arc<Self>, pool: Arc<Shared>) {
        loop {
            let Some((slot, event)) = crate::worker::next_event(&pool, None).await else {
                // Every worker is gone for good; a new slot may come.
                pool.changed.notified().await;
                continue;
            };
            let name = pool.core().slot(slot).map(|slot| Arc::clone(&slot.name));
            let worker = name.as_deref().unwrap_or_default();
            match event {
                WorkerEvent::Undelivered(undelivered) => {
                    // Without its connection it had to be closed.
                    self.metrics.rejected(undelivered.reason.rejection().reason());
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
}
