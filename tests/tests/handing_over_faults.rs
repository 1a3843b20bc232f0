//! A router that is to take over from another dies, or stands still, at every stage of that: nobody who
//! waited is lost, however many of them die, and nobody is served twice.
//!
//! At each stage clients wait in a queue, some of whom a worker has handed back, others have said half a
//! head, and others come and go all the time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use rustix::process::Signal;
use vestibule_tests::ledger::{Ledger, VARIABLE};
use vestibule_tests::load::Load;
use vestibule_tests::master::{Master, is_over};
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, process, sockets};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// More than the sockets between two routers hold (some 280 messages).
const QUEUED: usize = 500;
const RETURNED: usize = 40;
const HALVES: usize = 100;
/// What a good part of them takes in memory: the kernel counts some 800 bytes each.
const MANY: i32 = 100_000;
/// Who is turned away at one time and gets to read why.
const LINGERING: usize = 256;
/// Connections that the full pool's worker may have.
const ROOM: usize = 2;

/// Pool `b` is full as soon as two have it.
fn text(user: u32, version: u32) -> String {
    let pool = |name: &str, more: &str| {
        format!(
            "[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = 1\nuser = 'root'\n\
             queue = {{ max = 10000, timeout = '60s' }}\n{more}\n"
        )
    };
    format!(
        "[router]\nuser = '{user}'\ninspect-timeout = '60s'\n\
         [[listener]]\nname = 'web-{version}'\naddress = '127.0.0.1:0'\nbacklog = 4096\n{}{}\
         [[route]]\nname = 'b'\npath = '/b'\npool = 'b'\n[[route]]\nname = 'a'\npool = 'a'\n",
        pool("a", "hand-back-to = ['b']"),
        pool("b", &format!("max-connections = {ROOM}")),
    )
}

/// The program, and everybody who waits in it.
struct Hall {
    place: Place,
    master: Master,
    ledger: Ledger,
    user: u32,
    load: Load,
    full: Vec<Client>,
    queued: Vec<Client>,
    halves: Vec<Client>,
}

impl Hall {
    fn start() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root's routers can become another user: run this as root"
        );
        let (place, ledger, user) = (Place::new(), Ledger::new(), 61_700);
        let mut command = place.vestibule(WORKER);
        command.arg(place.config(&text(user, 0))).env(VARIABLE, ledger.path());
        let master = Master::launch(command);
        place.until("every worker is ready", |status| status["health"] == "healthy");
        let load = Load::start(master.address(), 3);
        let connect = |_| master.client();
        let mut full: Vec<_> = (0..ROOM).map(connect).collect();
        for client in &mut full {
            assert_eq!(client.get("/b").field("worker"), "b-1");
        }
        let mut queued: Vec<_> = (0..QUEUED + RETURNED).map(connect).collect();
        for (number, client) in queued.iter_mut().enumerate() {
            if number < RETURNED {
                assert_eq!(client.get("/").field("worker"), "a-1");
                client.ask("/to/b");
            } else {
                client.ask("/b");
            }
        }
        let mut halves: Vec<_> = (0..HALVES).map(connect).collect();
        for (number, client) in halves.iter_mut().enumerate() {
            client.send(&HEAD[..part(number)]);
        }
        place.until("everybody waits", |status| {
            status["pools"][1]["queued"].as_u64() == Some(queued.len() as u64)
        });
        Self { place, master, ledger, user, load, full, queued, halves }
    }

    /// Has another router take over; the present one's process.
    fn change(&mut self) -> u32 {
        let router = self.master.router();
        self.user += 1;
        self.place.order_reload(&text(self.user, self.user));
        router
    }

    /// The present router stands still, and another is to take over from it.
    fn asked_in_its_sleep(&mut self) -> u32 {
        let old = self.master.router();
        process::freeze(old);
        self.change();
        self.place.says("the router hands over");
        old
    }

    /// The present router tells who waits, and the next one, which stands still, does not hear it. The two
    /// routers.
    fn is_told_in_its_sleep(&mut self) -> (u32, u32) {
        let old = self.asked_in_its_sleep();
        let next = self.master.next_router(old);
        process::freeze(next);
        process::thaw(old);
        (old, next)
    }

    /// Another router takes over as far as to where its predecessor has passed on everything, and the
    /// supervisor has not heard of it: it stands still. The two routers.
    fn pass_on(&mut self) -> (u32, u32) {
        let old = self.master.router();
        let passed = self.said("what waited is passed on");
        let told = self.said("the router hands over");
        process::freeze(old);
        self.change();
        until("it is asked to hand over", || self.said("the router hands over") > told);
        // What it is told is sent by then.
        self.place.status();
        let next = self.master.next_router(old);
        process::freeze(self.master.pid());
        process::thaw(old);
        until("everything is passed on", || self.said("what waited is passed on") > passed);
        (old, next)
    }

    /// The router that was to go goes on, and is asked to hand over to another one. It may have done so
    /// by now.
    fn hands_over_again(&self, old: u32) {
        until("another one is asked for", || self.said("the router hands over") > 1);
        let asked = self.place.told("the router hands over");
        assert!(asked.iter().all(|record| record["fields"]["from"] == old), "{asked:?}");
    }

    fn said(&self, message: &str) -> usize {
        self.place.said().matches(message).count()
    }

    /// A router accepts that has taken over from this one, whichever it is in the end; everybody who
    /// waited goes on, and is answered once.
    fn ends_well(self, before: u32) {
        let Self { place, master, ledger, load, full, queued, halves, .. } = self;
        until("the router before is gone", || process::is_gone(before));
        place.until("another accepts", |status| {
            status["health"] == "healthy" && status["router"]["state"] == "accepting"
        });
        load.flows(20);
        drop(full);
        // Each gives its place to the next when it has its answer, in whatever order that is.
        std::thread::scope(|scope| {
            for (number, mut client) in queued.into_iter().enumerate() {
                scope.spawn(move || {
                    let answer = client.answer();
                    assert_eq!((answer.status, answer.field("worker")), (200, "b-1".into()));
                    assert_eq!(answer.field("by") == "a-1", number < RETURNED);
                });
            }
        });
        for (number, mut client) in halves.into_iter().enumerate() {
            client.send(&HEAD[part(number)..]);
            assert_eq!(client.answer().field("worker"), "a-1");
        }
        load.flows(20);
        let tally = load.end();
        println!(
            "{QUEUED} queued, {RETURNED} handed back, {HALVES} half heads: all; others: {tally}"
        );
        tally.assert_all_answered();
        let status = place.status();
        let rejected = status["connections"]["rejected"].as_object().unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
        // Each by one worker, but those that were handed back, by two.
        let twice = ledger.entries().len() - ledger.cookies();
        assert_eq!(twice, RETURNED);
        master.stop();
    }
}

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n";

