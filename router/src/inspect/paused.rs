//! A connection that nobody has read from: the type has no way to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use vestibule_protocol::connection_info::PeerCredentials;
use vestibule_protocol::sys::ClientSocket;

use crate::sys::peer;
use crate::sys::tcp::{self, Phase, TcpInfo};

/// How often a connection is looked at whose client goes on sending. A window of data at most can
/// arrive, so this is never reached by a client alone.
const LOOKS: u32 = 64;

/// An accepted connection, untouched. It owns the descriptor and offers no read. However it is
/// dropped, the close does not wait, whatever a worker did to the socket.
#[derive(Debug)]
pub struct PausedConnection {
    descriptor: ClientSocket,
    /// Bytes that were read before this router began to watch over it: of a PROXY header, the only
    /// bytes that it ever consumes, or by a worker that handed the connection back.
    consumed: u64,
    /// Bytes that a worker had written when it handed the connection back.
    written: u64,
}

/// What a look at the socket says about the bytes a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Every byte the client sent is still unread, and nothing was sent to it.
    No,
    /// Somebody read or wrote.
    Yes,
    /// It cannot be told: not TCP, or the kernel does not say.
    Unknown,
}

impl PausedConnection {
    /// Takes a connection from which nothing was read.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor: descriptor.into(), consumed: 0, written: 0 }
    }

    /// Takes a connection that a worker handed back: from here on nobody reads or writes.
    /// `Ok(None)`: there is nothing left to serve, the client is gone or this side has said its end.
    ///
    /// # Errors
    /// As `getsockopt(2)` and `fcntl(2)`.
    pub(crate) fn handed_back(descriptor: ClientSocket) -> Result<Option<Self>, Errno> {
        let mut this = Self { descriptor, consumed: 0, written: 0 };
        match this.look()?.map(Counts::baseline) {
            Some(Some((consumed, written))) => (this.consumed, this.written) = (consumed, written),
            Some(None) => return Ok(None),
            // Not TCP: it cannot be proved anyway.
            None => {}
        }
        this.restore()?;
        // A look waits for more than is there only if it says so itself.
        tcp::reset_low_water_mark(this.as_fd())?;
        Ok(Some(this))
    }

    /// A connection that comes back to its owner, who alone has it: one that a worker handed back
    /// before is proved from what it is now.
    pub(crate) fn from_passed(descriptor: ClientSocket, handed_back: bool) -> Self {
        let mut this = Self { descriptor, consumed: 0, written: 0 };
        if handed_back && let Ok(Some((consumed, written))) = this.baseline() {
            (this.consumed, this.written) = (consumed, written);
        }
        this
    }

    /// A connection that another router has, or had, with what that one knows of it.
    #[cfg(feature = "cli")]
    pub(crate) fn from_router(descriptor: ClientSocket, consumed: u64, written: u64) -> Self {
        Self { descriptor, consumed, written }
    }

    /// Bytes read and written so far; `None` if it is not TCP, or over.
    fn baseline(&self) -> Result<Option<(u64, u64)>, Errno> {
        Ok(self.look()?.and_then(Counts::baseline))
    }

    fn look(&self) -> Result<Option<Counts>, Errno> {
        let descriptor = self.descriptor.as_fd();
        look(
            || tcp::info(descriptor),
            || Ok((tcp::all_unread(descriptor)?, tcp::unsent(descriptor)?)),
        )
    }

    /// Who is at the other end of a Unix-domain connection; `None` for any other, or if the kernel does
    /// not say.
    pub(crate) fn peer_credentials(&self) -> Option<PeerCredentials> {
        peer::credentials(self.as_fd()).ok()
    }

    /// Bytes that were read before the router got it.
    #[cfg(feature = "cli")]
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Bytes that workers had written to the client when the router got it.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The descriptor, for whoever will read.
    pub fn into_descriptor(self) -> OwnedFd {
        self.descriptor.into_descriptor()
    }

    /// The descriptor, on its way to somebody.
    pub(crate) fn into_socket(self) -> ClientSocket {
        self.descriptor
    }

    /// Proves that nobody read from the connection or wrote to it.
    ///
    /// Bytes that TCP received, less what the router consumed itself, must all be unread, and none
    /// may have been sent or wait to be sent. A FIN counts as one received byte that no read returns
    /// (`tcp_info(7)` is not documented that far; seen on Linux 5.14 to 6.18). That this side shut
    /// down its own reading looks as a FIN does to everybody but the state.
    pub fn touched(&self) -> Touched {
        match self.look() {
            Ok(Some(counts)) if counts.are_untouched(self.consumed, self.written) => Touched::No,
            Ok(Some(_)) => Touched::Yes,
            Ok(None) | Err(_) => Touched::Unknown,
        }
    }

    /// Reads a PROXY header of this length, all of which is there: the only bytes that the router ever
    /// takes. `scratch` is as long at least. False if they were not to be had: nothing can come of the
    /// connection then.
    #[cfg(feature = "cli")]
    pub(crate) fn consume_header(&mut self, length: usize, scratch: &mut [u8]) -> bool {
        let Some(header) = scratch.get_mut(..length) else { return false };
        match rustix::net::recv(&self.descriptor, header, rustix::net::RecvFlags::DONTWAIT) {
            Ok((read, _)) => {
                self.consumed = self.consumed.saturating_add(read as u64);
                read == length
            }
            Err(_) => false,
        }
    }

    /// Makes the connection ready to be offered again: a worker may have cleared `O_NONBLOCK`, which
    /// is shared with every copy of the descriptor.
    ///
    /// # Errors
    /// As `fcntl(2)`.
    pub fn restore(&self) -> Result<(), Errno> {
        let flags = rustix::fs::fcntl_getfl(self)?;
        if flags.contains(rustix::fs::OFlags::NONBLOCK) {
            return Ok(());
        }
        rustix::fs::fcntl_setfl(self, flags | rustix::fs::OFlags::NONBLOCK)
    }

    /// Drops this copy after another process took the connection over.
    pub fn release(self) {
        drop(self);
    }
}

