//! Workers that do not look at later requests get no connection that came by a rule about requests: one
//! of them would answer what an earlier rule rejects.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// A pool whose workers look at nothing, behind `/private`, which is rejected, and by an address of its
/// own; `listener` is added to the listener.
fn hall(listener: &str, mode: &str) -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let place = Place::new();
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n{listener}\n\
         [[pool]]\nname = \"app\"\ncommand = [\"{WORKER}\", \"{mode}\"]\nworkers = 2\n{user}\
         [[route]]\nname = \"trusted\"\npeer = \"127.0.0.9\"\npool = \"app\"\n\
         [[route]]\npath = \"/private/*\"\nreject = 403\n\
         [[route]]\nname = \"rest\"\npool = \"app\"\n"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

fn log(place: &Place) -> String {
    std::fs::read_to_string(place.join("log")).unwrap()
}

const SAID: &str = "does not look at later requests of a connection";

#[test]
fn a_worker_that_looks_at_no_later_request_gets_no_connection_whose_requests_are_looked_at() {
    let _turn = turn();
    let (master, place) = hall("", "careless");
    // Said at the start, once a process, before any client comes.
    until("it is said", || log(&place).matches(SAID).count() == 2);
    for _ in 0..3 {
        let answer = master.client().get("/");
        assert_eq!((answer.status, answer.header("vestibule-reason")), (503, Some("no-worker")));
    }
    assert_eq!(master.client().get("/private").status, 403);
    // Who comes by a rule that looks at no request may ask for anything.
    let from = "127.0.0.9".parse().unwrap();
    let mut client = vestibule_tests::Client::connect_from(from, master.address());
    for path in ["/", "/private"] {
        assert_eq!(client.get(path).field("route"), "trusted");
    }
    drop(client);
    assert_eq!(log(&place).matches(SAID).count(), 2);
    master.stop();
}

#[test]
fn a_listener_that_does_not_check_gives_connections_to_every_worker() {
    let _turn = turn();
    let (master, place) = hall("reuse = \"connection\"", "careless");
    assert_eq!(master.client().get("/").field("route"), "rest");
    assert!(!log(&place).contains(SAID));
    master.stop();
}

#[test]
fn a_worker_that_says_that_it_keeps_to_the_scope_gets_all() {
    let _turn = turn();
    let (master, place) = hall("", "recv");
    assert_eq!(master.client().get("/").field("route"), "rest");
    assert!(!log(&place).contains(SAID));
    master.stop();
}
