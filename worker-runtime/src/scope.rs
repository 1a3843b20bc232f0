//! The worker's scope: what the web calls `self` inside a worker.

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vestibule_protocol::Data;
use vestibule_protocol::codec::{Codec, EncodeError};
use vestibule_protocol::message::ErrorReport;
use vestibule_protocol::port::PostMessageError;

use crate::adopt::Arrival;
use crate::event::{Connection, Event};
use crate::inbox::{self, Mode};
use crate::link::Link;
use crate::{message, report, sys};

/// Names the inherited port.
const VESTIBULE_FD: &str = "VESTIBULE_FD";
/// Names the worker, `POOL-N`.
const VESTIBULE_WORKER: &str = "VESTIBULE_WORKER";
/// Names the worker's pool.
const VESTIBULE_POOL: &str = "VESTIBULE_POOL";

/// The inherited port is this process's once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// Started by hand, or by something that does not pass the environment on.
    #[error(
        "this program is started by vestibule: VESTIBULE_FD is not set \
         (run it as `vestibule run -- PROGRAM`, or as the `command` of a pool)"
    )]
    NotSet,
    /// Not a number.
    #[error("VESTIBULE_FD is {0:?}, not the number of a descriptor")]
    NotANumber(String),
    /// Something between vestibule and this program closed the port.
    #[error("VESTIBULE_FD names descriptor {0}, which is not open: a program in between closed it")]
    NotOpen(i32),
    /// The descriptor is something else.
    #[error("descriptor {0} of VESTIBULE_FD is no Unix seqpacket socket, so it is no port")]
    NotAPort(i32),
    /// The second call in this process.
    #[error("the worker's port has been taken: clone the first WorkerScope instead")]
    Taken,
    /// The system refused.
    #[error("descriptor {descriptor} of VESTIBULE_FD cannot be set up")]
    System {
        /// Its number.
        descriptor: i32,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The worker's side of its port. Clones are handles of the same scope.
///
/// One reader at a time: [`recv`](Self::recv), [`serve`](Self::serve) or a
/// [`listener`](Self::listener) take turns. The first of them says `Hello` to the router: the worker
/// is ready then.
#[derive(Clone, Debug)]
pub struct WorkerScope {
    link: Arc<Link>,
    name: Arc<str>,
    pool: Arc<str>,
}

impl WorkerScope {
    /// The scope of a program that vestibule started: takes the port that the environment names.
    ///
    /// Call it first, before any thread and any runtime; it needs none. The descriptor becomes
    /// close-on-exec, so that no child of this program holds it.
    ///
    /// # Errors
    /// See [`ScopeError`].
    pub fn from_env() -> Result<Self, ScopeError> {
        let value = std::env::var_os(VESTIBULE_FD).ok_or(ScopeError::NotSet)?;
        let value = value.to_string_lossy();
        let number: i32 =
            value.parse().map_err(|_| ScopeError::NotANumber(value.clone().into_owned()))?;
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(ScopeError::Taken);
        }
        let taken = sys::take_inherited_port(number).map_err(|error| {
            TAKEN.store(false, Ordering::Release);
            not_taken(number, error)
        });
        taken.map(Self::new)
    }

    /// The scope over a port that the program got in another way.
    ///
    /// # Errors
    /// It is no Unix seqpacket socket.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, ScopeError> {
        let number = sys::number(&descriptor);
        match vestibule_protocol::sys::is_seqpacket(descriptor.as_fd()) {
            Ok(true) => Ok(Self::new(descriptor)),
            Ok(false) => Err(ScopeError::NotAPort(number)),
            Err(error) => Err(not_taken(number, error)),
        }
    }

    fn new(descriptor: OwnedFd) -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default().into();
        Self {
            link: Arc::new(Link::new(descriptor)),
            name: variable(VESTIBULE_WORKER),
            pool: variable(VESTIBULE_POOL),
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The worker's name, `POOL-N`; empty if its parent gave it none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its pool; empty if its parent gave it none.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// How many connections are open: what the router is told.
    pub fn open_connections(&self) -> u32 {
        self.link.connections().open()
    }

    /// Every posted message is a `T`: it is decoded before the connection is acknowledged. What is
    /// not one goes back to its sender and is a `MessageError` here. Requests carry it as
    /// [`Message<T>`](crate::Message), which axum's own `Extension` extracts.
    #[must_use]
    pub fn message<T>(self) -> Self
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.link.set(|settings| settings.decoder = Some(message::decoder::<T>()));
        self
    }

    /// Gets every event that is no connection while connections are served; otherwise messages are
    /// refused to their sender and the rest is logged. It must not block.
    #[must_use]
    pub fn on_event(self, handler: impl Fn(Event) + Send + Sync + 'static) -> Self {
        self.link.set(|settings| settings.handler = Some(Arc::new(handler)));
        self
    }

    /// How long a client may take for its first request (default 10 s), one that says nothing
    /// included.
    #[must_use]
    pub fn first_request_timeout(self, timeout: Duration) -> Self {
        self.link.set(|settings| settings.first_request_timeout = timeout);
        self
    }

    /// How long a kept-alive connection may be idle until the head of the next request is whole
    /// (default 75 s).
    #[must_use]
    pub fn keep_alive_timeout(self, timeout: Duration) -> Self {
        self.link.set(|settings| settings.keep_alive_timeout = timeout);
        self
    }

    /// Most connections that this worker holds (default 0: no bound of its own); more are refused.
    #[must_use]
    pub fn max_connections(self, connections: u32) -> Self {
        self.link.set(|settings| settings.max_connections = connections);
        self
    }

    /// Whether Nagle's algorithm is switched off on every connection (default no, as in hyper and
    /// axum; it costs a system call a connection).
    #[must_use]
    pub fn nodelay(self, nodelay: bool) -> Self {
        self.link.set(|settings| settings.nodelay = nodelay);
        self
    }

    /// Whether each connection's socket is asked for its peer's security context where the router
    /// sent none (default no; it costs a system call a connection).
    #[must_use]
    pub fn peer_context(self, ask: bool) -> Self {
        self.link.set(|settings| settings.peer_context = ask);
        self
    }

    /// Whether this program keeps to the scope of its connections (default no; [`serve`](Self::serve)
    /// and [`guard`](Self::guard) do and say so by themselves): of a connection that came by a rule about
    /// requests (host, path, query, header, cookie) it serves no later request that is another rule's.
    /// The router gives such connections to no worker that does not say it. To keep to it, serve through
    /// [`guard_connection`](Self::guard_connection) or [`guard_requests`](Self::guard_requests), compare
    /// each request with [`ConnectionInfo::covers`](crate::ConnectionInfo::covers), or close each
    /// connection after its first answer.
    ///
    /// Say it before anything is received: it is told to the router in `Hello`.
    #[must_use]
    pub fn keeps_scope(self, keeps: bool) -> Self {
        self.link.set(|settings| settings.keeps_scope = keeps);
        self
    }

    /// The next event; `None` when the worker's part is over.
    ///
    /// That is: after [`close`](Self::close) or the router's word, when what was queued has been
    /// refused; after [`Event::Draining`], or when the port is over, once no connection is open or
    /// the drain timeout has passed. What was acknowledged is always delivered first.
    ///
    /// The port is read here and nowhere else: a router that begins anew is answered by the next
    /// call.
    ///
    /// # Cancel safety
    /// Safe: an event is taken only when this is ready.
    pub async fn recv(&self) -> Option<Event> {
        if let Err(error) = self.link.bind() {
            tracing::error!(error = %inbox::Chain(&error), "the worker's port cannot be used");
            return None;
        }
        let mut inbox = self.link.inbox().lock().await;
        let mut finished = pin!(self.link.connections().finished_or_closed());
        loop {
            match inbox.pop() {
                Some(Arrival::Event(event)) => return Some(event),
                Some(Arrival::Connection(Connection { stream, info })) => {
                    let message = info.message().clone();
                    return Some(Event::Connection { stream, info, message });
                }
                None => {}
            }
            tokio::select! {
                biased;
                () = &mut finished => break,
                () = inbox.turn(&self.link, Mode::Own) => {}
            }
        }
        drop(inbox);
        inbox::end(&self.link).await;
        None
    }

    /// Posts a value to the router as bincode, and returns the message's number. Never waits.
    ///
    /// # Errors
    /// The scope is closed, 1,024 messages or 1 MiB wait already, or the value cannot be written; the
    /// message comes back.
    pub fn post_message<T: Serialize + ?Sized>(
        &self,
        message: &T,
    ) -> Result<u64, PostMessageError> {
        self.post_as(Codec::Bincode, message)
    }

    /// As [`post_message`](Self::post_message), as JSON: what other languages read.
    ///
    /// # Errors
    /// As [`post_message`](Self::post_message).
    pub fn post_json<T: Serialize + ?Sized>(&self, message: &T) -> Result<u64, PostMessageError> {
        self.post_as(Codec::Json, message)
    }

    fn post_as<T: Serialize + ?Sized>(
        &self,
        codec: Codec,
        message: &T,
    ) -> Result<u64, PostMessageError> {
        match Data::encode(codec, message) {
            Ok(data) => self.post(data),
            Err(error) => Err(not_written(error)),
        }
    }

    /// As [`post_message`](Self::post_message), for a message that is already written.
    ///
    /// # Errors
    /// As [`post_message`](Self::post_message).
    pub fn post(&self, data: Data) -> Result<u64, PostMessageError> {
        self.link.post(data)
    }

    /// Reports an error to the parent, as an uncaught one is on the web: with the place of this
    /// call. The worker goes on.
    #[track_caller]
    pub fn report_error(&self, error: impl Display) {
        self.report(&report::at(error.to_string(), Some(Location::caller())));
    }

    /// Reports an error of which the program knows the place.
    pub fn report(&self, error: &ErrorReport) {
        self.link.report(error);
    }

    /// Reports every panic of this process to the parent, besides what was done before. The worker
    /// goes on: a panic ends one task, hence at most one connection.
    pub fn install_panic_hook(&self) {
        report::install_panic_hook(&self.link);
    }

    /// Takes no more connections and finishes those that are open. The router replaces this worker
    /// at once. Any number of times.
    pub fn drain(&self) {
        self.link.drain();
    }

    /// Closes the scope. The handler that runs finishes; what is still queued goes back to the
    /// sender, connections to another worker; then [`recv`](Self::recv) gives `None`, and
    /// [`serve`](Self::serve) returns when what is open is finished. Any number of times.
    pub fn close(&self) {
        self.link.close();
    }

    /// Waits until the worker begins to end. For `with_graceful_shutdown` of `axum::serve`.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let link = Arc::clone(&self.link);
        async move { link.draining().await }
    }

    /// Waits until shortly (a second, or a quarter of a drain timeout of less than four) before what is
    /// open is closed: whoever holds a connection for long says goodbye now, a websocket with a close
    /// frame of code 1001 (RFC 6455 7.4.1). Where nobody takes over, as everything ends, that is at
    /// once.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn last_call(&self) -> impl Future<Output = ()> + Send + 'static {
        let link = Arc::clone(&self.link);
        async move { link.connections().last_call().await }
    }

    /// Waits until the worker has ended: nothing is open any more, or the drain timeout has passed
    /// and what was open is closed.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let link = Arc::clone(&self.link);
        async move { link.connections().finished().await }
    }
}

fn not_taken(descriptor: i32, error: Errno) -> ScopeError {
    match error {
        Errno::BADF => ScopeError::NotOpen(descriptor),
        Errno::NOTSOCK => ScopeError::NotAPort(descriptor),
        error => ScopeError::System { descriptor, source: error.into() },
    }
}

fn not_written(error: EncodeError) -> PostMessageError {
    PostMessageError { reason: error.into(), message: Data::NONE, transfer: Vec::new() }
}
