//! What a service manager hears (sd_notify(3)), on a real socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use rustix::process::Signal;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::{DEADLINE, Gate, process, user};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

fn command(place: &Place, worker: &str) -> Command {
    let mut command = place.vestibule(worker);
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    if rustix::process::geteuid().is_root() {
        command.args(["--user", "root"]);
    }
    command.arg("--").arg(worker).arg("recv");
    command
}

/// A manager's socket, bound to a path or to a name in the abstract namespace.
fn manager(address: &SocketAddr) -> UnixDatagram {
    let socket = UnixDatagram::bind_addr(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn hear(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = manager.recv(&mut buffer).expect("it says something");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Everything that was said until now.
fn rest(manager: &UnixDatagram) -> Vec<String> {
    manager.set_nonblocking(true).unwrap();
    let mut buffer = [0; 256];
    std::iter::from_fn(|| manager.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
        .map(|said| String::from_utf8(said).unwrap())
        .collect()
}

#[test]
fn it_is_ready_once_it_accepts_and_says_when_it_stops() {
    let place = Place::new();
    let path = place.join("notify");
    let manager = manager(&SocketAddr::from_pathname(&path).unwrap());
    // No worker is ready: whoever comes waits, and is accepted.
    let gate = Gate::new();
    let mut command = command(&place, WORKER);
    command.env("NOTIFY_SOCKET", &path).env("TEST_GATE", gate.path());
    let mut master = Master::launch(command);
    assert_eq!(hear(&manager), "READY=1");
    let mut client = master.client();
    gate.open();
    assert_eq!(client.get("/").status, 200);
    for pid in master.workers().into_iter().chain([master.router()]) {
        let variables = std::fs::read(format!("/proc/{pid}/environ"));
        // The router lets nobody look into it.
        let variables = variables.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(!variables.unwrap_or_default().contains("NOTIFY_SOCKET"));
    }
    // Another router is no news for the manager.
    master.kill_router();
    assert_eq!(master.client().get("/").status, 200);
    drop(client);
    master.signal(Signal::TERM);
    assert_eq!(hear(&manager), "STOPPING=1");
    assert_eq!(master.wait().code(), Some(0));
    assert_eq!(rest(&manager), [""; 0], "once each, and no watchdog without a time");
}

#[test]
fn a_name_in_the_abstract_namespace_does_as_well() {
    let name = format!("vestibule-tests-{}", std::process::id());
    let manager = manager(&SocketAddr::from_abstract_name(&name).unwrap());
    let place = Place::new();
    let mut command = command(&place, WORKER);
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let master = Master::launch(command);
    assert_eq!(hear(&manager), "READY=1");
    master.stop();
    assert_eq!(hear(&manager), "STOPPING=1");
}

/// A supervisor with a watchdog of this time, and its manager's socket.
fn watched(place: &Place, worker: &str, process: Option<&str>) -> (Master, UnixDatagram) {
    let path = place.join("notify");
    let manager = manager(&SocketAddr::from_pathname(&path).unwrap());
    let mut command = command(place, worker);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
    if let Some(process) = process {
        command.env("WATCHDOG_PID", process);
    }
    (Master::launch(command), manager)
}

fn a_watchdog_is_fed(worker: &str) {
    let place = Place::new();
    let (master, manager) = watched(&place, worker, None);
    let mut said: Vec<String> = (0..10).map(|_| hear(&manager)).collect();
    said.retain(|said| said != "WATCHDOG=1");
    assert!(said.len() <= 1 && said.iter().all(|said| said == "READY=1"), "{said:?}");
    // A supervisor that hangs says nothing more; what it had said before is heard first.
    process::freeze(master.pid());
    rest(&manager);
    assert_eq!(rest(&manager), [""; 0]);
    process::thaw(master.pid());
    manager.set_nonblocking(false).unwrap();
    assert_eq!(hear(&manager), "WATCHDOG=1");
    master.stop();
}

#[test]
fn a_watchdog_is_fed_for_as_long_as_the_supervisor_lives() {
    a_watchdog_is_fed(WORKER);
}

#[test]
fn a_watchdog_is_fed_by_an_ordinary_user() {
    let vestibule = vestibule_tests::master::vestibule(WORKER);
    let programs = [WORKER, vestibule.to_str().unwrap()];
    if user::as_nobody("a_watchdog_is_fed_by_an_ordinary_user", &programs) {
        a_watchdog_is_fed(&user::program(0, WORKER));
    }
}

#[test]
fn a_watchdog_that_is_meant_for_another_process_is_left_alone() {
    let place = Place::new();
    let (mut master, manager) = watched(&place, WORKER, Some("1"));
    assert_eq!(hear(&manager), "READY=1");
    // Longer than several of its times: a router is started and accepts.
    for _ in 0..3 {
        master.kill_router();
        assert_eq!(master.client().get("/").status, 200);
    }
    master.stop();
    assert_eq!(rest(&manager), ["STOPPING=1"]);
}
