//! Whether clients that are looked at have said more: one nested epoll set for all of them, behind one
//! registration with the reactor, as for those in a queue.
//!
//! Edge-triggered: what was looked at and is not enough stays readable, and would wake the router for
//! ever.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::waiting::Token;
use crate::sys::reactor;

/// Signs taken in one turn, before others get theirs.
pub(crate) const TURN: usize = 64;

/// The set.
#[derive(Debug)]
pub(crate) struct Watch {
    set: AsyncFd<OwnedFd>,
}

/// Something happened to a client that is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    pub(crate) token: Token,
    flags: EventFlags,
}

impl Sign {
    /// Nothing more will come: the client said so, or the connection is over.
    pub(crate) fn is_end(self) -> bool {
        self.flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
    }

    /// An urgent byte came (tcp(7)). No look sees beyond it, and nothing that is inspected sends one.
    pub(crate) fn is_urgent(self) -> bool {
        self.flags.contains(EventFlags::PRI)
    }
}

impl Watch {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors or memory, or no runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { set: reactor::readable(epoll::create(CreateFlags::CLOEXEC)?)? })
    }

    /// Watches a connection; what is there already is a sign. What cannot be watched (a user's limit on
    /// watches) is heard no more: its deadline ends it.
    pub(crate) fn add(&self, connection: impl AsFd, token: Token) {
        let data = EventData::new_u64(token.into());
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
        if let Err(error) = epoll::add(&self.set, connection, data, flags) {
            tracing::debug!(%error, "a connection that is inspected is not watched");
        }
    }

    /// Watches a connection no longer. It must still be open: a descriptor that stays in a set keeps
    /// firing after it was passed on and closed here, and cannot be removed any more.
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
    pub(crate) fn take_signs(&self, signs: &mut Vec<Sign>) -> io::Result<usize> {
        let mut buffer = [const { MaybeUninit::uninit() }; TURN];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, _) = epoll::wait(&self.set, &mut buffer, Some(&at_once))?;
        let sign =
            |event: &epoll::Event| Sign { token: event.data.u64().into(), flags: event.flags };
        signs.extend(events.iter().map(sign));
        Ok(events.len())
    }
}
