//! Reading and writing a socket that the runtime watches: as tokio's own streams do, but urgent data
//! is thought of.
//!
//! The runtime is told of new data once. tokio's streams take a read that got less than it could as
//! a sign that nothing is left, and wait for the next news. But a read also stops short at a byte
//! that was sent as urgent (`tcp(7)`, `MSG_OOB`), with the rest already there: no news would come of
//! that, and the client would get no answer. So news of urgent data are asked for too, and once they
//! have come ([`sys::watch_tcp`]) a read is not taken to be the last before it finds nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

use crate::sys;

/// As [`AsyncRead::poll_read`](tokio::io::AsyncRead::poll_read).
pub(crate) fn read<S: AsRawFd + AsFd>(
    socket: &AsyncFd<S>,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    loop {
        let mut news = ready!(socket.poll_read_ready(cx))?;
        let room = buffer.remaining();
        match sys::receive(socket.get_ref().as_fd(), buffer) {
            Ok(count) => {
                if 0 < count && count < room && !was_urgent(socket) {
                    news.clear_ready();
                }
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => news.clear_ready(),
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Whether urgent data came at any time: a client that sends some costs one more read for each of its
/// later ones, and no other. No system call.
fn was_urgent<S: AsRawFd>(socket: &AsyncFd<S>) -> bool {
    socket.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
}

/// Writes, once that is possible: `count` bytes are wanted to be written by `send`.
pub(crate) fn write<'s, S: AsRawFd>(
    socket: &'s AsyncFd<S>,
    cx: &mut Context<'_>,
    count: usize,
    mut send: impl FnMut(&'s S) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        let mut news = ready!(socket.poll_write_ready(cx))?;
        match send(socket.get_ref()) {
            Ok(sent) => {
                // The socket's buffer is full.
                if 0 < sent && sent < count {
                    news.clear_ready();
                }
                return Poll::Ready(Ok(sent));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => news.clear_ready(),
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}