/// Where a client's head is cut. Who has said nothing is left to the kernel (`TCP_DEFER_ACCEPT`).
fn part(number: usize) -> usize {
    1 + number % (HEAD.len() - 1)
}

#[test]
fn a_router_that_dies_before_it_is_prepared_costs_nothing_and_the_present_one_stays() {
    let mut hall = Hall::start();
    let router = hall.master.router();
    for death in 1..=10 {
        // Whatever the next one comes to, it cannot come to act.
        process::freeze(router);
        hall.change();
        let next = hall.master.next_router(router);
        process::signal(next, Signal::KILL);
        until("it is given up", || hall.said("the next router does not take over") == death);
        process::thaw(router);
        if hall.said("the router hands over") > 0 {
            // Killed a little later than meant: another follows it.
            println!("the {death}. one was prepared");
            return hall.ends_well(router);
        }
        hall.load.flows(20);
        assert!(!process::is_gone(router));
    }
    hall.change();
    hall.ends_well(router);
}

#[test]
fn routers_that_die_while_they_are_told_who_waits_are_followed_by_another_that_is_told_again() {
    let mut hall = Hall::start();
    let old = hall.asked_in_its_sleep();
    for again in 1..=2 {
        let next = hall.master.next_router(old);
        process::freeze(next);
        process::thaw(old);
        until("the one has been told of many", || {
            sockets::unread_by_others(old).into_iter().max() > Some(MANY)
        });
        process::freeze(old);
        process::signal(next, Signal::KILL);
        until("another is asked", || hall.said("the router hands over") > again);
    }
    process::thaw(old);
    hall.ends_well(old);
}

#[test]
fn a_router_that_stands_still_while_it_is_told_who_waits_is_followed_by_another() {
    let mut hall = Hall::start();
    let (old, next) = hall.is_told_in_its_sleep();
    hall.place.says("it does not answer");
    until("it is gone", || process::is_gone(next));
    hall.hands_over_again(old);
    hall.ends_well(old);
}

#[test]
fn a_router_that_dies_when_it_has_everything_and_has_not_begun_is_followed_by_another() {
    let mut hall = Hall::start();
    // The supervisor hears of all at once: that it has everything, and that it is dead.
    let (old, next) = hall.pass_on();
    process::signal(next, Signal::KILL);
    process::thaw(hall.master.pid());
    hall.place.says("hands over again");
    hall.ends_well(old);
}

#[test]
fn a_router_that_dies_when_it_was_told_to_begin_is_followed_by_another() {
    let mut hall = Hall::start();
    let (old, next) = hall.pass_on();
    process::freeze(next);
    process::thaw(hall.master.pid());
    hall.place.until("it is the present one", |status| status["router"]["pid"] == next);
    process::signal(next, Signal::KILL);
    hall.place.says("hands over again");
    hall.ends_well(old);
}

#[test]
fn a_router_that_stands_still_when_it_is_to_begin_is_followed_by_another() {
    let mut hall = Hall::start();
    let (old, next) = hall.pass_on();
    process::freeze(next);
    process::thaw(hall.master.pid());
    hall.place.says("hands over again");
    assert!(process::is_gone(next));
    hall.hands_over_again(old);
    hall.ends_well(old);
}

