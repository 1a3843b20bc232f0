//! Message semantics, points 14 to 18: how a worker ends, and what it says when something goes wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use vestibule_router::worker::PostError;
use vestibule_router::{
    Exit, Refused, Restart, UndeliveredReason, Worker, WorkerError, WorkerEvent, WorkerOptions,
};
use vestibule_tests::world::until;
use vestibule_tests::{Client, Ended, Gate, Order, Said, World, hostile, process, run, worker};

const AT_ONCE: Duration = Duration::ZERO;

/// Fails unless the exit is the last event, and the only one of its kind.
fn assert_exit_last(events: &[WorkerEvent], expected: Exit) {
    let exits = events.iter().filter(|event| matches!(event, WorkerEvent::Exit(_))).count();
    assert_eq!(exits, 1, "{events:?}");
    let Some(WorkerEvent::Exit(exit)) = events.last() else { panic!("not last: {events:?}") };
    assert_eq!(*exit, expected);
}

#[test]
fn point_14_close_in_the_worker_finishes_what_runs_and_gives_the_rest_to_another() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv"));
        let mut listener = world.listener();
        // A handler that runs: it answers when its client has said all.
        let (mut running, connection) = world.connect(&mut listener);
        pool[0].post_message(&Order::Echo("running".into()), [connection]).unwrap();
        assert_eq!(world.said(&pool[0]), Said::Echo("running".into(), 1));
        running.ask("/bytes");
        // Behind close() in the queue: connections and a message.
        let pid = pool[0].pid().unwrap();
        process::freeze(pid);
        pool[0].post_message(&Order::Close, ()).unwrap();
        let mut clients: Vec<Client> = (0..5)
            .map(|number: u64| {
                let (client, connection) = world.connect(&mut listener);
                pool[0].post_message(&number, [connection]).unwrap();
                client
            })
            .collect();
        pool[0].post_message(&Order::Echo("behind".into()), ()).unwrap();
        process::thaw(pid);
        for (number, client) in clients.iter_mut().enumerate() {
            let answer = client.get("/");
            assert_eq!(answer.field("worker"), "app-2");
            assert_eq!(answer.field("reqno"), number.to_string());
        }
        assert!(!process::is_gone(pid), "it did not wait for its handler");
        running.send(b"the rest");
        running.finish();
        assert!(running.answer().text().ends_with("the rest"));
        let events = world.events(&pool[0]);
        let [WorkerEvent::Undelivered(undelivered), WorkerEvent::Exit(exit)] = events.as_slice()
        else {
            panic!("{events:?}")
        };
        assert!(matches!(undelivered.reason, UndeliveredReason::Refused(_)), "{undelivered:?}");
        let message: Order = undelivered.message.decode().unwrap();
        assert_eq!((message, *exit), (Order::Echo("behind".into()), Exit::Code(0)));
        let error = pool[0].post_message(&Order::Name, ()).unwrap_err();
        assert!(matches!(error.reason, PostError::Refused(Refused::Closed)), "{error:?}");
    });
}

#[test]
fn point_15_after_terminate_nothing_is_delivered_from_that_worker_and_no_error_raised() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        worker.post_message(&Order::Flood, ()).unwrap();
        assert!(matches!(world.said(&worker), Said::Flood(_)));
        // It also panics while it is told to end, and messages of it wait to be fetched.
        worker.post_message(&Order::Panic("late".into()), ()).unwrap();
        worker.terminate();
        let events = world.events(&worker);
        assert!(
            events
                .iter()
                .all(|event| matches!(event, WorkerEvent::Undelivered(_) | WorkerEvent::Exit(_))),
            "{events:?}"
        );
        assert_exit_last(&events, Exit::Code(0));
    });
}

/// A worker whose processor is busy for ever.
fn looping(world: &World, options: &WorkerOptions) -> Worker {
    let worker = world.worker(options);
    worker.post_message(&Order::Loop, ()).unwrap();
    assert_eq!(world.said(&worker), Said::Done);
    worker
}

#[test]
fn point_16_terminate_ends_a_worker_that_listens_with_a_message_and_no_signal() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        worker.terminate();
        assert_exit_last(&world.events(&worker), Exit::Code(0));
    });
}

#[test]
fn point_16_terminate_ends_a_worker_that_loops_for_ever_with_sigterm() {
    run(|world| {
        let options = worker!("recv").stop_timeouts(AT_ONCE, vestibule_tests::DEADLINE);
        let worker = looping(world, &options);
        worker.terminate();
        assert_exit_last(&world.events(&worker), Exit::Signal(15));
    });
}

#[test]
fn point_16_terminate_ends_a_worker_that_ignores_sigterm_with_sigkill() {
    run(|world| {
        let options = worker!("recv").env("TEST_STUBBORN", "1").stop_timeouts(AT_ONCE, AT_ONCE);
        let worker = looping(world, &options);
        worker.terminate();
        assert_exit_last(&world.events(&worker), Exit::Signal(9));
    });
}

