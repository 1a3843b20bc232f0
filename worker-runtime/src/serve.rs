//! Adopted connections into hyper: one task each, nothing else in the way.
//!
//! hyper's `http1` builder, not hyper-util's automatic one: the wait for a head is kept here (see
//! `head_wait`), and what is seen of it is HTTP/1's.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use vestibule_protocol::port::SocketError;

use crate::adopt::Arrival;
use crate::connection_info::{ConnectionInfo, Extras};
use crate::drain::Key;
use crate::event::Connection;
use crate::gate::Gate;
use crate::hand_back;
use crate::head_wait::{self, Answering, HeadWait};
use crate::inbox::{self, Fault, Mode};
use crate::link::Link;
use crate::scope::WorkerScope;
use crate::settings::Settings;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a worker stopped serving before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The port cannot be used: there is no tokio runtime with I/O enabled.
    #[error("the worker's port cannot be used")]
    Port(#[from] SocketError),
    /// The router broke the protocol; what was open has been finished.
    #[error("the router broke the protocol")]
    Router(#[from] Fault),
}

impl WorkerScope {
    /// Serves every connection with a tower service, for example an axum `Router`, until the worker
    /// is told to end: by the router, by [`drain`](Self::drain) or [`close`](Self::close), or by the
    /// end of its port.
    ///
    /// It says `Hello` to the router first. When the end begins no connection is taken. While
    /// others take over, idle connections stay open, and the next answer on each says that it closes;
    /// shortly before the drain timeout the idle ones are closed, and at it the rest. Where nobody
    /// takes over, the idle ones are closed at once. A
    /// connection that was acknowledged gets an answer to its first request even then.
    ///
    /// Each request has in its extensions: [`ConnectionInfo`], with feature `axum` also
    /// `ConnectInfo<ConnectionInfo>`, which axum's extractors look for; [`Posted`](crate::Posted) if a
    /// message was posted with the connection; `Message<T>` after [`message::<T>()`](Self::message).
    /// Upgrades (websockets) work.
    ///
    /// Where the router's rules look at requests, a later request of a connection that is not for
    /// this pool goes back to the router and never reaches the service. After a request with a chunked
    /// body, and where the router takes nothing back, such a connection closes with the answer.
    ///
    /// Messages that are no connections go to the [handler](Self::on_event); without one they are
    /// refused to their sender.
    ///
    /// # Errors
    /// There is no runtime, or the router broke the protocol.
    ///
    /// # Cancel safety
    /// Connections that were taken go on; the port is not read until this or another reader is
    /// called again.
    pub async fn serve<S, B>(&self, service: S) -> Result<(), ServeError>
    where
        S: tower_service::Service<Request<Incoming>, Response = Response<B>>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.serve_with(TowerToHyperService::new(service), Extras::Tower).await
    }

    /// As [`serve`](Self::serve), for a plain hyper service (`hyper::service::service_fn`): requests
    /// carry nothing that only axum looks for.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    ///
    /// # Cancel safety
    /// As [`serve`](Self::serve).
    pub async fn serve_service<S, B>(&self, service: S) -> Result<(), ServeError>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.serve_with(service, Extras::Plain).await
    }

    async fn serve_with<S, B>(&self, service: S, extras: Extras) -> Result<(), ServeError>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let link = self.link();
        link.set(|settings| settings.keeps_scope = true);
        link.bind()?;
        let server = Arc::new(Server::new(Arc::clone(link), extras));
        let mut inbox = link.inbox().lock().await;
        let mut finished = pin!(link.connections().finished());
        loop {
            while let Some(arrival) = inbox.pop() {
                match arrival {
                    Arrival::Connection(connection) => {
                        let service = service.clone();
                        tokio::spawn(serve_connection(Arc::clone(&server), connection, service));
                    }
                    Arrival::Event(event) => inbox::hand_over(link, event),
                }
            }
            tokio::select! {
                biased;
                () = &mut finished => break,
                () = inbox.turn(link, Mode::Served) => {}
            }
        }
        let fault = inbox.take_fault();
        drop(inbox);
        inbox::end(link).await;
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

/// What all connections of one server share.
struct Server {
    link: Arc<Link>,
    settings: Arc<Settings>,
    http: http1::Builder,
    extras: Extras,
}

impl Server {
    fn new(link: Arc<Link>, extras: Extras) -> Self {
        let settings = link.settings();
        let mut http = http1::Builder::new();
        http.header_read_timeout(None);
        Self { link, settings, http, extras }
    }
}

/// Serves one connection until it ends, or a request of it is another worker's.
async fn serve_connection<S, B>(server: Arc<Server>, connection: Connection, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let Connection { stream, info } = connection;
    let key = stream.key();
    if info.scope.is_none() {
        let service = WithInfo { service, info, server, key, gate: None };
        return converse(stream, service).await;
    }
    let gate = Gate::new(stream);
    let link = Arc::clone(&server.link);
    let service = WithInfo { service, info: info.clone(), server, key, gate: Some(gate.clone()) };
    converse(gate.clone(), service).await;
    if let Some(left) = gate.left() {
        hand_back::return_to_router(&link, left, info).await;
    }
}

