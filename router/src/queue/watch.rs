//! Whether clients that wait are still there: one nested epoll set for all of them, behind one
//! registration with the reactor.
//!
//! A registration for each would cost some 460 bytes and a task; here each costs an item in the
//! kernel, and data that arrives wakes nobody, for the set asks about the end only.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::Token;
use crate::sys::{reactor, tcp};

/// Signs taken in one turn, before others get theirs.
pub(crate) const TURN: usize = 64;

/// The set.
#[derive(Debug)]
pub(crate) struct Watch {
    set: AsyncFd<OwnedFd>,
}

/// Something happened to a client that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    pub(crate) token: Token,
    flags: EventFlags,
}

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// It will not take an answer any more, or never said anything and never will.
    Gone,
    /// It sends no more, but what it sent is there to be answered.
    SaidAll,
    /// Nothing ended.
    There,
}

impl Watch {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors or memory, or no runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { set: reactor::readable(epoll::create(CreateFlags::CLOEXEC)?)? })
    }

    /// Watches a connection. What cannot be watched (a user's limit on watches) waits all the same:
    /// its deadline ends it.
    pub(crate) fn add(&self, connection: impl AsFd, token: Token) {
        let data = EventData::new_u64(token.into());
        if let Err(error) = epoll::add(&self.set, connection, data, EventFlags::RDHUP) {
            tracing::debug!(%error, "a connection that waits is not watched");
        }
    }

    /// The client has said all; only its complete end matters now. (ERR and HUP are always reported.)
    pub(crate) fn expect_no_more(&self, connection: impl AsFd, token: Token) {
        let data = EventData::new_u64(token.into());
        // It is in the set, or could not be added before: nothing is lost then.
        let _ = epoll::modify(&self.set, connection, data, EventFlags::empty());
    }

    /// Watches a connection no longer. It must still be open.
    pub(crate) fn remove(&self, connection: impl AsFd) {
        // Fails only for what could not be added.
        let _ = epoll::delete(&self.set, connection);
    }

    /// Waits until there are signs.
    ///
    /// # Errors
    /// There is no runtime any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.set.readable().await
    }

    /// Takes the signs that are there, at most [`TURN`], and says how many. Never waits.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn take_signs(&self, take: impl FnMut(Sign)) -> io::Result<usize> {
        let mut buffer = [const { MaybeUninit::uninit() }; TURN];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, _) = epoll::wait(&self.set, &mut buffer, Some(&at_once))?;
        events
            .iter()
            .map(|event| Sign { token: event.data.u64().into(), flags: event.flags })
            .for_each(take);
        Ok(events.len())
    }
}

impl Sign {
    /// What it means for the connection that it is about.
    ///
    /// `read`: whether a worker has read of it what the next one is to answer.
    pub(crate) fn client(self, connection: impl AsFd, read: bool) -> Client {
        judge(self.flags, || {
            u64::from(read) + tcp::all_unread(connection.as_fd()).unwrap_or_default()
        })
    }
}

