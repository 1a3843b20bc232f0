//! A client's connection on its way through the router: paused, with what is known about it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vestibule_protocol::envelope::{PassedConnection, Transferable};
use vestibule_protocol::{ConnectionInfo, Data};

#[cfg(feature = "cli")]
use crate::inspect::{Cause, Credentials, Fact, Label};
use crate::inspect::{PausedConnection, Touched};
use crate::reject::{self, Reason, Rejection};
use crate::route::Affinity;
use crate::ticket::Stamp;
use crate::trace::Trace;

/// An accepted connection from which nothing was read. Post it to a worker, or reject it; dropping
/// it closes it without a word.
#[derive(Debug)]
pub struct Connection {
    paused: PausedConnection,
    info: ConnectionInfo,
    trace: Trace,
    /// What its route says about it beside the pool, and what came back with it. Most have nothing: a
    /// pointer's room.
    more: Option<Box<More>>,
}

/// What few connections have.
#[derive(Debug, Default)]
struct More {
    orders: Orders,
    returned: Returned,
    /// Room that it takes of its peer's, where its listener has limits.
    #[cfg(feature = "cli")]
    held: Option<crate::limits::Held>,
}

/// What a decision says about a connection beside the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// The worker that it belongs to, found out before it waits for anybody.
    pub(crate) affinity: Option<Affinity>,
    /// What is posted with it.
    pub(crate) message: Option<Arc<Data>>,
    /// For which later requests the decision holds; `None`: for all.
    pub(crate) scope: Option<Arc<[u8]>>,
}
/// What a worker handed back with a connection.
#[derive(Debug, Default)]
struct Returned {
    /// What it has read and not answered: the next one reads this first.
    prefix: Box<[u8]>,
    /// What is to be posted with it.
    message: Data,
    /// How often it was handed back before its client got anything.
    hops: u8,
}

impl Connection {
    /// A connection and its facts.
    pub fn new(paused: PausedConnection, info: ConnectionInfo) -> Self {
        let trace = Trace::accepted(&info);
        Self { paused, info, trace, more: None }
    }

    /// It takes room of its peer's, until it is dropped.
    #[cfg(feature = "cli")]
    pub(crate) fn hold(&mut self, held: crate::limits::Held) {
        self.more.get_or_insert_default().held = Some(held);
    }

    /// What it takes of its peer's room.
    #[cfg(feature = "cli")]
    pub(crate) fn held(&self) -> Option<&crate::limits::Held> {
        self.more.as_ref()?.held.as_ref()
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

    /// Asks the kernel for the peer's security context, which its worker is told, too. A client whom a
    /// proxy has named is not at the other end: what context it has, if any, nobody can tell.
    #[cfg(feature = "cli")]
    pub(crate) fn ask_context(&mut self) -> Fact<Label> {
        let context = match Label::of_peer(&self.paused) {
            Ok(label) if self.info.is_from(self.other_end()) => label.into(),
            Ok(_) | Err(_) => Fact::Unknown(Cause::Hidden),
        };
        self.note_context(&context);
        context
    }

    /// Who is at the other end of a Unix-domain socket; absent for an Internet peer. One that has
    /// neither address nor user is hidden: the kernel does not say, or it is a client of a proxy's.
    #[cfg(feature = "cli")]
    pub(crate) fn credentials(&self) -> Fact<Credentials> {
        match (self.info.peer_credentials, self.info.peer) {
            (Some(_), _) if !self.info.is_from(self.other_end()) => Fact::Unknown(Cause::Hidden),
            (Some(who), _) => Fact::Known(Credentials { uid: who.uid, user: None }),
            (None, Some(_)) => Fact::Absent,
            (None, None) => Fact::Unknown(Cause::Hidden),
        }
    }

    /// The address that the socket has for its other end: the client's, or that of a proxy in front.
    #[cfg(feature = "cli")]
    fn other_end(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(rustix::net::getpeername(&self.paused).ok()??).ok()
    }

    #[cfg(feature = "cli")]
    fn note_context(&mut self, context: &Fact<Label>) {
        self.info.peer_context = context.as_ref().known().map(|label| Arc::clone(label.text()));
    }

    /// Notes what a decision says about it.
    #[cfg(feature = "cli")]
    pub(crate) fn order(&mut self, orders: Orders) {
        match &mut self.more {
            Some(more) => more.orders = orders,
            None if orders == Orders::default() => {}
            None => self.more = Some(Box::new(More { orders, ..More::default() })),
        }
    }

    /// The worker that it belongs to, where its pool's balance looks at more than its address.
    pub(crate) fn affinity(&self) -> Option<&Affinity> {
        self.more.as_ref()?.orders.affinity.as_ref()
    }

    /// For which later requests the decision about it holds; `None`: for all.
    pub(crate) fn scope(&self) -> Option<&[u8]> {
        self.more.as_ref()?.orders.scope.as_deref()
    }

    /// Notes for which later requests a decision holds that no rule made.
    #[cfg(feature = "cli")]
    pub(crate) fn set_scope(&mut self, scope: Option<Arc<[u8]>>) {
        if scope.is_some() || self.more.is_some() {
            self.more.get_or_insert_default().orders.scope = scope;
        }
    }

    /// What its worker wants posted with it, or its route.
    pub(crate) fn message(&self) -> Data {
        let Some(more) = &self.more else { return Data::NONE };
        if more.returned.message != Data::NONE {
            return more.returned.message.clone();
        }
        more.orders.message.as_deref().cloned().unwrap_or(Data::NONE)
    }

    /// A connection that a worker handed back.
    pub(crate) fn handed_back(
        paused: PausedConnection,
        info: ConnectionInfo,
        prefix: Box<[u8]>,
        hops: u8,
    ) -> Self {
        let trace = Trace::of_returned(&info);
        let returned = Returned { prefix, message: Data::NONE, hops };
        let more = More { returned, ..More::default() };
        Self { paused, info, trace, more: Some(Box::new(more)) }
    }

    /// With what its worker wants posted with it.
    #[cfg(feature = "cli")]
    pub(crate) fn with_message(mut self, message: Data) -> Self {
        self.more.get_or_insert_default().returned.message = message;
        self
    }

    /// What a worker has read of it and not answered, if one handed it back: this comes before
    /// anything that the socket holds.
    pub fn prefix(&self) -> &[u8] {
        self.more.as_ref().map_or(&[], |more| &more.returned.prefix)
    }

    /// Whether a worker handed it back.
    #[cfg(feature = "cli")]
    pub(crate) fn is_handed_back(&self) -> bool {
        self.info.handed_back_by.is_some()
    }

    /// The socket, and what may have been read from it and written to it.
    #[cfg(feature = "cli")]
    pub(crate) fn paused(&self) -> &PausedConnection {
        &self.paused
    }

    /// What its next ticket says.
    pub(crate) fn stamp(&self) -> Stamp {
        let hops = self.more.as_ref().map_or(0, |more| more.returned.hops);
        Stamp { hops, written: self.paused.written() }
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
        let prefix = self.more.map(|more| more.returned.prefix).unwrap_or_default();
        reject::start(self.paused, rejection, self.info.peer.is_some(), prefix);
    }

    /// Tells an HTTP/1 client to come again there, and closes; as [`reject`](Self::reject).
    #[cfg(feature = "cli")]
    pub(crate) fn redirect(self, location: String) {
        self.trace.rejected(Reason::Rejected);
        let prefix = self.more.map(|more| more.returned.prefix).unwrap_or_default();
        reject::redirect(self.paused, location, prefix);
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
        let prefix = connection.more.map(|more| more.returned.prefix).unwrap_or_default();
        Self::Connection(PassedConnection { descriptor, info: connection.info, prefix })
    }
}

impl From<PassedConnection> for Connection {
    fn from(passed: PassedConnection) -> Self {
        let PassedConnection { descriptor, info, prefix } = passed;
        let handed_back = info.handed_back_by.is_some();
        let paused = PausedConnection::from_passed(descriptor, handed_back);
        let trace = Trace::of_returned(&info);
        let returned = Returned { prefix, ..Returned::default() };
        let more = handed_back.then(|| Box::new(More { returned, ..More::default() }));
        Self { paused, info, trace, more }
    }
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;

