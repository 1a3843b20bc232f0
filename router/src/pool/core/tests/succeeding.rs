//! What a worker was sent by one router, and says to the next.

use std::os::fd::AsFd;

use vestibule_protocol::handshake::Acks;
use vestibule_protocol::message::put_acknowledge_each;
use vestibule_protocol::supervision::SlotMode;

use super::*;

/// Another router takes over, as the roles do it: what is in the old one's pool goes to the new one's, and
/// the supervisor names every worker. Returns how many nobody can take.
pub(super) fn succeed(pool: &mut Pool, options: &WorkerOptions, epoch: u16) -> u64 {
    let (tell, told) = mpsc::unbounded_channel();
    let names = pool.core.slots().iter().map(|place| Arc::clone(&place.name)).collect();
    let core = Core::new(0, options.settings(), names, tell);
    let mut old = std::mem::replace(&mut pool.core, core);
    pool.told = told;
    old.stop_offering();
    old.stop_listening();
    let waiting = old.take_everything();
    let mut legacies = old.take_unanswered();
    let core = &mut pool.core;
    for (slot, place) in (0u32..).zip(old.slots()) {
        core.begin_as(slot, if place.held { SlotMode::Held } else { SlotMode::Wanted });
        let Some(link) = &place.link else {
            if place.is_over() {
                core.not_started(place.id, "is over".to_owned(), false);
            }
            continue;
        };
        let port = link.socket.as_fd().try_clone_to_owned().unwrap();
        let port = PacketSocket::new(port).unwrap();
        core.started(place.id, 1, Arc::new(Link::new(port, epoch, link.tickets())));
        if let Some(at) = legacies.iter().position(|legacy| legacy.worker == place.id) {
            core.inherit(legacies.remove(at));
        }
        if place.state == State::Leaving {
            core.drain(slot, place.finishing);
        }
    }
    core.flush();
    assert!(legacies.is_empty(), "with workers that are not there: {legacies:?}");
    let given = waiting.into_iter().map(|entry| core.offer_again(entry).is_err());
    given.map(u64::from).sum()
}

/// A pool of two, at whose second router the first worker has not answered so many.
fn offered(count: usize, hello: &Hello) -> (Pool, Vec<(u64, TcpStream)>) {
    let options = options();
    let mut pool = Pool::empty(2, &options);
    pool.start(0);
    pool.hello(0, hello);
    pool.got(0);
    let _clients: Vec<_> = (0..count).map(|_| pool.offer()).collect();
    let offers = pool.offered(0);
    assert_eq!(offers.len(), count);
    pool.start(1);
    pool.hello(1, &Hello::default());
    assert_eq!(succeed(&mut pool, &options, 2), 0);
    pool.told();
    (pool, offers)
}

impl Pool {
    /// It says something to the second router.
    fn say_again(&mut self, slot: u32, kind: u8, body: &[u8]) -> Result<(), ProtocolFault> {
        let header = Header::new(kind, 2);
        let message = FromWorker::decode(&header, body).unwrap();
        let result = self.core.packet(worker(slot), &header, message, &mut Vec::new());
        self.core.flush();
        result
    }

    fn greet_again(&mut self, slot: u32, hello: &Hello) -> Result<(), ProtocolFault> {
        let mut body = Vec::new();
        hello.encode(&mut body);
        self.say_again(slot, kind::HELLO, &body)
    }

    fn in_flight(&self, slot: u32) -> usize {
        self.core.slot(slot).unwrap().handoff.in_flight()
    }

    fn delivered(&self) -> u64 {
        self.core.counters().delivered
    }
}

#[tokio::test]
async fn an_answer_to_the_router_before_is_heard_once() {
    let (mut pool, _offers) = offered(3, &Hello::default());
    assert_eq!((pool.in_flight(0), pool.core.slot(0).unwrap().handoff.load()), (3, 3));
    pool.acknowledge(0, 2, 2);
    assert_eq!((pool.in_flight(0), pool.delivered()), (1, 2));
    pool.acknowledge(0, 2, 2);
    pool.acknowledge(0, 3, 3);
    pool.acknowledge(0, 3, 3);
    assert_eq!((pool.in_flight(0), pool.delivered()), (0, 3));
    pool.greet_again(0, &Hello { received: 3, open: 3, ..Hello::default() }).unwrap();
    assert_eq!(pool.delivered(), 3);
    assert_eq!(pool.core.slot(0).unwrap().handoff.load(), 3);
}

#[tokio::test]
async fn a_hello_takes_what_was_not_refused_before() {
    let (mut pool, mut offers) = offered(3, &Hello::default());
    pool.greet_again(1, &Hello::default()).unwrap();
    pool.got(1);
    // As a worker does: it closes what it refuses.
    let (number, refused) = offers.remove(1);
    let peer = refused.peer_addr().unwrap();
    drop(refused);
    pool.refuse(0, number, RefusalReason::Full).unwrap();
    let moved = pool.offered(1);
    assert_eq!(moved[0].1.peer_addr().unwrap(), peer);
    pool.greet_again(0, &Hello { received: 3, open: 2, ..Hello::default() }).unwrap();
    assert_eq!((pool.in_flight(0), pool.in_flight(1), pool.delivered()), (0, 1, 2));
    // What it says later of what it has refused is about nothing.
    pool.acknowledge(0, 3, 2);
    pool.refuse(0, number, RefusalReason::Full).unwrap();
    assert_eq!((pool.in_flight(1), pool.delivered()), (1, 2));
}

#[tokio::test]
async fn who_takes_what_it_has_refused_changes_nothing() {
    let (mut pool, _offers) = offered(3, &Hello::default());
    pool.refuse(0, 2, RefusalReason::Full).unwrap();
    let twice = pool.refuse(0, 2, RefusalReason::Full).unwrap_err();
    assert_eq!(twice, ProtocolFault::Sequence(Fault::Twice(2)));
    pool.acknowledge(0, 3, 2);
    assert_eq!((pool.delivered(), pool.core.queued()), (2, 1), "it waits for another");
}