/// A FIN looks the same for `close()` and for `shutdown(SHUT_WR)`. With data before it, the client
/// may well be waiting for an answer; without any there is nothing to answer. `unread`: how many
/// bytes nobody has read.
fn judge(flags: EventFlags, unread: impl FnOnce() -> u64) -> Client {
    if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
        Client::Gone
    } else if !flags.contains(EventFlags::RDHUP) {
        Client::There
    } else if unread() == 0 {
        Client::Gone
    } else {
        Client::SaidAll
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use rustix::net::sockopt::set_socket_linger;

    use crate::queue::{Lane, order::Order};

    #[test]
    fn the_end_is_judged_by_what_came_before_it() {
        assert_eq!(judge(EventFlags::RDHUP, || 0), Client::Gone);
        assert_eq!(judge(EventFlags::RDHUP, || 1), Client::SaidAll);
        assert_eq!(judge(EventFlags::RDHUP | EventFlags::HUP, || 1), Client::Gone);
        assert_eq!(judge(EventFlags::ERR, || 1), Client::Gone);
        assert_eq!(judge(EventFlags::IN, || 0), Client::There);
    }

    fn tokens<const N: usize>() -> [Token; N] {
        let mut order = Order::new(N, std::time::Duration::ZERO);
        std::array::from_fn(|_| order.push(Lane::Pool, (), std::time::Instant::now()).unwrap())
    }

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    fn signs(watch: &Watch) -> usize {
        watch.take_signs(|_| {}).unwrap()
    }

    /// The next sign, and the readiness cleared if there is none: as the pool's task does.
    async fn next_sign(watch: &Watch) -> Sign {
        loop {
            let mut ready = watch.readable().await.unwrap();
            let mut first = None;
            if watch.take_signs(|sign| first = first.or(Some(sign))).unwrap() == 0 {
                ready.clear_ready();
            }
            if let Some(sign) = first {
                return sign;
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_closes_without_a_word_is_gone() {
        let watch = Watch::new().unwrap();
        let [token] = tokens();
        let (client, server) = tcp();
        watch.add(&server, token);
        drop(client);
        let sign = next_sign(&watch).await;
        assert_eq!(sign.token, token);
        assert_eq!(sign.client(&server, false), Client::Gone);
    }

    #[tokio::test]
    async fn a_client_that_has_said_all_is_there_until_it_resets() {
        let watch = Watch::new().unwrap();
        let [token] = tokens();
        let (mut client, server) = tcp();
        watch.add(&server, token);
        client.write_all(b"GET").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(next_sign(&watch).await.client(&server, false), Client::SaidAll);
        watch.expect_no_more(&server, token);
        assert_eq!(signs(&watch), 0, "it would spin");
        set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(next_sign(&watch).await.client(&server, false), Client::Gone);
    }

    #[tokio::test]
    async fn data_is_no_sign() {
        let watch = Watch::new().unwrap();
        let [quiet, loud] = tokens();
        let (mut client, server) = tcp();
        let (other, other_server) = tcp();
        watch.add(&server, loud);
        watch.add(&other_server, quiet);
        client.write_all(b"GET").unwrap();
        drop(other);
        assert_eq!(next_sign(&watch).await.token, quiet);
        watch.remove(&other_server);
        assert_eq!(signs(&watch), 0);
    }

    #[tokio::test]
    async fn a_unix_client_is_told_apart_as_well() {
        let watch = Watch::new().unwrap();
        let [half, whole] = tokens();
        let (mut said_all, half_closed) = UnixStream::pair().unwrap();
        said_all.write_all(b"GET").unwrap();
        said_all.shutdown(Shutdown::Write).unwrap();
        watch.add(&half_closed, half);
        assert_eq!(next_sign(&watch).await.client(&half_closed, false), Client::SaidAll);
        watch.expect_no_more(&half_closed, half);
        let (mut closes, closed) = UnixStream::pair().unwrap();
        closes.write_all(b"GET").unwrap();
        watch.add(&closed, whole);
        drop(closes);
        let sign = next_sign(&watch).await;
        assert_eq!((sign.token, sign.client(&closed, false)), (whole, Client::Gone));
    }

    #[tokio::test]
    async fn what_was_removed_gives_no_sign_though_a_copy_lives_on() {
        let watch = Watch::new().unwrap();
        let [removed, other] = tokens();
        let (client, server) = tcp();
        let copy = server.try_clone().unwrap();
        watch.add(&server, removed);
        watch.remove(&server);
        drop(server);
        drop(client);
        let (second, second_server) = tcp();
        watch.add(&second_server, other);
        drop(second);
        assert_eq!(next_sign(&watch).await.token, other);
        watch.remove(&second_server);
        assert_eq!(signs(&watch), 0);
        drop(copy);
    }
}
