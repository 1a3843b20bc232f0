//! Between a socket and hyper, on connections whose later requests may be another worker's.
//!
//! hyper reads as much as it can get, and what it has read cannot be had back. Here it gets one head
//! at a time: up to an empty line, since no head ends elsewhere, then the body that it found the head
//! to announce, then what may be the next head. So when it has a request, the bytes of that request's
//! head are known, and nothing behind them was given to it: all of it can go to another worker.
//!
//! A body whose length its head does not tell (chunked) ends where only hyper knows; the answer to
//! such a request says that the connection closes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vestibule_protocol::scope::{self, Scope};

use crate::stream::Stream;

/// Read from the socket at once.
const READ: usize = 8 * 1024;

/// The gate of one connection: hyper reads and writes through one clone, its task holds another.
#[derive(Debug)]
pub(crate) struct Gate<S = Stream>(Arc<Mutex<Inner<S>>>);

impl<S> Clone for Gate<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<S> {
    /// Until it is handed back.
    stream: Option<S>,
    phase: Phase,
    /// What hyper got since the last request ended: at most what it takes for a head.
    given: Vec<u8>,
    /// Whether the line that hyper gets is empty so far.
    empty: bool,
    /// Read from the socket, and from `at` on not given to hyper.
    ahead: Vec<u8>,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// hyper gets what may be a head.
    Head,
    /// It gets so many more bytes of a body.
    Body(u64),
    /// It gets everything: what comes is no request, or the last one.
    Open,
    /// It gets nothing more: the request is another worker's.
    Leaving,
    /// And all answers are sent.
    Left,
}

impl Gate {
    /// Once a request is another worker's and all earlier answers are sent: the connection, with
    /// everything from that request on put back.
    pub(crate) fn left(&self) -> Option<Stream> {
        let (mut stream, read) = self.parts()?;
        stream.unread(&read);
        Some(stream)
    }
}

impl<S> Gate<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream: Some(stream),
            phase: Phase::Head,
            given: Vec::new(),
            empty: true,
            ahead: Vec::new(),
            at: 0,
        })))
    }

    /// Whether the decision about the connection holds for a request whose head hyper has just read.
    pub(crate) fn holds<B>(&self, scope: &Scope, request: &Request<B>) -> bool {
        let inner = self.inner();
        let Some(target) = target(&inner.given) else { return false };
        let headers = request.headers().iter();
        let lines: Vec<_> =
            headers.map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        scope.covers(&scope::Request::new(request.method().as_str(), target, &lines))
    }

    /// The request is served here; its body has this length, if that is known.
    pub(crate) fn serves(&self, length: Option<u64>) {
        let mut inner = self.inner();
        inner.phase = match length {
            Some(0) => Phase::Head,
            Some(length) => Phase::Body(length),
            None => Phase::Open,
        };
        inner.given.clear();
        inner.empty = true;
    }

    /// What comes now is no longer HTTP.
    pub(crate) fn opens(&self) {
        self.inner().phase = Phase::Open;
    }

    /// The request is another worker's.
    pub(crate) fn leaves(&self) {
        self.inner().phase = Phase::Leaving;
    }

    /// Whether a request is another worker's and all earlier answers are sent.
    pub(crate) fn has_left(&self) -> bool {
        self.inner().phase == Phase::Left
    }

    /// Once a request is another worker's and all earlier answers are sent: the connection, and what
    /// was read of it from that request on.
    fn parts(&self) -> Option<(S, Vec<u8>)> {
        let mut inner = self.inner();
        if inner.phase != Phase::Left {
            return None;
        }
        let stream = inner.stream.take()?;
        let mut read = std::mem::take(&mut inner.given);
        read.extend_from_slice(inner.ahead.get(inner.at..).unwrap_or_default());
        Some((stream, read))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // Nothing in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The target of a head that hyper has understood: in its first line that is not empty, as sent.
fn target(head: &[u8]) -> Option<&str> {
    let line = head.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty())?;
    std::str::from_utf8(line.split(|byte| *byte == b' ').nth(1)?).ok()
}

impl<S> Inner<S> {
    /// Gives hyper what it may have of what was read; false if there is nothing.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = self.ahead.get(self.at..).unwrap_or_default();
        let room = rest.get(..rest.len().min(buffer.remaining())).unwrap_or_default();
        let part = match self.phase {
            Phase::Head => {
                let length = to_empty_line(&mut self.empty, room);
                let part = room.get(..length).unwrap_or_default();
                self.given.extend_from_slice(part);
                part
            }
            Phase::Body(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
                let left = left.saturating_sub(length as u64);
                self.phase = if left == 0 { Phase::Head } else { Phase::Body(left) };
                room.get(..length).unwrap_or_default()
            }
            Phase::Open => room,
            Phase::Leaving | Phase::Left => &[],
        };
        buffer.put_slice(part);
        let given = part.len();
        self.at += given;
        if self.at == self.ahead.len() {
            self.ahead.clear();
            self.at = 0;
        }
        given > 0
    }
}

/// How many of these bytes there are up to the end of an empty line, which is that of no line yet.
fn to_empty_line(empty: &mut bool, bytes: &[u8]) -> usize {
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' if *empty => return at + 1,
            b'\n' => *empty = true,
            b'\r' => {}
            _ => *empty = false,
        }
    }
    bytes.len()
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        if buffer.remaining() == 0 || inner.give(buffer) {
            return Poll::Ready(Ok(()));
        }
        let Some(stream) = &mut inner.stream else { return Poll::Pending };
        match inner.phase {
            // Its task takes the connection away once the answers are sent, and sending wakes it.
            Phase::Leaving | Phase::Left => return Poll::Pending,
            Phase::Open => return Pin::new(stream).poll_read(cx, buffer),
            Phase::Head | Phase::Body(_) => {}
        }
        let mut space = [0; READ];
        let mut read = ReadBuf::new(&mut space);
        std::task::ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        inner.ahead.extend_from_slice(read.filled());
        inner.give(buffer);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner().stream {
            Some(stream) => Pin::new(stream).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner().stream {
            Some(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner().stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    /// hyper flushes what is below it when it has written all that it had.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        if let Some(stream) = &mut inner.stream {
            std::task::ready!(Pin::new(stream).poll_flush(cx))?;
        }
        if inner.phase == Phase::Leaving {
            inner.phase = Phase::Left;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner().stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