#[test]
fn a_router_whose_predecessor_dies_when_it_has_everything_begins_all_the_same() {
    let mut hall = Hall::start();
    let (old, _) = hall.pass_on();
    process::signal(old, Signal::KILL);
    process::thaw(hall.master.pid());
    hall.ends_well(old);
}

/// Whoever was passed on is the next one's, though nobody says that this was all.
#[test]
fn a_router_whose_predecessor_dies_when_it_is_told_who_waits_acts_on_what_has_come() {
    let mut hall = Hall::start();
    let (old, next) = hall.is_told_in_its_sleep();
    until("it has been told of many", || {
        sockets::unread_by_others(old).into_iter().max() > Some(MANY)
    });
    process::signal(old, Signal::KILL);
    hall.place.says("the router has not handed over everything");
    process::thaw(next);
    let status = hall.place.until("it accepts", |status| {
        status["router"]["pid"] == next
            && status["router"]["state"] == "accepting"
            && !status["pools"][1]["queued"].is_null()
    });
    let queued = status["pools"][1]["queued"].as_u64().unwrap() as usize;
    println!("{queued} of {} were passed on", QUEUED + RETURNED);
    assert!(queued > 100 && queued < QUEUED + RETURNED, "{queued}");
    hall.load.flows(20);
    let Hall { master, load, full, queued, halves, .. } = hall;
    load.end().assert_nothing_wrong();
    drop((full, queued, halves));
    master.stop();
}

#[test]
fn a_router_that_stands_still_when_it_may_end_is_killed() {
    let mut hall = Hall::start();
    let (old, next) = hall.pass_on();
    process::freeze(next);
    process::thaw(hall.master.pid());
    hall.place.until("it is the present one", |status| status["router"]["pid"] == next);
    process::freeze(old);
    process::thaw(next);
    hall.place.until("it accepts", |status| {
        status["router"]["state"] == "accepting" && status["health"] == "healthy"
    });
    hall.load.flows(20);
    // There may be another reload before that.
    hall.place.reload(&text(hall.user, hall.user + 1));
    hall.place.says("a router that had handed over is killed");
    hall.ends_well(old);
}

#[test]
fn another_router_takes_over_from_one_that_had_to_be_asked_twice() {
    let mut hall = Hall::start();
    for _ in 0..2 {
        let (old, next) = hall.pass_on();
        process::signal(next, Signal::KILL);
        process::thaw(hall.master.pid());
        until("the router before is gone", || process::is_gone(old));
        hall.place.until("another accepts", |status| status["health"] == "healthy");
    }
    // Nothing of this is in the way of another reload.
    let old = hall.change();
    hall.ends_well(old);
}

#[test]
fn a_stop_while_a_router_takes_over_serves_who_waits_in_the_kernel_and_answers_everybody() {
    for twice in [false, true] {
        let mut hall = Hall::start();
        let nobody = Load::start(hall.master.address(), 0);
        std::mem::replace(&mut hall.load, nobody).end().assert_all_answered();
        let old = hall.asked_in_its_sleep();
        let mut kernel: Vec<_> = (0..50).map(|_| hall.master.client()).collect();
        kernel.iter_mut().for_each(|client| client.ask("/"));
        if twice {
            // The one that is to take over dies besides.
            hall.place.status();
            process::signal(hall.master.next_router(old), Signal::KILL);
        }
        let Hall { place, mut master, full, queued, halves, .. } = hall;
        master.workers();
        master.signal(Signal::TERM);
        place.says("stopping");
        process::thaw(old);
        let mut told = 0;
        for mut client in queued.into_iter().chain(halves) {
            // So many at once get to read it.
            let Ok(answer) = client.try_answer() else { continue };
            let reason = answer.header("vestibule-reason");
            assert_eq!((answer.status, reason), (503, Some("shutting-down")));
            told += 1;
        }
        assert!(told >= LINGERING, "{told} were told");
        if !twice {
            for client in &mut kernel {
                assert_eq!(client.answer().field("worker"), "a-1");
            }
        }
        drop((full, kernel));
        assert!(master.wait().success());
        master.assert_all_gone();
    }
}

#[test]
fn five_routers_in_a_row_that_die_before_they_begin_end_the_program() {
    let mut hall = Hall::start();
    let (old, next) = hall.pass_on();
    process::signal(next, Signal::KILL);
    let mut killed = BTreeSet::from([next]);
    process::thaw(hall.master.pid());
    // Killed a little later than meant it may have begun, and they are counted anew.
    until("the program has ended", || {
        for router in hall.master.routers().filter(|pid| *pid != old) {
            if killed.insert(router) {
                process::signal(router, Signal::KILL);
            }
        }
        is_over(hall.master.pid())
    });
    assert!(killed.len() >= 5, "{killed:?}");
    assert_eq!(hall.master.wait().code(), Some(70));
}
