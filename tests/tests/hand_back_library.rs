//! Handing back in the library: semantics, points 22 to 24, with workers of which some are hostile.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use vestibule_router::{Exit, HandedBack, Worker, WorkerEvent};
use vestibule_tests::world::until;
use vestibule_tests::{Client, World, hostile, run, worker};

/// The next event of a worker, which is a connection that it hands back.
fn handed_back(world: &World, worker: &Worker) -> HandedBack {
    match world.event(worker) {
        Some(WorkerEvent::HandedBack(back)) => *back,
        other => panic!("nothing was handed back: {other:?}"),
    }
}

/// A client that has asked a worker for this.
fn asked(world: &World, worker: &Worker, path: &str) -> Client {
    let mut listener = world.listener();
    let (mut client, connection) = world.connect(&mut listener);
    client.ask(path);
    until("the request has arrived", || rustix::io::ioctl_fionread(&connection).unwrap() > 0);
    worker.post_message(&1u64, [connection]).unwrap();
    client
}

const REQUEST: &[u8] = b"GET /next HTTP/1.1\r\nhost: test\r\n\r\n";

#[test]
fn point_24_the_next_worker_reads_what_was_read_and_not_answered() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv"));
        let mut client = asked(world, &pool[0], "/next");
        let HandedBack { connection, message, to } = handed_back(world, &pool[0]);
        assert_eq!((connection.prefix(), to), (REQUEST, None));
        assert!(message.is_empty());
        assert_eq!(connection.info().handed_back_by.as_deref().map(|by| &**by), Some("app-1"));
        assert_eq!(connection.touched(), vestibule_router::inspect::Touched::No);
        pool[1].post_message(&7u64, [connection]).unwrap();
        let answer = client.answer();
        let field = |name| answer.field(name);
        assert_eq!(
            (field("worker"), field("by"), field("reqno")),
            ("app-2".to_owned(), "app-1".to_owned(), "7".to_owned(),)
        );
        assert_eq!(pool.counters().handed_back, 1);
    });
}

#[test]
fn point_24_a_connection_that_is_posted_nowhere_is_answered_by_its_form() {
    run(|world| {
        let pool = world.pool(1, &worker!("recv"));
        let mut client = asked(world, &pool[0], "/next");
        handed_back(world, &pool[0]).connection.reject(503);
        assert_eq!(client.answer().status, 503);
        let mut client = asked(world, &pool[0], "/next");
        drop(handed_back(world, &pool[0]));
        assert_eq!(client.end().0, b"");
    });
}

#[test]
fn point_24_the_next_workers_death_moves_it_with_what_was_read() {
    run(|world| {
        let hands = world.worker(&worker!("recv").pool("first"));
        let pool = world.pool(2, &hostile!("dies-of-what-was-read").env("TEST_HOSTILE", "1"));
        let mut client = asked(world, &hands, "/next");
        let back = handed_back(world, &hands);
        pool[0].post_message(&1u64, [back.connection]).unwrap();
        let answer = client.answer();
        assert_eq!(
            (answer.field("worker"), answer.field("by")),
            ("app-2".into(), "first-1".into())
        );
        let counters = pool.counters();
        assert_eq!((counters.moved, counters.touched), (1, 0));
        drop(pool);
    });
}

#[test]
fn point_24_a_worker_that_cannot_read_it_is_not_given_it() {
    run(|world| {
        let hands = world.worker(&worker!("recv").pool("first"));
        let deaf = world.worker(&hostile!("holds").env("TEST_WITHOUT_ABILITIES", "1").pool("old"));
        let mut client = asked(world, &hands, "/next");
        let back = handed_back(world, &hands);
        deaf.post_message(&1u64, [back.connection]).unwrap();
        let undelivered = world.undelivered(&deaf);
        // It is as it was: another may have it.
        let connection = undelivered.into_connection().unwrap();
        assert_eq!(connection.prefix(), REQUEST);
        let other = world.worker(&worker!("recv").pool("other"));
        other.post_message(&1u64, [connection]).unwrap();
        assert_eq!(client.answer().field("worker"), "other-1");
    });
}

/// It is killed, what it sent is closed, and nothing comes back from it.
fn assert_killed(what: &str) {
    run(|world| {
        let pool = world.pool(1, &hostile!("hands-back", what));
        let mut client = asked(world, &pool[0], "/");
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Signal(9))]), "{events:?}");
        let counters = pool.counters();
        assert_eq!(
            (counters.faults, counters.discarded, counters.handed_back),
            (1, 1, 0),
            "{what}"
        );
        // The connection died with the worker that had it.
        assert_eq!(client.end().0, b"");
    });
}

#[test]
fn point_22_who_hands_back_what_it_was_never_given_is_killed() {
    for what in [
        "a-fresh-socket",
        "a-listening-socket",
        "a-unix-socket",
        "a-unix-listener",
        "a-file",
        "a-pipe",
        "its-own-port",
    ] {
        assert_killed(what);
    }
}

#[test]
fn point_22_who_hands_a_connection_back_as_another_is_killed() {
    for what in [
        "without-a-ticket",
        "another-peer",
        "another-listener",
        "another-number",
        "a-proxied-name",
        "fewer-hops",
    ] {
        assert_killed(what);
    }
}

/// What a ticket does not prove is asked of the kernel, or is the router's own to say: a rule by user
/// or context cannot be passed by a lie.
#[test]
fn point_22_what_a_worker_says_of_its_clients_user_and_context_is_not_believed() {
    run(|world| {
        let pool = world.pool(1, &hostile!("hands-back", "what-is-not-believed"));
        let _client = asked(world, &pool[0], "/");
        let back = handed_back(world, &pool[0]);
        let info = back.connection.info();
        assert_eq!((info.peer_credentials, &info.peer_context), (None, &None));
        assert_eq!(info.scope, None);
        assert_eq!(info.handed_back_by.as_deref().map(|by| &**by), Some("app-1"));
    });
}

#[test]
fn point_23_who_hands_back_more_than_it_was_given_is_killed() {
    run(|world| {
        let pool = world.pool(1, &hostile!("hands-back", "one-too-many"));
        let mut client = asked(world, &pool[0], "/");
        let back = handed_back(world, &pool[0]);
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Signal(9))]), "{events:?}");
        let counters = pool.counters();
        assert_eq!((counters.faults, counters.discarded, counters.handed_back), (1, 1, 1));
        back.connection.reject(503);
        assert_eq!(client.answer().status, 503);
    });
}
