//! Accepting connections, many at a time, and leaving them alone.

mod bound;
mod dry;
pub mod path;
mod shortage;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, sockopt};
use rustix::time::ClockId;
use tokio::io::unix::AsyncFd;
use vestibule_protocol::ConnectionInfo;
use vestibule_protocol::connection_info::canonical;
use vestibule_protocol::envelope::Transferable;

use self::bound::system;
pub use self::bound::{Bound, ListenError, bind, bind_with, local_address};
pub(crate) use self::dry::Dry;
use self::path::SocketPath;
use self::shortage::Shortage;
#[cfg(feature = "cli")]
pub(crate) use self::shortage::first_reserved;
use crate::connection::Connection;
use crate::inspect::PausedConnection;
use crate::sys::peer;

/// Connections taken in one turn before others get theirs: what fits one packet.
pub(crate) const BURST: usize = vestibule_protocol::limits::MAX_DESCRIPTORS;

/// How long to leave the kernel's queue alone when this process is out of descriptors: long enough
/// for acknowledgements to free some, short enough that no client gives up.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// Connections are numbered per router process, whatever the listener.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// How many connections this process has accepted.
pub(crate) fn accepted() -> u64 {
    CONNECTIONS.load(Ordering::Relaxed)
}

/// A bound socket whose connections are paused: nothing is read from them.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    /// The path that goes away with it, if it made one.
    path: Option<SocketPath>,
    /// Whether its peers have no address but a user.
    is_unix: bool,
    name: Arc<str>,
    route: Arc<str>,
    shortage: Shortage,
    lost: Lost,
    counters: AcceptCounters,
}

/// What accepting took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptCounters {
    /// System calls, those that found no connection among them.
    pub calls: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Times that accepting stopped for a moment, for want of descriptors or memory, or because
    /// nothing but errors came.
    pub pauses: u64,
}