#[tokio::test]
async fn a_hello_that_cannot_be_so_is_a_fault_and_takes_nothing() {
    for received in [0, 2, 4, 1 << 40] {
        let (mut pool, _offers) = offered(3, &Hello::default());
        let hello = Hello { received, ..Hello::default() };
        let fault = pool.greet_again(0, &hello).unwrap_err();
        assert_eq!(fault, ProtocolFault::Sequence(Fault::Received { received, last: 3 }));
        assert_eq!((pool.in_flight(0), pool.delivered()), (3, 0));
        assert_eq!(pool.core.slot(0).unwrap().state, State::Starting);
    }
}

#[tokio::test]
async fn processes_that_share_a_port_answer_each_for_itself_after_hello_too() {
    let each = Hello { acks: Acks::Each, ..Hello::default() };
    let (mut pool, _offers) = offered(3, &each);
    // Another process has received the last one.
    pool.greet_again(0, &Hello { received: 2, ..each }).unwrap();
    assert_eq!((pool.in_flight(0), pool.delivered()), (3, 0));
    let acknowledge = |sequences: &[u64]| {
        let mut body = Vec::new();
        put_acknowledge_each(&mut body, sequences, 0);
        body
    };
    pool.say(0, kind::ACKNOWLEDGE, &acknowledge(&[3])).unwrap();
    pool.refuse(0, 1, RefusalReason::Full).unwrap();
    assert_eq!((pool.in_flight(0), pool.delivered()), (2, 1));
    let _client = pool.offer();
    let (number, _socket) = pool.offered(0).remove(0);
    assert_eq!(number, 4, "numbers go on after the last that was sent");
    pool.say_again(0, kind::ACKNOWLEDGE, &acknowledge(&[4])).unwrap();
    pool.say(0, kind::ACKNOWLEDGE, &acknowledge(&[2])).unwrap();
    assert_eq!((pool.in_flight(0), pool.delivered()), (0, 3));
}

#[tokio::test]
async fn what_a_router_before_that_one_is_answered_says_the_load_alone() {
    let (mut pool, _offers) = offered(3, &Hello::default());
    let mut body = Vec::new();
    put_acknowledge(&mut body, 3, 7);
    let header = Header::new(kind::ACKNOWLEDGE, 9);
    let message = FromWorker::decode(&header, &body).unwrap();
    pool.core.packet(worker(0), &header, message, &mut Vec::new()).unwrap();
    assert_eq!((pool.in_flight(0), pool.core.slot(0).unwrap().handoff.load()), (3, 10));
}

#[tokio::test]
async fn a_descriptor_that_was_missed_before_a_change_tells_what_stood_behind_it_after() {
    let options = options();
    let mut pool = Pool::ready(1, &options);
    let entries: Vec<_> = (0..3).map(|_| connection()).collect();
    let (_clients, entries): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
    // In one packet.
    entries.into_iter().for_each(|entry| pool.core.offer(entry).unwrap());
    pool.core.flush();
    pool.got(0);
    pool.refuse(0, 1, RefusalReason::MissingDescriptor).unwrap();
    succeed(&mut pool, &options, 2);
    pool.refuse(0, 2, RefusalReason::BehindMissing).unwrap();
    succeed(&mut pool, &options, 3);
    pool.refuse(0, 3, RefusalReason::BehindMissing).unwrap();
    // The first was sent again at once.
    assert_eq!((pool.in_flight(0), pool.core.queued()), (1, 2));
}

#[tokio::test]
async fn offers_are_as_old_as_they_were_however_often_routers_change() {
    let options = options();
    let mut pool = Pool::ready(1, &options);
    let _client = pool.offer();
    let since = |pool: &Pool| pool.core.slot(0).unwrap().handoff.oldest_offer();
    let before = since(&pool);
    assert!(before.is_some());
    for epoch in 2..5 {
        succeed(&mut pool, &options, epoch);
        assert_eq!(since(&pool), before);
        assert!(is_woken(&pool, 0).await, "somebody is to notice that no answer comes");
        assert_eq!(
            pool.core.watch_offers(worker(0)),
            Some(before.unwrap() + options.stuck_timeout)
        );
    }
}

#[tokio::test]
async fn others_get_what_a_dead_worker_was_sent_by_the_router_before() {
    let (mut pool, offers) = offered(2, &Hello::default());
    pool.greet_again(1, &Hello::default()).unwrap();
    pool.got(1);
    let peers: Vec<_> = offers.iter().map(|(_, socket)| socket.peer_addr().unwrap()).collect();
    drop(offers);
    pool.core.ended(worker(0));
    pool.core.gone(worker(0), Exit::Signal(9), None, false);
    pool.core.flush();
    let moved = pool.offered(1);
    let moved: Vec<_> = moved.iter().map(|(_, socket)| socket.peer_addr().unwrap()).collect();
    assert_eq!(moved, peers);
}

#[tokio::test]
async fn who_broke_the_protocol_before_a_change_is_not_believed_after_it() {
    let options = options();
    let mut pool = Pool::ready(2, &options);
    let _client = pool.offer();
    let to = (0..2).find(|slot| pool.in_flight(*slot) == 1).unwrap();
    pool.core.condemn(worker(to), "broke the protocol", true);
    succeed(&mut pool, &options, 2);
    assert!(pool.told().iter().any(|said| matches!(said, FromRouter::Kill { .. })));
    pool.acknowledge(to, 1, 1);
    assert_eq!((pool.in_flight(to), pool.delivered()), (1, 0));
}
