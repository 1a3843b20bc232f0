//! Workers that break the rules with what one router sent them, when another one has taken over: nobody is
//! served twice, and nobody is lost but by who touched or took it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use vestibule_tests::family::Family;
use vestibule_tests::stalled::{OFFERED, Setting, Stalled};
use vestibule_tests::world::turn;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-worker");

/// What becomes of everybody whom the worker was sent.
enum Fate {
    /// Another one answers.
    Moved,
    /// The connection ends: the worker has touched it, or may have.
    Touched,
    /// The connection ends: the worker has taken it, and closed it.
    Taken,
}

/// The first worker does this, when another router has taken over; so often it breaks the protocol.
fn does(behaviour: &'static str, fate: &Fate, faults: u64) {
    let _turn = turn();
    let setting = Setting { hostile: Some([HOSTILE, behaviour]), ..Setting::of(WORKER) };
    let mut hall = Stalled::start(setting);
    hall.change();
    match fate {
        Fate::Moved => hall.are_answered_by_others(),
        Fate::Touched | Fate::Taken => {
            for client in &mut hall.offered {
                let (bytes, ended) = client.end();
                assert!(bytes.is_empty(), "{ended:?} after {bytes:?}");
            }
        }
    }
    let count = |is: bool| if is { OFFERED } else { 0 };
    let moved = count(matches!(fate, Fate::Moved));
    let touched = count(matches!(fate, Fate::Touched));
    let delivered = OFFERED - touched + 1;
    let status = hall.place.until("all is counted", |status| {
        let pool = &status["pools"][0];
        pool["delivered"] == delivered && pool["touched"] == touched && pool["moved"] == moved
    });
    assert_eq!(status["pools"][0]["faults"], faults, "{behaviour}");
    hall.ledger.assert_nothing_served_twice();
    hall.offered.clear();
    hall.until_idle();
    // Who follows a worker that was killed is another program.
    let Family { others, descriptors, memory, .. } = Family::below(hall.master.pid());
    let before = Family { others, descriptors, memory, ..hall.before };
    before.assert_no_more_below(hall.master.pid());
    hall.master.workers();
    hall.master.stop();
}

#[test]
fn what_is_refused_and_then_taken_and_refused_again_goes_to_others_once() {
    does("settles-again", &Fate::Moved, 0);
}

#[test]
fn what_a_hello_has_taken_nobody_else_gets() {
    does("refuses-what-it-took", &Fate::Taken, 0);
}

#[test]
fn who_says_that_it_received_something_else_loses_nobody() {
    does("claims-less", &Fate::Moved, 1);
    does("claims-more", &Fate::Moved, 1);
}

#[test]
fn who_answers_as_if_the_next_router_had_asked_loses_nobody() {
    does("takes-as-another", &Fate::Moved, 1);
}

#[test]
fn who_closes_its_port_at_a_change_and_lives_loses_nobody() {
    does("hangs-up-later", &Fate::Moved, 0);
}

#[test]
fn who_leaves_somebody_behind_with_its_port_at_a_change_has_its_clients_closed() {
    does("leaves-a-child-later", &Fate::Touched, 0);
}

#[test]
fn who_has_read_what_the_router_before_sent_has_its_clients_closed() {
    does("reads-and-refuses-later", &Fate::Touched, 0);
    does("reads-and-dies-later", &Fate::Touched, 0);
}
