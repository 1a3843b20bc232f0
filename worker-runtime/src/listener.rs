//! The port as a listener for `axum::serve`.
//!
//! ```no_run
//! # use vestibule_worker::WorkerScope;
//! # async fn serve(scope: WorkerScope, app: axum::Router) -> std::io::Result<()> {
//! axum::serve(scope.listener(), scope.guard(app)).with_graceful_shutdown(scope.draining()).await
//! # }
//! ```
//!
//! [`guard`](WorkerScope::guard) takes the place of `into_make_service_with_connect_info`: handlers find
//! [`ConnectionInfo`] as before, and a later request of a connection that is another worker's goes back to
//! the router. Without it nobody looks at later requests, so that such a worker is given no connections
//! that come by rules about requests.
//!
//! axum's graceful shutdown has no deadline and its connections no timer: the drain timeout closes
//! what is open, and each connection times out until its first request is whole. Its graceful
//! shutdown also closes connections that have not been asked anything yet; where a restart must lose
//! none of them, use [`WorkerScope::serve`](crate::WorkerScope::serve).

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tower_service::Service;

use crate::adopt::Arrival;
use crate::connection_info::ConnectionInfo;
use crate::event::Connection;
use crate::guard::{Guarded, GuardedStream};
use crate::inbox::{self, Chain, Mode};
use crate::link::Link;
use crate::scope::WorkerScope;

impl WorkerScope {
    /// The port as a listener for `axum::serve`, with [`ConnectionInfo`] for an address. The worker
    /// is ready when it is first asked for a connection.
    ///
    /// `axum::serve` never returns by itself: give it [`draining`](Self::draining) as the signal of
    /// its graceful shutdown.
    pub fn listener(&self) -> PortListener {
        PortListener { link: Arc::clone(self.link()) }
    }
}

impl WorkerScope {
    /// An axum `Router`, or any tower service, for `axum::serve` over a [`listener`](Self::listener):
    /// later requests that are not for this pool go back to the router and never reach it, or are
    /// answered with 421 (HTTP/2). See [`guard_connection`](Self::guard_connection), which does the same
    /// for one connection; requests carry in their extensions what those of [`serve`](Self::serve) do.
    ///
    /// Call it before `axum::serve` is awaited: the router is told that this worker keeps to the scope of
    /// its connections.
    pub fn guard<S>(&self, service: S) -> Guard<S> {
        self.link().set(|settings| settings.keeps_scope = true);
        Guard { scope: self.clone(), service }
    }
}

/// Makes a service for each connection of a [`PortListener`]: see [`WorkerScope::guard`].
#[derive(Clone, Debug)]
pub struct Guard<S> {
    scope: WorkerScope,
    service: S,
}

impl<S: Clone> Service<IncomingStream<'_, PortListener>> for Guard<S> {
    type Response = Guarded<S>;
    type Error = Infallible;
    type Future = Ready<Result<Guarded<S>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, incoming: IncomingStream<'_, PortListener>) -> Self::Future {
        let gate = incoming.io().stream.gate().inspect(|gate| gate.close());
        let info = incoming.remote_addr().clone();
        ready(Ok(self.scope.guarded(info, gate.cloned(), self.service.clone())))
    }
}

/// The worker's port as a listener: see [`WorkerScope::listener`].
#[derive(Debug)]
pub struct PortListener {
    link: Arc<Link>,
}

impl PortListener {
    async fn next(&self) -> Option<Connection> {
        if let Err(error) = self.link.bind() {
            tracing::error!(error = %Chain(&error), "the worker's port cannot be used");
            return None;
        }
        self.link.listening();
        let mut inbox = self.link.inbox().lock().await;
        loop {
            match inbox.pop() {
                Some(Arrival::Connection(connection)) => return Some(connection),
                Some(Arrival::Event(event)) => {
                    inbox::hand_over(&self.link, event);
                    continue;
                }
                // What was acknowledged comes before the end.
                None if self.link.connections().is_ending() => return None,
                None => {}
            }
            tokio::select! {
                biased;
                _ = self.link.connections().ending() => {}
                () = inbox.turn(&self.link, Mode::Served) => {}
            }
        }
    }
}

