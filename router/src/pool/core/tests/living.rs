//! Workers that start, hang, drain and end.

use std::time::{Duration, Instant};

use super::*;

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
    assert_eq!(pool.undelivered().reason, UndeliveredReason::Refused(RefusalReason::Draining));
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
        pool.core.packet(worker(0), &header, FromWorker::Message(&large), &mut Vec::new()).unwrap();
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
    pool.core.packet(worker(0), &header, FromWorker::Message(&large), &mut Vec::new()).unwrap();
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
