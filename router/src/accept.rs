//! The loop that carries connections from a listener to a pool, a burst at a time.

use std::io;

use crate::connection::Connection;
use crate::listener::{BURST, Dry, Listener};
use crate::pool::Shared;
use crate::pool::core::Refused;
use crate::reject::{Reason, Rejection};
use crate::worker::WorkerPool;

/// Accepts connections and hands each to the worker that the pool's balance chooses, or rejects it
/// with 503. What one burst brings for a worker travels in one packet.
///
/// # Errors
/// The listener is unusable.
///
/// # Cancel safety
/// What was accepted is handed over or rejected.
pub async fn serve(listener: &mut Listener, pool: &WorkerPool) -> io::Result<()> {
    let mut burst = Vec::with_capacity(BURST);
    loop {
        listener.accept_burst(&mut burst).await?;
        let full = burst.len() == BURST;
        hand_over(pool.shared(), &mut burst);
        // Acknowledgements are read before the next burst: they free descriptors and windows. After
        // a burst that took all there was, that is so without a look at the reactor in between.
        if full {
            tokio::task::yield_now().await;
        }
    }
}

/// Hands over what the kernel has accepted already: closing the listener would reset those clients.
/// While descriptors or memory are short it waits, for 10 s at most.
pub async fn accept_dry(listener: &mut Listener, pool: &WorkerPool) {
    let mut burst = Vec::with_capacity(BURST);
    let dry = Dry::present();
    loop {
        let more = listener.take_last(&dry, &mut burst).await;
        hand_over(pool.shared(), &mut burst);
        if !more {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Hands over what one burst brought, each connection to whom the pool's balance says, in as few
/// packets as workers allow; what cannot be taken, now or later, is rejected.
pub(crate) fn hand_over(pool: &Shared, burst: &mut Vec<Connection>) {
    for (refused, connection) in pool.hand_over(burst) {
        connection.reject_with(rejection(refused));
    }
}

/// What a client is told whose connection nobody takes.
pub(crate) fn rejection(refused: Refused) -> Rejection {
    Rejection::because(match refused {
        Refused::QueueFull => Reason::QueueFull,
        Refused::NoWorker => Reason::NoWorker,
        Refused::Closed => Reason::ShuttingDown,
    })
}
