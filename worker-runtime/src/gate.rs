//! Between a socket and hyper, on connections whose later requests may be another worker's.
//!
//! hyper reads as much as it can get, and what it has read cannot be had back. Here it gets one head
//! at a time: up to an empty line, since no head ends elsewhere, then the body that it found the head
//! to announce, then what may be the next head. So when it has a request, the bytes of that request's
//! head are known, and nothing behind them was given to it: all of it can go to another worker. Behind
//! an empty line that may end a head it gets nothing until the service has seen the request, since a
//! service may be called long after the head was read.
//!
//! A body whose length its head does not tell (chunked) ends where only hyper knows; the answer to
//! such a request says that the connection closes. So does that to a head whose last two lines end in
//! different ways (a line feed, then a carriage return and one): hyper (1.12) overlooks its end where it came
//! in pieces, and has to be given what follows.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{Method, Request};
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vestibule_protocol::scope::{self, Scope};

use crate::stream::Stream;

/// Read from the socket at once.
const READ: usize = 8 * 1024;

/// How HTTP/2 begins in clear, up to its first empty line (RFC 9113 3.4). What follows is in frames,
/// and a server that does not speak it ends the connection here.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

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
    /// Where the line stands that hyper gets.
    line: Line,
    /// Whether it got nothing but empty lines, which stand before a head and end none (RFC 9112 2.2).
    blank: bool,
    /// Read from the socket, and from `at` on not given to hyper.
    ahead: Vec<u8>,
    at: usize,
    /// What is behind the head that hyper has it may have, too: it cannot be had back.
    cut: bool,
    /// Who was told that there is nothing behind a head yet.
    reader: Option<Waker>,
    /// Who waits until all answers are sent.
    leaver: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// hyper gets what may be a head.
    Head,
    /// It has one, and gets nothing until the service has seen the request.
    Asked,
    /// It gets so many more bytes of a body.
    Body(u64),
    /// It gets everything: what comes is no request, or the last one.
    Open,
    /// It gets nothing more: the request is another worker's.
    Leaving,
    /// And all answers are sent.
    Left,
}

/// Where a line of a head stands. Lines end with a line feed, or with a carriage return and one (RFC
/// 9112 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing of it came.
    Empty,
    /// A carriage return alone.
    Return,
    /// Anything else.
    Text,
}

/// A connection whose next request is another worker's.
#[derive(Debug)]
pub(crate) struct Left<S = Stream> {
    pub(crate) stream: S,
    /// Whether all that was read from that request on is put back: else it can only be refused.
    pub(crate) whole: bool,
}

impl Gate {
    /// Once a request is another worker's and all earlier answers are sent: the connection, with
    /// everything from that request on put back.
    pub(crate) fn left(&self) -> Option<Left> {
        let (mut stream, read, whole) = self.parts()?;
        stream.unread(&read);
        Some(Left { stream, whole })
    }

