//! A connection that nobody has read from: the type has no way to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::sys::tcp;

/// An accepted connection, untouched. It owns the descriptor and offers no read.
#[derive(Debug)]
pub struct PausedConnection {
    descriptor: OwnedFd,
    /// Bytes of a PROXY header, the only bytes the router ever consumes.
    consumed: u64,
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
        Self { descriptor, consumed: 0 }
    }

    /// The descriptor, for whoever will read.
    pub fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }

    /// Proves that nobody read from the connection or wrote to it.
    ///
    /// Bytes that TCP received, less what the router consumed itself, must all be unread, and none
    /// may have been sent. A FIN counts as one received byte that no read returns (`tcp_info(7)` is
    /// not documented that far; seen on Linux 5.14 to 6.18).
    pub fn touched(&self) -> Touched {
        match self.counts() {
            Ok(Some((received, unread, sent))) => {
                let expected = received.saturating_sub(self.consumed);
                let fin = tcp::is_read_closed(self.descriptor.as_fd());
                let whole = unread == expected || (fin && unread + 1 == expected);
                if whole && sent == 0 { Touched::No } else { Touched::Yes }
            }
            Ok(None) | Err(_) => Touched::Unknown,
        }
    }

    fn counts(&self) -> Result<Option<(u64, u64, u64)>, Errno> {
        let descriptor = self.descriptor.as_fd();
        let Some(info) = tcp::info(descriptor)? else { return Ok(None) };
        Ok(Some((info.received, tcp::unread(descriptor)?, info.sent)))
    }

    /// Makes the connection ready to be offered again: a worker may have cleared `O_NONBLOCK`, which
    /// is shared with every copy of the descriptor.
    ///
    /// # Errors
    /// As `fcntl(2)`.
    pub fn restore(&self) -> Result<(), Errno> {
        let flags = rustix::fs::fcntl_getfl(&self.descriptor)?;
        if flags.contains(rustix::fs::OFlags::NONBLOCK) {
            return Ok(());
        }
        rustix::fs::fcntl_setfl(&self.descriptor, flags | rustix::fs::OFlags::NONBLOCK)
    }

    /// Drops this copy after another process took the connection over.
    ///
    /// A worker could set `SO_LINGER` and fill the send buffer: the close of the last copy would
    /// then block the router. It is cleared first.
    pub fn release(self) {
        tcp::clear_linger(self.descriptor.as_fd());
    }
}

impl AsFd for PausedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
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
        while tcp::unread(paused.as_fd()).unwrap() < unread
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
