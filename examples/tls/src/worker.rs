//! A worker that ends TLS with rustls and answers HTTP/1.1 and HTTP/2:
//!
//! ```text
//! tls-worker CERTIFICATE KEY      two files in PEM form
//! ```
//!
//! The router has read the name in the client's hello and consumed nothing: the handshake begins
//! here, from its first byte.

use std::convert::Infallible;
use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use vestibule_worker::{ConnectionInfo, Event, Stream, WorkerScope};

/// How long a client may take for its handshake, for each head, and to show that it is still there.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client offers that speaks HTTP/2 (RFC 9113 3.2).
const HTTP2: &[u8] = b"h2";

fn main() -> Result<(), Box<dyn Error>> {
    let scope = WorkerScope::from_env()?.keeps_scope(true); // before any thread
    let acceptor = acceptor()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        while let Some(event) = scope.recv().await {
            if let Event::Connection { stream, info, .. } = event {
                tokio::spawn(serve(scope.clone(), acceptor.clone(), stream, info));
            }
        }
    });
    Ok(())
}

/// What the two files say.
fn acceptor() -> Result<TlsAcceptor, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(certificate), Some(key)) = (arguments.next(), arguments.next()) else {
        return Err("usage: tls-worker CERTIFICATE KEY".into());
    };
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves one client until it ends, or, while the worker drains, until its answer is out.
async fn serve(scope: WorkerScope, acceptor: TlsAcceptor, stream: Stream, info: ConnectionInfo) {
    let draining = scope.draining();
    // Whoever has no handshake to offer in time, or a wrong one, was told so by rustls.
    let Ok(Ok(stream)) = timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let session = stream.get_ref().1;
    let name: Arc<str> = session.server_name().unwrap_or("none").into();
    let two = session.alpn_protocol() == Some(HTTP2);
    let about = info.clone();
    let answer = service_fn(move |_: Request<Incoming>| {
        let text = format!(
            "worker={}; route={}; name={name}; peer={}\n",
            std::env::var("VESTIBULE_WORKER").unwrap_or_default(),
            info.route,
            info.peer.map_or_else(|| "none".to_owned(), |peer| peer.to_string()),
        );
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
    });
    // Where rules look at requests, too, a later one that is not for this pool is told 421: what is
    // behind TLS cannot go back to the router.
    let answer = scope.guard_requests(&about, answer);
    let stream = TokioIo::new(stream);
    if two {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new());
        http.keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE);
        let conversation = http.serve_connection(stream, answer);
        converse(conversation, http2::Connection::graceful_shutdown, draining).await;
    } else {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let conversation = http.serve_connection(stream, answer);
        converse(conversation, http1::Connection::graceful_shutdown, draining).await;
    }
}

async fn converse<C: Future>(
    conversation: C,
    finish: fn(Pin<&mut C>),
    draining: impl Future<Output = ()>,
) {
    let mut conversation = pin!(conversation);
    // How it ends concerns its client alone.
    tokio::select! {
        _ = conversation.as_mut() => {}
        () = draining => {
            finish(conversation.as_mut());
            let _ = conversation.await;
        }
    }
}
