//! How the program ends: signals, what becomes of those who wait, and of what is under way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Signal;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, Ended, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// `vestibule run` with two test workers.
fn without_a_file(place: &Place, arguments: &[&str]) -> Command {
    let mut command = place.vestibule(WORKER);
    command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
    if rustix::process::geteuid().is_root() {
        // The build's folder may be one that only root can enter.
        command.args(["--user", "root"]);
    }
    command.arg("--").arg(WORKER).args(arguments);
    command
}

/// `vestibule run FILE` with one test worker; `settings` are its pool's.
fn with_a_file(place: &Place, settings: &str) -> Command {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         [[pool]]\nname = \"app\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 1\n{user}{settings}"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    command
}

/// An upload that is in progress: a worker has it, and waits for more.
fn upload(master: &Master) -> Client {
    let acknowledged = master.accepted_and_acknowledged().1;
    let mut client = master.client();
    client.ask("/bytes");
    client.send(&[b'u'; 1000]);
    until("the upload is with a worker", || master.accepted_and_acknowledged().1 > acknowledged);
    client
}

fn complete(mut upload: Client) {
    upload.send(&[b'v'; 1000]);
    upload.finish();
    let body = upload.answer().body;
    assert!(body.ends_with(&[[b'u'; 1000], [b'v'; 1000]].concat()), "{} bytes", body.len());
}

/// Waits until nobody accepts any more.
fn closed(master: &Master) {
    until("the listener is closed", || std::net::TcpStream::connect(master.address()).is_err());
}

#[test]
fn sigterm_sigint_and_sigquit_finish_what_is_there_and_say_how_much_is_left() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let place = Place::new();
        let mut master = Master::launch(without_a_file(&place, &["recv"]));
        let (router, workers) = (master.router(), master.workers());
        let upload = upload(&master);
        master.signal(signal);
        place.says("stopping: 1 connection is left; a second signal stops at once\n");
        closed(&master);
        complete(upload);
        assert_eq!(master.wait().code(), Some(0), "{}", place.said());
        assert!(process::is_gone(router) && workers.iter().all(|pid| process::is_gone(*pid)));
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        // Told to, these do not end.
        let mut command = without_a_file(&place, &["recv"]);
        command.env("TEST_STUBBORN", "1");
        let mut master = Master::launch(command);
        let (router, workers) = (master.router(), master.workers());
        let mut uploads = [upload(&master), upload(&master)];
        master.signal(Signal::TERM);
        place.says("stopping: 2 connections are left; a second signal stops at once\n");
        master.signal(second);
        assert_eq!(master.wait().code(), Some(0), "{}", place.said());
        assert!(process::is_gone(router) && workers.iter().all(|pid| process::is_gone(*pid)));
        for upload in &mut uploads {
            assert_eq!(upload.end().0, b"", "nobody answers any more");
        }
        let ends = place.told("worker ended");
        // Its port has ended with the router: a worker may see that first, and end by itself.
        let exits: Vec<_> = ends.iter().map(|end| &end["fields"]["exit"]).collect();
        assert!(exits.iter().all(|exit| *exit == "signal 9" || *exit == "exit code 0"), "{ends:?}");
        assert_eq!(exits.len(), 2, "{ends:?}");
    }
}

#[test]
fn ctrl_c_reaches_the_supervisor_alone() {
    let place = Place::new();
    let mut command = without_a_file(&place, &["recv"]);
    // What a terminal signals: the group in its foreground.
    command.process_group(0);
    let mut master = Master::launch(command);
    let (router, workers) = (master.router(), master.workers());
    for pid in workers.iter().chain([&router]) {
        assert_eq!(process::status(*pid).unwrap().session, *pid, "a session of its own");
    }
    let upload = upload(&master);
    let group = rustix::process::Pid::from_raw(master.pid() as i32).unwrap();
    rustix::process::kill_process_group(group, Signal::INT).unwrap();
    place.says("stopping: 1 connection is left");
    complete(upload);
    assert_eq!(master.wait().code(), Some(0));
    let ends = place.told("worker ended");
    assert!(ends.iter().all(|end| end["fields"]["exit"] == "exit code 0"), "{ends:?}");
    assert_eq!(place.told("the router is killed").len(), 0);
}

