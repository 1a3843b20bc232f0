//! Clients of a listener, and of a pool, that a reload removes: whoever has not said yet what a rule must
//! see is decided by the rules that it came by, in its own time, and whoever waits is served, whichever
//! router there is by then.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use vestibule_tests::half::{Half, crowd};
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

const STAYS: &str = "[[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\n";
/// 127.0.0.2 is a proxy.
const GOES: &str =
    "[[listener]]\nname = 'old'\naddress = '127.0.0.1:0'\nproxy-protocol = ['127.0.0.2']\n";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn pool(name: &str, more: &str) -> String {
    let user = if is_root() { "user = 'root'" } else { "" };
    format!(
        "[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = 1\n{user}\n{more}\n"
    )
}

/// What is known of clients of the listener that goes, by its rules.
fn rules() -> String {
    ["sni = 'announced.example'\nhost = 'a.example'", "sni = 'a.example'", "host = 'a.example'"]
        .iter()
        .map(|matches| format!("[[route]]\nlistener = 'old'\n{matches}\npool = 'former'\n"))
        .chain(["[[route]]\nname = 'rest'\nreject = 418\n".to_owned()])
        .collect()
}

fn router(user: u32, timeout: &str) -> String {
    let user = if is_root() { format!("user = '{user}'\n") } else { String::new() };
    format!("[router]\n{user}inspect-timeout = '{timeout}'\n")
}

/// With the listener and the pool that go.
fn both(user: u32, timeout: &str, more: &str) -> String {
    let pools = pool("app", "") + &pool("former", more);
    format!("{}{STAYS}{GOES}{pools}{}", router(user, timeout), rules())
}

/// Without. Whoever is decided by these rules is turned away.
fn without(user: u32, timeout: &str) -> String {
    let rules = "[[route]]\nname = 'nobody'\nhost = 'a.example'\nreject = 410\n\
                 [[route]]\nname = 'all'\npool = 'app'\n";
    format!("{}{STAYS}{}{rules}", router(user, timeout), pool("app", ""))
}

/// The program, and where the listener that goes listens.
fn start(place: &Place, text: &str) -> (Master, SocketAddr) {
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(text));
    let mut master = Master::launch(command);
    let old = master.next_address();
    place.until("every worker is ready", |status| status["health"] == "healthy");
    (master, old)
}

/// Waits until so many are accepted. The kernel keeps silent ones for a second or two.
fn accepted(master: &Master, count: usize) {
    until("all are accepted", || master.accepted_and_acknowledged().0 == count as u64);
}

fn rejected(status: &Value) -> Vec<(String, u64)> {
    let all = status["connections"]["rejected"].as_object().unwrap().iter();
    let all = all.map(|(reason, count)| (reason.clone(), count.as_u64().unwrap()));
    all.filter(|(_, count)| *count > 0).collect()
}

/// Waits until so many routers have taken over, and the last one accepts.
fn taken_over(place: &Place, times: u32) {
    place.until("the next router accepts", |status| {
        status["router"]["epoch"] == 1 + times && status["health"] == "healthy"
    });
}

fn is_closed(address: SocketAddr) -> bool {
    let refused = std::io::ErrorKind::ConnectionRefused;
    TcpStream::connect(address).is_err_and(|error| error.kind() == refused)
}

#[test]
fn whoever_is_looked_at_of_a_removed_listener_is_decided_by_the_rules_that_knew_it() {
    let place = Place::new();
    let (mut master, old) = start(&place, &both(61_400, "60s", ""));
    let crowd = crowd(old);
    let count = crowd.len();
    accepted(&master, count);
    let said = place.reload(&without(61_400, "60s"));
    assert!(said.contains("listener old: removed") && said.contains("pool former: removed"));
    until("nobody listens there", || is_closed(old));
    // The router has had its turn since.
    place.says("nothing is accepted from a listener any more");
    assert_eq!(master.workers().len(), 2, "the removed pool's worker is there");
    crowd.into_iter().for_each(Half::assert_served);
    all_by_the_removed_pool(&place, &mut master);
    println!("{count} clients of a removed listener");
    master.stop();
}