#[test]
fn point_17_terminate_before_the_process_is_started_and_many_times_gives_one_exit_at_the_end() {
    run(|world| {
        let worker = world.still(|| {
            let worker = Worker::spawn(&worker!("recv")).unwrap();
            worker.post_message(&Order::Echo("early".into()), ()).unwrap();
            for _ in 0..3 {
                worker.terminate();
            }
            worker
        });
        let events = world.events(&worker);
        let [WorkerEvent::Undelivered(_), WorkerEvent::Exit(_)] = events.as_slice() else {
            panic!("{events:?}")
        };
        worker.terminate();
        assert!(world.event(&worker).is_none());
    });
}

#[test]
fn point_17_terminate_while_it_starts_gives_one_exit() {
    run(|world| {
        let gate = Gate::new();
        let options = worker!("recv").env("TEST_GATE", gate.path());
        let worker = Worker::spawn(&options.stop_timeouts(AT_ONCE, AT_ONCE)).unwrap();
        until("its process runs", || worker.pid().is_some());
        worker.terminate();
        worker.terminate();
        let events = world.events(&worker);
        assert_eq!(events.len(), 1, "{events:?}");
        assert!(matches!(events[0], WorkerEvent::Exit(Exit::Signal(9 | 15))), "{events:?}");
    });
}

#[test]
fn point_17_terminate_while_it_drains_and_after_its_exit_is_fine() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        worker.post_message(&1u64, [connection]).unwrap();
        assert_eq!(client.get("/").status, 200);
        // Its client stays, so it drains until it is terminated.
        worker.drain();
        until("it takes nothing new", || !worker.is_ready());
        worker.terminate();
        worker.terminate();
        assert_exit_last(&world.events(&worker), Exit::Code(0));
        worker.terminate();
        assert!(world.event(&worker).is_none());
        assert_eq!(client.end().1, Ended::Closed);
    });
}

#[test]
fn point_17_the_exit_event_comes_once_and_last_however_the_process_ends() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        worker.post_message(&Order::Echo("before".into()), ()).unwrap();
        worker.post_message(&Order::Exit(3), ()).unwrap();
        worker.post_message(&Order::Echo("after".into()), ()).unwrap();
        let events = world.events(&worker);
        assert_exit_last(&events, Exit::Code(3));
        assert!(matches!(events[0], WorkerEvent::Message(_)), "{events:?}");

        let worker = world.worker(&worker!("recv"));
        process::signal(worker.pid().unwrap(), rustix::process::Signal::USR1);
        assert_exit_last(&world.events(&worker), Exit::Signal(10));

        let worker = world.worker(&hostile!("dies"));
        worker.post_message(&Order::Name, ()).unwrap();
        worker.kill();
        assert_exit_last(&world.events(&worker), Exit::Signal(9));
    });
}

#[test]
fn point_17_each_process_of_a_slot_has_one_exit() {
    run(|world| {
        let restart = Restart { delay: AT_ONCE, max_delay: AT_ONCE, attempts: None };
        let worker = world.worker(&worker!("recv").restart(restart));
        for code in 1..=3 {
            world.wait("the next process is ready", worker.ready()).unwrap();
            worker.post_message(&Order::Exit(code), ()).unwrap();
            match world.event(&worker) {
                Some(WorkerEvent::Exit(exit)) => assert_eq!(exit, Exit::Code(code)),
                other => panic!("{other:?}"),
            }
        }
        worker.terminate();
        let events = world.events(&worker);
        assert!(events.len() <= 1, "{events:?}");
    });
}

#[test]
fn point_18_a_panic_is_an_error_event_with_its_place_and_the_worker_goes_on() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let pid = worker.pid();
        worker.post_message(&Order::Panic("no such tenant".into()), ()).unwrap();
        let Some(WorkerEvent::Error(WorkerError::Reported(report))) = world.event(&worker) else {
            panic!("no error event")
        };
        assert_eq!(report.message, "no such tenant");
        assert!(report.file.ends_with("obey.rs"), "{report:?}");
        assert!(report.line > 0 && report.column > 0, "{report:?}");
        worker.post_message(&Order::Echo("goes on".into()), ()).unwrap();
        assert_eq!(world.said(&worker), Said::Echo("goes on".into(), 0));
        assert_eq!(worker.pid(), pid);
    });
}

#[test]
fn point_18_a_panic_in_an_http_handler_costs_that_connection_only() {
    run(|world| {
        let worker = world.worker(&worker!("serve"));
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        worker.post_message(&1u64, [connection]).unwrap();
        client.ask("/panic");
        assert_eq!(client.end(), (Vec::new(), Ended::Closed));
        let Some(WorkerEvent::Error(WorkerError::Reported(report))) = world.event(&worker) else {
            panic!("no error event")
        };
        assert_eq!(report.message, "asked for by a client");
        let (mut client, connection) = world.connect(&mut listener);
        worker.post_message(&2u64, [connection]).unwrap();
        let answer = client.get("/");
        assert_eq!((answer.field("reqno"), answer.field("worker")), ("2".into(), "app-1".into()));
    });
}
