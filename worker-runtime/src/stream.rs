//! An adopted connection: a stream that counts as open until it is dropped.
//!
//! Made by `adopt`, held by whoever serves the connection.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::net::{AddressFamily, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::drain::Key;
use crate::link::Link;
use crate::{head_wait, polled, sys};

/// So few bytes in several parts, a head and a short body, are put together: to copy them takes less than
/// what the kernel does for a vector.
const FEW_BYTES: usize = 512;

/// The socket of a connection. `get_ref` has its addresses and options.
#[derive(Debug)]
pub enum Socket {
    /// A client over TCP.
    Tcp(AsyncFd<TcpStream>),
    /// A client of a Unix-domain listener.
    Unix(AsyncFd<UnixStream>),
}

impl Socket {
    /// Registers a descriptor with the runtime. Nothing is read.
    ///
    /// # Errors
    /// The runtime cannot watch it. The descriptor is closed then, without a shutdown.
    pub(crate) fn register(descriptor: OwnedFd, tcp: bool) -> io::Result<Self> {
        let tcp = tcp || sockopt::socket_domain(&descriptor)? != AddressFamily::UNIX;
        if tcp {
            sys::watch_tcp(descriptor.into()).map(Self::Tcp)
        } else {
            sys::watch_unix(descriptor.into()).map(Self::Unix)
        }
    }

    /// The address of the socket's other end; none on a Unix-domain socket.
    pub(crate) fn other_end(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.get_ref().peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The peer's security context as the kernel knows it (`SO_PEERSEC`); `None` if it has none.
    pub fn peer_context(&self) -> Option<String> {
        let context = sys::peer_context(self.as_fd()).ok()?;
        String::from_utf8(context).ok().filter(|context| !context.is_empty())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.get_ref().as_fd(),
            Self::Unix(stream) => stream.get_ref().as_fd(),
        }
    }
}

/// A connection that this worker serves. It counts as open, in what the router is told, until it is
/// dropped; dropping ends the connection for the client (`shutdown`, then `close`), whoever else
/// still holds a copy of the descriptor.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    link: Arc<Link>,
    key: Key,
    /// Whether the client was told the end.
    ended: bool,
    /// What was read before and is read again, before anything from the socket.
    unread: Unread,
    /// Whether a write had to wait, and nothing was flushed since.
    waited: bool,
}

/// Bytes that are read before those of the socket.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    /// How many of them were read.
    at: usize,
}

impl Unread {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Reads from it; false if there is nothing.
    fn read(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = self.rest();
        let part = rest.get(..buffer.remaining().min(rest.len())).unwrap_or_default();
        if part.is_empty() {
            return false;
        }
        buffer.put_slice(part);
        self.at += part.len();
        if self.rest().is_empty() {
            *self = Self::default();
        }
        true
    }
}

impl Stream {
    pub(crate) fn adopt(socket: Socket, link: &Arc<Link>, unread: Vec<u8>) -> Self {
        let key = link.connections().opened(sys::Watched::new(socket.as_fd()));
        let unread = Unread { bytes: unread, at: 0 };
        Self { socket, link: Arc::clone(link), key, ended: false, unread, waited: false }
    }

    /// Puts bytes back that were read and not answered: they are read again before anything else,
    /// here, or, once the connection is [handed back](crate::WorkerScope::hand_back), by the next
    /// worker.
    pub fn unread(&mut self, bytes: &[u8]) {
        let mut all = bytes.to_vec();
        all.extend_from_slice(self.unread.rest());
        self.unread = Unread { bytes: all, at: 0 };
    }

    /// What was put back, or came from another worker, and is not read yet.
    pub fn read_before(&self) -> &[u8] {
        self.unread.rest()
    }

    /// A copy of it is on its way to the router: here it is no longer open, and it lives on.
    pub(crate) fn give_away(mut self) {
        // No shutdown: that would end it for the copy, too.
        self.ended = true;
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// After each write, whose result this is.
    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        self.waited |= written.is_pending();
        head_wait::wrote(self.key, written.is_pending());
    }

