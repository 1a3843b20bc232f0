//! `vestibule run` without a file: one listener, one pool, in one process.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use vestibule_router::event::{WorkerError, WorkerEvent};
use vestibule_router::reject::Rejection;
use vestibule_router::{ListenError, Listener, Restart, WorkerOptions, WorkerPool};

use crate::cli::{Run, Workers};

/// Why the program ends with another code than 0.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartupError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no event loop.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The listener became unusable.
    #[error("cannot accept connections")]
    Accept(#[source] io::Error),
    /// Workers cannot be supervised.
    #[error(transparent)]
    Spawn(#[from] vestibule_router::SpawnError),
    /// Every worker's first start failed.
    #[error("no worker came up; the last one: {0}")]
    NoWorker(WorkerError),
    /// The built-in worker failed.
    #[error("the demonstration worker failed")]
    Demo(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Listens, starts workers and hands over connections until a signal ends it.
pub(crate) fn run(options: &Run) -> Result<(), StartupError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartupError::Runtime)?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Run) -> Result<(), StartupError> {
    let mut signals = Signals::new().map_err(StartupError::Signals)?;
    let mut listener = Listener::bind(&options.listen).await?;
    let address = listener.local_addr().map_err(StartupError::Accept)?;
    let count = match options.workers {
        Workers::Number(number) => number.get(),
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = Arc::new(WorkerPool::start(count, &worker_options(options))?);
    announce(&address.to_string(), count);

    let events = tokio::spawn(watch(Arc::clone(&pool)));
    tokio::pin!(events);
    let result = tokio::select! {
        result = vestibule_router::serve(&mut listener, &pool) => result.map_err(StartupError::Accept),
        () = signals.next() => Ok(()),
        failed = &mut events => {
            return match failed {
                Ok(Some(error)) => Err(StartupError::NoWorker(error)),
                Ok(None) | Err(_) => Ok(()),
            };
        }
    };
    // What the kernel has accepted already is served; closing the listener would reset it.
    vestibule_router::accept_dry(&mut listener, &pool).await;
    drop(listener);
    stop(&pool, &mut signals, &mut events).await;
    result
}

fn worker_options(options: &Run) -> WorkerOptions {
    let worker = match options.command.split_first() {
        Some((program, arguments)) => {
            arguments.iter().fold(WorkerOptions::new(program), WorkerOptions::arg)
        }
        None => WorkerOptions::new("/proc/self/exe").arg0("vestibule").arg("demo-worker"),
    };
    worker.balance(options.balance).restart(Restart::default())
}

/// The address to open, for a person and for whatever started this.
fn announce(address: &str, workers: usize) {
    let plural = if workers == 1 { "" } else { "s" };
    // A closed standard output is no reason not to serve.
    let _ = writeln!(io::stdout(), "http://{address} ({workers} worker{plural})");
}

/// Logs what workers do, and answers clients whose connection came back. Ends when no worker can
/// come any more: returns the last error if none was ever ready.
async fn watch(pool: Arc<WorkerPool>) -> Option<WorkerError> {
    let mut failed = vec![false; pool.len()];
    let mut any_ready = false;
    loop {
        let (index, event) = pool.recv().await?;
        let name = pool.iter().nth(index).map_or("", |worker| worker.name()).to_owned();
        any_ready = any_ready || pool.iter().any(|worker| worker.is_ready());
        match event {
            WorkerEvent::Undelivered(undelivered) => {
                let reason = undelivered.reason.as_str();
                if let Some(connection) = undelivered.into_connection() {
                    connection.reject_with(Rejection::status(503, reason));
                }
            }
            WorkerEvent::Error(error @ WorkerError::Reported(_)) => {
                tracing::warn!(worker = name, %error, "worker reported an error");
            }
            WorkerEvent::Error(error) => {
                tracing::error!(worker = name, %error, "worker did not start");
                if let Some(failed) = failed.get_mut(index) {
                    *failed = true;
                }
                if !any_ready && failed.iter().all(|failed| *failed) {
                    return Some(error);
                }
            }
            WorkerEvent::MessageError(error) => {
                tracing::warn!(worker = name, error, "worker sent what cannot be read");
            }
            WorkerEvent::Message(_) => {
                tracing::debug!(worker = name, "worker sent a message to nobody");
            }
            WorkerEvent::Exit(exit) => tracing::info!(worker = name, %exit, "worker is gone"),
        }
    }
}

/// Lets workers finish; a second signal ends them at once.
async fn stop(pool: &WorkerPool, signals: &mut Signals, events: &mut (impl Future + Unpin)) {
    let open: u32 = pool.iter().map(|worker| worker.connections()).sum();
    eprintln!("stopping: {open} connections are left; a second signal stops at once");
    for worker in pool.iter() {
        worker.finish();
    }
    tokio::select! {
        _ = events => {}
        () = signals.next() => {
            for worker in pool.iter() {
                worker.kill();
            }
            // Certain deaths are a matter of milliseconds; a worker that cannot be killed is left.
            let _ = tokio::time::timeout(Duration::from_secs(2), async {
                while pool.iter().any(|worker| worker.pid().is_some()) {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }
}

/// The signals that end the program.
struct Signals {
    all: [Signal; 4],
}

impl Signals {
    fn new() -> io::Result<Self> {
        let one = |kind| signal(kind);
        let all = [
            one(SignalKind::terminate())?,
            one(SignalKind::interrupt())?,
            one(SignalKind::quit())?,
            // Without a file there is nothing to read again.
            one(SignalKind::hangup())?,
        ];
        Ok(Self { all })
    }

    async fn next(&mut self) {
        let [term, int, quit, hup] = &mut self.all;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = quit.recv() => {}
            _ = hup.recv() => {}
        }
    }
}
