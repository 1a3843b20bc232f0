//! vestibule itself: listener, pool and hand-over as `vestibule run` wires them, and the worker runtime with the service
//! that every worker here has.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::runtime::Builder;
use vestibule_router::{Listener, WorkerEvent, WorkerOptions, WorkerPool};
use vestibule_worker::{Event, WorkerScope};

use super::{RouterArguments, ServeError, raise_descriptor_limit};
use crate::hello::{self, hello};
use crate::processes::own_role;

pub(super) fn route(listener: OwnedFd, arguments: &RouterArguments) -> Result<(), ServeError> {
    raise_descriptor_limit();
    let worker = own_role("vestibule-worker", arguments.worker.timed.then_some("--timed"))?;
    let options =
        worker.get_args().fold(WorkerOptions::new(worker.get_program()), WorkerOptions::arg);
    // As `vestibule run` has it.
    let runtime = runtime().on_thread_park(vestibule_router::moderation::before_park()).build();
    runtime.map_err(ServeError::Runtime)?.block_on(async {
        let mut listener = Listener::from_socket(listener).map_err(ServeError::Socket)?;
        let pool = Arc::new(WorkerPool::spawn(arguments.workers, &options).await?);
        arguments.count_if_asked()?;
        let event = tokio::spawn(first_event(Arc::clone(&pool)));
        tokio::select! {
            served = vestibule_router::serve(&mut listener, &pool) => {
                served.map_err(ServeError::Accept)
            }
            Ok(Some(event)) = event => Err(ServeError::Event(Box::new(event))),
        }
    })
}

/// Nothing is to happen to a worker while it is measured.
async fn first_event(pool: Arc<WorkerPool>) -> Option<WorkerEvent> {
    pool.recv().await.map(|(_, event)| event)
}

pub(super) fn work(timed: bool) -> Result<(), ServeError> {
    let scope = WorkerScope::from_env()?;
    raise_descriptor_limit();
    let runtime = runtime().build().map_err(ServeError::Runtime)?;
    if timed {
        runtime.block_on(serve_timed(&scope));
        return Ok(());
    }
    runtime.block_on(scope.serve_service(service_fn(hello::<Incoming>)))?;
    Ok(())
}

/// The program's own loop instead of the runtime's: it can look between the socket and hyper.
async fn serve_timed(scope: &WorkerScope) {
    while let Some(event) = scope.recv().await {
        if let Event::Connection { stream, info, .. } = event {
            tokio::spawn(hello::serve_timed(stream, info.accepted));
        }
    }
}

/// As [`super::runtime`], with the timers that vestibule needs.
fn runtime() -> Builder {
    let mut builder = Builder::new_current_thread();
    builder.enable_all();
    builder
}