    /// The socket, for its addresses and options.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The address that the client connected to; `None` for a Unix-domain listener. Behind a proxy
    /// this is the proxy's view: see `destination` of the facts.
    ///
    /// # Errors
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match &self.socket {
            Socket::Tcp(stream) => {
                let address = stream.get_ref().local_addr()?;
                Ok(Some(vestibule_protocol::connection_info::canonical(address)))
            }
            Socket::Unix(_) => Ok(None),
        }
    }

    /// Switches Nagle's algorithm off (or on); nothing to switch on a Unix-domain connection.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => stream.get_ref().set_nodelay(nodelay),
            Socket::Unix(_) => Ok(()),
        }
    }
}

/// Few bytes of several parts in one, if they are so few.
fn put_together<'a>(
    parts: &[IoSlice<'_>],
    count: usize,
    room: &'a mut [u8; FEW_BYTES],
) -> Option<&'a [u8]> {
    let together = room.get_mut(..count).filter(|_| parts.len() > 1)?;
    let mut rest = &mut *together;
    for part in parts {
        let (here, after) = rest.split_at_mut_checked(part.len())?;
        here.copy_from_slice(part);
        rest = after;
    }
    Some(together)
}

impl Drop for Stream {
    fn drop(&mut self) {
        // First: the descriptor must not be reached through the table once it is closed.
        self.link.connections().closed(self.key);
        if !self.ended {
            sys::shutdown(self.socket.as_fd());
        }
        self.link.load_changed();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unread.bytes.is_empty() && this.unread.read(buffer) {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = match &this.socket {
            Socket::Tcp(stream) => polled::read(stream, cx, buffer),
            Socket::Unix(stream) => polled::read(stream, cx, buffer),
        };
        if buffer.filled().len() > before {
            head_wait::read(this.key);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &this.socket {
            Socket::Tcp(stream) => polled::write(stream, cx, bytes.len(), |mut to| to.write(bytes)),
            Socket::Unix(stream) => {
                polled::write(stream, cx, bytes.len(), |mut to| to.write(bytes))
            }
        };
        this.wrote(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = parts.iter().map(|part| part.len()).sum();
        let mut together = [0; FEW_BYTES];
        if let Some(bytes) = put_together(parts, count, &mut together) {
            return Pin::new(this).poll_write(cx, bytes);
        }
        let written = match &this.socket {
            Socket::Tcp(stream) => {
                polled::write(stream, cx, count, |mut to| to.write_vectored(parts))
            }
            Socket::Unix(stream) => {
                polled::write(stream, cx, count, |mut to| to.write_vectored(parts))
            }
        };
        this.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is kept here. After a write that had to wait the task is woken once more: hyper (1.12) may
    /// have read another request meanwhile, whose answer it asks for only before it flushes, and with
    /// nothing more to come from the client it would not be polled again.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.get_mut().waited) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client the end of what is sent; it may still send.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = match &this.socket {
            Socket::Tcp(stream) => stream.get_ref().shutdown(Shutdown::Write),
            Socket::Unix(stream) => stream.get_ref().shutdown(Shutdown::Write),
        };
        Poll::Ready(match result {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
            // The client was first, or is told now: the same system call again at the drop would
            // tell it nothing new.
            _ => {
                this.ended = true;
                Ok(())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_in_parts_are_put_together_in_their_order() {
        let mut room = [0; FEW_BYTES];
        let together = |parts: &[&[u8]], room: &mut [u8; FEW_BYTES]| {
            let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let count = parts.iter().map(|part| part.len()).sum();
            put_together(&parts, count, room).map(<[u8]>::to_vec)
        };
        assert_eq!(together(&[b"head", b"", b"body"], &mut room).unwrap(), b"headbody");
        assert_eq!(together(&[b"alone"], &mut room), None);
        let (most, one_more) = ([b'x'; FEW_BYTES - 1], [b'x'; FEW_BYTES]);
        assert_eq!(together(&[b"h", &most], &mut room).unwrap().len(), FEW_BYTES);
        assert_eq!(together(&[b"h", &one_more], &mut room), None);
    }
}
