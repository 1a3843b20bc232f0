//! A worker with its own loop over hyper's HTTP/2 server, guarded by both halves of the runtime's guard. Its
//! answers are those of [`crate::serve`].

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use vestibule_worker::{Connection, Event, WorkerScope};

pub(crate) async fn run(scope: WorkerScope) {
    while let Some(event) = scope.recv().await {
        let Event::Connection { stream, info, .. } = event else {
            crate::obey::obey(&scope, event);
            continue;
        };
        let mine = scope.clone();
        let service = service_fn(move |request| crate::serve::answer(mine.clone(), request));
        let (stream, service) = scope.guard_connection(Connection { stream, info }, service);
        let http = http2::Builder::new(TokioExecutor::new());
        let conversation = http.serve_connection(TokioIo::new(stream), service);
        // How it ends concerns its client alone.
        tokio::spawn(async move { drop(conversation.await) });
    }
}
