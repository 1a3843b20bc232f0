//! Message semantics, points 22 and 23: workers that break the rules cost themselves only, and nobody
//! reads what another has read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use rustix::process::Signal;
use vestibule_router::{
    Exit, Restart, UndeliveredReason, WorkerError, WorkerEvent, WorkerOptions, WorkerPool,
};
use vestibule_tests::ledger::{self, Ledger};
use vestibule_tests::world::until;
use vestibule_tests::{Client, Ended, World, hostile, process, run, worker};

/// A pool of one hostile worker and a well-behaved one.
fn mixed(behaviour: &str) -> WorkerOptions {
    hostile!(behaviour).env("TEST_HOSTILE", "1")
}

/// A client whose request has arrived, and whose connection is posted to the pool's first worker.
fn post_to_first(world: &World, pool: &WorkerPool) -> Client {
    let mut listener = world.listener();
    let (mut client, connection) = world.connect(&mut listener);
    client.ask("/");
    until("the request has arrived", || rustix::io::ioctl_fionread(&connection).unwrap() > 0);
    pool[0].post_message(&1u64, [connection]).unwrap();
    client
}

/// The hostile worker broke the protocol at its first connection: it is killed, what it was offered
/// goes to the other, and nothing else happens.
fn assert_killed_and_its_connection_moved(behaviour: &str) {
    run(|world| {
        let pool = world.pool(2, &mixed(behaviour));
        let mut client = post_to_first(world, &pool);
        assert_eq!(client.answer().field("worker"), "app-2");
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Signal(9))]), "{events:?}");
        let counters = pool.counters();
        assert_eq!((counters.faults, counters.moved, counters.touched), (1, 1, 0));
        assert!(pool[1].is_ready());
    });
}

#[test]
fn point_22_a_descriptor_that_a_kind_does_not_carry_is_closed_and_its_sender_killed() {
    assert_killed_and_its_connection_moved("unasked-descriptor");
}

#[test]
fn point_22_a_descriptor_that_is_not_announced_is_closed_and_its_sender_killed() {
    assert_killed_and_its_connection_moved("unannounced-descriptor");
}

#[test]
fn point_22_a_message_with_a_descriptor_is_not_delivered_and_its_sender_killed() {
    assert_killed_and_its_connection_moved("sends-a-port");
}

#[test]
fn point_23_who_acknowledges_what_it_was_not_sent_is_killed() {
    assert_killed_and_its_connection_moved("acknowledges-more");
}

#[test]
fn point_23_who_sends_what_is_no_packet_is_killed() {
    assert_killed_and_its_connection_moved("garbage");
    assert_killed_and_its_connection_moved("short");
}

#[test]
fn point_23_who_sends_a_packet_over_the_bound_is_killed() {
    assert_killed_and_its_connection_moved("oversized");
}

#[test]
fn point_23_who_says_what_its_direction_does_not_have_is_killed() {
    assert_killed_and_its_connection_moved("unknown-kind");
}

#[test]
fn point_23_who_says_hello_twice_is_killed() {
    assert_killed_and_its_connection_moved("greets-twice");
}

#[test]
fn point_23_who_settles_a_connection_twice_is_killed_and_it_stays_acknowledged() {
    run(|world| {
        let pool = world.pool(2, &mixed("settles-twice"));
        let mut client = post_to_first(world, &pool);
        // It was that worker's, so it ends with it.
        let (answer, _) = client.end();
        assert!(answer.is_empty(), "{answer:?}");
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Signal(9))]), "{events:?}");
        let counters = pool.counters();
        assert_eq!((counters.faults, counters.delivered, counters.moved), (1, 1, 0));
    });
}

#[test]
fn point_23_who_speaks_before_it_may_is_killed_and_never_ready() {
    run(|world| {
        for behaviour in ["acknowledges-before-hello", "speaks-before-attach"] {
            let pool = WorkerPool::start(1, &hostile!(behaviour)).unwrap();
            let events = world.events(&pool[0]);
            let [WorkerEvent::Error(error), WorkerEvent::Exit(exit)] = events.as_slice() else {
                panic!("{behaviour}: {events:?}")
            };
            let exit_before_ready = WorkerError::EndedBeforeReady(Exit::Signal(9));
            assert_eq!((error, *exit), (&exit_before_ready, Exit::Signal(9)), "{behaviour}");
            assert_eq!(pool.counters().faults, 1, "{behaviour}");
        }
    });
}

