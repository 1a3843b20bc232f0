//! What a worker does not take.

use std::time::Duration;

use super::*;

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
async fn what_comes_back_waits_in_a_queue_that_is_full() {
    for dies in [false, true] {
        let mut pool =
            Pool::ready(2, &options().handoff_window(1).queue(1, Duration::from_secs(60)));
        let _clients = [pool.offer(), pool.offer(), pool.offer()];
        let (_fourth, entry) = connection();
        assert_eq!(pool.core.offer(entry).unwrap_err().0, Refused::QueueFull);
        let (number, socket) = pool.offered(0).remove(0);
        drop(socket);
        if dies {
            pool.core.gone(worker(0), Exit::Signal(9), None, false);
            pool.core.ended(worker(0));
        } else {
            pool.refuse(0, number, RefusalReason::Draining).unwrap();
        }
        assert_eq!(pool.core.queued(), 2, "dies: {dies}");
        let event = pool.core.next_event(None);
        assert!(!matches!(event, Some((_, WorkerEvent::Undelivered(_)))), "{event:?}");
        let mut served = 0;
        while let [(number, _)] = &*pool.offered(1) {
            pool.acknowledge(1, *number, 0);
            served += 1;
        }
        assert_eq!(served, 3, "dies: {dies}");
    }
}

#[tokio::test]
async fn what_a_worker_that_leaves_was_not_sent_yet_comes_back_as_if_it_had_refused_it() {
    for (word, reason) in
        [(kind::DRAINING, RefusalReason::Draining), (kind::CLOSING, RefusalReason::Closing)]
    {
        let mut pool = Pool::ready(1, &options().handoff_window(1));
        (0..2).for_each(|_| pool.core.post(0, list()).unwrap());
        pool.core.flush();
        // The first one is on its way, and the worker's answer to it as well.
        pool.say(0, word, &[]).unwrap();
        assert_eq!(pool.undelivered().reason, UndeliveredReason::Refused(reason));
        pool.refuse(0, 1, reason).unwrap();
        assert_eq!(pool.undelivered().reason, UndeliveredReason::Refused(reason));
    }
}
