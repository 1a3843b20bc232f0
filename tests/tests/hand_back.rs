//! Connections that workers hand back: semantics, point 24, with the program itself and several pools.
//! What a hostile worker can make of it is in `hand_back_library`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use rustix::process::Signal;
use vestibule_tests::files::Folder;
use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::world::{turn, until};
use vestibule_tests::{process, sum};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Two pools whose workers are `test-worker`: `login`, which may hand connections to `customers`, and
/// `customers`, which may hand them to `login` and to nobody else.
fn two_pools(folder: &Folder) -> Master {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"" } else { "" };
    let pool = |name: &str, other: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 2\n\
             hand-back-to = [\"{other}\"]\n{user}\n"
        )
    };
    let config = format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n{}{}{}\
         [[route]]\npool = \"login\"\n",
        pool("login", "customers"),
        pool("customers", "login"),
        pool("internal", "login"),
    );
    let path = folder.write("vestibule.toml", &config, 0o644);
    let mut command = Command::new(vestibule(WORKER));
    command.arg("run").arg(path);
    Master::launch_ready(command, WORKER, &folder.join("admin.sock"))
}

fn case(case: impl FnOnce(&mut Master)) {
    let _turn = turn();
    let folder = Folder::new();
    let mut master = two_pools(&folder);
    case(&mut master);
    master.stop();
}

#[test]
fn a_worker_hands_a_connection_to_another_pool_with_a_message() {
    case(|master| {
        let mut client = master.client();
        let first = client.get("/");
        assert!(first.field("worker").starts_with("login-"));
        assert_eq!(first.field("by"), "nobody");
        let second = client.get("/to/customers");
        assert!(second.field("worker").starts_with("customers-"));
        assert_eq!(second.field("by"), first.field("worker"));
        assert_eq!(second.field("message"), format!("{{\"from\":{:?}}}", first.field("worker")));
        assert_eq!(second.field("nonblocking"), "true");
        // It is the same connection, with the same number, and stays there.
        assert_eq!(second.field("peer"), client.address().to_string());
        assert_eq!(second.field("id"), first.field("id"));
        assert_eq!(client.get("/").field("worker"), second.field("worker"));
        assert_eq!((master.handed_back(0), master.handed_back(1)), (1, 0));
    });
}

#[test]
fn a_worker_names_one_worker_of_another_pool() {
    case(|master| {
        for name in ["customers-2", "customers-1"] {
            let mut client = master.client();
            assert_eq!(client.get(&format!("/to/{name}")).field("worker"), name);
        }
    });
}

#[test]
fn a_pool_that_the_configuration_does_not_name_is_refused_by_policy() {
    case(|master| {
        for name in ["internal", "internal-1", "nobody"] {
            let mut client = master.client();
            assert_eq!(client.get("/").status, 200);
            let answer = client.get(&format!("/to/{name}"));
            assert_eq!(answer.status, 403, "{name}");
            assert_eq!(answer.header("vestibule-reason"), Some("refused-by-policy"));
        }
    });
}

#[test]
fn without_a_name_the_rules_decide_again() {
    case(|master| {
        let mut client = master.client();
        let moved = client.get("/to/customers");
        assert!(moved.field("worker").starts_with("customers-"));
        // Handed back by whom it was handed to, it would be answered: so it is asked by another.
        let mut client = master.client();
        let again = client.get("/next");
        assert!(again.field("worker").starts_with("login-"));
        assert_eq!(again.field("message"), "", "nothing was posted with it");
    });
}

/// Two requests in one packet: the first is answered before the connection is handed back, and the
/// second, with a third behind it, is what the next worker reads.
#[test]
fn pipelined_requests_are_answered_in_order_across_workers() {
    case(|master| {
        let mut client = master.client();
        let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        client.send(
            [ask("/"), ask("/to/customers"), ask("/"), ask("/to/login"), ask("/")]
                .concat()
                .as_bytes(),
        );
        let pools = ["login", "customers", "customers", "login", "login"];
        for pool in pools {
            let worker = client.answer().field("worker");
            assert!(worker.starts_with(pool), "{worker} instead of one of {pool}");
        }
        client.finish();
        assert_eq!(client.end().0, b"");
    });
}

#[test]
fn a_connection_that_is_answered_between_may_be_handed_back_as_often_as_its_client_likes() {
    case(|master| {
        let mut client = master.client();
        for turn in 0..40 {
            let pool = if turn % 2 == 0 { "customers" } else { "login" };
            let answer = client.get(&format!("/to/{pool}"));
            assert!(answer.field("worker").starts_with(pool));
        }
        assert_eq!(master.handed_back(0) + master.handed_back(1), 40);
    });
}

