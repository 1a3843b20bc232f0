//! The built-in demonstration worker: answers each request with who serves it and what is known about
//! the connection.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use vestibule_worker::{ConnectInfo, ConnectionInfo, WorkerScope};

use crate::startup::StartupError;

/// Serves what the router hands over, until it drains.
pub(crate) fn run() -> Result<(), StartupError> {
    // `/proc/self/exe` would show as `exe` in `ps` and `top`. A name is no condition for serving.
    let _ = rustix::thread::set_name(c"vestibule");
    serve().map_err(StartupError::Demo)
}

fn serve() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // The worker asks its own socket for the peer's context: the router may not have had to.
    let scope = WorkerScope::from_env()?.peer_context(true);
    let worker: Arc<str> = scope.name().into();
    let app = Router::new().fallback(move |ConnectInfo(info): ConnectInfo<ConnectionInfo>| {
        let worker = Arc::clone(&worker);
        async move { answer(&worker, &info) }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(scope.serve(app))?;
    Ok(())
}

fn answer(worker: &str, info: &ConnectionInfo) -> impl IntoResponse + use<> {
    let peer = match (info.peer, info.peer_credentials) {
        (Some(peer), _) => peer.to_string(),
        (None, Some(who)) => format!("unix:{}", who.uid),
        (None, None) => "unix".to_owned(),
    };
    let line = format!(
        "process={}; reqno={}; worker={worker}; peer={peer}; context={}; route={}\n",
        std::process::id(),
        info.id,
        info.peer_context.as_deref().unwrap_or("none"),
        info.route,
    );
    ([(CONTENT_TYPE, "text/plain")], line)
}