    /// As [`left`](Self::left), once it is so. `None`: it was taken before.
    pub(crate) fn poll_left(&self, cx: &Context<'_>) -> Poll<Option<Left>> {
        let mut inner = self.inner();
        if inner.phase == Phase::Leaving {
            inner.leaver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(inner);
        Poll::Ready(self.left())
    }
}

impl<S> Gate<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream: Some(stream),
            phase: Phase::Head,
            given: Vec::new(),
            line: Line::Empty,
            blank: true,
            ahead: Vec::new(),
            at: 0,
            cut: false,
            reader: None,
            leaver: None,
        })))
    }

    /// One that lets everything through until it is [closed](Self::close).
    #[cfg(feature = "axum")]
    pub(crate) fn open(stream: S) -> Self {
        let gate = Self::new(stream);
        gate.opens();
        gate
    }

    /// From now on hyper gets one head at a time. It has read nothing yet.
    #[cfg(feature = "axum")]
    pub(crate) fn close(&self) {
        self.inner().phase = Phase::Head;
    }

    /// Looks at the stream, unless it was handed back.
    pub(crate) fn with_stream<T>(&self, look: impl FnOnce(&S) -> T) -> Option<T> {
        self.inner().stream.as_ref().map(look)
    }

    /// Looks at a request that hyper has just read, the first of its connection or a later one. Returns
    /// whether those behind it can be looked at, or nothing if it is another worker's.
    pub(crate) fn admit<B: Body>(
        &self,
        scope: &Scope,
        request: &Request<B>,
        first: bool,
    ) -> Option<bool> {
        // The first one is what was decided about.
        if !first && !self.holds(scope, request) {
            self.leaves();
            return None;
        }
        // What follows a tunnel's request is none of ours to look at.
        let whole = request.method() != Method::CONNECT;
        Some(self.serves(request.body().size_hint().exact().filter(|_| whole)))
    }

    /// Whether the decision about the connection holds for a request whose head hyper has just read.
    fn holds<B>(&self, scope: &Scope, request: &Request<B>) -> bool {
        let inner = self.inner();
        let Some(target) = target(&inner.given) else { return false };
        let headers = request.headers().iter();
        let lines: Vec<_> =
            headers.map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        scope.covers(&scope::Request::new(request.method().as_str(), target, &lines))
    }

    /// The request is served here; its body has this length, if that is known. Returns whether later
    /// requests can be looked at.
    pub(crate) fn serves(&self, length: Option<u64>) -> bool {
        let mut inner = self.inner();
        let length = length.filter(|_| !inner.cut);
        inner.phase = match length {
            Some(0) => Phase::Head,
            Some(length) => Phase::Body(length),
            None => Phase::Open,
        };
        inner.given.clear();
        (inner.line, inner.blank) = (Line::Empty, true);
        wake(inner);
        length.is_some()
    }

    /// What comes now is no longer HTTP/1.
    pub(crate) fn opens(&self) {
        let mut inner = self.inner();
        inner.phase = Phase::Open;
        wake(inner);
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
    /// was read of it from that request on, and whether that is all.
    fn parts(&self) -> Option<(S, Vec<u8>, bool)> {
        let mut inner = self.inner();
        if inner.phase != Phase::Left {
            return None;
        }
        let stream = inner.stream.take()?;
        let mut read = std::mem::take(&mut inner.given);
        read.extend_from_slice(inner.ahead.get(inner.at..).unwrap_or_default());
        Some((stream, read, !inner.cut))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // Nothing in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes whoever would read on.
fn wake<S>(mut inner: MutexGuard<'_, Inner<S>>) {
    let reader = inner.reader.take();
    // Woken outside the lock: a waker may run anything.
    drop(inner);
    if let Some(reader) = reader {
        reader.wake();
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
                let (length, ends) = to_empty_line(&mut self.line, room);
                let part = room.get(..length).unwrap_or_default();
                self.given.extend_from_slice(part);
                self.blank &= part.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
                if ends && !self.blank {
                    let alike = [&b"\r\n\r\n"[..], b"\n\n"];
                    self.cut = !alike.iter().any(|end| self.given.ends_with(end));
                    let open = self.cut || self.given == HTTP2;
                    self.phase = if open { Phase::Open } else { Phase::Asked };
                }
                part
            }
            Phase::Body(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
                let left = left.saturating_sub(length as u64);
                self.phase = if left == 0 { Phase::Head } else { Phase::Body(left) };
                room.get(..length).unwrap_or_default()
            }
            Phase::Open => room,
            Phase::Asked | Phase::Leaving | Phase::Left => &[],
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

/// How many of these bytes there are up to the end of an empty line, and whether one ends there.
fn to_empty_line(line: &mut Line, bytes: &[u8]) -> (usize, bool) {
    for (at, byte) in bytes.iter().enumerate() {
        *line = match (*line, byte) {
            (Line::Empty | Line::Return, b'\n') => {
                *line = Line::Empty;
                return (at + 1, true);
            }
            (Line::Text, b'\n') => Line::Empty,
            (Line::Empty, b'\r') => Line::Return,
            _ => Line::Text,
        };
    }
    (bytes.len(), false)
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
            // Its service wakes it.
            Phase::Asked => {
                inner.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
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
            let leaver = inner.leaver.take();
            // Woken outside the lock: a waker may run anything.
            drop(inner);
            leaver.into_iter().for_each(Waker::wake);
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

#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod tests;
