//! How the program starts, and with which code it ends when it cannot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::TcpListener;

use vestibule_tests::master::{Master, is_over, vestibule};
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, refuse, user};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Who workers are, as root: the build's folder may be one that only root can enter.
fn as_root() -> &'static str {
    if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" }
}

/// A pool of test workers.
fn pool(name: &str) -> String {
    format!(
        "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 1\n{}",
        as_root()
    )
}

/// The exit code of `vestibule run` with these arguments, and what it said.
fn ends(arguments: &[&str]) -> (Option<i32>, String) {
    let place = Place::new();
    let code = place.code(place.vestibule(WORKER).args(arguments));
    (code, place.said())
}

/// The same with a configuration.
fn ends_with(config: &str) -> (Option<i32>, String) {
    let place = Place::new();
    let file = place.config(config);
    let code = place.code(place.vestibule(WORKER).arg(file));
    (code, place.said())
}

#[test]
fn what_is_used_wrongly_ends_with_64() {
    for arguments in [
        &["--no-such-option"][..],
        &["--workers", "0"],
        &["--balance", "leastconn"],
        &["--listen", "localhost"],
        &["app.js"],
        &["--workers", "2", "vestibule.toml"],
        &["vestibule.toml", "--", "program"],
    ] {
        let (code, said) = ends(arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {said}");
        assert!(!said.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_worker_that_comes_up_it_ends_with_70_and_says_why() {
    let arguments = ["--listen", "127.0.0.1:0", "--workers", "2", "--", "/no/such/program"];
    let (code, said) = ends(&arguments);
    assert_eq!(code, Some(70), "{said}");
    assert!(said.contains("vestibule: no worker came up"), "{said}");
    assert!(said.contains("/no/such/program does not exist"), "{said}");
}

#[test]
fn with_a_file_it_ends_with_70_when_all_attempts_are_used_up() {
    let place = Place::new();
    let listener = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n";
    let restart = "restart = { delay = \"1ms\", max-delay = \"2ms\", attempts = 3 }\n";
    let ends = pool("app").replace("\"recv\"", "\"exit\"");
    let file = place.config(&format!("{listener}{ends}{restart}"));
    let code = place.code(place.vestibule(WORKER).arg(file));
    assert_eq!(code, Some(70), "{}", place.said());
    assert!(place.told("worker started").len() >= 3, "{}", place.said());
}

#[test]
fn an_address_that_is_taken_ends_with_71() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = ends(&["--listen", &address]);
    assert_eq!(code, Some(71), "{said}");
    assert!(said.contains(&format!("vestibule: cannot listen on {address}")), "{said}");
}

#[test]
fn a_wrong_configuration_ends_with_78() {
    let (code, said) = ends_with("[[listener]]\nname = \"web\"\nadress = \"127.0.0.1:0\"\n");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("vestibule.toml:5:1"), "{said}");
}

#[test]
fn five_routers_that_end_before_they_accept_end_it_with_70_and_no_worker_is_left() {
    let place = Place::new();
    let mut command = place.vestibule(WORKER);
    command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
    if rustix::process::geteuid().is_root() {
        command.args(["--user", "root"]);
    }
    command.args(["--", WORKER, "recv"]);
    refuse::parent_death_signal(&mut command);
    assert_eq!(place.code(&mut command), Some(70), "{}", place.said());
    let said = place.said();
    assert!(said.contains("parent-death signal failed"), "{said}");
    let last = "vestibule: 5 routers in a row ended before they accepted a connection";
    assert!(said.contains(last), "{said}");
    assert_eq!(place.told("the router is started").len(), 5);
    let delays = place.told("the router is started again");
    let delays: Vec<_> = delays.iter().map(|told| told["fields"]["delay"].as_str()).collect();
    assert_eq!(delays, ["100ms", "200ms", "300ms", "400ms"].map(Some), "growing");
    let workers = place.told("worker started");
    assert_eq!(workers.len(), 2);
    for worker in workers {
        let pid = worker["fields"]["pid"].as_u64().unwrap() as u32;
        until("the worker is gone", || is_over(pid));
    }
}

#[test]
fn what_no_route_matches_gets_404() {
    let place = Place::new();
    let listener = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n";
    let routes = "[[route]]\nname = \"near\"\npeer = [\"127.0.0.2\"]\npool = \"app\"\n\
                  [[route]]\nname = \"teapot\"\npeer = [\"127.0.0.3\"]\nreject = 418\n\
                  [[route]]\nname = \"gone\"\npeer = [\"127.0.0.4\"]\nreject = \"close\"\n\
                  [[route]]\nname = \"never\"\npeer = [\"127.0.0.5\"]\nreject = \"reset\"\n";
    let file = place.config(&format!("{listener}{}{routes}", pool("app")));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    let master = Master::launch(command);
    let from = |source: &str| Client::connect_from(source.parse().unwrap(), master.address());
    assert_eq!(from("127.0.0.2").get("/").field("route"), "near");
    let refused = from("127.0.0.1").get("/");
    assert_eq!((refused.status, refused.header("vestibule-reason")), (404, Some("no-route")));
    let refused = from("127.0.0.3").get("/");
    assert_eq!((refused.status, refused.header("vestibule-reason")), (418, Some("rejected")));
    assert_eq!(from("127.0.0.4").end().0, b"");
    assert_eq!(from("127.0.0.5").end(), (Vec::new(), vestibule_tests::Ended::Reset));
    master.stop();
}

#[test]
fn the_router_is_never_who_workers_are() {
    if !rustix::process::geteuid().is_root() {
        // An ordinary user cannot choose: see below.
        return;
    }
    let listener = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n";
    // The first that the router would take for itself, by number: it takes another.
    let place = Place::new();
    let demo = "[[pool]]\nname = \"app\"\ncommand = \"demo\"\nworkers = 1\nuser = 61184\n";
    let file = place.config(&format!("{listener}{demo}"));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    let mut master = Master::launch(command);
    let (router, workers) = (uid(master.router()), master.workers());
    let workers: Vec<u32> = workers.into_iter().map(uid).collect();
    assert_eq!(workers, [61184]);
    assert_ne!(router, 61184);
    assert_ne!(router, 0);
    master.stop();
    // Written, by number and by name: refused.
    for (router, workers) in [("61184", "61184"), ("65534", "\"nobody\""), ("\"nobody\"", "65534")]
    {
        let pool = demo.replace("61184", workers);
        let (code, said) = ends_with(&format!("{listener}{pool}[router]\nuser = {router}\n"));
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("pool `app`"), "{said}");
    }
    // Two pools of one user: a warning, and it runs.
    let place = Place::new();
    let route = "[[route]]\npool = \"app\"\n";
    let two = format!("{demo}{}", demo.replace("\"app\"", "\"other\""));
    let file = place.config(&format!("{listener}{two}{route}"));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    Master::launch(command).stop();
    let said = place.said();
    assert!(said.contains("warning") && said.contains("`other`"), "{said}");
}

fn uid(pid: u32) -> u32 {
    // Who waits for its setup is root; who accepts is not.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn an_ordinary_user_is_warned_once_that_router_and_workers_are_one() {
    let vestibule = vestibule(WORKER);
    let programs = [WORKER, vestibule.to_str().unwrap()];
    let name = "an_ordinary_user_is_warned_once_that_router_and_workers_are_one";
    if !user::as_nobody(name, &programs) {
        return;
    }
    let worker = user::program(0, WORKER);
    let place = Place::new();
    let mut command = place.vestibule(&worker);
    command.args(["--listen", "127.0.0.1:0", "--", &worker, "recv"]);
    let master = Master::launch(command);
    assert_eq!(master.client().get("/").status, 200);
    master.stop();
    let warnings = place.records();
    let warnings = warnings.iter().filter(|record| record["level"] == "WARN");
    let about: Vec<String> = warnings.map(ToString::to_string).collect();
    let about: Vec<_> = about.iter().filter(|text| text.contains("are one user")).collect();
    assert_eq!(about.len(), 1, "{about:?}");
}
