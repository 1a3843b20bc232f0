//! The one HTTP service behind every contender that is written in Rust: hyper's `http1` answering `hello\n`.
//!
//! Used by the direct worker, the bare worker and vestibule's worker, so that what differs between them is the way a
//! connection takes to get here and nothing else.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

/// The header of an answer that tells how many nanoseconds after its connection was accepted the first byte was read.
pub(crate) const FIRST_READ: &str = "x-first-read";

/// As [`serve`], for a connection that was accepted at `accepted` ([`now`]'s clock): each answer says how long after that the
/// first byte was read.
pub(crate) async fn serve_timed<S>(stream: S, accepted: u64)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = Arc::new(AtomicU64::new(0));
    let stream = Timed { stream, first: Arc::clone(&first) };
    let service = service_fn(move |request: Request<Incoming>| {
        let after = first.load(Ordering::Relaxed).saturating_sub(accepted);
        async move {
            let mut response = hello(request).await?;
            response.headers_mut().insert(FIRST_READ, after.into());
            Ok::<_, Infallible>(response)
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which is the same in all processes.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A stream that notes when something was first read from it.
struct Timed<S> {
    stream: S,
    first: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if self.first.load(Ordering::Relaxed) == 0 {
            self.first.store(now(), Ordering::Relaxed);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
