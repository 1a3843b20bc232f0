//! One client: its socket, what it has received, and what it does when epoll says that something happened.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use thiserror::Error;

use super::Mode;
use crate::hello::{BODY, FIRST_READ};

/// Every contender's answer is far smaller (Node's, the longest, has some 140 bytes).
const RESPONSE_MAX: usize = 1024;
const REQUEST_SHORT: &[u8] =
    b"GET / HTTP/1.1\r\nHost: bench.example\r\nAccept: */*\r\nConnection: close\r\n\r\n";
/// Around the host.
const REQUEST_FOR: [&str; 2] =
    ["GET / HTTP/1.1\r\nHost: ", "\r\nAccept: */*\r\nConnection: close\r\n\r\n"];
const REQUEST_KEEPALIVE: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.example\r\nAccept: */*\r\n\r\n";

/// How one connection or request went wrong. Any of them makes the benchmark fail.
#[derive(Clone, Copy, Debug, Error)]
pub(crate) enum ClientError {
    #[error("cannot make a socket: {0}")]
    Socket(Errno),
    #[error("cannot connect: {0}")]
    Connect(Errno),
    #[error("cannot send the request: {0}")]
    Send(Errno),
    #[error("cannot receive the response: {0}")]
    Receive(Errno),
    #[error("the response ended after {0} bytes, which are not the expected answer")]
    Incomplete(usize),
    #[error("the response is longer than the expected answer")]
    TooLong,
    #[error("no answer in time")]
    Stuck,
    #[error("the answer does not say when its request was first read")]
    Untimed,
}

/// What a client has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More must happen.
    Waiting,
    /// The answer is there and correct (short: the connection is closed, too).
    Done,
}

/// Where a connection goes, from where and for which host, where that matters.
pub(super) struct Way {
    pub(super) to: SocketAddrV4,
    pub(super) from: Option<Ipv4Addr>,
    pub(super) host: Option<String>,
}

/// One client. Between two connections (or requests) it is idle.
pub(super) struct Client {
    socket: Option<OwnedFd>,
    mode: Mode,
    /// Instead of the host that is the same for all.
    host: Option<String>,
    /// When what it is doing began, or in the open mode should have begun.
    pub(super) since: Instant,
    /// Between `begin` and the answer or the error.
    busy: bool,
    sent: bool,
    received: usize,
    response: [u8; RESPONSE_MAX],
}

impl Client {
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            socket: None,
            mode,
            host: None,
            since: Instant::now(),
            busy: false,
            sent: false,
            received: 0,
            response: [0; RESPONSE_MAX],
        }
    }

    /// Closes what is left of a connection that went wrong.
    pub(super) fn close(&mut self) {
        self.busy = false;
        self.socket = None;
    }

    /// Begins a connection, or on a kept-alive one a request. `token` is what epoll will say.
    pub(super) fn begin(
        &mut self,
        epoll: &OwnedFd,
        token: u64,
        way: impl FnOnce() -> Way,
        since: Instant,
    ) -> Result<(), ClientError> {
        self.since = since;
        self.busy = true;
        self.sent = false;
        self.received = 0;
        if self.socket.is_some() {
            return self.send();
        }
        let socket = net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .map_err(ClientError::Socket)?;
        let Way { to, from, host } = way();
        self.host = host;
        if let Some(from) = from {
            net::bind(&socket, &SocketAddrV4::new(from, 0)).map_err(ClientError::Connect)?;
        }
        match net::connect(&socket, &to) {
            // On loopback the handshake is over by the time connect returns, though it says "in progress".
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(ClientError::Connect(error)),
        }
        let socket = self.socket.insert(socket);
        let mut interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        self.sent = send(&*socket, self.mode, self.host.as_deref())?;
        if !self.sent {
            interest |= EventFlags::OUT;
        }
        epoll::add(epoll, &*socket, EventData::new_u64(token), interest)
            .map_err(ClientError::Connect)
    }

    fn send(&mut self) -> Result<(), ClientError> {
        if let Some(socket) = &self.socket {
            self.sent = send(socket, self.mode, self.host.as_deref())?;
        }
        Ok(())
    }

    /// Does what an event allows.
    pub(super) fn on_event(&mut self, flags: EventFlags) -> Result<Progress, ClientError> {
        if !self.busy {
            // A server may close a kept-alive connection that nobody uses: the next request makes a new one.
            if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
                self.socket = None;
            }
            return Ok(Progress::Waiting);
        }
        let Some(socket) = &self.socket else { return Ok(Progress::Waiting) };
        if !self.sent {
            if !flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                return Ok(Progress::Waiting);
            }
            self.send()?;
            return Ok(Progress::Waiting);
        }
        let mut ended = false;
        // Edge-triggered: read until less comes than was asked for. A FIN that epoll has already reported needs no read of its own.
        loop {
            let Some(space) = self.response.get_mut(self.received..).filter(|s| !s.is_empty())
            else {
                return Err(ClientError::TooLong);
            };
            let room = space.len();
            match net::recv(socket, space, RecvFlags::empty()) {
                Ok((0, _)) => ended = true,
                Ok((length, _)) => {
                    self.received += length;
                    if length == room {
                        continue;
                    }
                    ended = flags.contains(EventFlags::RDHUP);
                }
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(ClientError::Receive(error)),
            }
            break;
        }
        self.judge(ended)
    }

    fn judge(&mut self, ended: bool) -> Result<Progress, ClientError> {
        let complete = self.is_complete();
        match (self.mode, ended) {
            (Mode::Short, true) if complete => {
                self.close();
                Ok(Progress::Done)
            }
            (Mode::Keepalive, false) if complete => {
                self.busy = false;
                Ok(Progress::Done)
            }
            (_, false) => Ok(Progress::Waiting),
            (_, true) => Err(ClientError::Incomplete(self.received)),
        }
    }

    /// Nanoseconds from accept to first read, as the last answer says.
    pub(super) fn first_read(&self) -> Option<u64> {
        let response = self.response.get(..self.received)?;
        let head = std::str::from_utf8(response).ok()?;
        let mut lines = head.lines();
        let value = lines.find_map(|line| line.strip_prefix(FIRST_READ)?.strip_prefix(": "))?;
        value.parse().ok()
    }

    /// Whether the expected answer is there: its body is the same for every contender and occurs in no head.
    fn is_complete(&self) -> bool {
        let response = self.response.get(..self.received).unwrap_or_default();
        response.starts_with(b"HTTP/1.1 200")
            && response.strip_suffix(BODY).is_some_and(|head| head.ends_with(b"\r\n\r\n"))
    }
}

/// Sends the whole request; `false` when the connection is not established yet.
fn send(socket: impl AsFd, mode: Mode, host: Option<&str>) -> Result<bool, ClientError> {
    let request = match (mode, host) {
        (Mode::Short, None) => Cow::Borrowed(REQUEST_SHORT),
        (Mode::Short, Some(host)) => Cow::Owned(REQUEST_FOR.join(host).into_bytes()),
        (Mode::Keepalive, _) => Cow::Borrowed(REQUEST_KEEPALIVE),
    };
    match net::send(socket, &request, SendFlags::NOSIGNAL) {
        // A fresh socket's buffer is a thousand times as large: it takes all or nothing.
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::NOTCONN) => Ok(false),
        Err(error) => Err(ClientError::Send(error)),
    }
}
