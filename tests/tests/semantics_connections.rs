//! Message semantics, point 19: a connection is not lost by the worker that it was handed to. That no byte
//! of it is either is in `semantics_bytes`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vestibule_protocol::message::RefusalReason;
use vestibule_router::inspect::{PausedConnection, Touched};
use vestibule_router::worker::PostError;
use vestibule_router::{
    Balance, Connection, ConnectionInfo, Exit, Listener, Refused, Undelivered, UndeliveredReason,
    WorkerEvent, WorkerPool,
};
use vestibule_tests::balancing::rendezvous_order;
use vestibule_tests::ledger::{self, Ledger};
use vestibule_tests::{Client, Order, Said, World, hostile, process, run, worker};

/// Clients whose request is on its way, and whose connections were sent to one worker.
fn post_to(world: &World, pool: &WorkerPool, index: usize, count: u64) -> Vec<Client> {
    let mut listener = world.listener();
    let clients = (0..count)
        .map(|number| {
            let (mut client, connection) = world.connect(&mut listener);
            client.ask("/");
            pool[index].post_message(&number, [connection]).unwrap();
            client
        })
        .collect();
    world.catch_up();
    clients
}

/// Every client is answered, in the order of their numbers, by this worker.
fn assert_answered_by(clients: &mut [Client], worker: &str) {
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = client.answer();
        assert_eq!(answer.field("reqno"), number.to_string());
        assert_eq!(answer.field("worker"), worker);
        assert_eq!(answer.field("peer"), client.address().to_string());
        assert_eq!(answer.field("nonblocking"), "true");
    }
}

/// What comes back of a pool after some of its workers ended.
fn after_exits(world: &World, pool: &WorkerPool) -> Undelivered {
    loop {
        match world.wait("the pool has an event", pool.recv()).unwrap() {
            (_, WorkerEvent::Exit(_)) => {}
            (_, event) => return undelivered(Some(event)),
        }
    }
}

fn undelivered(event: Option<WorkerEvent>) -> Undelivered {
    match event {
        Some(WorkerEvent::Undelivered(undelivered)) => undelivered,
        other => panic!("nothing came back: {other:?}"),
    }
}

#[test]
fn point_19_a_connection_not_acknowledged_goes_unread_to_another_worker_of_the_pool() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv"));
        let pid = pool[0].pid().unwrap();
        process::freeze(pid);
        let mut clients = post_to(world, &pool, 0, 20);
        process::signal(pid, rustix::process::Signal::KILL);
        assert_answered_by(&mut clients, "app-2");
        let counters = pool.counters();
        assert_eq!((counters.moved, counters.touched, counters.undelivered), (20, 0, 0));
        let events = world.events(&pool[0]);
        let [WorkerEvent::Exit(exit)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(*exit, Exit::Signal(9));
    });
}

#[test]
fn point_19_more_than_a_window_before_a_dead_worker_goes_to_another() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv").handoff_window(8));
        let pid = pool[0].pid().unwrap();
        process::freeze(pid);
        let mut clients = post_to(world, &pool, 0, 40);
        process::signal(pid, rustix::process::Signal::KILL);
        for client in &mut clients {
            assert_eq!(client.answer().field("worker"), "app-2");
        }
        // Those behind the window were never offered: they did not move, they were placed anew.
        assert_eq!(pool.counters().moved, 8);
    });
}

#[test]
fn point_19_a_worker_that_stands_still_is_killed_after_the_stuck_timeout_and_its_offers_move() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv").stuck_timeout(Duration::from_millis(200)));
        process::freeze(pool[0].pid().unwrap());
        let mut clients = post_to(world, &pool, 0, 5);
        assert_answered_by(&mut clients, "app-2");
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Signal(9))]), "{events:?}");
    });
}