impl AsFd for PausedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What a look at a connection brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    info: TcpInfo,
    unread: u64,
    unsent: u64,
}

impl Counts {
    fn are_untouched(self, consumed: u64, written: u64) -> bool {
        self.baseline() == Some((consumed, written))
    }

    /// Bytes that were read, and bytes that were written; `None` once this side has said its end.
    ///
    /// What was written is what the client has acknowledged and what it has not: that sum is the same
    /// however often a segment is sent again.
    fn baseline(self) -> Option<(u64, u64)> {
        let Self { info: TcpInfo { received, acknowledged, phase, .. }, unread, unsent } = self;
        let fin = match phase {
            Phase::Open => 0,
            Phase::ClientDone => 1,
            Phase::Ending => return None,
        };
        Some((received.checked_sub(unread + fin)?, acknowledged + unsent))
    }
}

/// Counts that belong together: `info` and `queues` are several system calls, and data that arrives
/// between them would look like a read, or hide one. `None` if it is not TCP.
fn look(
    mut info: impl FnMut() -> Result<Option<TcpInfo>, Errno>,
    mut queues: impl FnMut() -> Result<(u64, u64), Errno>,
) -> Result<Option<Counts>, Errno> {
    let Some(mut before) = info()? else { return Ok(None) };
    for _ in 0..LOOKS {
        let (unread, unsent) = queues()?;
        let Some(after) = info()? else { return Ok(None) };
        if after == before {
            return Ok(Some(Counts { info: after, unread, unsent }));
        }
        before = after;
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn connection() -> (TcpStream, TcpStream, PausedConnection) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let copy = server.try_clone().unwrap();
        (client, copy, PausedConnection::new(server.into()))
    }

    /// Waits until the kernel has seen what the client did.
    fn until(paused: &PausedConnection, unread: u64, fin: bool) {
        while tcp::all_unread(paused.as_fd()).unwrap() < unread
            || tcp::is_read_closed(paused.as_fd()) != fin
        {
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_unread_connection_is_untouched_with_and_without_data_and_after_a_fin() {
        let (mut client, _worker, paused) = connection();
        assert_eq!(paused.touched(), Touched::No);
        client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        until(&paused, 16, false);
        assert_eq!(paused.touched(), Touched::No);
        client.shutdown(Shutdown::Write).unwrap();
        until(&paused, 16, true);
        assert_eq!(paused.touched(), Touched::No);
    }

    #[test]
    fn a_peek_does_not_touch() {
        let (mut client, worker, paused) = connection();
        client.write_all(b"hello").unwrap();
        until(&paused, 5, false);
        assert_eq!(worker.peek(&mut [0; 5]).unwrap(), 5);
        assert_eq!(paused.touched(), Touched::No);
    }

    #[test]
    fn urgent_data_that_nobody_read_do_not_touch_and_hide_no_read() {
        let (mut client, mut worker, paused) = connection();
        client.write_all(b"befor").unwrap();
        rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
        client.write_all(b"after").unwrap();
        until(&paused, 11, false);
        assert_eq!(paused.touched(), Touched::No);
        worker.read_exact(&mut [0; 1]).unwrap();
        assert_eq!(paused.touched(), Touched::Yes);
        // The byte is not among the others, for whoever reads on.
        worker.read_exact(&mut [0; 9]).unwrap();
        assert_eq!(tcp::all_unread(paused.as_fd()), Ok(0));
    }

    #[test]
    fn one_byte_read_touches() {
        let (mut client, mut worker, paused) = connection();
        client.write_all(b"hello").unwrap();
        until(&paused, 5, false);
        worker.read_exact(&mut [0; 1]).unwrap();
        assert_eq!(paused.touched(), Touched::Yes);
    }

    #[test]
    fn a_read_of_everything_touches_even_after_a_fin() {
        let (mut client, mut worker, paused) = connection();
        client.write_all(b"h").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until(&paused, 1, true);
        worker.read_exact(&mut [0; 1]).unwrap();
        assert_eq!(paused.touched(), Touched::Yes);
    }

    #[test]
    fn one_byte_written_touches() {
        let (_client, mut worker, paused) = connection();
        worker.write_all(b"x").unwrap();
        assert_eq!(paused.touched(), Touched::Yes);
    }

    #[test]
    fn data_that_is_held_back_touches() {
        let (_client, mut worker, paused) = connection();
        rustix::net::sockopt::set_tcp_cork(&worker, true).unwrap();
        worker.write_all(b"held").unwrap();
        assert_eq!(tcp::info(paused.as_fd()).unwrap().unwrap().sent, 0);
        assert_eq!(paused.touched(), Touched::Yes);
    }

    #[test]
    fn a_read_that_a_shutdown_of_this_side_is_to_hide_touches() {
        let (mut client, mut worker, paused) = connection();
        client.write_all(b"hello").unwrap();
        until(&paused, 5, false);
        worker.read_exact(&mut [0; 1]).unwrap();
        worker.shutdown(Shutdown::Read).unwrap();
        assert!(tcp::is_read_closed(paused.as_fd()), "as after a FIN");
        assert_eq!(paused.touched(), Touched::Yes);
    }

    #[test]
    fn an_end_that_this_side_has_said_touches() {
        let (_client, worker, paused) = connection();
        worker.shutdown(Shutdown::Write).unwrap();
        assert_eq!(paused.touched(), Touched::Yes);
    }

    fn open(received: u64) -> Result<Option<TcpInfo>, Errno> {
        Ok(Some(TcpInfo { received, sent: 0, acknowledged: 0, phase: Phase::Open }))
    }

    #[test]
    fn data_that_arrives_during_the_look_is_no_read() {
        let mut infos = [open(4), open(7), open(7)].into_iter();
        let counts = look(|| infos.next().unwrap(), || Ok((7, 0))).unwrap().unwrap();
        assert!(counts.are_untouched(0, 0), "{counts:?}");
    }

    #[test]
    fn data_that_arrives_during_the_look_hides_no_read() {
        // One of five bytes was read; as the look at the queue comes, one more has arrived.
        let mut infos = [open(5), open(6), open(6)].into_iter();
        let counts = look(|| infos.next().unwrap(), || Ok((5, 0))).unwrap().unwrap();
        assert!(!counts.are_untouched(0, 0), "{counts:?}");
    }

    #[test]
    fn a_client_that_never_pauses_is_not_looked_at_for_ever() {
        let mut received = 0;
        let more = || {
            received += 1;
            open(received)
        };
        assert_eq!(look(more, || Ok((0, 0))), Err(Errno::AGAIN));
    }

    #[test]
    fn however_a_connection_is_dropped_its_close_does_not_linger() {
        let drops: [fn(PausedConnection); 2] = [PausedConnection::release, drop];
        for dropped in drops {
            let (_client, worker, paused) = connection();
            let linger = Some(std::time::Duration::from_secs(60));
            rustix::net::sockopt::set_socket_linger(&worker, linger).unwrap();
            dropped(paused);
            assert_eq!(rustix::net::sockopt::socket_linger(&worker), Ok(None));
        }
    }

    #[test]
    fn a_unix_connection_cannot_be_proved() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(PausedConnection::new(one.into()).touched(), Touched::Unknown);
    }

    #[test]
    fn a_cleared_nonblocking_flag_is_set_again() {
        let (_client, worker, paused) = connection();
        worker.set_nonblocking(false).unwrap();
        paused.restore().unwrap();
        let flags = rustix::fs::fcntl_getfl(&worker).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
