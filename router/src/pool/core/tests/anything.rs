//! Whatever happens in whatever order: no connection is lost, none is with two workers, and nobody
//! waits while a worker has room or when none will come.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::pool::Balance;
use crate::pool::slot::Slot;

/// Workers, offers that each may leave unanswered, and connections that may wait.
const WORKERS: u32 = 3;
const WINDOW: usize = 2;
const QUEUE: usize = 4;

/// Both addresses of a connection: no other has them.
type Ends = (SocketAddr, SocketAddr);

/// What happens. Numbers are slots.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client comes.
    Offer,
    /// The worker takes all that it was offered.
    Take(u32),
    /// It refuses the first of that.
    Refuse(u32, RefusalReason),
    /// It is certainly dead; `true`: another process follows.
    Die(u32, bool),
    /// A process starts in the place of one that died, and is ready.
    Start(u32),
    /// It is told to drain; `true`: nobody follows.
    Drain(u32, bool),
    /// Somebody keeps it out of the choice, or takes it back in.
    #[cfg(feature = "cli")]
    Hold(u32, bool),
    /// Another router takes over in the planned way. Workers say nothing to it yet.
    #[cfg(feature = "cli")]
    Change,
    /// The worker answers the router that has taken over.
    #[cfg(feature = "cli")]
    Greet(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..WORKERS;
    let refusal = prop_oneof![
        Just(RefusalReason::Full),
        Just(RefusalReason::Draining),
        Just(RefusalReason::MissingDescriptor),
    ];
    // Mostly what keeps a pool going, so that a run has something to lose.
    let always = prop_oneof![
        8 => Just(Step::Offer),
        4 => slot.clone().prop_map(Step::Take),
        2 => (slot.clone(), refusal).prop_map(|(slot, reason)| Step::Refuse(slot, reason)),
        2 => (slot.clone(), prop::bool::weighted(0.8)).prop_map(|(s, again)| Step::Die(s, again)),
        4 => slot.clone().prop_map(Step::Start),
        1 => (slot.clone(), prop::bool::weighted(0.2)).prop_map(|(s, last)| Step::Drain(s, last)),
    ];
    #[cfg(feature = "cli")]
    let all = prop_oneof![
        20 => always,
        2 => (slot.clone(), any::<bool>()).prop_map(|(slot, held)| Step::Hold(slot, held)),
        1 => Just(Step::Change),
        3 => slot.prop_map(Step::Greet),
    ];
    #[cfg(not(feature = "cli"))]
    let all = always;
    all
}

/// A pool, and what each of its workers was offered and has not answered.
struct World {
    pool: Pool,
    options: WorkerOptions,
    generations: Vec<u32>,
    /// The present router's.
    epoch: u16,
    /// With the epoch of the router that offered it.
    unanswered: Vec<BTreeMap<u64, (u16, Ends)>>,
    /// The last number that each has received.
    received: Vec<u64>,
    clients: Vec<TcpStream>,
    accepted: u64,
    /// What earlier routers had done with.
    done: u64,
    refused: bool,
}

impl World {
    fn new(balance: Balance) -> Self {
        let options = options()
            .balance(balance)
            .handoff_window(WINDOW)
            .max_attempts(5)
            .queue(QUEUE, std::time::Duration::from_secs(600));
        Self {
            pool: Pool::ready(WORKERS as usize, &options),
            options,
            generations: vec![0; WORKERS as usize],
            epoch: 1,
            unanswered: vec![BTreeMap::new(); WORKERS as usize],
            received: vec![0; WORKERS as usize],
            clients: Vec::new(),
            accepted: 0,
            done: 0,
            refused: false,
        }
    }

    fn worker(&self, slot: u32) -> WorkerId {
        WorkerId { generation: self.generations[slot as usize], ..worker(slot) }
    }

    fn slot(&self, slot: u32) -> &Slot {
        self.pool.core.slot(slot).unwrap()
    }

    fn is_alive(&self, slot: u32) -> bool {
        self.slot(slot).link.is_some()
    }

    /// Whether a process is to start in the slot.
    fn is_awaited(&self, slot: u32) -> bool {
        let state = self.slot(slot).state;
        !self.is_alive(slot) && matches!(state, State::Vacant { last: false } | State::Starting)
    }