impl Listener {
    /// Binds an address: `ADDRESS:PORT`, `[ADDRESS]:PORT` (IPv6 only), `*:PORT` (both), `unix:PATH` or
    /// `unix:@NAME` (abstract). Several names of one host are not tried: a listener has one address.
    /// A path goes away with the listener, unless it is transferred.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub async fn bind(address: &str) -> Result<Self, ListenError> {
        let Bound { socket, path } = bind(address)?;
        let mut listener = Self::from_socket(socket).map_err(|source| system(address, source))?;
        listener.path = path;
        Ok(listener)
    }

    /// Takes a socket that is bound and listens already, from systemd or a parent.
    ///
    /// # Errors
    /// It does not listen, or there is no runtime.
    pub fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket does not listen"));
        }
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        let is_unix = sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
        let socket = crate::sys::reactor::readable(socket)?;
        Ok(Self {
            socket,
            path: None,
            is_unix,
            name: "web".into(),
            route: "default".into(),
            shortage: Shortage::new(),
            lost: Lost::default(),
            counters: AcceptCounters::default(),
        })
    }

    /// The name that workers see.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// What accepting took so far.
    pub fn counters(&self) -> AcceptCounters {
        self.counters
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// It is no Internet socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getsockname(self.socket.get_ref())?;
        SocketAddr::try_from(address).map_err(io::Error::from)
    }

    /// The next connection, paused. Connections that ended before they were accepted, and shortage
    /// of descriptors, are waited out.
    ///
    /// # Errors
    /// The socket is unusable; there is nothing left to accept.
    ///
    /// # Cancel safety
    /// A connection is accepted only when this is ready.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        loop {
            self.wait_out().await;
            let mut ready = self.socket.readable().await?;
            self.counters.calls += 1;
            match accept(self.socket.get_ref()) {
                Ok((socket, peer)) => {
                    self.counters.accepted += 1;
                    self.shortage.accepted(&socket);
                    self.lost.accepted();
                    return Ok(self.connection(socket, peer, now()));
                }
                Err(error) => match Obstacle::of(error) {
                    Obstacle::Empty => {
                        ready.clear_ready();
                        self.shortage.queue_is_empty();
                    }
                    Obstacle::ThatOne => self.lost.failed(error),
                    Obstacle::Shortage => self.shortage.failed(),
                    Obstacle::Fatal => return Err(error.into()),
                },
            }
        }
    }

    /// Waits until there is a connection, and takes up to [`BURST`].
    ///
    /// # Errors
    /// The socket is unusable. What was taken before stays in `taken`.
    ///
    /// # Cancel safety
    /// What was accepted is in `taken`.
    pub(crate) async fn accept_burst(&mut self, taken: &mut Vec<Connection>) -> io::Result<()> {
        while taken.is_empty() {
            self.wait_out().await;
            let mut ready = self.socket.readable().await?;
            let accepted = now();
            while taken.len() < BURST && !self.shortage.is_stopped() && !self.lost.is_lasting() {
                self.counters.calls += 1;
                match accept(self.socket.get_ref()) {
                    Ok((socket, peer)) => {
                        self.counters.accepted += 1;
                        self.shortage.accepted(&socket);
                        self.lost.accepted();
                        taken.push(self.connection(socket, peer, accepted));
                    }
                    Err(error) => match Obstacle::of(error) {
                        Obstacle::Empty => {
                            ready.clear_ready();
                            self.shortage.queue_is_empty();
                            break;
                        }
                        Obstacle::ThatOne => self.lost.failed(error),
                        Obstacle::Shortage => self.shortage.failed(),
                        Obstacle::Fatal => return Err(error.into()),
                    },
                }
            }
        }
        Ok(())
    }

    /// Takes up to [`BURST`] connections that are there already, without waiting and without regard
    /// for the reserve: the listener is about to be closed.
    fn take_present(&mut self, taken: &mut Vec<Connection>) -> Present {
        let accepted = now();
        while taken.len() < BURST {
            if self.lost.is_lasting() {
                return Present::Short;
            }
            self.counters.calls += 1;
            match accept(self.socket.get_ref()) {
                Ok((socket, peer)) => {
                    self.counters.accepted += 1;
                    self.lost.accepted();
                    #[cfg(feature = "cli")]
                    crate::sys::tcp::heed_newcomers(socket.as_fd());
                    taken.push(self.connection(socket, peer, accepted));
                }
                Err(error) => match Obstacle::of(error) {
                    Obstacle::Empty => return Present::Empty,
                    Obstacle::ThatOne => self.lost.failed(error),
                    Obstacle::Shortage => return Present::Short,
                    Obstacle::Fatal => return Present::Unusable,
                },
            }
        }
        Present::More
    }

    fn connection(&self, socket: OwnedFd, peer: Option<SocketAddr>, accepted: u64) -> Connection {
        // The kernel knows it without a question to anybody. Should it not say, it is not known.
        let peer_credentials =
            if self.is_unix { peer::credentials(socket.as_fd()).ok() } else { None };
        let info = ConnectionInfo {
            id: CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1,
            peer: peer.map(canonical),
            peer_credentials,
            destination: None,
            proxied: None,
            listener: Arc::clone(&self.name),
            route: Arc::clone(&self.route),
            peer_context: None,
            accepted,
            ticket: None,
            handed_back_by: None,
            scope: None,
        };
        Connection::new(PausedConnection::new(socket), info)
    }

    /// Leaves connections in the kernel's queue while descriptors or memory are short. One line for
    /// one shortage, however long it lasts.
    async fn wait_out(&mut self) {
        while self.shortage.is_stopped() {
            self.tell_of_shortage();
            self.pause().await;
            self.shortage.look_again(&self.socket);
        }
        if self.lost.is_lasting() {
            self.tell_of_errors();
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        self.counters.pauses += 1;
        tokio::time::sleep(SHORTAGE_PAUSE).await;
    }

    fn tell_of_shortage(&mut self) {
        if self.shortage.tell() {
            tracing::error!(
                listener = &*self.name,
                "descriptors or memory are short: new connections wait in the kernel's queue until \
                 some are free (raise the limit on open files)"
            );
        }
    }

    /// Begins the count of errors anew.
    fn tell_of_errors(&mut self) {
        if let Some(error) = self.lost.begin_anew() {
            tracing::error!(
                listener = &*self.name,
                error = %io::Error::from(error),
                "nothing can be accepted; it is tried again and again"
            );
        }
    }
}

/// Errors that `accept` reports of one connection (accept(2), "Error handling"), in a row. Some last
/// for all connections, though nothing tells: a security policy or a filter of system calls.
#[derive(Debug, Default)]
struct Lost {
    in_a_row: usize,
    last: Option<Errno>,
    told: bool,
}

impl Lost {
    fn accepted(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self, error: Errno) {
        self.in_a_row += 1;
        self.last = Some(error);
    }

    /// Whether a whole burst brought nothing else.
    fn is_lasting(&self) -> bool {
        self.in_a_row >= BURST
    }

