//! Decisions, with ports whose other ends the tests hold.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use vestibule_protocol::message::{ToWorker, kind, put_acknowledge};
use vestibule_protocol::socket::{PacketBuffer, PacketSocket};
use vestibule_protocol::sys::seqpacket_pair;

use super::*;
use crate::connection::Connection;
use crate::inspect::PausedConnection;
use crate::options::WorkerOptions;

struct Pool {
    core: Core,
    told: mpsc::UnboundedReceiver<FromRouter>,
    ends: Vec<Option<PacketSocket>>,
}

/// What a worker got: the packet's kind, its first number, and its descriptors.
type Got = (u8, u64, Vec<OwnedFd>);

fn worker(slot: u32) -> WorkerId {
    WorkerId { pool: 0, slot, generation: 0 }
}

impl Pool {
    /// Workers that nothing has started yet.
    fn empty(count: usize, options: &WorkerOptions) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let names = (1..=count).map(|n| format!("app-{n}").into()).collect();
        let core = Core::new(0, options.settings(), names, tell);
        Self { core, told, ends: (0..count).map(|_| None).collect() }
    }

    /// Workers that are ready.
    fn ready(count: usize, options: &WorkerOptions) -> Self {
        let mut pool = Self::empty(count, options);
        for slot in 0..count as u32 {
            pool.start(slot);
            pool.hello(slot, &Hello::default());
            pool.got(slot);
        }
        pool.told();
        pool
    }

    fn start(&mut self, slot: u32) {
        let (ours, theirs) = seqpacket_pair().unwrap();
        let link = Link::new(PacketSocket::new(ours).unwrap(), 1);
        self.core.started(worker(slot), 1, Arc::new(link));
        self.core.flush();
        self.ends[slot as usize] = Some(PacketSocket::new(theirs).unwrap());
    }

    fn end(&self, slot: u32) -> &PacketSocket {
        self.ends[slot as usize].as_ref().unwrap()
    }

    fn say(&mut self, slot: u32, kind: u8, body: &[u8]) -> Result<(), ProtocolFault> {
        let header = Header::new(kind, 1);
        let message = FromWorker::decode(&header, body).unwrap();
        let result = self.core.packet(worker(slot), &header, message);
        self.core.flush();
        result
    }

    fn hello(&mut self, slot: u32, hello: &Hello) {
        let mut body = Vec::new();
        hello.encode(&mut body);
        self.say(slot, kind::HELLO, &body).unwrap();
    }

    fn acknowledge(&mut self, slot: u32, up_to: u64, open: u32) {
        let mut body = Vec::new();
        put_acknowledge(&mut body, up_to, open);
        self.say(slot, kind::ACKNOWLEDGE, &body).unwrap();
    }

    fn refuse(
        &mut self,
        slot: u32,
        sequence: u64,
        reason: RefusalReason,
    ) -> Result<(), ProtocolFault> {
        let header = Header::new(kind::REFUSE, 1);
        let refusals = FromWorker::Refuse(vec![Refusal { sequence, reason }]);
        let result = self.core.packet(worker(slot), &header, refusals);
        self.core.flush();
        result
    }

    /// Everything that a worker was sent since the last look.
    fn got(&self, slot: u32) -> Vec<Got> {
        let mut buffer = PacketBuffer::default();
        let mut got = Vec::new();
        while let Some(packet) = self.end(slot).try_receive(&mut buffer).unwrap() {
            let header = packet.header;
            got.push((header.kind, header.sequence, packet.descriptors.drain(..).collect()));
        }
        got
    }

    /// The connections that a worker was offered since the last look, with their numbers.
    fn offered(&self, slot: u32) -> Vec<(u64, TcpStream)> {
        let offers = self.got(slot).into_iter().filter(|(kind, _, _)| *kind == kind::OFFER);
        offers
            .flat_map(|(_, first, descriptors)| (first..).zip(descriptors))
            .map(|(number, descriptor)| (number, descriptor.into()))
            .collect()
    }

    fn told(&mut self) -> Vec<FromRouter> {
        std::iter::from_fn(|| self.told.try_recv().ok()).collect()
    }

    fn offer(&mut self) -> TcpStream {
        let (client, entry) = connection();
        self.core.offer(entry).unwrap();
        self.core.flush();
        client
    }

    fn undelivered(&mut self) -> Undelivered {
        match self.core.next_event(None) {
            Some((_, WorkerEvent::Undelivered(undelivered))) => undelivered,
            other => panic!("nothing came back: {other:?}"),
        }
    }
}

