//! The bare program's router, the yardstick: what a hand-over costs when nothing but the hand-over is done.
//!
//! accept4, up to 64 a turn; round robin; what a turn chose for a worker in one sendmsg; the copies kept until the worker's
//! count comes back; close. No inspection, no refusal, no death of a worker (any of them ends the program).

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};

use super::port::{BATCH, receive_acknowledgement, send_batch};
use super::{RouterArguments, ServeError, raise_descriptor_limit};
use crate::processes::{Server, Stop, own_role};

/// Connections that a worker may have unacknowledged before the router stops to accept. Were each in a packet of its own, they and
/// one turn's would still be fewer than the some 278 packets that a port's default buffer takes: no send meets a full one.
const UNACKNOWLEDGED_MAX: usize = 192;
/// The epoll token of the listener; a worker's is its index.
const LISTENER: u64 = u64::MAX;

/// A worker as its router sees it.
struct Link {
    port: OwnedFd,
    /// Copies of what was sent and is not acknowledged, oldest first; behind them what the next packet takes along.
    copies: VecDeque<OwnedFd>,
    /// How many of `copies` are not sent yet: at most [`BATCH`].
    unsent: usize,
    _process: Server,
}

pub(super) fn run(listener: &OwnedFd, arguments: &RouterArguments) -> Result<(), ServeError> {
    raise_descriptor_limit();
    let mut router = Router::start(listener, arguments)?;
    arguments.count_if_asked()?;
    loop {
        router.turn()?;
    }
}

struct Router<'a> {
    listener: &'a OwnedFd,
    epoll: OwnedFd,
    events: Vec<Event>,
    links: Vec<Link>,
    /// Whose turn it is.
    next: usize,
    /// Whether the listener is watched: not while some worker has all it may have.
    accepting: bool,
}

impl<'a> Router<'a> {
    fn start(listener: &'a OwnedFd, arguments: &RouterArguments) -> Result<Self, ServeError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(ServeError::Epoll)?;
        let mut links = Vec::with_capacity(arguments.workers);
        for index in 0..arguments.workers {
            let link = Link::spawn()?;
            epoll::add(&epoll, &link.port, EventData::new_u64(index as u64), EventFlags::IN)
                .map_err(ServeError::Epoll)?;
            links.push(link);
        }
        epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)
            .map_err(ServeError::Epoll)?;
        let events = Vec::with_capacity(links.len() + 1);
        Ok(Self { listener, epoll, events, links, next: 0, accepting: true })
    }

    /// Waits; reads acknowledgements; accepts; sends.
    fn turn(&mut self) -> Result<(), ServeError> {
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(ServeError::Epoll(error)),
        }
        let mut waiting = false;
        for event in &self.events {
            match event.data.u64() {
                LISTENER => waiting = true,
                index => {
                    if let Some(link) = self.links.get_mut(index as usize) {
                        link.read_acknowledgement()?;
                    }
                }
            }
        }
        if waiting && self.accepting {
            self.accept()?;
            for link in &mut self.links {
                link.flush()?;
            }
        }
        self.watch_listener(!self.links.iter().any(Link::is_full))
    }

    fn accept(&mut self) -> Result<(), ServeError> {
        for _ in 0..BATCH {
            match accept_with(self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(connection) => {
                    if let Some(link) = self.links.get_mut(self.next) {
                        link.copies.push_back(connection);
                        link.unsent += 1;
                    }
                    self.next = (self.next + 1) % self.links.len();
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(ServeError::Accept(error.into())),
            }
        }
        Ok(())
    }

    fn watch_listener(&mut self, accepting: bool) -> Result<(), ServeError> {
        if accepting == self.accepting {
            return Ok(());
        }
        self.accepting = accepting;
        let interest = if accepting { EventFlags::IN } else { EventFlags::empty() };
        epoll::modify(&self.epoll, self.listener, EventData::new_u64(LISTENER), interest)
            .map_err(ServeError::Epoll)
    }
}

impl Link {
    fn spawn() -> Result<Self, ServeError> {
        let (port, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .map_err(ServeError::Port)?;
        let mut command = own_role("bare-worker", [""; 0])?;
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        Ok(Self {
            port,
            copies: VecDeque::with_capacity(UNACKNOWLEDGED_MAX + BATCH),
            unsent: 0,
            _process: Server::spawn(command, Stop::Kill)?,
        })
    }

    fn is_full(&self) -> bool {
        self.copies.len() >= UNACKNOWLEDGED_MAX
    }

    fn flush(&mut self) -> Result<(), ServeError> {
        let mut batch = [self.port.as_fd(); BATCH];
        let fresh = self.copies.range(self.copies.len() - self.unsent..);
        for (slot, connection) in batch.iter_mut().zip(fresh) {
            *slot = connection.as_fd();
        }
        let Some(batch) = batch.get(..self.unsent).filter(|batch| !batch.is_empty()) else {
            return Ok(());
        };
        send_batch(&self.port, batch).map_err(ServeError::Port)?;
        self.unsent = 0;
        Ok(())
    }

    /// Reads one acknowledgement and closes what it covers. A second one, rare as it is, is the next turn's: a look that finds
    /// nothing would cost as much in every turn.
    fn read_acknowledgement(&mut self) -> Result<(), ServeError> {
        match receive_acknowledgement(&self.port) {
            Ok(Some(count)) if count as usize <= self.copies.len() => {
                self.copies.drain(..count as usize);
                Ok(())
            }
            Ok(Some(_)) => Err(ServeError::Packet),
            Ok(None) => Err(ServeError::PortClosed),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(ServeError::Port(error)),
        }
    }
}
