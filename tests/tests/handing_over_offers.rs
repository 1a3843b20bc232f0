//! One router after the other takes over while a worker stands still that was sent connections and has not
//! answered: it serves them when it goes on, whichever router there is by then, and others serve them if it
//! dies. Nobody is lost, nobody is served twice, and no descriptor stays.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::cell::Cell;

use rustix::process::Signal;
use vestibule_tests::load::Load;
use vestibule_tests::stalled::{HANDS_OVER, OFFERED, Setting, Stalled};
use vestibule_tests::world::{turn, until};
use vestibule_tests::{process, sockets};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// What a good part of what was offered takes in memory: the kernel counts some 800 bytes each.
const MANY: i32 = 20_000;

#[test]
fn a_worker_that_goes_on_after_a_change_answers_what_it_was_sent_before() {
    let _turn = turn();
    let mut hall = Stalled::start(Setting::of(WORKER));
    hall.change();
    hall.until_offered();
    hall.goes_on();
}

#[test]
fn others_answer_what_a_worker_was_sent_before_a_change_that_dies_after_it() {
    let _turn = turn();
    let mut hall = Stalled::start(Setting::of(WORKER));
    hall.change();
    hall.until_offered();
    hall.dies();
}

#[test]
fn a_worker_that_goes_on_after_several_changes_answers_what_it_was_sent_before() {
    let _turn = turn();
    let mut hall = Stalled::start(Setting::of(WORKER));
    for _ in 0..3 {
        hall.change();
        hall.until_offered();
    }
    hall.goes_on();
}

#[test]
fn others_answer_what_a_worker_was_sent_before_several_changes_that_dies_after_them() {
    let _turn = turn();
    let mut hall = Stalled::start(Setting::of(WORKER));
    for _ in 0..3 {
        hall.change();
        hall.until_offered();
    }
    hall.dies();
}

/// It has the rest of its time, whichever router there is.
#[test]
fn a_worker_that_answers_nothing_is_killed_after_a_change_and_others_answer() {
    let _turn = turn();
    let mut hall = Stalled::start(Setting { stuck: "3s", ..Setting::of(WORKER) });
    hall.change();
    hall.ends_killed();
}

/// It closes what it refuses, so the next router has to hear of it, though all of this comes at once: the
/// offers, and that another router speaks.
#[test]
fn what_a_worker_refuses_after_a_change_that_it_was_sent_before_goes_to_others() {
    const ROOM: usize = 10;
    let _turn = turn();
    let mut hall = Stalled::start(Setting { way: "serve", ..Setting::of(WORKER) });
    hall.change();
    // Else it is the only one for a while, and is asked again what it has refused.
    hall.pool_serves();
    process::limit_descriptors(hall.stalled, ROOM);
    process::thaw(hall.stalled);
    let by_others = Cell::new(0);
    hall.are_answered(|answer| {
        by_others.set(by_others.get() + usize::from(answer.field("worker") == "a-2"));
        true
    });
    assert_eq!(by_others.get(), OFFERED - ROOM);
    hall.ends_well(by_others.get());
}

/// What was read of a PROXY header is not taken for what a worker has read.
#[test]
fn others_answer_clients_of_a_proxy_that_a_dead_worker_was_sent_before_a_change() {
    let _turn = turn();
    let listener = "proxy-protocol = ['127.0.0.0/8']";
    let greeting = "PROXY TCP4 10.1.2.3 10.9.9.9 40000 443\r\n";
    let mut hall = Stalled::start(Setting { listener, greeting, ..Setting::of(WORKER) });
    for _ in 0..2 {
        hall.change();
        hall.until_offered();
    }
    hall.dies();
}

/// While both kinds of clients come and go: none of them is lost, either.
#[test]
fn nobody_else_is_lost_in_changes_in_which_a_worker_stands_still() {
    let _turn = turn();
    for ends in [Stalled::goes_on, Stalled::dies] {
        let mut hall = Stalled::start(Setting::of(WORKER));
        let loads = [hall.master.address(), hall.others].map(|to| Load::start(to, 3));
        for _ in 0..3 {
            loads.iter().for_each(|load| load.flows(50));
            hall.change();
        }
        loads.iter().for_each(|load| load.flows(50));
        for load in loads {
            let tally = load.end();
            println!("{OFFERED} offered: all; others: {tally}");
            tally.assert_all_answered();
        }
        ends(hall);
    }
}

/// Something happens while another router is told, and stands still: neither reads any port.
fn between(then: impl FnOnce(&mut Stalled), ends: impl FnOnce(Stalled)) {
    let _turn = turn();
    let mut hall = Stalled::start(Setting::of(WORKER));
    let (old, next) = is_told(&mut hall);
    then(&mut hall);
    // The supervisor has heard of it: what it is asked comes last.
    hall.place.status();
    process::thaw(next);
    hall.until_changed(old);
    ends(hall);
}

/// Another router is told many, and stands still. The two routers.
fn is_told(hall: &mut Stalled) -> (u32, u32) {
    let old = hall.master.router();
    process::freeze(old);
    let told = hall.said(HANDS_OVER);
    hall.order_change();
    until("it is asked to hand over", || hall.said(HANDS_OVER) > told);
    let next = hall.master.next_router(old);
    process::freeze(next);
    process::thaw(old);
    until("the one has been told of many", || {
        sockets::unread_by_others(old).into_iter().max() > Some(MANY)
    });
    (old, next)
}

#[test]
fn what_a_worker_answers_between_two_routers_the_next_one_hears() {
    between(Stalled::answer, |hall| hall.ends_well(0));
}

/// The port of the dead says that it had taken them all.
#[test]
fn what_a_worker_answers_that_dies_between_two_routers_the_next_one_hears() {
    let answers_and_dies = |hall: &mut Stalled| {
        hall.answer();
        process::signal(hall.stalled, Signal::KILL);
        until("it is gone", || process::is_gone(hall.stalled));
    };
    between(answers_and_dies, |hall| hall.ends_well(0));
}

#[test]
fn others_answer_what_a_worker_was_sent_that_dies_between_two_routers() {
    let dies = |hall: &mut Stalled| {
        process::signal(hall.stalled, Signal::KILL);
        until("it is gone", || process::is_gone(hall.stalled));
    };
    between(dies, Stalled::ends_killed);
}

/// Of two routers that are to take over one dies while it is told, and one when it has everything.
fn after_deaths(ends: impl FnOnce(Stalled)) {
    let _turn = turn();
    let mut hall = Stalled::start(Setting::of(WORKER));
    let (old, next) = is_told(&mut hall);
    process::freeze(old);
    let told = hall.said(HANDS_OVER);
    process::signal(next, Signal::KILL);
    until("another is asked", || hall.said(HANDS_OVER) > told);
    let next = hall.until_passed_on(old);
    process::signal(next, Signal::KILL);
    process::thaw(hall.master.pid());
    hall.until_changed(old);
    hall.until_offered();
    ends(hall);
}

#[test]
fn a_worker_that_goes_on_after_routers_died_in_a_change_answers_what_it_was_sent_before() {
    after_deaths(Stalled::goes_on);
}

#[test]
fn others_answer_what_a_worker_was_sent_before_routers_died_in_a_change() {
    after_deaths(Stalled::dies);
}