fn options() -> WorkerOptions {
    WorkerOptions::new("worker")
}

fn connection() -> (TcpStream, Entry) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, peer) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let info = vestibule_protocol::ConnectionInfo {
        id: 1,
        peer: Some(peer),
        destination: None,
        listener: "web".into(),
        route: "default".into(),
        peer_context: None,
        accepted: 0,
    };
    let connection = Connection::new(PausedConnection::new(server.into()), info);
    (client, Entry::new(Data::NONE, Cargo::Connection(connection)))
}

fn list() -> Entry {
    Entry::new(Data::NONE, Cargo::List(Vec::new()))
}

/// Whether the slot's task is woken; takes the wake-up.
async fn is_woken(pool: &Pool, slot: u32) -> bool {
    let wake = Arc::clone(&pool.core.slot(slot).unwrap().wake);
    tokio::select! {
        biased;
        () = wake.notified() => true,
        () = std::future::ready(()) => false,
    }
}

#[tokio::test]
async fn what_is_refused_for_good_after_it_was_read_is_closed() {
    for reason in [RefusalReason::Undecodable, RefusalReason::Format, RefusalReason::Unsupported] {
        let mut pool = Pool::ready(1, &options());
        let mut client = pool.offer();
        client.write_all(b"GET").unwrap();
        let (number, mut socket) = pool.offered(0).remove(0);
        socket.set_nonblocking(false).unwrap();
        socket.read_exact(&mut [0; 1]).unwrap();
        pool.refuse(0, number, reason).unwrap();
        let undelivered = pool.undelivered();
        assert_eq!(undelivered.reason, UndeliveredReason::Touched);
        assert!(undelivered.transfer.is_empty());
        assert_eq!(pool.core.counters().touched, 1);
    }
}

