//! From a listener's burst to the pools that its connections belong to.

use std::sync::{Arc, Mutex, PoisonError};

use vestibule_protocol::supervision::{RuleSetup, Setup, TargetSetup};

use crate::accept;
use crate::connection::Connection;
use crate::event::WorkerEvent;
use crate::metrics::Metrics;
use crate::pool::Shared;
use crate::reject::Rejection;
use crate::route::networks::Networks;
use crate::route::rule::{Refusal, Rule, Target};
use crate::route::table::{Facts, Table};

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
    /// A network that is none: the supervisor has checked them.
    pub(crate) fn new(
        setup: &Setup,
        pools: Vec<Arc<Shared>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ipnet::AddrParseError> {
        let rules = setup.rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        let table = Table::new(rules, setup.listeners.len());
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
            let decision = self.table.decide(Facts { listener: listener as usize, peer });
            connection.set_route(decision.route);
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

fn rule(setup: &RuleSetup) -> Result<Rule, ipnet::AddrParseError> {
    let peers = match &setup.peers {
        None => None,
        Some(texts) => {
            let networks = texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?;
            Some(Networks::new(networks))
        }
    };
    let listeners = setup.listeners.as_ref();
    Ok(Rule {
        name: setup.name.as_str().into(),
        listeners: listeners.map(|all| all.iter().map(|at| *at as usize).collect()),
        peers,
        target: match setup.target {
            TargetSetup::Pool(pool) => Target::Pool(pool as usize),
            TargetSetup::Status(status) => Target::Reject(Refusal::Status(status)),
            TargetSetup::Reset => Target::Reject(Refusal::Reset),
            TargetSetup::Close => Target::Reject(Refusal::Close),
        },
    })
}