#[test]
fn point_23_nothing_moves_while_its_worker_may_still_read_it() {
    run(|world| {
        let ledger = Ledger::new();
        let pool = world.pool(2, &mixed("holds").env(ledger::VARIABLE, ledger.path()));
        let mut waiting = post_to_first(world, &pool);
        until("the worker has the connection", || ledger.of("held").len() == 1);
        // Stopped, it looks as dead as a process can; and others are served meanwhile.
        process::freeze(pool[0].pid().unwrap());
        let mut listener = world.listener();
        for number in 0..50u64 {
            let (mut client, connection) = world.connect(&mut listener);
            pool[1].post_message(&number, [connection]).unwrap();
            assert_eq!(client.get("/").field("reqno"), number.to_string());
            assert_eq!(pool.counters().moved, 0);
        }
        process::signal(pool[0].pid().unwrap(), Signal::KILL);
        assert_eq!(waiting.answer().field("worker"), "app-2");
        assert_eq!(pool.counters().moved, 1);
    });
}

#[test]
fn point_23_the_end_of_the_port_alone_moves_nothing_before_the_process_is_dead() {
    run(|world| {
        let pool = world.pool(2, &mixed("hangs-up"));
        let pid = pool[0].pid().unwrap();
        let mut client = post_to_first(world, &pool);
        // It closed its port and lives on, with the connection: it is killed first.
        assert_eq!(client.answer().field("worker"), "app-2");
        assert!(process::is_gone(pid), "moved while the worker lives");
        let events = world.events(&pool[0]);
        assert!(matches!(events.as_slice(), [WorkerEvent::Exit(Exit::Signal(9))]), "{events:?}");
    });
}

/// What its worker may have touched is closed: its client sees the end, and nobody else gets it.
fn assert_closed_as_touched(behaviour: &str, exit: Option<Exit>) {
    run(|world| {
        let pool = world.pool(2, &mixed(behaviour));
        let mut client = post_to_first(world, &pool);
        let undelivered = world.undelivered(&pool[0]);
        assert_eq!(undelivered.reason, UndeliveredReason::Touched, "{behaviour}");
        assert!(undelivered.transfer.is_empty(), "{behaviour}");
        let (answer, _) = client.end();
        assert!(answer.is_empty() || answer == b"x", "{behaviour}: {answer:?}");
        let counters = pool.counters();
        assert_eq!(
            (counters.touched, counters.moved, counters.delivered),
            (1, 0, 0),
            "{behaviour}"
        );
        if let Some(exit) = exit {
            let events = world.events(&pool[0]);
            let [WorkerEvent::Exit(ended)] = events.as_slice() else { panic!("{events:?}") };
            assert_eq!(*ended, exit, "{behaviour}");
        }
    });
}

#[test]
fn point_23_a_connection_from_which_a_dead_worker_read_is_closed_not_moved() {
    assert_closed_as_touched("reads-and-dies", Some(Exit::Signal(6)));
}

#[test]
fn point_23_a_connection_to_which_a_dead_worker_wrote_is_closed_not_moved() {
    assert_closed_as_touched("writes-and-dies", Some(Exit::Signal(6)));
}

#[test]
fn point_23_a_connection_that_was_read_and_refused_is_closed_not_moved() {
    assert_closed_as_touched("reads-and-refuses", None);
}

#[test]
fn point_23_a_connection_that_somebody_left_behind_may_read_is_closed_not_moved() {
    assert_closed_as_touched("leaves-a-child", Some(Exit::Code(0)));
}

