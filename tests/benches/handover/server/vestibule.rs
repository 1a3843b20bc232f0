//! vestibule itself: listener, pool and hand-over as `vestibule run` wires them, and the worker runtime with the service
//! that every worker here has.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::runtime::{Builder, Runtime};
use vestibule_router::{Listener, WorkerEvent, WorkerOptions, WorkerPool};
use vestibule_worker::WorkerScope;

use super::{RouterArguments, ServeError, raise_descriptor_limit};
use crate::hello::hello;
use crate::processes::own_role;

pub(super) fn route(listener: OwnedFd, arguments: &RouterArguments) -> Result<(), ServeError> {
    raise_descriptor_limit();
    let worker = own_role("vestibule-worker", [""; 0])?;
    let options =
        worker.get_args().fold(WorkerOptions::new(worker.get_program()), WorkerOptions::arg);
    runtime()?.block_on(async {
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

pub(super) fn work() -> Result<(), ServeError> {
    let scope = WorkerScope::from_env()?;
    raise_descriptor_limit();
    runtime()?.block_on(scope.serve_service(service_fn(hello::<Incoming>)))?;
    Ok(())
}

/// As [`super::runtime`], with the timers that vestibule needs.
fn runtime() -> Result<Runtime, ServeError> {
    Builder::new_current_thread().enable_all().build().map_err(ServeError::Runtime)
}
