//! Who waits for a worker, and what becomes of it: the part of the decisions that has to do with the
//! pool's queue.

use std::sync::Arc;
use std::time::Instant;

use super::{Balance, Choice, Core, Refused};
use crate::event::{Undelivered, UndeliveredReason};
use crate::handoff::{Cargo, Entry};
use crate::pool::slot::Slot;
use crate::queue::watch::{Sign, Watch};
use crate::queue::{Lane, Token};

/// How many that wait for a worker which did not refuse them yet may stand before one that is
/// served first: a bound on the work of one turn, far above what refusals leave in a queue.
const PASSED_OVER: usize = 64;

/// What the pool's lane has for a worker with room.
enum Next {
    /// This entry goes to this slot.
    Goes(Token, u32),
    /// Nobody will ever take this entry.
    Stranded(Token),
}

impl Core {
    /// Finds a worker for an entry, or a place in the queue.
    pub(super) fn place(&mut self, entry: Entry) -> Result<(), (Refused, Entry)> {
        let lane = match self.choose(&entry) {
            Choice::Now(slot) => return self.give(slot, entry),
            Choice::ItsQueue(slot) => Lane::Worker(slot),
            Choice::Wait => Lane::Pool,
            Choice::Nobody if self.is_ending() => return Err((Refused::Closed, entry)),
            Choice::Nobody => return Err((Refused::NoWorker, entry)),
        };
        match self.queue.push(lane, entry, now()) {
            Ok(first) => {
                self.signals.queued |= first;
                Ok(())
            }
            Err(entry) => Err((Refused::QueueFull, entry)),
        }
    }

    fn give(&mut self, slot: u32, entry: Entry) -> Result<(), (Refused, Entry)> {
        let Some(place) = self.slots.get_mut(slot as usize) else {
            return Err((Refused::NoWorker, entry));
        };
        if place.handoff.is_full(&entry) {
            return Err((Refused::QueueFull, entry));
        }
        place.handoff.push(entry);
        self.picker.chosen(slot);
        self.touch(slot);
        Ok(())
    }

    /// Whether a key's entry can go to its worker now: there is room, and nobody waits before it.
    pub(super) fn is_free_for_key(&self, slot: u32) -> bool {
        self.queue.order().first(Lane::Worker(slot)).is_none()
            && self.slot(slot).is_some_and(|place| self.can_take(place))
    }

    /// A slot has room, or will never have any again: who waits gets what there is, whoever waits
    /// longest first, whether for this very worker or for any.
    pub(super) fn pump(&mut self, slot: u32) {
        while !self.queue.is_empty() {
            let keyed = match self.slot(slot) {
                Some(place) if self.can_take(place) => self.queue.order().first(Lane::Worker(slot)),
                _ => None,
            };
            let (token, to) = match (keyed, self.next_of_pool()) {
                (_, Some(Next::Stranded(token))) => {
                    self.strand(token);
                    continue;
                }
                (Some(keyed), Some(Next::Goes(any, to))) => {
                    if self.queue.order().since(any) < self.queue.order().since(keyed) {
                        (any, to)
                    } else {
                        (keyed, slot)
                    }
                }
                (Some(keyed), None) => (keyed, slot),
                (None, Some(Next::Goes(any, to))) => (any, to),
                (None, None) => return self.give_up_hope(),
            };
            let Some(entry) = self.queue.take(token) else { return };
            if let Err((_, entry)) = self.give(to, entry) {
                self.undelivered(to, entry, UndeliveredReason::NoWorker);
            }
        }
    }

    /// The first of the pool's lane that a worker with room did not refuse before.
    fn next_of_pool(&mut self) -> Option<Next> {
        self.picker.best()?;
        let mut at = self.queue.order().first(Lane::Pool);
        for _ in 0..PASSED_OVER {
            let token = at?;
            let mut tried = Vec::new();
            self.queue.swap_tried(token, &mut tried);
            let choice = self.choose_any(&tried);
            self.queue.swap_tried(token, &mut tried);
            match choice {
                Choice::Now(slot) | Choice::ItsQueue(slot) => return Some(Next::Goes(token, slot)),
                Choice::Nobody => return Some(Next::Stranded(token)),
                Choice::Wait => at = self.queue.order().after(token),
            }
        }
        None
    }

