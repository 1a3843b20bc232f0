//! Listening sockets that whoever starts the program has bound, as systemd does: `fd:NAME`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;
use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::place::Place;
use vestibule_tests::world::DEADLINE;
use vestibule_tests::{Client, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A pool of test workers.
fn pool(name: &str) -> String {
    // The build's folder may be one that only root can enter.
    let user = if is_root() { "user = \"root\"\n" } else { "" };
    format!("[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 1\n{user}")
}

/// The command with a listening socket as descriptor 3, which it is told is its own.
fn inheriting(place: &Place, socket: &impl AsFd, names: &str) -> Command {
    let mut command = place.command("sh");
    // The variables name the process that reads them: the shell becomes it.
    let script = "LISTEN_PID=${PID-$$} exec \"$0\" \"$@\" 3<&0 4<&0 </dev/null";
    command.args(["-c", script]).arg(vestibule(WORKER)).arg("run");
    command.stdin(Stdio::from(socket.as_fd().try_clone_to_owned().unwrap()));
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names);
    command
}

const INHERITED: &str = "[[listener]]\nname = \"web\"\naddress = \"fd:front\"\n";

#[test]
fn an_inherited_socket_is_served_and_no_worker_hears_of_it() {
    let place = Place::new();
    let file = place.config(&format!("{INHERITED}{}", pool("app")));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = inheriting(&place, &socket, "other:front");
    command.arg(file);
    let mut master = Master::launch(command);
    assert_eq!(master.address(), socket.local_addr().unwrap());
    assert_eq!(master.client().get("/").field("listener"), "web");
    let (router, workers) = (master.router(), master.workers());
    assert_eq!(workers.len(), 1);
    for process in workers {
        let variables = std::fs::read(format!("/proc/{process}/environ")).unwrap();
        let variables = String::from_utf8_lossy(&variables);
        assert!(variables.contains("VESTIBULE_WORKER="), "{variables:?}");
        assert!(!variables.contains("LISTEN_"), "{variables:?}");
    }
    // The socket is its owner's, who goes on when this program ends.
    vestibule_tests::process::signal(router, rustix::process::Signal::KILL);
    assert_eq!(master.client().get("/").status, 200, "another router has it");
    master.stop();
    let _waits = Client::connect(socket.local_addr().unwrap());
    assert!(socket.accept().is_ok());
}

/// Whoever comes is let in by the kernel as before. It can be named again.
#[test]
fn an_inherited_socket_is_its_owners_again_once_its_listener_is_removed() {
    let place = Place::new();
    let file = place.config(&format!("{INHERITED}{}", pool("app")));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = inheriting(&place, &socket, "other:front");
    command.arg(file);
    let master = Master::launch(command);
    let another = "[[listener]]\nname = 'another'\naddress = '127.0.0.1:0'\n";
    let said = place.reload(&format!("{another}{}", pool("app")));
    assert!(said.contains("listener web: removed"), "{said}");
    place.says("nothing is accepted from a listener any more");
    place.status();
    let _waits = Client::connect(socket.local_addr().unwrap());
    assert!(socket.accept().is_ok());
    is_held(&master, &socket);
    let mut waits = Client::connect(socket.local_addr().unwrap());
    let said = place.reload(&format!("{INHERITED}{}", pool("app")));
    assert!(said.contains("listener web: added"), "{said}");
    assert_eq!(waits.get("/").field("listener"), "web");
    is_held(&master, &socket);
    drop(waits);
    master.stop();
}

#[test]
fn a_socket_that_was_not_inherited_ends_with_71_and_says_how_to_hand_it_over() {
    let expected = "vestibule: no listening socket named `front` was inherited: LISTEN_FDS and \
                    LISTEN_FDNAMES name those that are (`FileDescriptorName=front` in the systemd \
                    socket unit)\n";
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    for (names, process) in [("other:another", None), ("", None), ("front:front", Some("1"))] {
        let place = Place::new();
        let file = place.config(&format!("{INHERITED}{}", pool("app")));
        let mut command = inheriting(&place, &socket, names);
        command.arg(file);
        if let Some(process) = process {
            command.env("PID", process);
        }
        assert_eq!(place.code(&mut command), Some(71), "{names}: {}", place.said());
        assert!(place.said().ends_with(expected), "{names}: {}", place.said());
    }
}

