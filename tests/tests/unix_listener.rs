//! Clients of a Unix-domain listener: they have a user instead of an address.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::user;
use vestibule_tests::world::{DEADLINE, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// The program's neighbour, or their copies for who may not look into the build's folder.
fn worker() -> String {
    user::program(0, WORKER)
}

fn curl(arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30"]).args(arguments);
    command.output().unwrap()
}

/// One request to the socket at this path: status of curl and body.
fn ask(socket: &str) -> (Option<i32>, String) {
    let output = curl(&["--unix-socket", socket, "http://localhost/"]);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// A listener on a port, which `Master` waits for, one at a path and one with a name.
fn config(place: &Place, name: &str, more: &str) -> String {
    let root = rustix::process::geteuid().is_root();
    // The build's folder may be one that only root can enter.
    let user = if root { "user = \"root\"\n" } else { "" };
    let path = place.join("app.sock");
    let me = if root { "root" } else { "nobody" };
    format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nname = \"path\"\naddress = \"unix:{}\"\n{more}\
         [[listener]]\nname = \"name\"\naddress = \"unix:@{name}\"\n\
         [[pool]]\nname = \"app\"\ncommand = \"demo\"\nworkers = 1\n{user}\
         [[route]]\nlistener = \"name\"\nreject = 403\n\
         [[route]]\nname = \"mine\"\npeer-user = [\"4242\", \"{me}\"]\npool = \"app\"\n\
         [[route]]\nname = \"all\"\npool = \"app\"\n",
        path.display()
    )
}

fn start(place: &Place, name: &str, more: &str) -> Master {
    let file = place.config(&config(place, name, more));
    let mut command = place.vestibule(&worker());
    command.arg(file);
    Master::launch(command)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn a_path_from_start_to_end(name: &str) {
    let place = Place::new();
    let socket = place.join("app.sock");
    let master = start(&place, name, "mode = \"660\"\n");
    assert_eq!(mode(&socket), 0o660);
    let (status, body) = ask(&socket.to_string_lossy());
    assert_eq!(status, Some(0));
    let user = rustix::process::geteuid().as_raw();
    assert!(body.contains(&format!("; peer=unix:{user}; context=")), "{body}");
    assert!(body.ends_with("; route=mine\n"), "{body}");
    // Rejected: nothing of HTTP is said to a Unix client, whose connection only ends.
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut rejected = UnixStream::connect_addr(&address).unwrap();
    rejected.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut said = Vec::new();
    rejected.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"");

    let vestibule = Path::new(&worker()).with_file_name("vestibule");
    let mut status = place.command(vestibule);
    let status = status.args(["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["listeners"][1]["address"], format!("unix:{}", socket.display()));
    assert_eq!(status["listeners"][2]["address"], format!("unix:@{name}"));
    assert_eq!(status["connections"]["rejected"]["rejected"], 1);
    master.stop();
    assert!(!socket.exists(), "the path is left");
}

#[test]
fn a_path_serves_from_start_to_end() {
    a_path_from_start_to_end(&format!("vestibule-root-{}", std::process::id()));
}

#[test]
fn an_ordinary_user_listens_at_a_path_as_well() {
    let vestibule = Path::new(WORKER).with_file_name("vestibule");
    let programs = [WORKER, &vestibule.to_string_lossy()];
    if user::as_nobody("an_ordinary_user_listens_at_a_path_as_well", &programs) {
        a_path_from_start_to_end(&format!("vestibule-user-{}", std::process::id()));
    }
}

#[test]
fn a_path_that_a_killed_one_left_is_taken_over_and_a_live_one_is_not() {
    let name = format!("vestibule-left-{}", std::process::id());
    let place = Place::new();
    let socket = place.join("app.sock");
    let mut killed = start(&place, &name, "");
    killed.router();
    killed.workers();
    killed.signal(Signal::KILL);
    killed.wait();
    killed.assert_all_gone();
    assert!(socket.exists(), "nobody could remove it");

    let master = start(&place, &name, "");
    assert_eq!(ask(&socket.to_string_lossy()).0, Some(0));
    let other = Place::new();
    let path = format!("unix:{}", socket.display());
    let code = other.code(other.vestibule(WORKER).args(["--listen", &path]));
    assert_eq!(code, Some(71), "{}", other.said());
    assert!(other.said().contains("somebody answers there"), "{}", other.said());
    assert_eq!(ask(&socket.to_string_lossy()).0, Some(0), "it is as it was");
    master.stop();
}

#[test]
fn connections_are_accepted_again_after_the_router_died() {
    let name = format!("vestibule-crash-{}", std::process::id());
    let place = Place::new();
    let socket = place.join("app.sock").to_string_lossy().into_owned();
    let mut master = start(&place, &name, "");
    assert_eq!(ask(&socket).0, Some(0));
    master.kill_router();
    until("the next router serves", || ask(&socket).0 == Some(0));
    master.stop();
}