    fn strand(&mut self, token: Token) {
        if let Some(entry) = self.queue.take(token) {
            self.undelivered(0, entry, UndeliveredReason::NoWorker);
        }
    }

    /// Nobody waits for workers that never come.
    pub(super) fn give_up_hope(&mut self) {
        if self.queue.is_empty() || self.slots.iter().any(Slot::may_take_later) {
            return;
        }
        while let Some(entry) = self.queue.take_oldest() {
            self.undelivered(0, entry, UndeliveredReason::NoWorker);
        }
    }

    /// Who waits for a slot that takes nothing more goes to whom the key leads next, to wait there
    /// anew.
    pub(super) fn move_lane(&mut self, slot: u32) {
        if self.slot(slot).is_none_or(Slot::may_take_later) {
            return;
        }
        // What is moved goes to the lanes of others, so this ends.
        while let Some(entry) = self.queue.take_first(Lane::Worker(slot)) {
            if let Err((_, entry)) = self.place(entry) {
                self.undelivered(slot, entry, UndeliveredReason::NoWorker);
            }
        }
    }

    /// Gives back what waited too long; returns when to look again.
    pub(crate) fn sweep(&mut self, now: Instant) -> Option<Instant> {
        while let Some((lane, entry)) = self.queue.take_expired(now) {
            self.undelivered(slot_of(lane), entry, UndeliveredReason::QueueTimeout);
        }
        self.queue.order().next_deadline()
    }

    /// Whether somebody waits whose client nobody watches yet.
    pub(crate) fn is_unwatched(&self) -> bool {
        self.queue.is_unwatched()
    }

    /// From now on everybody who waits is watched.
    pub(crate) fn watch(&mut self, watch: Arc<Watch>) {
        self.queue.watch(watch);
    }

    /// Something happened to a client that waits: if it is gone, so is its place in the queue.
    pub(crate) fn client_sign(&mut self, sign: Sign) {
        let Some((lane, entry)) = self.queue.take_gone(sign) else { return };
        self.counters.client_gone += 1;
        self.close_silently(slot_of(lane), entry, UndeliveredReason::ClientGone);
    }

    /// Closes a connection whose client must not, or can not, be told anything.
    pub(super) fn close_silently(&mut self, from: u32, entry: Entry, reason: UndeliveredReason) {
        let Entry { data, cargo, .. } = entry;
        if let Cargo::Connection(connection) = cargo {
            tracing::debug!(
                connection = connection.info().id,
                reason = reason.as_str(),
                "connection closed"
            );
            connection.release();
        }
        self.counters.undelivered += 1;
        self.come_back(from, Undelivered { message: data, transfer: Vec::new(), reason });
    }

    /// Whether every worker was told to end: then who comes, or waits, is told so.
    pub(super) fn is_ending(&self) -> bool {
        self.closing || self.slots.iter().all(Slot::is_unwanted)
    }

    /// The balance's choice for what has no key.
    fn choose_any(&mut self, tried: &[u32]) -> Choice {
        while let Some(slot) = self.picker.best() {
            if !self.picker.is_sluggish(slot) && self.is_sluggish(slot, Instant::now) {
                self.refresh_as(slot, true);
                continue;
            }
            if tried.is_empty() || !tried.contains(&slot) {
                return Choice::Now(slot);
            }
            break;
        }
        // The best one was tried already: a rare case, so a look at all is good enough.
        let untried = (0u32..).zip(&self.slots).filter(|(slot, _)| !tried.contains(slot));
        let mut later = false;
        let mut best: Option<(u32, u32)> = None;
        for (slot, place) in untried {
            later |= place.may_take_later();
            if self.can_take(place) {
                let load = place.handoff.load();
                if best.is_none_or(|(least, _)| load < least) {
                    best = Some((load, slot));
                }
            }
        }
        match best {
            Some((_, slot)) => Choice::Now(slot),
            None if later => Choice::Wait,
            // Nobody is left but those that refused it. Each try counts, so this ends.
            None if !tried.is_empty() => self.choose_any(&[]),
            None => Choice::Nobody,
        }
    }