#[test]
fn a_connection_that_is_handed_on_for_ever_is_rejected_after_eight_hops() {
    case(|master| {
        let mut client = master.client();
        let answer = client.get("/circle");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("vestibule-reason"), Some("max-attempts"));
        assert_eq!(master.handed_back(0), 9);
        // What was answered before counts anew, and the bound is the same.
        let mut client = master.client();
        assert_eq!(client.get("/").status, 200);
        assert_eq!(client.get("/circle").status, 503);
        assert_eq!(master.handed_back(0), 18);
    });
}

#[test]
fn what_was_read_is_read_again_up_to_64_kib() {
    case(|master| {
        for length in [200, 24 * 1024, 32 * 1024, 65_535, 65_536] {
            let mut client = master.client();
            let request = request_of(length);
            client.send(&request);
            let answer = client.answer();
            assert_eq!(answer.text(), format!("read={length} sum={}\n", sum(&request)));
        }
        assert_eq!(master.handed_back(0), 5);
    });
}

/// A request for `/next/LENGTH` of that length, which is handed back when all of it was read.
fn request_of(length: usize) -> Vec<u8> {
    let mut request = format!("GET /next/{length} HTTP/1.1\r\nhost: test\r\n\r\n").into_bytes();
    let body = (0..length - request.len()).map(|at| (at % 251) as u8);
    request.extend(body.collect::<Vec<u8>>());
    request
}

#[test]
fn more_than_64_kib_is_an_error_of_the_worker_that_keeps_the_connection() {
    case(|master| {
        let mut client = master.client();
        client.send(&request_of(65_537));
        let answer = client.answer();
        assert_eq!(answer.status, 500);
        assert_eq!(
            answer.text(),
            "65537 bytes were read and not answered, at most 65536 can be handed back"
        );
        assert_eq!(master.handed_back(0), 0);
    });
}

#[test]
fn what_still_comes_is_read_after_what_was_read() {
    case(|master| {
        let mut client = master.client();
        client.send(b"GET /next HTTP/1.1\r\nhost: test\r\n\r\nGET /by");
        assert_eq!(client.answer().field("by").split('-').next(), Some("login"));
        client.send(b"tes HTTP/1.1\r\n\r\nthe end");
        client.finish();
        assert_eq!(client.answer().text(), "GET /bytes HTTP/1.1\r\n\r\nthe end");
    });
}

#[test]
fn a_connection_that_a_router_gave_can_be_handed_back_to_the_next() {
    case(|master| {
        let mut client = master.client();
        assert!(client.get("/").field("worker").starts_with("login-"));
        master.kill_router();
        // The new one takes it back once it is there: until then it waits in the worker's port.
        let answer = client.get("/to/customers");
        assert!(answer.field("worker").starts_with("customers-"), "{answer:?}");
        assert_eq!(answer.field("peer"), client.address().to_string());
    });
}

#[test]
fn what_waits_in_the_port_of_a_router_that_dies_is_taken_by_the_next() {
    case(|master| {
        let before = sockets(master);
        let mut client = master.client();
        assert!(client.get("/").field("worker").starts_with("login-"));
        assert_ne!(sockets(master), before);
        let router = master.router();
        process::freeze(router);
        client.ask("/to/customers");
        // It is in the port: no worker has the connection any more.
        until("the worker has handed it back", || sockets(master) == before);
        process::signal(router, Signal::KILL);
        let answer = client.answer();
        assert!(answer.field("worker").starts_with("customers-"), "{answer:?}");
    });
}

#[test]
fn curl_reads_answers_of_several_workers_on_one_connection() {
    case(|master| {
        let base = format!("http://{}", master.address());
        let urls = ["/", "/to/customers", "/to/login", "/to/customers-2"];
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--write-out", "port=%{local_port}\n"])
            .args(urls.map(|path| format!("{base}{path}")))
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let values = |name: &str| {
            let words = text.split_whitespace();
            words.filter_map(|word| word.strip_prefix(name)).collect::<Vec<_>>()
        };
        let pools: Vec<_> =
            values("worker=").iter().map(|name| name.rsplit_once('-').unwrap().0).collect();
        assert_eq!(pools, ["login", "customers", "login", "customers"], "{text}");
        let ports = values("port=");
        assert_eq!(ports.len(), urls.len(), "{text}");
        assert!(ports.iter().all(|port| *port == ports[0]), "{text}");
    });
}

/// The client hangs up while its connection is on its way back: nobody is left with it.
#[test]
fn a_client_that_leaves_meanwhile_leaves_nothing_behind() {
    case(|master| {
        let before = (process::sockets(master.router()), sockets(master));
        for path in ["/to/customers", "/next", "/circle"].iter().cycle().take(30) {
            let mut client = master.client();
            client.ask(path);
            drop(client);
        }
        until("nobody holds a connection", || {
            (process::sockets(master.router()), sockets(master)) == before
        });
        assert_eq!(master.client().get("/").status, 200);
    });
}

/// Sockets that all workers together have open.
fn sockets(master: &mut Master) -> usize {
    master.workers().into_iter().map(process::sockets).sum()
}