#[test]
fn whoever_is_looked_at_of_a_removed_listener_goes_on_with_another_router_and_the_one_after() {
    assert!(is_root(), "only root's routers can become another user: run this as root");
    let place = Place::new();
    let (mut master, old) = start(&place, &both(61_400, "60s", ""));
    let crowd = crowd(old);
    let count = crowd.len();
    accepted(&master, count);
    // One router hears of the change, and its clients go on with the second and the third.
    place.reload(&without(61_401, "60s"));
    taken_over(&place, 1);
    let mut crowd = crowd.into_iter();
    crowd.by_ref().take(count / 2).for_each(Half::assert_served);
    place.reload(&without(61_402, "60s"));
    taken_over(&place, 2);
    assert!(is_closed(old));
    assert_eq!(master.workers().len(), 2, "the removed pool's worker is there");
    crowd.for_each(Half::assert_served);
    all_by_the_removed_pool(&place, &mut master);
    println!("{count} clients of a removed listener, half of them over two changes of the router");
    master.stop();
}

/// Nobody was turned away, or went to the pool that stays; the other one ends.
fn all_by_the_removed_pool(place: &Place, master: &mut Master) {
    let status = place.status();
    assert_eq!(rejected(&status), []);
    assert_eq!(status["pools"][0]["delivered"], 0);
    until("the removed pool's worker ends", || master.workers().len() == 1);
    assert_eq!(master.client().get("/").field("worker"), "app-1");
}

#[test]
fn whoever_is_looked_at_of_a_removed_listener_has_its_own_time_with_another_router() {
    assert!(is_root(), "only root's routers can become another user: run this as root");
    const SILENT: usize = 20;
    let place = Place::new();
    let (mut master, old) = start(&place, &both(61_400, "5s", ""));
    let mut silent: Vec<_> = (0..SILENT).map(|_| Client::connect(old)).collect();
    for client in &mut silent {
        client.send(b"GET / HTTP/1.1\r\nhost: a.exa");
    }
    accepted(&master, SILENT);
    // What the new file says of it is about others.
    place.reload(&without(61_401, "1m"));
    taken_over(&place, 1);
    for mut client in silent {
        let answer = client.answer();
        let reason = answer.header("vestibule-reason");
        assert_eq!((answer.status, reason), (408, Some("inspect-timeout")));
    }
    let expected = ("inspect-timeout".to_owned(), SILENT as u64);
    assert_eq!(rejected(&place.status()), [expected]);
    until("the removed pool's worker ends", || master.workers().len() == 1);
    master.stop();
}

#[test]
fn a_script_that_a_reload_replaces_decides_about_a_removed_listener_with_another_router() {
    assert!(is_root(), "only root's routers can become another user: run this as root");
    let place = Place::new();
    let script = |does: &str| {
        let text = format!(
            "onconnection = async ({{ connection }}) => {{\n\
               const request = await connection.http();\n{does}\n}};"
        );
        place.write("route.js", &text);
    };
    let with = |text: String| text.replace("[router]\n", "[router]\nscript = 'route.js'\n");
    script("pools.former.workers[0].postMessage({ by: 'the first' }, [connection]);");
    let (master, old) = start(&place, &with(both(61_400, "60s", "")));
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(old)).collect();
    for client in &mut clients {
        client.send(b"GET / HTTP/1.1\r\nhost: a.exa");
    }
    accepted(&master, clients.len());
    script("connection.reject(411);");
    place.reload(&with(without(61_401, "60s")));
    taken_over(&place, 1);
    for mut client in clients {
        client.send(b"mple\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.field("worker"), "former-1");
        assert_eq!(answer.field("message"), "{\"by\":\"thefirst\"}");
    }
    master.stop();
}

#[test]
fn whoever_waits_for_a_removed_pool_is_served_by_it_with_another_router() {
    assert!(is_root(), "only root's routers can become another user: run this as root");
    const WAITING: usize = 50;
    const FULL: &str = "max-connections = 1\nqueue = { max = 1000, timeout = '60s' }";
    let place = Place::new();
    let (mut master, old) = start(&place, &both(61_400, "60s", FULL));
    let ask = |client: &mut Client| client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n");
    let mut keeps = Client::connect(old);
    ask(&mut keeps);
    assert_eq!(keeps.answer().field("worker"), "former-1");
    let mut waiting: Vec<_> = (0..WAITING).map(|_| Client::connect(old)).collect();
    waiting.iter_mut().for_each(ask);
    place.until("everybody waits", |status| status["pools"][1]["queued"] == WAITING);
    let router = master.router();
    place.reload(&without(61_401, "60s"));
    taken_over(&place, 1);
    until("the router before is gone", || process::is_gone(router));
    // It is the pool's for as long as somebody waits.
    ask(&mut keeps);
    assert_eq!(keeps.answer().field("worker"), "former-1");
    drop(keeps);
    for mut client in waiting {
        assert_eq!(client.answer().field("worker"), "former-1");
    }
    assert_eq!(rejected(&place.status()), []);
    until("the removed pool's worker ends", || master.workers().len() == 1);
    master.stop();
}
