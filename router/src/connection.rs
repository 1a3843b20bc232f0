//! A client's connection on its way through the router: paused, with what is known about it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vestibule_protocol::envelope::{PassedConnection, Transferable};
use vestibule_protocol::{ConnectionInfo, Data};

use crate::inspect::{PausedConnection, Touched};
use crate::reject::{self, Reason, Rejection};
use crate::route::Affinity;
use crate::trace::Trace;

/// An accepted connection from which nothing was read. Post it to a worker, or reject it; dropping
/// it closes it without a word.
#[derive(Debug)]
pub struct Connection {
    paused: PausedConnection,
    info: ConnectionInfo,
    trace: Trace,
    /// What its route says about it beside the pool. Most have nothing: a pointer's room.
    orders: Option<Box<Orders>>,
    /// Room that it takes of its peer's, where its listener has limits.
    #[cfg(feature = "cli")]
    held: Option<Box<crate::limits::Held>>,
}

/// What a decision says about a connection beside the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// The worker that it belongs to, found out before it waits for anybody.
    pub(crate) affinity: Option<Affinity>,
    /// What is posted with it.
    pub(crate) message: Option<Arc<Data>>,
}

impl Connection {
    /// A connection and its facts.
    pub fn new(paused: PausedConnection, info: ConnectionInfo) -> Self {
        let trace = Trace::accepted(&info);
        Self {
            paused,
            info,
            trace,
            orders: None,
            #[cfg(feature = "cli")]
            held: None,
        }
    }

    /// It takes room of its peer's, until it is dropped.
    #[cfg(feature = "cli")]
    pub(crate) fn hold(&mut self, held: crate::limits::Held) {
        self.held = Some(Box::new(held));
    }

    /// Takes the PROXY header off, see [`PausedConnection::consume_header`].
    #[cfg(feature = "cli")]
    pub(crate) fn consume_header(&mut self, length: usize, scratch: &mut [u8]) -> bool {
        self.paused.consume_header(length, scratch)
    }

    /// A proxy says whose connection it is: that one counts from now on.
    #[cfg(feature = "cli")]
    pub(crate) fn proxied(&mut self, source: Option<SocketAddr>, destination: Option<SocketAddr>) {
        self.info.peer = source;
        self.info.destination = destination;
        self.trace.proxied(source);
    }

    /// Notes what a decision says about it.
    #[cfg(feature = "cli")]
    pub(crate) fn order(&mut self, orders: Orders) {
        self.orders = (orders != Orders::default()).then(|| Box::new(orders));
    }

    /// The worker that it belongs to, where its pool's balance looks at more than its address.
    pub(crate) fn affinity(&self) -> Option<&Affinity> {
        self.orders.as_ref()?.affinity.as_ref()
    }

    /// What its route posts with it.
    pub(crate) fn message(&self) -> Data {
        let message = self.orders.as_ref().and_then(|orders| orders.message.as_deref());
        message.cloned().unwrap_or(Data::NONE)
    }

    /// Who connected: IPv4 addresses that were mapped into IPv6 are IPv4; `None` for a Unix peer.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.info.peer
    }

    /// The address that the client connected to; asks the socket. `None` for a Unix listener.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let address = rustix::net::getsockname(&self.paused).ok()?;
        let address = SocketAddr::try_from(address).ok()?;
        Some(vestibule_protocol::connection_info::canonical(address))
    }

    /// What is known about it.
    pub fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// What is known about it, to be completed.
    pub fn info_mut(&mut self) -> &mut ConnectionInfo {
        &mut self.info
    }

    /// Notes which rule decided.
    #[cfg(feature = "cli")]
    pub(crate) fn set_route(&mut self, route: &Arc<str>) {
        self.info.route = Arc::clone(route);
        self.trace.routed(route);
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Whether somebody has read from it or written to it.
    pub fn touched(&self) -> Touched {
        self.paused.touched()
    }

    /// Answers with this status (or an equal alert, to a TLS client) and closes. Returns at once: a
    /// task of the current runtime speaks to the client, for at most 2.2 seconds.
    pub fn reject(self, status: u16) {
        self.reject_with(Rejection::status(status, Reason::Rejected));
    }

    /// As [`reject`](Self::reject), with a reason for the client's `vestibule-reason` header.
    pub fn reject_with(self, rejection: Rejection) {
        self.trace.rejected(rejection.reason());
        reject::start(self.paused, rejection, self.info.peer.is_some());
    }

    /// Tells an HTTP/1 client to come again there, and closes; as [`reject`](Self::reject).
    #[cfg(feature = "cli")]
    pub(crate) fn redirect(self, location: String) {
        self.trace.rejected(Reason::Rejected);
        reject::redirect(self.paused, location);
    }

    pub(crate) fn restore(&self) -> Result<(), rustix::io::Errno> {
        self.paused.restore()
    }

    /// Ends the connection for its client, whoever else holds a copy.
    pub(crate) fn end(&self) {
        // Fails only if the client was first.
        let _ = rustix::net::shutdown(&self.paused, rustix::net::Shutdown::Both);
    }

    pub(crate) fn release(self) {
        self.paused.release();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.paused.as_fd()
    }
}

impl From<Connection> for Transferable {
    fn from(connection: Connection) -> Self {
        let descriptor = connection.paused.into_socket();
        Self::Connection(PassedConnection { descriptor, info: connection.info })
    }
}

impl From<PassedConnection> for Connection {
    fn from(passed: PassedConnection) -> Self {
        let trace = Trace::of_returned(&passed.info);
        Self {
            paused: passed.descriptor.into(),
            info: passed.info,
            trace,
            orders: None,
            #[cfg(feature = "cli")]
            held: None,
        }
    }
}
