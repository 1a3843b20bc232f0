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

/// What is behind TLS no rule sees, in a later request either: there is nothing to keep to.
#[test]
fn a_worker_that_looks_at_no_later_request_gets_clients_that_speak_tls() {
    let _turn = turn();
    let (master, _place) = hall("unknown = \"app\"", "careless");
    let ended = |bytes: &[u8]| {
        let mut client = master.client();
        client.send(bytes);
        client.finish();
        client.end().0
    };
    // The first byte of TLS, and no hello: the rule by path cannot be told. The worker says what it
    // says; it is no alert of the router's.
    let said = ended(b"\x16\x03\x01 GET /private HTTP/1.1\r\n\r\n");
    assert!(!said.is_empty() && !said.starts_with(&[0x15]), "{}", said.escape_ascii());
    // In clear nobody knows what comes next.
    let said = ended(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(!said.windows(6).any(|it| it == b"worker"), "{}", said.escape_ascii());
    master.stop();
}
