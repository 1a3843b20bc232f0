//! Later requests that are another worker's, where the program serves connections itself: under
//! `axum::serve`, or any other HTTP server over hyper.
//!
//! Two halves that know of each other. The *stream* gives the server one head at a time, so that the
//! bytes of a request that is not served here are known and can be handed back ([`crate::gate`]). The
//! *service* compares each request with what the decision about the connection rested on. A request
//! that is another worker's never reaches the program: the connection goes back to the router once
//! earlier answers are sent, or, where that cannot be (HTTP/2, TLS), the answer is 421.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Body;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vestibule_protocol::scope::{self, Scope};

use crate::connection_info::{ConnectionInfo, Extras};
use crate::event::Connection;
use crate::gate::Gate;
use crate::hand_back;
use crate::link::Link;
use crate::scope::WorkerScope;
use crate::stream::Stream;

impl WorkerScope {
    /// Guards one connection of the program's own loop: the stream for an HTTP server over hyper, and
    /// the service for it. Later requests that are not for this pool go back to the router, or are
    /// answered with 421; `service` never sees them. Requests carry in their extensions what those of
    /// [`serve`](Self::serve) do.
    ///
    /// Use both halves together, and let the server read nothing from the stream but HTTP from its
    /// first byte: with one of them alone a connection stays where it is. The server must flush when
    /// it has written an answer, as hyper does; hyper's `pipeline_flush` changes nothing. Timeouts are
    /// the server's own.
    ///
    /// After a request with a chunked body, and where the router takes nothing back, an HTTP/1
    /// connection closes with the answer. A later head of more than 64 KiB that is another worker's is
    /// answered with 421, and the connection closes.
    ///
    /// Once the connection is handed back, writing to the stream fails with `NotConnected`, upon which
    /// the server drops its half: that is how such a conversation ends here, and no error of the
    /// client's.
    ///
    /// Say [`keeps_scope`](Self::keeps_scope) before the loop begins.
    ///
    /// # Cancel safety
    /// Dropping server and stream closes the connection, unless it was handed back already.
    pub fn guard_connection<S>(
        &self,
        connection: Connection,
        service: S,
    ) -> (GuardedStream, Guarded<S>) {
        let Connection { stream, info } = connection;
        let (stream, gate) = match info.scope {
            Some(_) => {
                let gate = Gate::new(stream);
                (GuardedStream(Way::Gated(gate.clone())), Some(gate))
            }
            None => (GuardedStream(Way::Plain(stream)), None),
        };
        (stream, self.guarded(info, gate, service))
    }

    /// Guards the requests of a connection whose bytes the program reads in another way, so that it
    /// cannot be handed back: TLS, whose keys stay here. Later requests that are not for this pool are
    /// answered with 421 (Misdirected Request, RFC 9110 15.5.20), upon which a browser opens another
    /// connection; HTTP/1 closes with that answer.
    pub fn guard_requests<S>(&self, info: &ConnectionInfo, service: S) -> Guarded<S> {
        self.guarded(info.clone(), None, service)
    }

    pub(crate) fn guarded<S>(
        &self,
        info: ConnectionInfo,
        gate: Option<Gate>,
        service: S,
    ) -> Guarded<S> {
        Guarded { service, watch: Watch { link: Arc::clone(self.link()), info, gate } }
    }
}

/// The stream of a guarded connection: see [`WorkerScope::guard_connection`].
#[derive(Debug)]
pub struct GuardedStream(Way);

#[derive(Debug)]
enum Way {
    /// The decision holds for all that its client may ask for.
    Plain(Stream),
    Gated(Gate),
}

impl GuardedStream {
    /// One that lets everything through until its gate is [closed](Gate::close).
    #[cfg(feature = "axum")]
    pub(crate) fn open(stream: Stream, info: &ConnectionInfo) -> Self {
        Self(match info.scope {
            Some(_) => Way::Gated(Gate::open(stream)),
            None => Way::Plain(stream),
        })
    }

    /// Its gate, if later requests of it may be another worker's.
    #[cfg(feature = "axum")]
    pub(crate) fn gate(&self) -> Option<&Gate> {
        match &self.0 {
            Way::Plain(_) => None,
            Way::Gated(gate) => Some(gate),
        }
    }

    /// Looks at the connection itself, for its addresses and options; `None` once it was handed back.
    pub fn with_stream<T>(&self, look: impl FnOnce(&Stream) -> T) -> Option<T> {
        match &self.0 {
            Way::Plain(stream) => Some(look(stream)),
            Way::Gated(gate) => gate.with_stream(look),
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Way::Gated(gate) => Pin::new(gate).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Way::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Way::Gated(gate) => Pin::new(gate).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Way::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Way::Gated(gate) => Pin::new(gate).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Way::Plain(stream) => stream.is_write_vectored(),
            Way::Gated(gate) => gate.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Way::Gated(gate) => Pin::new(gate).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Way::Gated(gate) => Pin::new(gate).poll_shutdown(cx),
        }
    }
}

/// A service that gets only those requests of a connection for which the decision about it holds: see
/// [`WorkerScope::guard_connection`]. A tower service around a tower service, and one of hyper's around
/// one of hyper's.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    service: S,
    watch: Watch,
}

#[derive(Clone, Debug)]
struct Watch {
    link: Arc<Link>,
    info: ConnectionInfo,
    /// Of a connection that can be handed back.
    gate: Option<Gate>,
}