/// What `check` cannot know of a socket that somebody else makes.
#[test]
fn senders_are_not_listed_by_address_where_an_inherited_socket_has_none() {
    let place = Place::new();
    let listener =
        INHERITED.replace("fd:front\"\n", "fd:front\"\nproxy-protocol = \"127.0.0.1\"\n");
    let file = place.config(&format!("{listener}{}", pool("app")));
    let socket = UnixListener::bind(place.join("front.sock")).unwrap();
    let mut command = inheriting(&place, &socket, "other:front");
    command.arg(&file);
    assert_eq!(place.code(&mut command), Some(78), "{}", place.said());
    let expected = "`proxy-protocol` of the listener `web` lists senders by their addresses, and whoever \
                    connects to `fd:front`, a Unix-domain socket, has none";
    assert!(place.said().contains(expected), "{}", place.said());
    let mut check = place.command(vestibule(WORKER));
    assert_eq!(place.code(check.arg("check").arg(&file)), Some(0), "{}", place.said());

    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = inheriting(&place, &socket, "other:front");
    command.arg(file);
    let master = Master::launch(command);
    let mut client = master.client();
    client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 7 80\r\n");
    assert_eq!(client.get("/").field("peer"), "192.0.2.1:7");
    drop(client);
    master.stop();
}

#[test]
fn clients_are_not_told_apart_by_address_where_an_inherited_socket_has_none() {
    let limited = |limit: &str| {
        let limits = format!("fd:front\"\nlimits = {{ {limit} }}\n");
        format!("{OWN}{}{}", INHERITED.replace("fd:front\"\n", &limits), pool("app"))
    };
    let limits =
        [("per-peer", "2"), ("prefix", "[24, 48]"), ("rate", "\"5/m\""), ("inspecting", "9")];
    for (limit, value) in limits {
        let place = Place::new();
        let file = place.config(&limited(&format!("{limit} = {value}")));
        let socket = UnixListener::bind(place.join("front.sock")).unwrap();
        let mut command = inheriting(&place, &socket, "other:front");
        command.arg(&file);
        if limit == "inspecting" {
            Master::launch(command).stop();
            continue;
        }
        assert_eq!(place.code(&mut command), Some(78), "{}", place.said());
        let expected = format!(
            "`limits.{limit}` of the listener `web` tells clients apart by their addresses, and whoever \
             connects to `fd:front`, a Unix-domain socket, has none"
        );
        assert!(place.said().contains(&expected), "{}", place.said());
        let mut check = place.command(vestibule(WORKER));
        assert_eq!(place.code(check.arg("check").arg(&file)), Some(0), "{}", place.said());
    }
    let place = Place::new();
    let file = place.config(&limited("rate = \"1/h\""));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = inheriting(&place, &socket, "other:front");
    command.arg(file);
    let master = Master::launch(command);
    let get = || Client::connect(socket.local_addr().unwrap()).get("/").status;
    assert_eq!((get(), get()), (200, 429));
    master.stop();
}

/// A listener of its own, on a port that is free.
const OWN: &str = "[[listener]]\nname = \"own\"\naddress = \"127.0.0.1:0\"\n";

/// A program that has inherited a socket which its configuration does not name.
fn start_without(place: &Place, socket: &impl AsFd) -> Master {
    let file = place.config(&format!("{OWN}{}", pool("app")));
    let mut command = inheriting(place, socket, "other:front");
    command.arg(file);
    let master = Master::launch(command);
    place.until("the worker is ready", |status| status["health"] == "healthy");
    master
}

/// This configuration is refused, for this reason.
fn is_refused(place: &Place, config: &str, because: &str) {
    place.config(config);
    let answer = place.ask(&json!({"command": "reload"}));
    assert_eq!(answer["reason"], "configuration", "{answer}");
    let text = answer["text"].as_str().unwrap();
    assert!(text.contains("nothing has changed") && text.contains(because), "{text}");
}

