//! One program that serves in three ways: `later-requests-worker serve`, `axum` or `own-loop`.

use std::error::Error;

use axum::Router;
use axum::body::Bytes;
use axum::http::Uri;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use vestibule_worker::{Connection, Event, WorkerScope};

fn main() -> Result<(), Box<dyn Error>> {
    let scope = WorkerScope::from_env()?; // before any thread
    let name = scope.name().to_owned();
    // hyper closes a connection whose request has a body that nobody reads and that is not there whole.
    let app = Router::new().fallback(move |uri: Uri, _body: Bytes| {
        let line = format!("worker={name} path={}\n", uri.path());
        async move { line }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match std::env::args().nth(1).as_deref() {
            Some("serve") => scope.serve(app).await?,
            Some("axum") => {
                axum::serve(scope.listener(), scope.guard(app))
                    .with_graceful_shutdown(scope.draining())
                    .await?;
            }
            Some("own-loop") => own_loop(scope, app).await,
            _ => return Err("usage: later-requests-worker serve|axum|own-loop".into()),
        }
        Ok(())
    })
}

async fn own_loop(scope: WorkerScope, app: Router) {
    let scope = scope.keeps_scope(true); // before anything is received
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    while let Some(event) = scope.recv().await {
        let Event::Connection { stream, info, .. } = event else { continue };
        let connection = Connection { stream, info };
        let (stream, service) = scope.guard_connection(connection, app.clone());
        let service = TowerToHyperService::new(service);
        let conversation = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        // How it ends concerns its client alone.
        tokio::spawn(async move { drop(conversation.await) });
    }
}
