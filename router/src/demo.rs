//! The built-in demonstration worker: answers each request with who serves it and what is known about
//! the connection.

use std::sync::Arc;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::serve::IncomingStream;
use vestibule_worker::{ConnectionInfo, PortListener, WorkerScope};

use crate::startup::StartupError;

/// What the answer says about a connection.
#[derive(Clone)]
struct Facts {
    info: ConnectionInfo,
    /// What the kernel says of the peer, asked by the worker itself.
    context: Option<Arc<str>>,
}

impl Connected<IncomingStream<'_, PortListener>> for Facts {
    fn connect_info(stream: IncomingStream<'_, PortListener>) -> Self {
        let context = stream.io().stream().socket().peer_context().map(Arc::from);
        Self { info: stream.remote_addr().clone(), context }
    }
}

/// Serves what the router hands over, until it drains.
pub(crate) fn run() -> Result<(), StartupError> {
    // `/proc/self/exe` would show as `exe` in `ps` and `top`. A name is no condition for serving.
    let _ = rustix::thread::set_name(c"vestibule");
    serve().map_err(StartupError::Demo)
}

fn serve() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let scope = WorkerScope::from_env()?;
    let worker: Arc<str> = scope.name().into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let app = Router::new().fallback(move |ConnectInfo(facts): ConnectInfo<Facts>| {
        let worker = Arc::clone(&worker);
        async move { answer(&worker, &facts) }
    });
    runtime.block_on(async {
        axum::serve(scope.listener(), app.into_make_service_with_connect_info::<Facts>())
            .with_graceful_shutdown(scope.draining())
            .await
    })?;
    Ok(())
}

fn answer(worker: &str, facts: &Facts) -> impl IntoResponse + use<> {
    let peer = facts.info.peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
    let line = format!(
        "process={}; reqno={}; worker={worker}; peer={peer}; context={}; route={}\n",
        std::process::id(),
        facts.info.id,
        facts.context.as_deref().unwrap_or("none"),
        facts.info.route,
    );
    ([(CONTENT_TYPE, "text/plain")], line)
}