/// What becomes of a request.
enum Course {
    /// It is served here. `last`: nothing behind it can be looked at, or handed back.
    Here { last: bool },
    /// It goes back to the router with its connection.
    Back,
    /// It is this worker's to refuse. `last`: with its connection.
    Refused { last: bool },
}

impl Watch {
    fn course<B: Body>(&self, request: &Request<B>) -> Course {
        let Some(scope) = &self.info.scope else { return Course::Here { last: false } };
        // That one was decided about.
        let first = !self.info.was_requested();
        let old = request.version() < Version::HTTP_2;
        match &self.gate {
            Some(gate) if old => {
                let Some(looks) = gate.admit(scope, request, first) else { return Course::Back };
                let possible = hand_back::is_possible(&self.link, &self.info);
                Course::Here { last: !looks || !possible }
            }
            _ if first || covers(scope, request) => Course::Here { last: false },
            _ => Course::Refused { last: old },
        }
    }

    /// Looks at a request, and prepares one that is served here.
    fn receive<B: Body>(&self, request: &mut Request<B>, extras: Extras) -> Course {
        let course = self.course(request);
        if matches!(course, Course::Here { .. }) {
            self.info.note_request();
            self.info.insert(extras, request.extensions_mut());
        }
        course
    }

    /// What is answered, by the program or by nobody.
    fn answer<F, B>(
        &self,
        course: Course,
        request: Request<B>,
        call: impl FnOnce(Request<B>) -> F,
    ) -> Answered<F, B> {
        let way = match course {
            Course::Here { last } => {
                Answer::Here { answer: call(request), gate: self.gate.clone(), last }
            }
            Course::Back => {
                Answer::Back { leaving: Box::pin(leave(self.clone())), _another: request }
            }
            Course::Refused { last } => Answer::Refused { last },
        };
        Answered { way }
    }
}

/// Whether the decision holds for a request of which only the server has seen the bytes.
fn covers<B>(scope: &Scope, request: &Request<B>) -> bool {
    let uri = request.uri();
    let whole = uri.to_string();
    // HTTP/2 names the host beside the path: a line like any other, that must not contradict them.
    let (target, authority) = match (uri.path_and_query(), uri.authority()) {
        (Some(path), Some(authority)) if request.version() >= Version::HTTP_2 => {
            (path.as_str(), Some(authority.as_str()))
        }
        _ => (whole.as_str(), None),
    };
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let authority = authority.map(|authority| (HOST.as_str(), authority.as_bytes()));
    let lines: Vec<_> = headers.chain(authority).collect();
    scope.covers(&scope::Request::new(request.method().as_str(), target, &lines))
}

/// Hands the connection back once all earlier answers are sent.
async fn leave(watch: Watch) {
    let Watch { link, info, gate: Some(gate) } = watch else { return };
    if let Some(left) = poll_fn(|cx| gate.poll_left(cx)).await {
        hand_back::return_to_router(&link, left, info).await;
    }
}

impl<S, B, R> tower_service::Service<Request<B>> for Guarded<S>
where
    S: tower_service::Service<Request<B>, Response = Response<R>>,
    B: Body,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Answered<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let course = self.watch.receive(&mut request, Extras::Tower);
        self.watch.answer(course, request, |request| self.service.call(request))
    }
}

impl<S, B, R> hyper::service::Service<Request<B>> for Guarded<S>
where
    S: hyper::service::Service<Request<B>, Response = Response<R>>,
    B: Body,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Answered<S::Future, B>;

    fn call(&self, mut request: Request<B>) -> Self::Future {
        let course = self.watch.receive(&mut request, Extras::Plain);
        self.watch.answer(course, request, |request| self.service.call(request))
    }
}

pin_project! {
    /// The answer of a [`Guarded`] service.
    pub struct Answered<F, B> {
        #[pin]
        way: Answer<F, B>,
    }
}

pin_project! {
    #[project = AnswerProjection]
    enum Answer<F, B> {
        /// The program's.
        Here {
            #[pin]
            answer: F,
            gate: Option<Gate>,
            last: bool,
        },
        /// Another worker's. Without the request's body the server would read it to drop it.
        Back {
            leaving: Pin<Box<dyn Future<Output = ()> + Send>>,
            _another: Request<B>,
        },
        /// Nobody's on this connection.
        Refused { last: bool },
    }
}

impl<F, B, R, E> Future for Answered<F, B>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Default,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (mut answer, last) = match self.project().way.project() {
            AnswerProjection::Here { answer, gate, last } => {
                let answer = ready!(answer.poll(cx));
                if let (Ok(response), Some(gate)) = (&answer, gate)
                    && response.status() == StatusCode::SWITCHING_PROTOCOLS
                {
                    gate.opens();
                    return Poll::Ready(answer);
                }
                (answer, *last)
            }
            // It is gone, or was answered: the server finds the stream closed.
            AnswerProjection::Back { leaving, .. } => {
                ready!(leaving.as_mut().poll(cx));
                (Ok(misdirected()), true)
            }
            AnswerProjection::Refused { last } => (Ok(misdirected()), *last),
        };
        if let Ok(response) = &mut answer
            && last
        {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(answer)
    }
}

fn misdirected<R: Default>() -> Response<R> {
    let mut response = Response::new(R::default());
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response
}

#[cfg(test)]
mod tests;
