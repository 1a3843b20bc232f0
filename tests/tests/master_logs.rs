//! One span a connection: what the program's log says of it, and to whom it says nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use serde_json::Value;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, Gate, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// What no log may ever say: a client sent it.
const SECRET: &str = "hunter2";

/// `vestibule run FILE` with one pool, and a route that is not everybody's.
fn command(place: &Place, settings: &str) -> Command {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         [[pool]]\nname = \"app\"\ncommand = [\"{WORKER}\", \"recv\"]\n{user}{settings}\
         [[route]]\nname = \"near\"\npeer = [\"127.0.0.1\"]\npool = \"app\"\n"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    command
}

/// What was said about the connection of this client, in order: message and span.
fn life(place: &Place, client: &str) -> Vec<(String, Value)> {
    let about = |record: Value| {
        let message = record["fields"]["message"].as_str()?.to_owned();
        let span = record["span"].clone();
        (span["name"] == "connection" && span["peer"] == client).then(|| {
            assert_eq!(record["level"], "DEBUG", "a client's doings: {record}");
            (message, span)
        })
    };
    place.records().into_iter().filter_map(about).collect()
}

fn messages(life: &[(String, Value)]) -> Vec<&str> {
    life.iter().map(|(message, _)| message.as_str()).collect()
}

fn ask(client: &mut Client) -> vestibule_tests::Response {
    client.send(format!("GET / HTTP/1.1\r\nhost: test\r\ncookie: {SECRET}\r\n\r\n").as_bytes());
    client.answer()
}

#[test]
fn every_connection_has_a_span_that_says_what_became_of_it() {
    let place = Place::new();
    let mut command = command(&place, "workers = 1\n");
    // As an option: the router is asked for the same.
    command.args(["--log", "info,vestibule_router=debug"]);
    let master = Master::launch(command);
    let mut client = master.client();
    let answer = ask(&mut client);
    assert_eq!(answer.status, 200);
    let mut stranger = Client::connect_from("127.0.0.9".parse().unwrap(), master.address());
    assert_eq!(ask(&mut stranger).status, 404);
    let (served, refused) = (client.address().to_string(), stranger.address().to_string());
    until("both are told", || {
        life(&place, &served).len() >= 3 && life(&place, &refused).len() >= 2
    });
    let served = life(&place, &served);
    let told = messages(&served);
    // Until the worker was ready it waited.
    assert_eq!(told.first(), Some(&"accepted"));
    assert_eq!(told.get(told.len() - 2..), Some(&["handed over", "acknowledged"][..]), "{told:?}");
    let (_, span) = served.last().unwrap();
    let id = answer.field("id");
    assert_eq!(
        (&span["id"].to_string(), &span["listener"], &span["route"], &span["worker"]),
        (&id, &Value::from("web"), &Value::from("near"), &Value::from("app-1")),
    );
    assert_eq!(span["reason"], Value::Null);
    let refused = life(&place, &refused);
    assert_eq!(messages(&refused), ["accepted", "rejected"]);
    let (_, span) = refused.last().unwrap();
    assert_eq!((&span["route"], &span["reason"]), (&"no-route".into(), &"no-route".into()));
    drop(client);
    master.stop();
    assert!(!place.said().contains(SECRET), "what clients send is nobody's business");
}

#[test]
fn a_connection_that_moves_says_from_whom_and_why() {
    let place = Place::new();
    let mut command = command(&place, "workers = 2\nbalance = \"round-robin\"\n");
    command.env("VESTIBULE_LOG", "info,vestibule_router=debug");
    let mut master = Master::launch(command);
    let mut pids = std::collections::BTreeSet::new();
    until("both workers answer", || {
        pids.insert(ask(&mut master.client()).field("pid"));
        pids.len() == 2
    });
    let frozen = *master.workers().first().unwrap();
    process::freeze(frozen);
    // One of two goes to the frozen worker, which takes nothing.
    let mut clients = [master.client(), master.client()];
    for client in &mut clients {
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    }
    let peers = clients.each_ref().map(|client| client.address().to_string());
    let all_offered =
        || peers.iter().all(|peer| messages(&life(&place, peer)).contains(&"handed over"));
    until("both are offered", all_offered);
    process::signal(frozen, rustix::process::Signal::KILL);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    let moved = |place: &Place| {
        let lives = peers.iter().map(|peer| life(place, peer));
        lives.into_iter().find(|life| messages(life).contains(&"moved"))
    };
    until("one moved", || {
        moved(&place).is_some_and(|life| messages(&life).last() == Some(&"acknowledged"))
    });
    let life = moved(&place).unwrap();
    let told = place.told("moved");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["fields"]["reason"], "worker-gone");
    let workers: Vec<&Value> = life.iter().map(|(_, span)| &span["worker"]).collect();
    assert_ne!(workers.last(), Some(&&told[0]["span"]["worker"]), "another worker took it");
    drop(clients);
    master.stop();
}

#[test]
fn without_being_asked_the_log_says_nothing_of_connections() {
    let place = Place::new();
    let gate = Gate::new();
    let mut command = command(&place, "workers = 1\n");
    command.env("TEST_GATE", gate.path());
    let master = Master::launch(command);
    let mut client = master.client();
    client.ask("/");
    gate.open();
    assert_eq!(client.answer().status, 200);
    let mut stranger = Client::connect_from("127.0.0.9".parse().unwrap(), master.address());
    assert_eq!(ask(&mut stranger).status, 404);
    drop(client);
    master.stop();
    let spans = place.records().into_iter().filter(|record| record.get("span").is_some());
    assert_eq!(spans.collect::<Vec<_>>(), Vec::<Value>::new());
    assert!(!place.said().contains("127.0.0.9"), "{}", place.said());
}