/// Lets hyper serve a connection until it ends, or nothing more of it is served here.
async fn converse<I, S, B>(stream: I, service: WithInfo<S>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (server, info) = (Arc::clone(&service.server), service.info.clone());
    let (key, gate) = (service.key, service.gate.clone());
    let Server { link, settings, .. } = &*server;
    let mut end = End { link, key, state: EndState::Unknown };
    let mut head = HeadWait::new(key);
    let http = server.http.serve_connection(TokioIo::new(stream), service);
    let mut http = pin!(http.with_upgrades());
    let served = poll_fn(|cx| {
        loop {
            let polled = head.within(|| http.as_mut().poll(cx));
            if gate.as_ref().is_some_and(Gate::has_left) {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(served) = polled {
                return Poll::Ready(served);
            }
            // First: the table that wakes a late client's task knows the task from here on.
            let ends = end.is_due(cx, &info);
            let (first, later) = (settings.first_request_timeout, settings.keep_alive_timeout);
            if let Some(due) = head.news(first, later) {
                link.expect_head(key, due);
            }
            if head.is_over() {
                tracing::debug!(id = info.id, "no request came in time");
                return Poll::Ready(Ok(()));
            }
            if !ends {
                return Poll::Pending;
            }
            http.as_mut().graceful_shutdown();
        }
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(id = info.id, error = %inbox::Chain(&error), "connection ended early");
    }
}

/// When a connection is told to finish: once, after its first request, when who is idle is closed. Until
/// then a draining worker leaves idle connections open, since a client may be about to use one; its
/// next answer says that the connection closes.
///
/// hyper closes a connection that is told so before its first request, and the client of a
/// connection that was acknowledged would get no answer.
struct End<'a> {
    link: &'a Link,
    key: Key,
    state: EndState,
}

#[derive(PartialEq, Eq)]
enum EndState {
    Unknown,
    /// The task is woken when the end begins. It is a task of its own, so its waker stays the same.
    Expected,
    Told,
}

impl End<'_> {
    fn is_due(&mut self, cx: &Context<'_>, info: &ConnectionInfo) -> bool {
        let connections = self.link.connections();
        let ending = match self.state {
            EndState::Unknown => {
                self.state = EndState::Expected;
                connections.wake_at_end(self.key, cx.waker()) && connections.is_last_call()
            }
            EndState::Expected => connections.is_last_call(),
            EndState::Told => false,
        };
        let due = ending && info.was_requested();
        if due {
            self.state = EndState::Told;
        }
        due
    }
}

/// A service whose requests carry what is known about their connection, and that gets only those
/// for which the decision about the connection holds.
struct WithInfo<S> {
    service: S,
    info: ConnectionInfo,
    server: Arc<Server>,
    key: Key,
    /// Of a connection whose later requests may be another worker's.
    gate: Option<Gate>,
}

impl<S, B> Service<Request<Incoming>> for WithInfo<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<Answered<B>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Answer<S::Future> {
        head_wait::head_is_whole(self.key, !request.body().is_end_stream());
        let (server, key) = (Arc::clone(&self.server), self.key);
        let mut last = false;
        if let (Some(gate), Some(scope)) = (&self.gate, &self.info.scope) {
            let Some(looks) = gate.admit(scope, &request, !self.info.was_requested()) else {
                let another = Some(Box::new(request));
                return Answer { answer: None, another, server, key, gate: None, last: false };
            };
            last = !looks || !hand_back::is_possible(&server.link, &self.info);
        }
        self.info.note_request();
        self.info.insert(server.extras, request.extensions_mut());
        let answer = Some(self.service.call(request));
        Answer { answer, another: None, server, key, gate: self.gate.clone(), last }
    }
}

pin_project! {
    /// An answer that says that the connection closes when the worker ends: hyper was told too late
    /// if this is the answer to a connection's first request.
    struct Answer<F> {
        // Absent: another worker will answer.
        #[pin]
        answer: Option<F>,
        // What that one is asked. Without its body hyper would read it to drop it.
        another: Option<Box<Request<Incoming>>>,
        server: Arc<Server>,
        key: Key,
        gate: Option<Gate>,
        // No later request can be looked at, or handed back.
        last: bool,
    }
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Answered<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(answer) = this.answer.as_pin_mut() else { return Poll::Pending };
        let mut response = std::task::ready!(answer.poll(cx))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            this.gate.iter().for_each(Gate::opens);
        } else if *this.last || this.server.link.connections().is_ending() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let answering = Answering::new(*this.key);
        Poll::Ready(Ok(response.map(|body| Answered { body, answering })))
    }
}

pin_project! {
    /// The body of an answer: dropped once hyper has taken all of it.
    struct Answered<B> {
        #[pin]
        body: B,
        answering: Answering,
    }
}

impl<B: Body> Body for Answered<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