impl Listener for PortListener {
    type Io = FirstRequest;
    type Addr = ConnectionInfo;

    /// The next connection. When the worker ends there is none, and this waits for ever.
    ///
    /// # Cancel safety
    /// Safe: a connection is taken only when this is ready.
    async fn accept(&mut self) -> (FirstRequest, ConnectionInfo) {
        match self.next().await {
            Some(Connection { stream, info }) => {
                let timeout = self.link.settings().first_request_timeout;
                (FirstRequest::new(GuardedStream::open(stream, &info), timeout), info)
            }
            None => {
                self.link.stopped_listening();
                std::future::pending().await
            }
        }
    }

    /// There is none: the router listens.
    fn local_addr(&self) -> io::Result<ConnectionInfo> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a worker does not listen"))
    }
}

impl Drop for PortListener {
    fn drop(&mut self) {
        self.link.stopped_listening();
    }
}

impl Connected<IncomingStream<'_, PortListener>> for ConnectionInfo {
    fn connect_info(stream: IncomingStream<'_, PortListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A connection that ends with `TimedOut` if its first request's head is not whole in time. What
/// does not begin like HTTP/1 (a TLS handshake) has said something; its protocol has its own timers.
#[derive(Debug)]
pub struct FirstRequest {
    stream: GuardedStream,
    /// Until the head is whole.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    sleep: Pin<Box<Sleep>>,
    head: Head,
}

impl FirstRequest {
    fn new(stream: GuardedStream, timeout: Duration) -> Self {
        let sleep = Box::pin(tokio::time::sleep(timeout));
        Self { stream, waiting: Some(Waiting { sleep, head: Head::Before }) }
    }

    /// The connection itself.
    pub fn stream(&self) -> &GuardedStream {
        &self.stream
    }
}

/// How much of a request's head has been seen. Lines end with CRLF or LF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// Nothing but empty lines, which RFC 9112 tells servers to skip.
    Before,
    /// Within a line.
    Line,
    /// After a line's end, with or without the CR of an empty one.
    LineEnd,
    /// The empty line was there, or it is no HTTP/1.
    Whole,
}

impl Head {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Before, b'\r' | b'\n') => Self::Before,
            (Self::Before, byte) if !byte.is_ascii_graphic() => Self::Whole,
            (Self::Line, b'\n') => Self::LineEnd,
            (Self::LineEnd, b'\r') => Self::LineEnd,
            (Self::LineEnd, b'\n') | (Self::Whole, _) => Self::Whole,
            _ => Self::Line,
        }
    }
}

impl AsyncRead for FirstRequest {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Some(waiting) = &mut this.waiting else { return read };
        match read {
            Poll::Ready(_) => {
                let new = buffer.filled().get(before..).unwrap_or_default();
                let head = new.iter().fold(waiting.head, |head, byte| head.after(*byte));
                if new.is_empty() || head == Head::Whole {
                    this.waiting = None;
                } else {
                    waiting.head = head;
                }
                read
            }
            Poll::Pending => match waiting.sleep.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for FirstRequest {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> Head {
        bytes.iter().fold(Head::Before, |head, byte| head.after(*byte))
    }

    #[test]
    fn a_head_is_whole_at_its_empty_line_and_not_before() {
        let request = b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for end in 0..request.len() {
            assert_ne!(head(&request[..end]), Head::Whole, "after {end} bytes");
        }
        assert_eq!(head(request), Head::Whole);
        assert_eq!(head(b"GET / HTTP/1.0\n\n"), Head::Whole);
    }

    #[test]
    fn a_tls_handshake_is_no_head_to_wait_for() {
        assert_eq!(head(&[0x16]), Head::Whole);
    }
}