/// The supervisor has it twice, by its two names, as it was given.
fn is_held(master: &Master, socket: impl AsFd) {
    assert_eq!(process::descriptors_of(master.pid(), socket), 2);
}

/// Nobody accepts from an inherited socket that no listener names; whoever has connected waits.
#[test]
fn an_inherited_socket_waits_for_a_reload_that_is_good_however_many_are_refused() {
    let place = Place::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = start_without(&place, &socket);
    is_held(&master, &socket);
    let mut client = Client::connect(socket.local_addr().unwrap());
    client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let cannot = format!("cannot listen on {}", taken.local_addr().unwrap());
    let taken =
        format!("[[listener]]\nname = \"taken\"\naddress = \"{}\"\n", taken.local_addr().unwrap());
    let good = format!("{OWN}{INHERITED}{}", pool("app"));
    for _ in 0..2 {
        is_refused(&place, &format!("{OWN}{INHERITED}{taken}{}", pool("app")), &cannot);
        is_held(&master, &socket);
    }
    let stranger = format!("{good}[router]\nuser = \"no-such-user\"\n");
    is_refused(&place, &stranger, "no-such-user");
    is_held(&master, &socket);

    let said = place.reload(&good);
    assert!(said.contains("listener web: added"), "{said}");
    assert_eq!(client.answer().field("listener"), "web");
    is_held(&master, &socket);

    // Now that a listener has it, a reload that is refused does not take it away either.
    is_refused(&place, &format!("{OWN}{INHERITED}{taken}{}", pool("app")), &cannot);
    let mut next = Client::connect(socket.local_addr().unwrap());
    assert_eq!(next.get("/").field("listener"), "web");
    assert_eq!(place.reload(&good), "reloaded: nothing is different");
    assert_eq!(next.get("/").field("listener"), "web");
    is_held(&master, &socket);
    drop((client, next));
    master.stop();
}

/// The router tries a script after everything else.
#[test]
fn a_script_that_is_refused_leaves_an_inherited_socket_to_the_next_reload() {
    let place = Place::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut master = start_without(&place, &socket);
    is_held(&master, &socket);
    let mut client = Client::connect(socket.local_addr().unwrap());
    client.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n");

    let script = "[router]\nscript = \"route.js\"\n[[route]]\npool = \"app\"\n";
    let good = format!("{OWN}{INHERITED}{}{script}", pool("app"));
    place.write("route.js", "onconnection = null.x;");
    is_refused(&place, &good, "TypeError");
    is_held(&master, &socket);
    // A router that dies while it tries one has not said that it can use it.
    place.write("route.js", "onconnection = () => {};");
    let router = master.router();
    process::freeze(router);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| place.ask(&json!({"command": "reload"})));
        place.says("Reload");
        // It says so before it reads the file, and answers nobody in between.
        place.status();
        process::signal(router, Signal::KILL);
        assert_eq!(asks.join().unwrap()["reason"], "state");
    });
    place.until("another router accepts", |status| {
        status["router"]["epoch"] == 2 && status["health"] == "healthy"
    });

    let said = place.reload(&good);
    assert!(said.contains("listener web: added"), "{said}");
    assert_eq!(client.answer().field("listener"), "web");
    is_held(&master, &socket);
    drop(client);
    master.stop();
}

/// What an inherited socket is shows only when a listener names it.
#[test]
fn an_inherited_unix_socket_waits_for_a_reload_that_does_not_ask_its_clients_for_addresses() {
    let place = Place::new();
    let path = place.join("front.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let master = start_without(&place, &socket);
    is_held(&master, &socket);
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").unwrap();

    let good = format!("{OWN}{INHERITED}{}", pool("app"));
    let listed = good.replace("fd:front\"\n", "fd:front\"\nproxy-protocol = \"127.0.0.1\"\n");
    for _ in 0..2 {
        is_refused(&place, &listed, "a Unix-domain socket, has none");
        is_held(&master, &socket);
    }
    let said = place.reload(&good);
    assert!(said.contains("listener web: added"), "{said}");
    let mut answer = *b"HTTP/1.1 ...";
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer.escape_ascii().to_string(), "HTTP/1.1 200");
    is_held(&master, &socket);
    drop(client);
    master.stop();
}
