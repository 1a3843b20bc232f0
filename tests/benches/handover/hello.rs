//! The one HTTP service behind every contender that is written in Rust: hyper's `http1` answering `hello\n`.
//!
//! Used by the direct worker, the bare worker and vestibule's worker, so that what differs between them is the way a
//! connection takes to get here and nothing else.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The body of every answer. The load generator recognises a complete response by it.
pub(crate) const BODY: &[u8] = b"hello\n";

/// Answers any request with 200 and [`BODY`].
pub(crate) async fn hello<B>(_request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(BODY))))
}

/// Serves one connection until it ends. What goes wrong on it shows at the client, which counts it.
pub(crate) async fn serve(stream: TcpStream) {
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(hello::<Incoming>))
        .await;
}