#[test]
fn without_a_file_sighup_stops_as_sigterm_does() {
    let place = Place::new();
    let mut master = Master::launch(without_a_file(&place, &["recv"]));
    let upload = upload(&master);
    master.signal(Signal::HUP);
    place.says("stopping: 1 connection is left");
    complete(upload);
    assert_eq!(master.wait().code(), Some(0));
}

#[test]
fn a_reload_that_changes_nothing_and_an_upgrade_that_is_not_there_yet_say_so_and_it_goes_on() {
    let place = Place::new();
    let mut master = Master::launch(with_a_file(&place, ""));
    let (router, workers) = (master.router(), master.workers());
    master.signal(Signal::HUP);
    place.says("the configuration is reloaded");
    master.signal(Signal::USR2);
    place.says("an upgrade in place is not there yet");
    assert_eq!(master.client().get("/").status, 200);
    assert_eq!((master.router(), master.workers()), (router, workers));
    master.stop();
}

#[test]
fn who_waits_for_a_worker_is_told_of_the_shutdown() {
    let place = Place::new();
    let queue = "max-connections = 1\nqueue = { max = 16, timeout = \"60s\" }\n";
    let mut master = Master::launch(with_a_file(&place, queue));
    let upload = upload(&master);
    let mut waiting: Vec<Client> = (0..4).map(|_| master.client()).collect();
    for client in &mut waiting {
        client.ask("/");
    }
    until("they are accepted", || master.accepted_and_acknowledged().0 == 5);
    master.signal(Signal::TERM);
    for client in &mut waiting {
        let refused = client.answer();
        assert_eq!(refused.status, 503);
        assert_eq!(refused.header("vestibule-reason"), Some("shutting-down"));
        assert_eq!(client.end(), (Vec::new(), Ended::Closed));
    }
    complete(upload);
    assert_eq!(master.wait().code(), Some(0));
}

#[test]
fn what_the_kernel_accepted_is_served_before_the_listener_is_closed() {
    let place = Place::new();
    let mut master = Master::launch(without_a_file(&place, &["serve"]));
    assert_eq!(master.client().get("/").status, 200);
    let router = master.router();
    // Nobody accepts them, and they have said all: what else comes, comes after the signal.
    process::freeze(router);
    let mut clients: Vec<Client> = (0..100).map(|_| master.client()).collect();
    for client in &mut clients {
        client.ask("/");
    }
    master.signal(Signal::TERM);
    process::thaw(router);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(master.wait().code(), Some(0), "{}", place.said());
}

#[test]
fn a_kept_alive_connection_finishes_its_request_and_is_closed_in_order() {
    let place = Place::new();
    let mut master = Master::launch(without_a_file(&place, &["serve"]));
    let mut idle = master.client();
    assert_eq!(idle.get("/").status, 200);
    let mut busy = master.client();
    assert_eq!(busy.get("/").status, 200);
    busy.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhe");
    // Each worker reads what is there in every turn, and each has a turn after this.
    both_workers_answer(&master);
    master.signal(Signal::TERM);
    assert_eq!(idle.end(), (Vec::new(), Ended::Closed), "nothing is under way there");
    busy.send(b"llo");
    assert_eq!(busy.answer().body, b"hello");
    assert_eq!(busy.end(), (Vec::new(), Ended::Closed));
    assert_eq!(master.wait().code(), Some(0), "{}", place.said());
}

fn both_workers_answer(master: &Master) {
    let mut answered = std::collections::BTreeSet::new();
    until("both workers answer", || {
        answered.insert(master.client().get("/").field("pid"));
        answered.len() == 2
    });
}