#[test]
fn point_19_a_worker_short_of_descriptors_loses_none_of_a_batch() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv"));
        pool[0].post_message(&Order::Descriptors(3), ()).unwrap();
        assert_eq!(world.said(&pool[0]), Said::Done);
        // All in one packet, so that it arrives with a part of its descriptors.
        let pid = pool[0].pid().unwrap();
        process::freeze(pid);
        let mut clients = post_to(world, &pool, 0, 30);
        process::thaw(pid);
        let by: Vec<String> =
            clients.iter_mut().map(|client| client.answer().field("worker")).collect();
        assert!(by.iter().any(|worker| worker == "app-2"), "it was never short: {by:?}");
        let counters = pool.counters();
        assert_eq!((counters.touched, counters.undelivered), (0, 0));
        assert_eq!(pool[0].pid(), Some(pid), "shortage is no fault");
    });
}

#[test]
fn point_19_a_draining_workers_connections_go_to_another_and_that_is_no_attempt() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv").max_attempts(1));
        let pid = pool[0].pid().unwrap();
        process::freeze(pid);
        pool[0].post_message(&Order::Drain, ()).unwrap();
        let mut clients = post_to(world, &pool, 0, 10);
        process::thaw(pid);
        assert_answered_by(&mut clients, "app-2");
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Code(0))]), "{events:?}");
    });
}

#[test]
fn point_19_a_worker_told_to_drain_finishes_what_it_has_and_gets_nothing_new() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv"));
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        pool[0].post_message(&Order::Echo("open".into()), [connection]).unwrap();
        assert_eq!(world.said(&pool[0]), Said::Echo("open".into(), 1));
        client.ask("/bytes");
        pool[0].drain();
        for _ in 0..4 {
            let (mut client, connection) = world.connect(&mut listener);
            pool.post_message(&1u64, [connection]).unwrap();
            assert_eq!(client.get("/").field("worker"), "app-2");
        }
        client.finish();
        assert_eq!(client.answer().status, 200);
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Code(0))]), "{events:?}");
    });
}

#[test]
fn point_19_refusals_are_followed_to_max_attempts_workers_and_no_further() {
    run(|world| {
        let ledger = Ledger::new();
        let options = hostile!("refuses-full").env(ledger::VARIABLE, ledger.path());
        let pool = world.pool(5, &options);
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        pool.post_message(&1u64, [connection]).unwrap();
        let (_, event) = world.wait("it comes back", pool.recv()).unwrap();
        let undelivered = undelivered(Some(event));
        assert_eq!(undelivered.reason, UndeliveredReason::MaxAttempts);
        assert_eq!(undelivered.reason.as_str(), "max-attempts");
        let mut tried: Vec<String> =
            ledger.of("refused").into_iter().map(|entry| entry.worker).collect();
        tried.sort();
        tried.dedup();
        assert_eq!((ledger.entries().len(), tried.len()), (3, 3), "{tried:?}");
        client.ask("/");
        undelivered.into_connection().unwrap().reject(503);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    });
}

#[test]
fn point_19_under_affinity_refusals_are_followed_in_rendezvous_order_to_each_worker_once() {
    run(|world| {
        let ledger = Ledger::new();
        let options = hostile!("refuses-full").balance(Balance::HashPeerIp);
        let pool = world.pool(4, &options.env(ledger::VARIABLE, ledger.path()));
        let mut listener = world.listener();
        let address = Ipv4Addr::new(127, 0, 0, 7);
        let (_client, connection) = connect_from(world, &mut listener, address);
        pool.post_message(&1u64, [connection]).unwrap();
        let (_, event) = world.wait("it comes back", pool.recv()).unwrap();
        assert_eq!(undelivered(Some(event)).reason, UndeliveredReason::MaxAttempts);
        let tried: Vec<String> =
            ledger.of("refused").into_iter().map(|entry| entry.worker).collect();
        assert_eq!(tried, rendezvous_order(&address.octets(), 4)[..3]);
    });
}

#[test]
fn point_19_deaths_are_followed_to_max_attempts_workers_and_no_further() {
    run(|world| {
        let ledger = Ledger::new();
        let options = hostile!("dies").max_attempts(2).env(ledger::VARIABLE, ledger.path());
        let pool = world.pool(5, &options);
        let mut listener = world.listener();
        let (_client, connection) = world.connect(&mut listener);
        pool.post_message(&1u64, [connection]).unwrap();
        let undelivered = after_exits(world, &pool);
        assert_eq!(undelivered.reason, UndeliveredReason::MaxAttempts);
        assert_eq!(ledger.of("died").len(), 2);
        assert_eq!(pool.iter().filter(|worker| worker.is_ready()).count(), 3);
    });
}

