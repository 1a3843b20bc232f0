//! The loop that carries connections from a listener to a pool, a burst at a time.

use std::io;

use crate::connection::Connection;
use crate::listener::{BURST, Listener};
use crate::pool::core::Refused;
use crate::reject::Rejection;
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
        hand_over(pool, &mut burst);
        // Acknowledgements are read before the next burst: they free descriptors and windows.
        tokio::task::yield_now().await;
    }
}

/// Hands over what the kernel has accepted already: closing the listener would reset those clients.
pub async fn accept_dry(listener: &mut Listener, pool: &WorkerPool) {
    let mut burst = Vec::with_capacity(BURST);
    loop {
        let more = listener.take_present(&mut burst);
        hand_over(pool, &mut burst);
        if !more {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn hand_over(pool: &WorkerPool, burst: &mut Vec<Connection>) {
    for (refused, connection) in pool.hand_over(burst) {
        let reason = match refused {
            Refused::QueueFull => "queue-full",
            Refused::NoWorker | Refused::Closed => "no-worker",
        };
        connection.reject_with(Rejection::status(503, reason));
    }
}
