//! Message semantics, points 12 and 13: ports that travel, and how they close.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use vestibule_protocol::port::{PortEvent, PostError};
use vestibule_router::{Data, MessageChannel, MessagePort, Transferable, Worker, WorkerEvent};
use vestibule_tests::{Order, Said, World, hostile, process, run, worker};

fn channel() -> (MessagePort, MessagePort) {
    let MessageChannel { port1, port2 } = MessageChannel::new().unwrap();
    (port1, port2)
}

/// Gives a port to a worker that sends everything back which comes through it.
fn give(world: &World, worker: &Worker, port: MessagePort) {
    worker.post_message(&Order::Echo("port".into()), [Transferable::from(port)]).unwrap();
    assert_eq!(world.said(worker), Said::Echo("port".into(), 1));
}

fn next(world: &World, port: &MessagePort) -> Option<PortEvent> {
    world.wait("the port brings something", port.recv())
}

fn number(world: &World, port: &MessagePort) -> u32 {
    match next(world, port) {
        Some(PortEvent::Message { data, transfer }) if transfer.is_empty() => {
            data.decode().unwrap()
        }
        other => panic!("no message: {other:?}"),
    }
}

#[test]
fn point_12_a_port_given_to_a_worker_works_both_ways_and_brings_what_was_queued_in_it() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (ours, theirs) = channel();
        for early in 0..50u32 {
            ours.post_message(&early, ()).unwrap();
        }
        give(world, &worker, theirs);
        for late in 50..100u32 {
            ours.post_message(&late, ()).unwrap();
        }
        for expected in 0..100 {
            assert_eq!(number(world, &ours), expected);
        }
        let large = Data::bytes(vec![7; 16 << 20]);
        ours.post(large.clone(), Vec::new()).unwrap();
        let Some(PortEvent::Message { data, .. }) = next(world, &ours) else { panic!("lost") };
        assert!(data == large, "16 MiB came back changed");
    });
}

#[test]
fn point_12_a_worker_that_sends_a_port_is_killed_and_the_port_closed() {
    run(|world| {
        let pool = world.pool(1, &hostile!("sends-a-port"));
        pool[0].post_message(&Order::Name, ()).unwrap();
        let events = world.events(&pool[0]);
        assert!(matches!(events.last(), Some(WorkerEvent::Exit(_))), "{events:?}");
        assert!(!events.iter().any(|event| matches!(event, WorkerEvent::Message(_))), "{events:?}");
        // Its copy of the other end saw the last copy close, or it died while it waited: no
        // descriptor is left here either, which is counted after every case.
        assert_eq!(pool.counters().faults, 1);
    });
}

#[test]
fn point_12_what_comes_back_through_a_port_that_refuses_transfers_is_closed_and_the_port_too() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (ours, theirs) = channel();
        ours.refuse_transfers();
        give(world, &worker, theirs);
        // The worker sends everything back: a number, and then a port.
        ours.post_message(&1u32, ()).unwrap();
        assert_eq!(number(world, &ours), 1);
        let (kept, sent) = channel();
        ours.post_message(&2u32, sent).unwrap();
        let event = next(world, &ours);
        assert!(matches!(event, Some(PortEvent::MessageError(_))), "{event:?}");
        assert!(next(world, &ours).is_none(), "the port goes on");
        assert!(next(world, &kept).is_none(), "the port that came back is open");
    });
}

#[test]
fn point_13_after_close_the_other_side_gets_what_was_in_flight_and_then_the_end() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (ours, theirs) = channel();
        give(world, &worker, theirs);
        process::freeze(worker.pid().unwrap());
        for number in 0..20 {
            ours.post_message(&number, ()).unwrap();
        }
        ours.close();
        let error = ours.post_message(&"late", ()).unwrap_err();
        assert!(matches!(error.reason, PostError::Closed), "{error:?}");
        process::thaw(worker.pid().unwrap());
        assert_eq!(world.said(&worker), Said::PortClosed(20));
        assert!(next(world, &ours).is_none(), "something was delivered to a closed port");
    });
}

#[test]
fn point_13_the_death_of_a_process_closes_its_ports() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (ours, theirs) = channel();
        give(world, &worker, theirs);
        ours.post_message(&1u32, ()).unwrap();
        assert_eq!(number(world, &ours), 1);
        worker.kill();
        assert!(next(world, &ours).is_none(), "the port of a dead worker is open");
        let error = ours.post_message(&2u32, ()).unwrap_err();
        assert!(matches!(error.reason, PostError::Closed), "{error:?}");
    });
}

#[test]
fn point_13_the_supervisors_duplicate_of_a_workers_port_does_not_count_as_a_holder() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        worker.post_message(&Order::Exit(4), ()).unwrap();
        // With another holder the port would not end, and what was offered would not come back as
        // what nobody touched.
        let events = world.events(&worker);
        let [WorkerEvent::Exit(exit)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(*exit, vestibule_router::Exit::Code(4));
    });
}