#[test]
fn point_19_a_worker_alone_gives_its_connections_back_and_they_can_be_posted_to_another() {
    run(|world| {
        let alone = world.worker(&worker!("recv").pool("alone"));
        let other = world.worker(&worker!("recv").pool("other"));
        let pid = alone.pid().unwrap();
        process::freeze(pid);
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        client.ask("/");
        alone.post_message(&11u64, [connection]).unwrap();
        process::signal(pid, rustix::process::Signal::KILL);
        let undelivered = world.undelivered(&alone);
        assert_eq!(undelivered.reason, UndeliveredReason::WorkerGone);
        assert_eq!(undelivered.message.decode::<u64>().unwrap(), 11);
        let connection = undelivered.into_connection().unwrap();
        assert_eq!(connection.touched(), Touched::No);
        assert_eq!(connection.peer_addr(), Some(client.address()));
        other.post_message(&12u64, [connection]).unwrap();
        let answer = client.answer();
        assert_eq!(answer.field("worker"), "other-1");
        assert_eq!(answer.field("reqno"), "12");
    });
}

#[test]
fn point_19_a_connection_never_crosses_to_another_pool() {
    run(|world| {
        let one = world.pool(2, &hostile!("dies").pool("one"));
        let two = world.pool(1, &worker!("recv").pool("two"));
        let mut listener = world.listener();
        let (_client, connection) = world.connect(&mut listener);
        one.post_message(&1u64, [connection]).unwrap();
        let undelivered = after_exits(world, &one);
        assert_eq!(undelivered.reason, UndeliveredReason::WorkerGone);
        assert_eq!(two.counters().delivered, 0);
        assert_eq!(two[0].connections(), 0);
    });
}

fn connect_from(world: &World, listener: &mut Listener, address: Ipv4Addr) -> (Client, Connection) {
    let client = Client::connect_from(IpAddr::V4(address), listener.local_addr().unwrap());
    let connection = world.accept(listener);
    assert_eq!(connection.peer_addr(), Some(client.address()));
    (client, connection)
}

#[test]
fn point_19_under_affinity_the_next_in_rendezvous_order_gets_it() {
    run(|world| {
        let pool = world.pool(4, &worker!("recv").balance(Balance::HashPeerIp));
        let mut listener = world.listener();
        for last in 1..=12 {
            let address = Ipv4Addr::new(127, 0, 0, last);
            let (mut client, connection) = connect_from(world, &mut listener, address);
            pool.post_message(&0u64, [connection]).unwrap();
            assert_eq!(client.get("/").field("worker"), rendezvous_order(&address.octets(), 4)[0]);
        }
        // The first choice of this address dies with its connections unread.
        let address = Ipv4Addr::new(127, 0, 0, 1);
        let order = rendezvous_order(&address.octets(), 4);
        let first = pool.iter().find(|worker| worker.name() == order[0]).unwrap();
        process::freeze(first.pid().unwrap());
        let mut clients: Vec<Client> = (0..5u64)
            .map(|number| {
                let (mut client, connection) = connect_from(world, &mut listener, address);
                client.ask("/");
                pool.post_message(&number, [connection]).unwrap();
                client
            })
            .collect();
        process::signal(first.pid().unwrap(), rustix::process::Signal::KILL);
        assert_answered_by(&mut clients, &order[1]);
    });
}

/// A connection over a Unix socket, of which nobody can prove that it is unread.
fn unix_connection() -> (UnixStream, Connection) {
    let (client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    client.set_read_timeout(Some(vestibule_tests::DEADLINE)).unwrap();
    let info = ConnectionInfo {
        id: 1,
        peer: None,
        peer_credentials: None,
        destination: None,
        listener: "unix".into(),
        route: "default".into(),
        peer_context: None,
        accepted: 0,
        ..ConnectionInfo::default()
    };
    (client, Connection::new(PausedConnection::new(server.into()), info))
}

#[test]
fn point_19_a_unix_connection_moves_after_a_refusal() {
    run(|world| {
        let pool = world.pool(2, &hostile!("refuses-full").env("TEST_HOSTILE", "1"));
        let (mut client, connection) = unix_connection();
        pool[0].post_message(&5u64, [connection]).unwrap();
        use std::io::{Read, Write};
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let length = client.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.contains("worker=app-2") && answer.contains("reqno=5"), "{answer}");
    });
}

