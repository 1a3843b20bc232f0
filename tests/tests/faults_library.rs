//! Workers that fail in ways that no event announces: each is noticed, ended, and its work goes on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use vestibule_protocol::message::RefusalReason;
use vestibule_router::{
    Exit, Restart, UndeliveredReason, Worker, WorkerEvent, WorkerOptions, WorkerPool,
};
use vestibule_tests::world::options;
use vestibule_tests::{Order, World, hostile, process, run, worker};

/// Long enough for an answer that comes, short enough to be waited for.
const STUCK: Duration = Duration::from_millis(300);

/// One worker of a pool breaks the rules, the other keeps them.
fn mixed(behaviour: &str) -> WorkerOptions {
    hostile!(behaviour).env("TEST_HOSTILE", "1")
}

/// A connection that is posted to the first of two workers is served by the second, and the first is
/// killed.
fn assert_killed_and_its_connection_moved(world: &World, options: &WorkerOptions) {
    let pool = world.pool(2, options);
    let mut listener = world.listener();
    let (mut client, connection) = world.connect(&mut listener);
    pool[0].post_message(&1u64, [connection]).unwrap();
    assert_eq!(client.get("/").field("worker"), "app-2");
    loop {
        match world.event(&pool[0]) {
            Some(WorkerEvent::Exit(exit)) => return assert_eq!(exit, Exit::Signal(9)),
            Some(WorkerEvent::Message(_)) => {}
            other => panic!("not killed: {other:?}"),
        }
    }
}

#[test]
fn a_worker_that_hangs_while_nothing_happens_is_killed_after_its_next_offer() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv").stuck_timeout(STUCK));
        let mut listener = world.listener();
        process::freeze(pool[0].pid().unwrap());
        let (mut client, connection) = world.connect(&mut listener);
        pool[0].post_message(&1u64, [connection]).unwrap();
        assert_eq!(client.get("/").field("worker"), "app-2");
        assert!(matches!(world.event(&pool[0]), Some(WorkerEvent::Exit(Exit::Signal(9)))));
    });
}

#[test]
fn a_worker_that_floods_is_held_to_its_bounds_all_the_same() {
    run(|world| {
        assert_killed_and_its_connection_moved(world, &mixed("floods").stuck_timeout(STUCK));
    });
}

#[test]
fn a_worker_that_reads_nothing_more_is_killed() {
    run(|world| assert_killed_and_its_connection_moved(world, &mixed("deaf")));
}

#[test]
fn a_worker_that_refuses_everything_as_lost_with_another_is_killed() {
    run(|world| assert_killed_and_its_connection_moved(world, &mixed("refuses-behind-missing")));
}

#[test]
fn a_worker_that_drains_from_the_start_gives_back_what_waited_for_it_and_is_ended() {
    run(|world| {
        let worker = Worker::spawn(&hostile!("greets-draining").drain_timeout(STUCK)).unwrap();
        worker.post_message(&Order::Name, ()).unwrap();
        let reason = UndeliveredReason::Refused(RefusalReason::Draining);
        assert_eq!(world.undelivered(&worker).reason, reason);
        let ended = world.event(&worker);
        assert!(matches!(ended, Some(WorkerEvent::Exit(Exit::Signal(15)))), "{ended:?}");
    });
}

#[test]
fn a_pool_of_a_missing_program_is_an_error_though_it_would_be_tried_again() {
    run(|world| {
        let options = options("/no/such/worker").restart(Restart::default());
        let error = world.wait("it gives up", WorkerPool::spawn(2, &options)).unwrap_err();
        assert!(error.to_string().contains("/no/such/worker does not exist"), "{error}");
    });
}

#[test]
fn a_kill_is_not_put_off_by_a_drain() {
    run(|world| {
        let worker = world.worker(&options(env!("CARGO_BIN_EXE_test-worker")).arg("recv"));
        process::freeze(worker.pid().unwrap());
        worker.kill();
        worker.finish();
        worker.terminate();
        let ended = world.event(&worker);
        assert!(matches!(ended, Some(WorkerEvent::Exit(Exit::Signal(9)))), "{ended:?}");
    });
}