    fn choose(&mut self, entry: &Entry) -> Choice {
        if self.settings.balance == Balance::HashPeerIp
            && let Some(key) = entry.key()
        {
            return self.choose_by_key(entry, key);
        }
        self.choose_any(&entry.tried)
    }
}

/// Events of the queue belong to the worker that was waited for; the pool's lane has none.
fn slot_of(lane: Lane) -> u32 {
    match lane {
        Lane::Pool => 0,
        Lane::Worker(slot) => slot,
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use vestibule_protocol::{ConnectionInfo, Data};

    use crate::connection::Connection;
    use crate::event::WorkerEvent;
    use crate::inspect::PausedConnection;
    use crate::options::WorkerOptions;
    use crate::pool::slot::State;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Workers that are ready and take one offer each.
    fn core(workers: u32, balance: Balance) -> Core {
        let options = WorkerOptions::new("none").balance(balance).handoff_window(1);
        let settings = options.queue(8, TIMEOUT).settings();
        let names = (1..=workers).map(|n| format!("app-{n}").into()).collect();
        let (supervisor, _) = mpsc::unbounded_channel();
        let mut core = Core::new(0, settings, names, supervisor);
        for slot in 0..workers {
            core.slots[slot as usize].state = State::Ready;
            core.refresh(slot);
        }
        core
    }

    fn entry(id: u64, peer: Option<&str>) -> Entry {
        let (one, _) = UnixStream::pair().unwrap();
        let info = ConnectionInfo {
            id,
            peer: peer.map(|peer| format!("{peer}:1").parse().unwrap()),
            destination: None,
            listener: "".into(),
            route: "".into(),
            peer_context: None,
            accepted: 0,
        };
        let connection = Connection::new(PausedConnection::new(one.into()), info);
        Entry::new(Data::NONE, Cargo::Connection(connection))
    }

    fn id(entry: &Entry) -> u64 {
        match &entry.cargo {
            Cargo::Connection(connection) => connection.info().id,
            Cargo::List(_) => 0,
        }
    }

    /// What stands in line before each worker's port.
    fn given(core: &Core) -> Vec<Vec<u64>> {
        core.slots.iter().map(|slot| slot.handoff.waiting_entries().map(id).collect()).collect()
    }

    /// The worker took what it was given, and has room again.
    fn serve(core: &mut Core, slot: u32) {
        let taken = core.slots[slot as usize].handoff.abandon_waiting();
        assert_eq!(taken.len(), 1);
        core.settled(slot);
    }

    fn reasons(core: &mut Core) -> Vec<UndeliveredReason> {
        std::iter::from_fn(|| core.next_event(None))
            .filter_map(|(_, event)| match event {
                WorkerEvent::Undelivered(undelivered) => Some(undelivered.reason),
                _ => None,
            })
            .collect()
    }

    /// An address that the pool gives to this worker.
    fn address_of(core: &Core, slot: u32) -> String {
        (1..255)
            .map(|last| format!("10.0.0.{last}"))
            .find(|address| {
                let choice = core.choose_by_key(&entry(0, None), address.parse().unwrap());
                matches!(choice, Choice::Now(to) | Choice::ItsQueue(to) if to == slot)
            })
            .unwrap()
    }

    #[test]
    fn who_cannot_go_to_the_free_worker_does_not_hold_up_who_can() {
        let mut core = core(2, Balance::LeastConnections);
        for id in [1, 2] {
            core.place(entry(id, None)).unwrap();
        }
        core.place(Entry { tried: vec![0], ..entry(3, None) }).unwrap();
        core.place(entry(4, None)).unwrap();
        let holder_of_0 = given(&core)[0][0];
        serve(&mut core, 0);
        assert_eq!(given(&core)[0], [4], "{holder_of_0} was served");
        assert_eq!(core.queued(), 1);
        serve(&mut core, 1);
        assert_eq!(given(&core)[1], [3]);
        assert_eq!(core.queued(), 0);
    }

    #[test]
    fn who_was_refused_goes_there_again_only_when_nobody_else_can_come() {
        let mut core = core(2, Balance::LeastConnections);
        for id in [1, 2] {
            core.place(entry(id, None)).unwrap();
        }
        core.place(Entry { tried: vec![1], ..entry(3, None) }).unwrap();
        serve(&mut core, 1);
        assert_eq!((given(&core)[1].len(), core.queued()), (0, 1), "the other may have room later");
        // What 0 had was sent, so that nothing but the refused one is left to be moved.
        core.slots[0].handoff.sent(1, Instant::now());
        core.slots[0].state = State::Vacant { last: true };
        core.leave(0);
        assert_eq!((given(&core)[1].clone(), core.queued()), (vec![3], 0));
        core.slots[1].state = State::Vacant { last: true };
        core.leave(1);
        assert_eq!(reasons(&mut core), [UndeliveredReason::WorkerGone]);
    }

    #[test]
    fn nobody_waits_for_workers_that_never_come() {
        let mut core = core(1, Balance::LeastConnections);
        for id in [1, 2] {
            core.place(entry(id, None)).unwrap();
        }
        core.slots[0].state = State::Vacant { last: true };
        core.leave(0);
        assert_eq!(core.queued(), 0);
        let reasons = reasons(&mut core);
        assert_eq!(reasons, [UndeliveredReason::WorkerGone, UndeliveredReason::NoWorker]);
        assert_eq!(core.offer(entry(3, None)).unwrap_err().0, Refused::NoWorker);
    }

    #[test]
    fn a_worker_with_room_takes_whoever_waits_longest_with_its_key_or_without_any() {
        let mut core = core(1, Balance::HashPeerIp);
        core.place(entry(1, Some("10.0.0.1"))).unwrap();
        core.place(entry(2, None)).unwrap();
        core.place(entry(3, Some("10.0.0.1"))).unwrap();
        core.place(entry(4, None)).unwrap();
        let mut order = Vec::new();
        while !given(&core)[0].is_empty() {
            order.push(given(&core)[0][0]);
            serve(&mut core, 0);
        }
        assert_eq!(order, [1, 2, 3, 4]);
    }

    #[test]
    fn a_held_worker_gives_its_lane_away_and_nobody_waits_for_it() {
        let mut core = core(2, Balance::HashPeerIp);
        let address = address_of(&core, 0);
        core.place(entry(1, Some(&address))).unwrap();
        core.place(entry(2, Some(&address))).unwrap();
        assert_eq!((given(&core)[0].len(), core.queued()), (1, 1));
        core.hold(0, true);
        assert_eq!(core.queued() + given(&core)[1].len(), 2);
        assert_eq!(given(&core)[0].len(), 0);
        core.hold(1, true);
        assert_eq!(core.queued(), 0);
        assert_eq!(core.offer(entry(3, Some(&address))).unwrap_err().0, Refused::NoWorker);
    }

    #[tokio::test(start_paused = true)]
    async fn who_moves_waits_anew() {
        let mut core = core(2, Balance::HashPeerIp);
        let (one, two) = (address_of(&core, 0), address_of(&core, 1));
        for (id, address) in [(1, &one), (2, &one), (3, &two)] {
            core.place(entry(id, Some(address))).unwrap();
        }
        let entered = now();
        assert_eq!(core.sweep(entered), Some(entered + TIMEOUT));
        tokio::time::advance(TIMEOUT / 2).await;
        core.slots[0].state = State::Leaving;
        core.leave(0);
        // Both that 0 had, the one in line and the one that waited, wait for 1 now.
        assert_eq!(core.queued(), 2);
        assert_eq!(core.sweep(entered + TIMEOUT), Some(now() + TIMEOUT));
        tokio::time::advance(TIMEOUT).await;
        assert_eq!(core.sweep(now()), None);
        assert_eq!(reasons(&mut core), [UndeliveredReason::QueueTimeout; 2]);
    }

    #[test]
    fn when_every_worker_is_to_end_who_waits_or_comes_is_told_so() {
        let mut core = core(1, Balance::LeastConnections);
        core.place(entry(1, None)).unwrap();
        core.place(entry(2, None)).unwrap();
        core.finish_all();
        assert_eq!(core.queued(), 0);
        assert!(reasons(&mut core).contains(&UndeliveredReason::ShuttingDown));
        assert_eq!(core.offer(entry(3, None)).unwrap_err().0, Refused::Closed);
    }
}