#[test]
fn point_19_a_unix_connection_does_not_move_after_a_death() {
    run(|world| {
        let pool = world.pool(2, &hostile!("dies").env("TEST_HOSTILE", "1"));
        let (mut client, connection) = unix_connection();
        pool[0].post_message(&5u64, [connection]).unwrap();
        let undelivered = world.undelivered(&pool[0]);
        assert_eq!(undelivered.reason, UndeliveredReason::Touched);
        assert!(undelivered.transfer.is_empty());
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut client, &mut rest).unwrap();
        assert!(rest.is_empty(), "{rest:?}");
        assert_eq!(pool.counters().moved, 0);
    });
}

#[test]
fn point_19_what_a_worker_does_not_take_at_all_comes_back_without_trying_others() {
    run(|world| {
        let ledger = Ledger::new();
        let options = hostile!("refuses-unsupported").env(ledger::VARIABLE, ledger.path());
        let pool = world.pool(3, &options);
        let mut listener = world.listener();
        let (_client, connection) = world.connect(&mut listener);
        pool.post_message(&1u64, [connection]).unwrap();
        let (_, event) = world.wait("it comes back", pool.recv()).unwrap();
        let reason = UndeliveredReason::Refused(RefusalReason::Unsupported);
        assert_eq!(undelivered(Some(event)).reason, reason);
        assert_eq!(ledger.entries().len(), 1);
    });
}

#[test]
fn point_19_connections_wait_for_a_free_worker_within_the_queues_bounds() {
    run(|world| {
        let options = worker!("recv").max_connections(1).queue(2, vestibule_tests::DEADLINE);
        let pool = world.pool(1, &options);
        let mut listener = world.listener();
        let mut post = |number: u64| {
            let (mut client, connection) = world.connect(&mut listener);
            client.ask("/");
            (client, pool.post_message(&number, [connection]))
        };
        let (mut first, posted) = post(0);
        posted.unwrap();
        assert_eq!(first.answer().field("reqno"), "0");
        let (mut second, posted) = post(1);
        posted.unwrap();
        let (mut third, posted) = post(2);
        posted.unwrap();
        assert_eq!(pool.queued(), 2);
        let (mut fourth, posted) = post(3);
        let error = posted.unwrap_err();
        assert!(matches!(error.reason, PostError::Refused(Refused::QueueFull)), "{error:?}");
        error.into_connection().reject(503);
        assert_eq!(fourth.answer().status, 503);
        // One after the other gets its turn when the one before leaves.
        drop(first);
        assert_eq!(second.answer().field("reqno"), "1");
        drop(second);
        assert_eq!(third.answer().field("reqno"), "2");
        assert_eq!(pool.queued(), 0);
    });
}

#[test]
fn point_19_who_waits_too_long_for_a_free_worker_comes_back() {
    run(|world| {
        let options = worker!("recv").max_connections(1).queue(8, Duration::from_millis(100));
        let pool = world.pool(1, &options);
        let mut listener = world.listener();
        let (mut busy, connection) = world.connect(&mut listener);
        pool.post_message(&0u64, [connection]).unwrap();
        assert_eq!(busy.get("/").field("reqno"), "0");
        let (mut late, connection) = world.connect(&mut listener);
        late.ask("/");
        pool.post_message(&1u64, [connection]).unwrap();
        let (_, event) = world.wait("it comes back", pool.recv()).unwrap();
        let undelivered = undelivered(Some(event));
        assert_eq!(undelivered.reason, UndeliveredReason::QueueTimeout);
        undelivered.into_connection().unwrap().reject(503);
        assert_eq!(late.answer().status, 503);
    });
}
