//! Connections that come back from a pool: handed back by a worker, or taken by nobody.

use std::sync::Arc;

use super::destination::Destination;
use super::inspection::address;
use super::tracer::About;
use super::{Dispatch, Switch};
use crate::accept;
use crate::connection::Connection;
use crate::event::{HandedBack, WorkerEvent};
use crate::metrics::Metrics;
use crate::pool::Shared;
use crate::reject::{Reason, Rejection};
use crate::route::Facts;

impl Dispatch {
    /// A connection that a worker of this pool hands back goes where it says, if it may, or where the
    /// rules say, as if it had just come.
    fn route_again(self: &Arc<Self>, from: &Arc<Shared>, worker: &str, back: HandedBack) {
        let HandedBack { connection, message, to } = back;
        let Some(to) = to else {
            return self.route_by_rules(connection.with_message(message));
        };
        // A pool that a reload has removed may name nobody.
        let from = self.pools.iter().position(|known| Arc::ptr_eq(known, from));
        match self.destinations.resolve(from.unwrap_or(usize::MAX), &to) {
            Ok(Destination { pool, slot }) => {
                // Whoever hands it on does so for all that is its own.
                let mut connection = connection;
                let listener = self.place_of_name(&connection.info().listener);
                let route = Arc::clone(&connection.info().route);
                let scope = listener.and_then(|it| self.table.scope_of_route(it, &route));
                connection.set_scope(scope);
                let Some(pool) = self.pools.get(pool) else { return };
                let followed = self.tracer.follows(&connection).then(|| About::of(&connection));
                match pool.hand_to(slot, connection, message) {
                    Ok(()) => {
                        if let Some(about) = followed {
                            self.tracer.posted(about, &to);
                        }
                    }
                    Err((refused, connection)) => {
                        self.reject(connection, accept::rejection(refused));
                    }
                }
            }
            Err(reason) => {
                tracing::warn!(worker, to, %reason, "a connection cannot be handed on");
                self.reject(connection, Rejection::because(Reason::RefusedByPolicy));
            }
        }
    }

    /// Its PROXY header is gone and its peer's limits have let it in: only the rules are asked again.
    fn route_by_rules(self: &Arc<Self>, connection: Connection) {
        let place = self.place_of_name(&connection.info().listener);
        let Some(listener) = place.and_then(|place| u32::try_from(place).ok()) else {
            // The listener was removed meanwhile: no rule is about it.
            return self.reject(connection, Rejection::because(Reason::NoRoute));
        };
        let facts = Facts::of_address(listener as usize, address(&connection));
        let mut state = self.state();
        if let Some((connection, goal)) =
            self.settle(&mut state.parts, connection, &facts, self.first_goal())
        {
            self.inspect(&mut state, listener, connection, goal);
        }
        self.flush(&mut state.parts);
    }
}

/// Logs what a pool's workers do, and answers clients whose connection came back. Ends with the pool,
/// and says which it was.
pub(crate) async fn watch(
    id: u32,
    pool: Arc<Shared>,
    metrics: Arc<Metrics>,
    switch: Arc<Switch>,
) -> u32 {
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
                let rejection = undelivered.reason.rejection();
                match undelivered.into_connection() {
                    Some(connection) => switch.present().reject(connection, rejection),
                    // It had to be closed.
                    None => metrics.rejected(rejection.reason()),
                }
            }
            WorkerEvent::HandedBack(back) => {
                switch.present().route_again(&pool, worker, *back);
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