#[test]
fn point_23_what_a_worker_left_is_settled_before_another_process_takes_its_place() {
    run(|world| {
        let none = Duration::ZERO;
        let restart = Restart { delay: none, max_delay: none, ..Restart::default() };
        // The next process is there at once, while somebody holds the last one's port.
        let pool = world.pool(1, &hostile!("leaves-a-child").restart(restart));
        for _ in 0..3 {
            world.wait("the next process is ready", pool[0].ready()).unwrap();
            let mut client = post_to_first(world, &pool);
            assert_eq!(world.undelivered(&pool[0]).reason, UndeliveredReason::Touched);
            let exit = world.event(&pool[0]);
            assert!(matches!(exit, Some(WorkerEvent::Exit(Exit::Code(0)))), "{exit:?}");
            assert_eq!(client.end().0, b"");
        }
        assert_eq!(pool.counters().touched, 3);
    });
}

#[test]
fn point_23_a_connection_that_was_made_blocking_is_not_when_it_moves() {
    run(|world| {
        let pool = world.pool(2, &mixed("refuses-blocking"));
        let mut client = post_to_first(world, &pool);
        let answer = client.answer();
        assert_eq!(answer.field("worker"), "app-2");
        assert_eq!(answer.field("nonblocking"), "true");
    });
}

#[test]
fn point_23_a_worker_that_makes_the_last_close_wait_holds_up_nobody() {
    run(|world| {
        let pool = world.pool(2, &mixed("lingers"));
        let mut listener = world.listener();
        let mut stalled: Vec<Client> = (0..4u64)
            .map(|number| {
                let (client, connection) = world.connect(&mut listener);
                pool[0].post_message(&number, [connection]).unwrap();
                client
            })
            .collect();
        // Each time the router drops its copy, the last one, of a connection that is full; who
        // waits for that hears no more of the worker.
        until("all are acknowledged", || pool.counters().delivered == 4);
        for number in 0..5u64 {
            let (mut client, connection) = world.connect(&mut listener);
            pool[1].post_message(&number, [connection]).unwrap();
            assert_eq!(client.get("/").field("reqno"), number.to_string());
        }
        for client in &mut stalled {
            let (filling, ended) = client.end();
            assert!(filling.len() > 64 * 1024, "it was never full");
            assert_eq!(ended, Ended::Closed);
        }
    });
}

#[test]
fn point_23_no_connection_is_served_twice_whatever_happens_to_its_workers() {
    const ROUNDS: usize = 30;
    const CLIENTS: usize = 10;
    run(|world| {
        let ledger = Ledger::new();
        let max_delay = Duration::from_millis(10);
        let restart = Restart { delay: Duration::ZERO, max_delay, ..Restart::default() };
        let options = worker!("recv")
            .restart(restart)
            .max_attempts(100)
            .queue(1000, vestibule_tests::DEADLINE)
            .env(ledger::VARIABLE, ledger.path());
        let pool = world.pool(3, &options);
        let mut listener = world.listener();
        let (mut answered, mut ended) = (0, 0);
        for round in 0..ROUNDS {
            let victim = &pool[round % 3];
            world.wait("the victim is ready", victim.ready()).unwrap();
            let pid = victim.pid().unwrap();
            let frozen = round % 2 == 0;
            if frozen {
                process::freeze(pid);
            }
            let mut clients: Vec<Client> = (0..CLIENTS)
                .map(|number| {
                    let (mut client, connection) = world.connect(&mut listener);
                    client.ask("/");
                    pool.post_message(&number, [connection]).unwrap();
                    client
                })
                .collect();
            world.catch_up();
            process::signal(pid, Signal::KILL);
            for client in &mut clients {
                match client.try_answer() {
                    Ok(_) => answered += 1,
                    // Acknowledged by a worker that was killed before it answered.
                    Err(_) if !frozen => ended += 1,
                    Err(end) => panic!("lost by a worker that never took it: {end:?}"),
                }
            }
        }
        assert_eq!(answered + ended, ROUNDS * CLIENTS);
        ledger.assert_nothing_served_twice();
        let served = ledger.of("served").len();
        assert!(served >= answered, "{served} served, {answered} answered");
        // The last acknowledgements may come after the answers.
        until("each is settled", || {
            let counters = pool.counters();
            counters.delivered + counters.touched == (ROUNDS * CLIENTS) as u64
        });
        let counters = pool.counters();
        assert!(counters.moved >= ROUNDS as u64 / 2, "{counters:?}");
        assert_eq!(counters.undelivered, counters.touched, "{counters:?}");
    });
}