#[tokio::test]
async fn what_is_refused_for_good_comes_back_as_it_was() {
    let mut pool = Pool::ready(1, &options());
    let _client = pool.offer();
    let (number, socket) = pool.offered(0).remove(0);
    socket.set_nonblocking(false).unwrap();
    pool.refuse(0, number, RefusalReason::Unsupported).unwrap();
    let undelivered = pool.undelivered();
    assert_eq!(undelivered.reason, UndeliveredReason::Refused(RefusalReason::Unsupported));
    let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[tokio::test]
async fn a_worker_that_finds_everything_behind_a_missing_descriptor_is_at_fault() {
    let mut pool = Pool::ready(1, &options());
    let _client = pool.offer();
    let (number, _socket) = pool.offered(0).remove(0);
    let fault = pool.refuse(0, number, RefusalReason::BehindMissing).unwrap_err();
    assert_eq!(fault, ProtocolFault::Sequence(Fault::NotBehind(number)));
}

#[tokio::test]
async fn a_full_worker_without_others_is_asked_again_until_attempts_are_used_up() {
    let mut pool = Pool::ready(1, &options().max_attempts(3));
    let _client = pool.offer();
    for _ in 0..3 {
        let (number, _) = pool.offered(0).remove(0);
        pool.refuse(0, number, RefusalReason::Full).unwrap();
    }
    assert_eq!(pool.undelivered().reason, UndeliveredReason::MaxAttempts);
    assert!(pool.offered(0).is_empty());
}

#[tokio::test]
async fn a_missing_descriptor_is_sent_again_alone_to_a_worker_without_others() {
    let mut pool = Pool::ready(1, &options());
    let (_one, first) = connection();
    let (_two, second) = connection();
    pool.core.offer(first).unwrap();
    pool.core.offer(second).unwrap();
    pool.core.flush();
    assert_eq!(pool.offered(0).len(), 2);
    pool.refuse(0, 1, RefusalReason::MissingDescriptor).unwrap();
    pool.refuse(0, 2, RefusalReason::BehindMissing).unwrap();
    let packets: Vec<(u8, usize)> =
        pool.got(0).iter().map(|(kind, _, descriptors)| (*kind, descriptors.len())).collect();
    assert_eq!(packets, [(kind::OFFER, 1), (kind::OFFER, 1)]);
}

#[tokio::test]
async fn a_port_that_ends_after_it_was_given_up_changes_nothing() {
    let mut pool = Pool::ready(1, &options());
    let _client = pool.offer();
    pool.core.close();
    pool.core.gone(worker(0), Exit::Signal(9), None, false);
    // Somebody else holds the port.
    pool.core.give_up_on(worker(0));
    assert!(pool.core.is_over());
    pool.core.ended(worker(0));
    assert!(pool.core.is_over());
    assert!(!pool.core.slot(0).unwrap().may_take_later());
}

#[tokio::test]
async fn the_first_offer_wakes_the_task_that_watches_offers_and_the_next_do_not() {
    let mut pool = Pool::ready(1, &options().stuck_timeout(Duration::from_secs(1)));
    is_woken(&pool, 0).await;
    let _first = pool.offer();
    assert!(is_woken(&pool, 0).await);
    let due = pool.core.watch_offers(worker(0)).unwrap();
    let _second = pool.offer();
    assert!(!is_woken(&pool, 0).await);
    pool.acknowledge(0, 2, 2);
    // The bound has passed, and nothing is left: the next offer is a first one again.
    assert_eq!(pool.core.stuck(worker(0), due), None);
    is_woken(&pool, 0).await;
    let _third = pool.offer();
    assert!(is_woken(&pool, 0).await);
}

#[tokio::test]
async fn a_blocked_port_wakes_the_task_that_waits_for_room() {
    let mut pool = Pool::ready(1, &options().handoff_window(100_000));
    pool.core.watch_offers(worker(0));
    is_woken(&pool, 0).await;
    while pool.core.slot(0).unwrap().obstruction == Obstruction::None {
        pool.core.post(0, list()).unwrap();
        pool.core.flush();
        pool.core.watch_offers(worker(0));
        if pool.core.slot(0).unwrap().obstruction == Obstruction::None {
            is_woken(&pool, 0).await;
        }
    }
    assert!(is_woken(&pool, 0).await);
}

#[tokio::test]
async fn no_bound_on_answers_is_no_bound() {
    let mut pool = Pool::ready(1, &options().stuck_timeout(Duration::MAX));
    let _client = pool.offer();
    assert_eq!(pool.core.watch_offers(worker(0)), None);
    assert_eq!(pool.core.stuck(worker(0), Instant::now()), None);
    assert_eq!(pool.core.slot(0).unwrap().state, State::Ready);
}

#[tokio::test]
async fn a_worker_that_greets_as_draining_gives_back_what_was_posted() {
    let mut pool = Pool::empty(1, &options());
    pool.core.post(0, list()).unwrap();
    pool.start(0);
    pool.hello(0, &Hello { ready: false, ..Hello::default() });
    assert_eq!(pool.undelivered().reason, UndeliveredReason::WorkerGone);
    let worker = worker(0);
    assert_eq!(pool.told(), [FromRouter::Ready { worker }, FromRouter::Draining { worker }]);
}

#[tokio::test]
async fn a_worker_told_to_drain_before_it_started_is_told_when_it_does() {
    let mut pool = Pool::empty(1, &options());
    pool.core.drain(0, false);
    pool.start(0);
    let kinds: Vec<u8> = pool.got(0).iter().map(|(kind, _, _)| *kind).collect();
    assert_eq!(kinds, [kind::ATTACH, kind::DRAIN]);
    pool.hello(0, &Hello::default());
    assert_eq!(pool.core.slot(0).unwrap().state, State::Leaving);
}

#[tokio::test]
async fn an_acknowledgement_does_not_bring_a_killed_worker_back_into_the_choice() {
    let mut pool = Pool::ready(2, &options());
    let _client = pool.offer();
    let slot = if pool.offered(0).is_empty() { 1 } else { 0 };
    pool.core.kill(slot);
    pool.acknowledge(slot, 1, 0);
    let _more: Vec<TcpStream> = (0..3).map(|_| pool.offer()).collect();
    assert!(pool.offered(slot).is_empty());
    assert_eq!(pool.offered(1 - slot).len(), 3);
}

#[tokio::test]
async fn a_worker_that_reads_nothing_more_loses_its_port() {
    let mut pool = Pool::ready(1, &options());
    pool.end(0).shutdown_receive();
    let _client = pool.offer();
    let place = pool.core.slot(0).unwrap();
    assert_eq!(place.state, State::Condemned);
    let link = Arc::clone(place.link.as_ref().unwrap());
    let end = link.socket.try_receive(&mut PacketBuffer::default()).unwrap_err();
    assert_eq!(end, vestibule_protocol::socket::ReceiveError::Closed);
}

#[tokio::test]
async fn unfetched_messages_are_bounded_by_their_bytes_too() {
    let mut pool = Pool::ready(1, &options());
    let large = vec![0; MAX_MESSAGE];
    for sequence in 1..=2 {
        let header = Header { sequence, ..Header::new(kind::WORKER_MESSAGE, 1) };
        pool.core.packet(worker(0), &header, FromWorker::Message(&large)).unwrap();
    }
    pool.core.flush();
    let mut buffer = PacketBuffer::default();
    let packet = pool.end(0).try_receive(&mut buffer).unwrap().unwrap();
    let said = ToWorker::decode(&packet.header, packet.body, &mut Default::default()).unwrap();
    let ToWorker::Refused(refusals) = said else { panic!("{said:?}") };
    assert_eq!(refusals, [Refusal { sequence: 2, reason: RefusalReason::Full }]);
    // Once fetched, the next is taken.
    assert!(matches!(pool.core.next_event(None), Some((0, WorkerEvent::Message(_)))));
    let header = Header { sequence: 3, ..Header::new(kind::WORKER_MESSAGE, 1) };
    pool.core.packet(worker(0), &header, FromWorker::Message(&large)).unwrap();
    assert!(matches!(pool.core.next_event(None), Some((0, WorkerEvent::Message(_)))));
}

#[tokio::test]
async fn of_ends_that_nobody_fetches_the_last_ones_stay() {
    let mut pool = Pool::ready(1, &options());
    for code in 0..10_000 {
        pool.core.event(0, WorkerEvent::Exit(Exit::Code(code)));
    }
    assert_eq!(pool.core.events.len(), 4 * QUEUE_MESSAGES);
    let last = pool.core.events.back();
    assert!(matches!(last, Some((0, WorkerEvent::Exit(Exit::Code(9_999))))), "{last:?}");
}

#[tokio::test]
async fn a_worker_whose_port_did_not_arrive_is_killed_and_its_slot_goes_on() {
    let mut pool = Pool::empty(1, &options());
    pool.core.post(0, list()).unwrap();
    pool.core.started_without_port(worker(0), 1);
    let told = pool.told();
    assert!(matches!(told.as_slice(), [FromRouter::Kill { .. }]), "{told:?}");
    pool.core.gone(worker(0), Exit::Signal(9), None, true);
    assert_eq!(pool.core.slot(0).unwrap().state, State::Vacant { last: false });
    let events: Vec<_> = std::iter::from_fn(|| pool.core.next_event(None)).collect();
    assert!(
        matches!(
            events.as_slice(),
            [
                (0, WorkerEvent::Error(_)),
                (0, WorkerEvent::Undelivered(_)),
                (0, WorkerEvent::Exit(Exit::Signal(9)))
            ]
        ),
        "{events:?}"
    );
}

#[tokio::test]
async fn without_a_supervisor_nothing_is_taken_and_everything_comes_back() {
    let mut pool = Pool::ready(1, &options().handoff_window(1));
    let _offered = pool.offer();
    pool.core.post(0, list()).unwrap();
    let _queued = pool.offer();
    pool.core.orphaned();
    let reasons: Vec<_> = (0..3).map(|_| pool.undelivered().reason).collect();
    let reason = UndeliveredReason::NoWorker;
    assert_eq!(reasons, [UndeliveredReason::Touched, UndeliveredReason::WorkerGone, reason]);
    let (_client, entry) = connection();
    assert!(pool.core.offer(entry).is_err());
    assert!(pool.core.slots().iter().all(Slot::is_over));
}
