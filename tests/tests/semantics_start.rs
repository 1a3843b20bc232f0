//! Message semantics, points 1 to 3: how a worker starts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use vestibule_router::{
    Exit, Transferable, Undelivered, UndeliveredReason, Worker, WorkerError, WorkerEvent,
    WorkerOptions, WorkerPool,
};
use vestibule_tests::files::Folder;
use vestibule_tests::world::options;
use vestibule_tests::{Client, Gate, Order, Said, World, hostile, run, worker};

#[test]
fn point_01_creating_a_worker_returns_at_once_and_its_name_can_be_read_inside_it() {
    run(|world| {
        let gate = Gate::new();
        let options = worker!("recv").pool("hall").env("TEST_GATE", gate.path());
        // Returns, though the process gets no further than the gate.
        let worker = Worker::spawn(&options).unwrap();
        assert_eq!((worker.name(), worker.is_ready()), ("hall-1", false));
        gate.open();
        worker.post_message(&Order::Name, ()).unwrap();
        assert_eq!(world.said(&worker), Said::Name("hall-1".into(), "hall".into()));
        assert!(worker.is_ready());
    });
}

#[test]
fn point_02_what_is_posted_before_the_worker_runs_is_delivered_in_order_with_its_descriptors() {
    run(|world| {
        let gate = Gate::new();
        let mut listener = world.listener();
        let worker = Worker::spawn(&worker!("recv").env("TEST_GATE", gate.path())).unwrap();
        let mut pipes = Vec::new();
        for number in 0..200 {
            let (reader, writer) = std::io::pipe().unwrap();
            let writer = OwnedFd::from(writer);
            worker
                .post_message(&Order::Echo(number.to_string()), [Transferable::from(writer)])
                .unwrap();
            pipes.push(reader);
        }
        let (mut client, connection) = world.connect(&mut listener);
        worker.post_message(&Order::Echo("connection".into()), [connection]).unwrap();
        gate.open();
        for (number, mut pipe) in pipes.into_iter().enumerate() {
            assert_eq!(world.said(&worker), Said::Echo(number.to_string(), 1));
            let mut written = String::new();
            pipe.read_to_string(&mut written).unwrap();
            assert_eq!(written, "0", "the descriptor came with its message");
        }
        assert_eq!(world.said(&worker), Said::Echo("connection".into(), 1));
        assert_eq!(client.get("/").status, 200);
    });
}

/// Starts a worker with a message and a connection already posted, before anything of it runs.
fn post_early(world: &World, options: &WorkerOptions) -> (Worker, Client) {
    let mut listener = world.listener();
    let (client, connection) = world.connect(&mut listener);
    let worker = world.still(|| {
        let worker = Worker::spawn(options).unwrap();
        worker.post_message(&Order::Echo("early".into()), ()).unwrap();
        worker.post_message(&7u64, [connection]).unwrap();
        worker
    });
    (worker, client)
}

/// Both come back as they were, in their order, and the connection still works with another worker.
fn assert_came_back(world: &World, events: [WorkerEvent; 2], mut client: Client) {
    let [first, second] = events.map(|event| match event {
        WorkerEvent::Undelivered(undelivered) => undelivered,
        other => panic!("did not come back: {other:?}"),
    });
    assert_eq!(first.reason, UndeliveredReason::WorkerGone);
    assert_eq!(first.message.decode::<Order>().unwrap(), Order::Echo("early".into()));
    let Undelivered { message, reason, .. } = &second;
    assert_eq!((message.decode::<u64>().unwrap(), *reason), (7, UndeliveredReason::WorkerGone));
    let other = world.worker(&worker!("recv"));
    other.post_message(&8u64, [second.into_connection().unwrap()]).unwrap();
    assert_eq!(client.get("/").field("reqno"), "8");
}

#[test]
fn point_03_a_missing_program_gives_one_error_that_names_it_and_gives_back_what_was_queued() {
    run(|world| {
        let (worker, client) = post_early(world, &options("/no/such/worker"));
        let [error, first, second] = world.events(&worker).try_into().unwrap();
        let WorkerEvent::Error(WorkerError::NotStarted(reason)) = error else {
            panic!("{error:?}")
        };
        assert!(reason.contains("/no/such/worker does not exist"), "{reason}");
        assert_came_back(world, [first, second], client);
    });
}

#[test]
fn point_03_a_program_without_permission_gives_one_error_that_says_so() {
    run(|world| {
        let folder = Folder::new();
        let program = folder.write("worker", "#!/bin/sh\n", 0o644);
        let (worker, client) = post_early(world, &options(&program));
        let [error, first, second] = world.events(&worker).try_into().unwrap();
        let WorkerEvent::Error(WorkerError::NotStarted(reason)) = error else {
            panic!("{error:?}")
        };
        assert!(reason.contains("worker is not executable"), "{reason}");
        assert_came_back(world, [first, second], client);
    });
}

#[test]
fn point_03_a_worker_that_exits_before_it_is_ready_gives_one_error_with_its_code() {
    run(|world| {
        let (worker, client) = post_early(world, &worker!("exit"));
        let [error, first, second, exit] = world.events(&worker).try_into().unwrap();
        let WorkerEvent::Error(error) = error else { panic!("{error:?}") };
        assert_eq!(error, WorkerError::EndedBeforeReady(Exit::Code(7)));
        assert!(matches!(exit, WorkerEvent::Exit(Exit::Code(7))), "{exit:?}");
        assert_came_back(world, [first, second], client);
    });
}

#[test]
fn point_03_a_worker_that_is_ready_too_late_gives_one_error_with_the_time_it_had() {
    run(|world| {
        let options = hostile!("never-greets").start_timeout(Duration::from_millis(200));
        let (worker, client) = post_early(world, &options);
        let [error, first, second, exit] = world.events(&worker).try_into().unwrap();
        let WorkerEvent::Error(error) = error else { panic!("{error:?}") };
        assert_eq!(error, WorkerError::NotReady("was not ready within 200ms".into()));
        assert!(matches!(exit, WorkerEvent::Exit(Exit::Signal(9))), "{exit:?}");
        assert_came_back(world, [first, second], client);
    });
}

#[test]
fn point_03_a_pool_of_which_one_worker_does_not_start_is_no_pool_and_leaves_nothing() {
    run(|world| {
        let options = worker!("exit");
        let spawn = WorkerPool::spawn(3, &options);
        let error = world.wait("the pool gives up", spawn).unwrap_err();
        assert_eq!(error.to_string(), "app-1: worker ended before it was ready: exit code 7");
    });
}
