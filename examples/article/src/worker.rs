//! The article's worker.js: becomes nobody, has an HTTP server that never listens, and serves the
//! connections that its master posts.

use std::error::Error;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use vestibule_worker::{Extension, Message, WorkerScope, privileges};

fn main() -> Result<(), Box<dyn Error>> {
    // The inherited port, before any thread.
    let scope = WorkerScope::from_env()?;
    // process.setuid('nobody'); a master without privileges has none to drop.
    if rustix::process::geteuid().is_root() {
        privileges::become_user("nobody")?;
    }
    // var srv = http.createServer(…), and no listen().
    let srv = Router::new().fallback(hello);
    // onmessage = function(msg) { …; srv.emit('connection', s); };
    tokio::runtime::Runtime::new()?.block_on(scope.serve(srv))?;
    Ok(())
}

/// `resp.writeHead(200, {'Content-Type': 'text/plain'});` and the article's one line. The counter is
/// what the master posted with the connection: every request on it sees the same.
async fn hello(Extension(Message(reqno)): Extension<Message<u64>>) -> impl IntoResponse {
    let line = format!("process={}; reqno={reqno}\n", std::process::id());
    ([(CONTENT_TYPE, "text/plain")], line)
}
