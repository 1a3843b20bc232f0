//! A listener that a reload removes: whoever has connected by then is served, whether it has said
//! something or not, and whatever else happens meanwhile. Whoever comes later is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::json;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::{Client, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

const CLIENTS: usize = 20;
/// What is said first decides, so the kernel keeps whoever says nothing.
const ROUTES: &str = "[[route]]\nlistener = 'old'\nhost = 'a.example'\npool = 'former'\n\
                      [[route]]\nname = 'rest'\nreject = 418\n";
const GOES: &str = "127.0.0.1:0";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn listener(name: &str, address: &str) -> String {
    format!("[[listener]]\nname = '{name}'\naddress = '{address}'\n")
}

fn pool(name: &str) -> String {
    let user = if is_root() { "user = 'root'" } else { "" };
    format!("[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = 1\n{user}\n")
}

fn router(user: u32) -> String {
    let user = if is_root() { format!("user = '{user}'\n") } else { String::new() };
    format!("[router]\n{user}inspect-timeout = '60s'\n")
}

/// With the listener and the pool that go.
fn both(user: u32, goes: &str) -> String {
    let listeners = listener("web", "127.0.0.1:0") + &listener("old", goes);
    format!("{}{listeners}{}{}{ROUTES}", router(user), pool("app"), pool("former"))
}

/// Without. Whoever is decided by these rules is turned away.
fn without(user: u32) -> String {
    let rules = "[[route]]\nname = 'nobody'\nhost = 'a.example'\nreject = 410\n\
                 [[route]]\nname = 'all'\npool = 'app'\n";
    format!("{}{}{}{rules}", router(user), listener("web", "127.0.0.1:0"), pool("app"))
}

/// The program, and where the listener that goes listens.
fn start(place: &Place, goes: &str) -> (Master, SocketAddr) {
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(&both(61_400, goes)));
    let mut master = Master::launch(command);
    let old = master.next_address();
    is_healthy(place);
    (master, old)
}

fn is_healthy(place: &Place) {
    place.until("every worker is ready", |status| status["health"] == "healthy");
}

/// Clients of which every other one has said something.
fn crowd(old: SocketAddr) -> Vec<Client> {
    let mut all = silent(old);
    half_say_something(&mut all);
    all
}

fn silent(old: SocketAddr) -> Vec<Client> {
    (0..CLIENTS).map(|_| Client::connect(old)).collect()
}

fn half_say_something(clients: &mut [Client]) {
    clients.iter_mut().step_by(2).for_each(|client| client.send(b"GET / HTTP/1.1\r\n"));
}

/// They say what is missing, and are served by the rules that they came by.
fn all_are_served(clients: Vec<Client>, place: &Place) {
    for (number, mut client) in clients.into_iter().enumerate() {
        if number % 2 == 1 {
            client.send(b"GET / HTTP/1.1\r\n");
        }
        client.send(b"host: a.example\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{number}: {:?} {:?}", answer.headers, answer.text());
        assert_eq!(answer.field("worker"), "former-1", "{number}");
    }
    let status = place.status();
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    assert!(rejected.values().all(|count| count == 0), "{rejected:?}");
}

/// Whoever connects now is not let in, and then reset.
fn is_refused(old: SocketAddr) {
    let outcome = TcpStream::connect(old).map_err(|error| error.kind());
    assert_eq!(outcome.err(), Some(ErrorKind::ConnectionRefused));
}

#[test]
fn who_has_connected_and_said_nothing_is_served_after_its_listener_is_gone() {
    let place = Place::new();
    let (master, old) = start(&place, GOES);
    let clients = crowd(old);
    place.reload(&without(61_400));
    is_refused(old);
    place.says("nothing is accepted from a listener any more");
    all_are_served(clients, &place);
    master.stop();
}

#[test]
fn who_has_connected_is_served_by_another_router_that_takes_over_meanwhile() {
    assert!(is_root(), "only root's routers can become another user: run this as root");
    let place = Place::new();
    let (master, old) = start(&place, GOES);
    // The first router is told of both at once, and looks at nobody: whom it leaves is nobody's yet.
    let mut clients = silent(old);
    place.reload(&without(61_401));
    place.until("the next router accepts", |status| {
        status["router"]["epoch"] == 2 && status["health"] == "healthy"
    });
    is_refused(old);
    half_say_something(&mut clients);
    all_are_served(clients, &place);
    master.stop();
}

#[test]
fn who_has_connected_is_served_although_the_router_dies_before_it_has_heard_of_the_reload() {
    let place = Place::new();
    let (mut master, old) = start(&place, GOES);
    let router = master.router();
    process::freeze(router);
    let clients = crowd(old);
    place.order_reload(&without(61_400));
    process::signal(router, Signal::KILL);
    is_healthy(&place);
    is_refused(old);
    all_are_served(clients, &place);
    master.stop();
}

#[test]
fn who_has_connected_is_served_although_there_is_no_router_at_the_reload() {
    let place = Place::new();
    let (mut master, old) = start(&place, GOES);
    let router = master.router();
    process::freeze(master.pid());
    process::signal(router, Signal::KILL);
    let clients = crowd(old);
    place.config(&without(61_400));
    master.signal(Signal::HUP);
    process::thaw(master.pid());
    place.says("the configuration is reloaded");
    is_healthy(&place);
    is_refused(old);
    all_are_served(clients, &place);
    master.stop();
}

#[test]
fn a_listener_that_comes_back_at_once_has_its_socket_and_who_waits_in_it() {
    let goes = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = Place::new();
    let (master, old) = start(&place, &goes.to_string());
    assert_eq!(old, goes);
    let clients = crowd(old);
    assert!(place.reload(&without(61_400)).contains("listener old: removed"));
    let said = place.reload(&both(61_400, &goes.to_string()));
    assert!(said.contains("listener old: added"), "{said}");
    is_healthy(&place);
    all_are_served(crowd(old), &place);
    all_are_served(clients, &place);
    // It may go again.
    let clients = crowd(old);
    place.reload(&without(61_400));
    is_refused(old);
    all_are_served(clients, &place);
    master.stop();
}

/// The socket is not accepted from by two.
#[test]
fn a_listener_that_has_another_name_goes_by_that_at_once() {
    let goes = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = Place::new();
    let (mut master, old) = start(&place, &goes.to_string());
    let renamed = both(61_400, &goes.to_string()).replace("'old'", "'new'");
    let said = place.reload(&renamed);
    assert!(said.contains("listener new: was old"), "{said}");
    // More than one turn of accepting takes: if there were another, it would have the rest.
    let router = master.router();
    process::freeze(router);
    let mut clients: Vec<_> = (0..10 * CLIENTS).map(|_| Client::connect(old)).collect();
    for client in &mut clients {
        client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n");
    }
    process::thaw(router);
    for mut client in clients {
        assert_eq!(client.answer().field("listener"), "new");
    }
    master.stop();
}

#[test]
fn a_stop_ends_everything_while_a_listener_goes() {
    let place = Place::new();
    let (mut master, old) = start(&place, GOES);
    let mut asks = Client::connect(old);
    asks.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n");
    let _silent = crowd(old);
    place.reload(&without(61_400));
    place.order(&json!({"command": "stop"}));
    assert_eq!(asks.answer().field("worker"), "former-1");
    drop(asks);
    assert!(master.wait().success());
    is_refused(old);
}
