//! Listeners that a reload has removed, until everything is accepted from them: the present router does
//! so, or the next one, by the rules of those days. So there need not be a router at a reload, or
//! meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use vestibule_protocol::supervision::{Setup, ToRouter};

use super::Master;
use super::plan::ListenerPlan;
use super::pools::Listening;
use crate::listener::{Bound, local_address};
use crate::supervisor::router_process::RouterProcess;
use crate::sys::tcp;

/// One of them.
#[derive(Debug)]
pub(super) struct Removed {
    id: u32,
    pub(super) name: String,
    pub(super) address: String,
    backlog: Option<u32>,
    socket: OwnedFd,
    /// Rules know it by its place in this.
    by: Rc<Setup>,
    /// Everything is accepted.
    dry: bool,
}

impl Removed {
    /// Nobody new comes from here on. Its path, if it has one, goes at once.
    pub(super) fn new(gone: Listening, by: &Rc<Setup>) -> Self {
        let Listening { setup, address, backlog, socket } = gone;
        let removed = Self {
            id: setup.id,
            name: setup.name,
            address,
            backlog,
            socket: socket.without_path(),
            by: Rc::clone(by),
            dry: false,
        };
        // What somebody else has made may go on elsewhere, and a filter would, too.
        if removed.is_ours() && local_address(&removed.socket).is_some() {
            // Where it cannot be had, newcomers are accepted for as long as those who are half there.
            let _ = tcp::ignore_newcomers(removed.socket.as_fd());
        }
        removed
    }

    /// Whether nobody else has made its socket.
    fn is_ours(&self) -> bool {
        self.backlog.is_some()
    }

    /// Whether a listener of its address has its socket. Of port 0 there is another each time, and at a
    /// path another socket.
    pub(super) fn can_come_back(&self) -> bool {
        let at_path = self.address.starts_with("unix:") && !self.address.starts_with("unix:@");
        !at_path && !self.address.ends_with(":0")
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Master {
    /// The socket for a listener of its address, and the number of the one that has had it so far.
    pub(super) fn come_back(&mut self, plan: &ListenerPlan) -> Option<(u32, Bound)> {
        let same = |gone: &Removed| gone.can_come_back() && gone.address == plan.address;
        let at = self.removed.iter().position(same)?;
        let Removed { id, backlog, socket, .. } = self.removed.swap_remove(at);
        tcp::heed_newcomers(socket.as_fd());
        if let Some(length) = plan.backlog.filter(|length| backlog != Some(*length)) {
            // As it was, if that cannot be (listen(2)).
            let _ = rustix::net::listen(&socket, i32::try_from(length).unwrap_or(i32::MAX));
        }
        Some((id, socket.into()))
    }

    /// Each with its socket, for a router that begins: nothing of it is closed before that one has it.
    pub(super) fn removed_for_router(&self) -> io::Result<Vec<(ToRouter, OwnedFd)>> {
        let left = self.removed.iter().filter(|removed| !removed.dry);
        left.map(|removed| {
            let by = Box::new(Setup::clone(&removed.by));
            Ok((ToRouter::Removed { listener: removed.id, by }, removed.socket.try_clone()?))
        })
        .collect()
    }

    /// Everything is accepted from a listener.
    pub(super) fn is_dry(&mut self, listener: u32) {
        for removed in self.removed.iter_mut().filter(|removed| removed.id == listener) {
            removed.dry = true;
        }
        self.close_dry();
    }

    /// A configuration that is tried may name the address of one of them, whose socket it has then.
    pub(super) fn close_dry(&mut self) {
        if self.trying.is_none() {
            let dry = self.removed.extract_if(.., |removed| removed.dry);
            let inherited = dry.filter(|gone| !gone.is_ours());
            // As at the start, the first of a name is the one that is named.
            self.inherited.splice(0..0, inherited.map(|gone| (gone.address, gone.socket)));
        }
    }

    /// No other router will need a listener: the present one's are the last.
    pub(super) fn close_listeners(&mut self) {
        self.listeners.clear();
        self.removed.clear();
        self.inherited.clear();
    }
}

/// Gives a router what [`Master::removed_for_router`] says.
pub(super) fn tell(router: &RouterProcess, removed: Vec<(ToRouter, OwnedFd)>) {
    for (message, socket) in removed {
        router.tell(message, Some(socket));
    }
}
