//! The load generator: two threads with an epoll loop each, no runtime, so that its own cost is small and the same for
//! every contender.
//!
//! Called by [`crate::rounds`]. Clients are *closed* (each begins anew as soon as its answer is there: saturation) or
//! *open* (arrivals at a given rate, whether or not a client is free): then latency counts from the moment at which the
//! request should have begun, so that a slow server cannot hide its queue.

mod asking;
mod client;
mod generator;
mod histogram;

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

pub(crate) use self::asking::{Asking, host, network};
pub(crate) use self::client::ClientError;
use self::generator::Generator;
pub(crate) use self::histogram::Histogram;

/// The generator's threads. One would be the bottleneck before the servers are.
const THREADS: usize = 2;

/// What a client does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Connect, one request with `Connection: close`, read to the end of file, close.
    Short,
    /// One connection a client, request after request.
    Keepalive,
}

/// What to offer to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// The server's port on 127.0.0.0/8.
    pub(crate) port: u16,
    /// Clients at the same time, over all threads; at least 1.
    pub(crate) clients: usize,
    pub(crate) mode: Mode,
    pub(crate) asking: Asking,
    /// Answers say when their request was first read.
    pub(crate) timed: bool,
    /// Connections (short) or requests (kept alive) a second over all threads; `None`: as many as the clients can.
    pub(crate) rate: Option<f64>,
    /// How long load runs before anything counts.
    pub(crate) warm_up: Duration,
    /// How long it then counts.
    pub(crate) measure: Duration,
}

/// What the clients saw.
pub(crate) struct Seen {
    /// From the first counted moment to the last.
    pub(crate) elapsed: Duration,
    /// Latency of each counted connection or request, complete and correct.
    pub(crate) latency: Histogram,
    /// From the accept of each of them to the first read, where the servers say it.
    pub(crate) first_read: Histogram,
    /// Whatever did not end as it should have, warm-up and end included.
    pub(crate) errors: u64,
    /// The first of them.
    pub(crate) first_error: Option<ClientError>,
}

/// The generator itself could not work; what a *server* does wrong is in [`Seen::errors`].
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error("epoll of the load generator")]
    Epoll(#[source] rustix::io::Errno),
    #[error("cannot start a thread of the load generator")]
    Thread(#[source] std::io::Error),
    #[error("a thread of the load generator panicked")]
    Panicked,
}

/// Where a run is. Threads look at it once a turn.
struct Phase(AtomicU8);

impl Phase {
    const WARM_UP: u8 = 0;
    const MEASURE: u8 = 1;
    const STOP: u8 = 2;

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Release);
    }

    fn is(&self, phase: u8) -> bool {
        self.0.load(Ordering::Acquire) == phase
    }
}

/// Runs one load. `mark` is called twice, at the first and at the last counted moment, *while the load is flowing*: what it
/// reads (CPU clocks) then belongs to the connections that were counted, but for those under way at the two moments, whose
/// number is the same.
///
/// # Errors
/// [`LoadError`] when the generator itself fails.
pub(crate) fn run(load: &Load, mut mark: impl FnMut()) -> Result<Seen, LoadError> {
    let threads = THREADS.min(load.clients);
    let phase = Phase(AtomicU8::new(Phase::WARM_UP));
    thread::scope(|scope| {
        let mut handles = Vec::with_capacity(threads);
        for index in 0..threads {
            let generator = Generator::new(load, index, threads)?;
            let phase = &phase;
            let handle = thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn_scoped(scope, move || generator.run(phase));
            match handle {
                Ok(handle) => handles.push(handle),
                Err(error) => {
                    // The scope waits for those that did start.
                    phase.set(Phase::STOP);
                    return Err(LoadError::Thread(error));
                }
            }
        }
        thread::sleep(load.warm_up);
        let begin = Instant::now();
        mark();
        phase.set(Phase::MEASURE);
        thread::sleep(load.measure);
        phase.set(Phase::STOP);
        mark();
        let elapsed = begin.elapsed();

        let mut seen = Seen {
            elapsed,
            latency: Histogram::new(),
            first_read: Histogram::new(),
            errors: 0,
            first_error: None,
        };
        for handle in handles {
            let tally = handle.join().map_err(|_| LoadError::Panicked)??;
            seen.latency.merge(&tally.latency);
            seen.first_read.merge(&tally.first_read);
            seen.errors += tally.errors;
            seen.first_error = seen.first_error.or(tally.first_error);
        }
        Ok(seen)
    })
}