    fn says(&mut self, slot: u32, header: &Header, message: FromWorker<'_>) {
        let worker = self.worker(slot);
        self.pool.core.packet(worker, header, message, &mut Vec::new()).unwrap();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Offer => self.offer(),
            Step::Take(slot) if self.is_alive(slot) => self.take(slot),
            Step::Refuse(slot, reason) if self.is_alive(slot) => {
                if let Some((sequence, (epoch, _))) = self.unanswered[slot as usize].pop_first() {
                    let refusal = FromWorker::Refuse(vec![Refusal { sequence, reason }]);
                    self.says(slot, &Header::new(kind::REFUSE, epoch), refusal);
                    self.refused = true;
                }
            }
            Step::Die(slot, again) if self.is_alive(slot) => {
                let worker = self.worker(slot);
                self.pool.ends[slot as usize] = None;
                self.unanswered[slot as usize].clear();
                self.pool.core.ended(worker);
                self.pool.core.gone(worker, Exit::Signal(9), None, again);
            }
            Step::Start(slot) if self.is_awaited(slot) => self.start(slot),
            Step::Drain(slot, last) if self.is_alive(slot) => self.pool.core.drain(slot, last),
            #[cfg(feature = "cli")]
            Step::Hold(slot, held) => self.pool.core.hold(slot, held),
            #[cfg(feature = "cli")]
            Step::Change => self.change(),
            #[cfg(feature = "cli")]
            Step::Greet(slot) if self.is_alive(slot) && !self.slot(slot).greeted => {
                // It has taken what it has not refused.
                self.unanswered[slot as usize].clear();
                self.greet(slot);
            }
            #[cfg(feature = "cli")]
            Step::Greet(_) => {}
            Step::Take(_) | Step::Refuse(..) | Step::Die(..) | Step::Start(_) | Step::Drain(..) => {
            }
        }
        self.pool.core.flush();
        while self.pool.core.next_event(None).is_some() {}
        self.look();
    }

    fn offer(&mut self) {
        let (client, entry) = connection();
        let queued = self.pool.core.queued();
        match self.pool.core.offer(entry) {
            Ok(()) => {
                self.accepted += 1;
                self.clients.push(client);
            }
            Err((Refused::QueueFull, _)) => assert!(queued >= QUEUE, "there was room to wait"),
            Err((Refused::NoWorker | Refused::Closed, _)) => {
                assert!(!self.pool.core.somebody_comes(), "there is somebody to wait for");
            }
        }
    }

    fn take(&mut self, slot: u32) {
        let unanswered = std::mem::take(&mut self.unanswered[slot as usize]);
        let last = unanswered.last_key_value();
        let (up_to, epoch) = last.map_or((0, 0), |(sequence, (epoch, _))| (*sequence, *epoch));
        let mut body = Vec::new();
        put_acknowledge(&mut body, up_to, 0);
        let header = Header::new(kind::ACKNOWLEDGE, epoch);
        let message = FromWorker::decode(&header, &body).unwrap();
        self.says(slot, &header, message);
    }

    fn start(&mut self, slot: u32) {
        self.generations[slot as usize] += 1;
        let (ours, theirs) = seqpacket_pair().unwrap();
        let link = Link::new(PacketSocket::new(ours).unwrap(), self.epoch, Tickets::new([0; 16]));
        let worker = self.worker(slot);
        self.pool.core.started(worker, 1, Arc::new(link));
        self.pool.core.flush();
        self.pool.ends[slot as usize] = Some(PacketSocket::new(theirs).unwrap());
        self.received[slot as usize] = 0;
        self.greet(slot);
    }

    fn greet(&mut self, slot: u32) {
        let mut body = Vec::new();
        Hello { received: self.received[slot as usize], ..Hello::default() }.encode(&mut body);
        let header = Header::new(kind::HELLO, self.epoch);
        let message = FromWorker::decode(&header, &body).unwrap();
        self.says(slot, &header, message);
    }

    #[cfg(feature = "cli")]
    fn change(&mut self) {
        self.epoch += 1;
        let counters = self.pool.core.counters();
        self.done += counters.delivered + counters.undelivered;
        let back = succeeding::succeed(&mut self.pool, &self.options, self.epoch);
        if back > 0 {
            assert!(!self.pool.core.somebody_comes(), "there is somebody to wait for");
        }
        self.done += back;
    }

    /// Takes what workers were sent.
    fn look(&mut self) {
        for slot in 0..WORKERS {
            if self.pool.ends[slot as usize].is_none() {
                continue;
            }
            for (sequence, connection) in self.pool.offered(slot) {
                let client = (connection.peer_addr().unwrap(), connection.local_addr().unwrap());
                let is = |(_, other): &(u16, Ends)| *other == client;
                let with = self.unanswered.iter().position(|all| all.values().any(is));
                assert_eq!(with, None, "{client:?} is with {slot}, too");
                self.unanswered[slot as usize].insert(sequence, (self.epoch, client));
                self.received[slot as usize] = sequence;
            }
        }
    }

    fn check(&self) {
        let core = &self.pool.core;
        let mut with_workers = 0;
        for (slot, place) in core.slots().iter().enumerate() {
            let (offered, waiting) = (place.handoff.in_flight(), place.handoff.waiting());
            assert!(offered + waiting <= WINDOW, "more than {slot} may have");
            with_workers += offered + waiting;
        }
        let counters = core.counters();
        let done = self.done + counters.delivered + counters.undelivered;
        let known = done + (with_workers + core.queued()) as u64;
        assert_eq!(known, self.accepted, "lost, or there twice: {counters:?}");
        if core.queued() > 0 {
            assert!(core.somebody_comes(), "somebody waits for nobody");
            // Whoever was refused may wait for one that has not refused it.
            let free = core.slots().iter().any(|place| core.can_take(place));
            assert!(!free || self.refused, "somebody waits though a worker has room");
        }
    }
}

/// Each has some fifteen connections over TCP, whose ports are not free again for a minute.
const CASES: u32 = 100;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn whatever_happens_no_connection_is_lost_or_with_two_or_waits_for_nobody(
        steps in prop::collection::vec(step(), 1..80),
        round_robin in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let balance = if round_robin { Balance::RoundRobin } else { Balance::LeastConnections };
        let mut world = World::new(balance);
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}