    /// What the kernel says of a label is shown on an enforcing kernel: `tests/selinux-vm`.
    #[test]
    fn a_worker_is_told_the_context_that_somebody_asked_for() {
        let (socket, _client) = std::os::unix::net::UnixStream::pair().unwrap();
        let paused = PausedConnection::new(socket.into());
        let mut connection = Connection::new(paused, ConnectionInfo::default());
        let text = "staff_u:staff_r:staff_client_t:s0";
        connection.note_context(&Fact::Known(Label::parse(text).unwrap()));
        assert_eq!(connection.info().peer_context.as_deref(), Some(text));
        connection.note_context(&Fact::Absent);
        assert_eq!(connection.info().peer_context, None);
    }

    /// Else every client of a proxy would be what the proxy is.
    #[test]
    fn what_the_kernel_knows_of_a_proxy_is_not_known_of_its_client() {
        let client = "192.0.2.7:51200".parse().ok();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, peer) = listener.accept().unwrap();
        let info = ConnectionInfo { peer: Some(peer), ..ConnectionInfo::default() };
        let mut connection = Connection::new(PausedConnection::new(near.into()), info);
        assert_ne!(connection.ask_context(), Fact::Unknown(Cause::Hidden));
        assert_eq!(connection.credentials(), Fact::Absent);
        // A client with an address, and one of a Unix-domain socket, which has none.
        for named in [client, None] {
            connection.proxied(named, None);
            assert_eq!(connection.ask_context(), Fact::Unknown(Cause::Hidden));
            assert_eq!(connection.info().peer_context, None);
            let user = if named.is_some() { Fact::Absent } else { Fact::Unknown(Cause::Hidden) };
            assert_eq!(connection.credentials(), user);
        }
        drop(far);
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let paused = PausedConnection::new(near.into());
        let peer_credentials = paused.peer_credentials();
        let info = ConnectionInfo { peer_credentials, ..ConnectionInfo::default() };
        let mut connection = Connection::new(paused, info);
        let uid = peer_credentials.unwrap().uid;
        assert_eq!(connection.credentials(), Fact::Known(Credentials { uid, user: None }));
        assert_ne!(connection.ask_context(), Fact::Unknown(Cause::Hidden));
        connection.proxied(client, None);
        assert_eq!(connection.credentials(), Fact::Unknown(Cause::Hidden));
        assert_eq!(connection.ask_context(), Fact::Unknown(Cause::Hidden));
    }
}