    /// Begins the count anew: with the last of them the first time.
    fn begin_anew(&mut self) -> Option<Errno> {
        self.in_a_row = 0;
        self.last.filter(|_| !std::mem::replace(&mut self.told, true))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl From<Listener> for Transferable {
    fn from(listener: Listener) -> Self {
        if let Some(path) = listener.path {
            path.keep();
        }
        Self::Listener(listener.socket.into_inner())
    }
}

/// What a look at the connections that are there has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Present {
    /// A whole burst.
    More,
    /// All.
    Empty,
    /// What could be had: descriptors or memory are short, or nothing but errors came.
    Short,
    /// All that there will ever be.
    Unusable,
}

/// What stands in the way of the next connection (`accept(2)`).
enum Obstacle {
    /// There is none.
    Empty,
    /// This one is gone; the next may be there.
    ThatOne,
    /// Out of descriptors or memory.
    Shortage,
    /// The socket is unusable.
    Fatal,
}

impl Obstacle {
    fn of(error: Errno) -> Self {
        match error {
            Errno::WOULDBLOCK => Self::Empty,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Self::Shortage,
            Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT => {
                Self::Fatal
            }
            // Errors of the new connection are reported by accept (accept(2), "Error handling").
            _ => Self::ThatOne,
        }
    }
}

fn accept(socket: &OwnedFd) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (connection, peer) = rustix::net::acceptfrom_with(socket, flags)?;
    Ok((connection, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_takes_what_is_there_and_numbers_it() {
        let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> =
            (0..5).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let mut taken = Vec::new();
        listener.accept_burst(&mut taken).await.unwrap();
        let peers: Vec<_> = clients.iter().map(|client| client.local_addr().ok()).collect();
        assert_eq!(taken.iter().map(Connection::peer_addr).collect::<Vec<_>>(), peers);
        assert!(taken.windows(2).all(|two| two[0].info().id < two[1].info().id));
    }

    /// As under a policy that forbids it: the connection stays where it is, and so does the error.
    #[tokio::test(start_paused = true)]
    async fn an_error_that_lasts_is_waited_out_and_lets_others_run() {
        let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        crate::sys::filter::refuse_accept_in_this_thread(Errno::PERM).unwrap();
        let mut taken = Vec::new();
        tokio::select! {
            result = listener.accept_burst(&mut taken) => panic!("accepted: {result:?}"),
            () = tokio::time::sleep(10 * SHORTAGE_PAUSE) => {}
        }
        let AcceptCounters { calls, accepted, pauses } = listener.counters();
        assert_eq!(accepted, 0);
        assert!(pauses >= 9 && calls <= (pauses + 1) * BURST as u64, "{calls} in {pauses}");
        assert_eq!(listener.take_present(&mut taken), Present::Short);
    }

    #[tokio::test]
    async fn an_ipv4_client_of_a_listener_for_both_is_ipv4() {
        let mut listener = Listener::bind("*:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let connection = listener.accept().await.unwrap();
        assert_eq!(connection.peer_addr(), client.local_addr().ok());
        assert_eq!(connection.local_addr().unwrap().to_string(), format!("127.0.0.1:{port}"));
    }

    #[tokio::test]
    async fn what_is_no_address_says_how_to_write_one() {
        let error = Listener::bind("localhost").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "`localhost` is no address to listen on: write `127.0.0.1:8080`, `[::1]:8080`, `*:8080` or \
             `unix:/run/app.sock`"
        );
    }

    #[tokio::test]
    async fn a_unix_client_has_a_user_and_no_address() {
        let path = std::env::temp_dir().join(format!("vestibule-unix-{}", std::process::id()));
        let address = format!("unix:{}", path.display());
        let mut listener = Listener::bind(&address).await.unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let connection = listener.accept().await.unwrap();
        assert_eq!((connection.peer_addr(), connection.local_addr()), (None, None));
        let who = connection.info().peer_credentials.unwrap();
        assert_eq!(who.pid, std::process::id());
        assert_eq!(who.uid, rustix::process::geteuid().as_raw());
        assert_eq!(who.gid, rustix::process::getegid().as_raw());
        drop(client);
        let again = Listener::bind(&address).await.unwrap_err();
        assert_eq!(
            again.to_string(),
            format!("cannot listen on {address}: somebody answers there")
        );
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_internet_client_has_no_user() {
        let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let connection = listener.accept().await.unwrap();
        assert_eq!(connection.info().peer_credentials, None);
        assert_eq!(peer::credentials(connection.as_fd()), Err(Errno::NOPROTOOPT));
    }

    #[tokio::test]
    async fn a_socket_that_does_not_listen_is_refused() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Listener::from_socket(one.into()).is_err());
    }
}
