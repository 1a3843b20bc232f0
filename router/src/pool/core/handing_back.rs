//! Connections that workers hand back: whether they were given, and what becomes of them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vestibule_protocol::Data;
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::MAX_HOPS;
use vestibule_protocol::message::{HandBack, RefusalReason};

use super::Core;
use super::inbound::ProtocolFault;
use crate::connection::Connection;
use crate::event::{HandedBack, UndeliveredReason, WorkerEvent};
use crate::handoff::{Cargo, Entry};
use crate::inspect::PausedConnection;

impl Core {
    /// A connection comes back. What was never given stays in `descriptors`, where it is closed on a
    /// thread of its own.
    ///
    /// It may have been given by an earlier router, and have waited in the port since then.
    ///
    /// # Errors
    /// It is none that a router gave, or one too many.
    pub(super) fn handed_back(
        &mut self,
        slot: u32,
        header: &Header,
        back: HandBack<'_>,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), ProtocolFault> {
        let Some(place) = self.slots.get_mut(slot as usize) else { return Ok(()) };
        place.received = place.received.max(header.sequence);
        let Some(socket) = descriptors.first() else {
            // This process is at its limit: the connection is gone.
            self.give_back(slot, header.sequence, RefusalReason::MissingDescriptor);
            return Ok(());
        };
        let tickets = place.link.as_ref().map(|link| link.tickets());
        let stamp = tickets.and_then(|tickets| tickets.check(socket.as_fd(), &back.info));
        let stamp = stamp.ok_or(ProtocolFault::NotGiven)?;
        if place.greeted {
            place.given = place.given.checked_sub(1).ok_or(ProtocolFault::TooManyBack)?;
        }
        let socket = descriptors.remove(0);
        let by = Arc::clone(&place.name);
        self.counters.handed_back += 1;
        let paused = match PausedConnection::handed_back(socket.into()) {
            Ok(Some(paused)) => paused,
            // Its client is gone, or cannot be told anything any more.
            Ok(None) | Err(_) => {
                self.counters.client_gone += 1;
                return Ok(());
            }
        };
        let answered = paused.written() & crate::ticket::WRITTEN > stamp.written;
        let hops = if answered { 1 } else { stamp.hops.saturating_add(1) };
        // The ticket says nothing about these: the kernel does, and the rules.
        let info = vestibule_protocol::ConnectionInfo {
            ticket: None,
            peer_credentials: paused.peer_credentials(),
            peer_context: None,
            scope: None,
            handed_back_by: Some(Box::new(by)),
            ..back.info
        };
        let prefix = back.prefix.into_owned().into_boxed_slice();
        let connection = Connection::handed_back(paused, info, prefix, hops);
        let message = Data::from_parts(header.codec, back.message.to_vec());
        if hops > MAX_HOPS {
            let entry = Entry::new(message, Cargo::Connection(connection));
            self.undelivered(slot, entry, UndeliveredReason::MaxAttempts);
            return Ok(());
        }
        let to = (!back.to.is_empty()).then(|| back.to.to_owned());
        self.come_back_to_be_routed(slot, HandedBack { connection, message, to });
        Ok(())
    }

    /// Where nobody fetches events, or there is nobody to go to any more, the client is told so.
    fn come_back_to_be_routed(&mut self, slot: u32, back: HandedBack) {
        let unfetched =
            |(_, event): &&(u32, WorkerEvent)| matches!(event, WorkerEvent::HandedBack(_));
        let most = vestibule_protocol::limits::QUEUE_MESSAGES;
        let full =
            self.events.len() >= most && self.events.iter().filter(unfetched).count() >= most;
        let reason = match () {
            () if self.closing => UndeliveredReason::ShuttingDown,
            () if full => UndeliveredReason::NoWorker,
            () => return self.event(slot, WorkerEvent::HandedBack(Box::new(back))),
        };
        let HandedBack { connection, message, .. } = back;
        self.undelivered(slot, Entry::new(message, Cargo::Connection(connection)), reason);
    }
}
