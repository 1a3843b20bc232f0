//! Later requests of a kept-alive connection reach the worker that is theirs, with workers that know
//! nothing of it: the runtime compares each request with what the decision rested on, and hands the
//! connection back by itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use vestibule_tests::files::Folder;
use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::process;
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Pools `home`, `api`, `admin` and `gold`, whose workers let hyper serve. `listener` is added to the
/// listener.
fn pools(folder: &Folder, listener: &str) -> Master {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"" } else { "" };
    let pool = |name: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"serve\"]\nworkers = 1\n{user}\n"
        )
    };
    let config = format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n{listener}\n{}{}{}{}\
         [[route]]\npath = \"/admin\"\nheader = {{ x-stolen = \"yes\" }}\nreject = 403\n\
         [[route]]\npath = \"/admin\"\npool = \"admin\"\n\
         [[route]]\npath = \"/api/*\"\ncookie = {{ tier = \"gold\" }}\npool = \"gold\"\n\
         [[route]]\npath = \"/api/*\"\npool = \"api\"\n\
         [[route]]\nhost = \"admin.example.org\"\npool = \"admin\"\n\
         [[route]]\npool = \"home\"\n",
        pool("home"),
        pool("api"),
        pool("admin"),
        pool("gold"),
    );
    let path = folder.write("vestibule.toml", &config, 0o644);
    let mut command = Command::new(vestibule(WORKER));
    command.arg("run").arg(path);
    Master::launch_ready(command, WORKER, &folder.join("admin.sock"))
}

fn case(listener: &str, case: impl FnOnce(&mut Master)) {
    let _turn = turn();
    let folder = Folder::new();
    let mut master = pools(&folder, listener);
    case(&mut master);
    master.stop();
}

fn ask(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n{more}\r\n")
}

/// How often workers handed a connection back, in all pools.
fn handed_back(master: &Master) -> u64 {
    (0..4).map(|pool| master.handed_back(pool)).sum()
}

#[test]
fn curl_gets_each_answer_from_the_worker_that_it_is_of_on_one_connection() {
    case("", |master| {
        let base = format!("http://{}", master.address());
        let paths = ["/", "/api/x", "/admin", "/admin", "/api/y", "/"];
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--write-out", "port=%{local_port}\n"])
            .args(paths.map(|path| format!("{base}{path}")))
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let values = |name: &str| {
            let words = text.split_whitespace();
            words.filter_map(|word| word.strip_prefix(name)).collect::<Vec<_>>()
        };
        let workers = ["home-1", "api-1", "admin-1", "admin-1", "api-1", "home-1"];
        assert_eq!(values("worker="), workers, "{text}");
        let ports = values("port=");
        assert_eq!(ports.len(), paths.len(), "{text}");
        assert!(ports.iter().all(|port| *port == ports[0]), "{text}");
        assert_eq!(handed_back(master), 4);
    });
}

#[test]
fn host_header_and_cookie_of_a_later_request_decide_too() {
    case("", |master| {
        let mut client = master.client();
        for (path, more, worker) in [
            ("/api/x", "", "api-1"),
            ("/api/x", "cookie: a=b; tier=gold\r\n", "gold-1"),
            ("/api/x", "cookie: tier=silver\r\n", "api-1"),
            ("/%61pi/./x", "", "api-1"),
            ("/other", "", "home-1"),
        ] {
            client.send(ask(path, more).as_bytes());
            assert_eq!(client.answer().field("worker"), worker, "{path} {more}");
        }
        client.send(b"GET /other HTTP/1.1\r\nhost: ADMIN.example.org:80\r\n\r\n");
        assert_eq!(client.answer().field("worker"), "admin-1");
        assert_eq!(handed_back(master), 4);
        // An earlier rule that rejects does so for a later request as for a first one.
        client.send(ask("/admin", "x-stolen: yes\r\n").as_bytes());
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("vestibule-reason")), (403, Some("rejected")));
    });
}

#[test]
fn pipelined_requests_with_bodies_are_answered_in_order_by_whom_they_are_of() {
    case("", |master| {
        let echo = |path: &str, body: &str| {
            let length = body.len();
            format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
        };
        // A body that looks like requests of other workers is a body.
        let decoy = ask("/admin", "").repeat(3);
        let all = [
            ask("/", ""),
            echo("/echo", &decoy),
            ask("/api/x", ""),
            echo("/admin", &decoy),
            echo("/echo", "the end"),
        ]
        .concat();
        // Whole, and in pieces of every small size.
        for size in [all.len(), 1, 2, 3, 7, 64] {
            let mut client = master.client();
            for piece in all.as_bytes().chunks(size) {
                client.send(piece);
            }
            assert_eq!(client.answer().field("worker"), "home-1");
            assert_eq!(client.answer().text(), decoy);
            assert_eq!(client.answer().field("worker"), "api-1");
            assert_eq!(client.answer().field("worker"), "admin-1");
            assert_eq!(client.answer().text(), "the end");
            client.finish();
            assert_eq!(client.end().0, b"", "pieces of {size}");
        }
        assert_eq!(handed_back(master), 18);
    });
}

#[test]
fn after_a_chunked_body_the_connection_closes() {
    case("", |master| {
        let mut client = master.client();
        client.send(
            b"POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n\
              5\r\nhello\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: test\r\n\r\n",
        );
        let answer = client.answer();
        assert_eq!(answer.text(), "hello");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.end().0, b"", "what follows is answered by nobody");
    });
}

/// A head longer than what can be handed back stays with nobody: its client is told to ask again on
/// another connection (RFC 9110 15.5.20), where it is decided about anew.
#[test]
fn a_later_head_that_is_too_long_to_hand_back_is_told_421_and_the_connection_closes() {
    case("", |master| {
        let mut client = master.client();
        client.send(ask("/", "").as_bytes());
        assert_eq!(client.answer().field("worker"), "home-1");
        let long = format!("x-long: {}\r\n", "x".repeat(70_000));
        // What is behind it is not answered: it would be by whom it is not of.
        client.send([ask("/admin", &long), ask("/", "")].concat().as_bytes());
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (421, Some("close")));
        assert_eq!(client.end().0, b"");
        assert_eq!(handed_back(master), 0);
        // One for the same pool is no matter of handing back.
        let mut client = master.client();
        for more in ["", &long] {
            client.send(ask("/", more).as_bytes());
            assert_eq!(client.answer().field("worker"), "home-1");
        }
    });
}

#[test]
fn a_listener_that_does_not_check_leaves_a_connection_with_its_first_worker() {
    case("reuse = \"connection\"", |master| {
        let mut client = master.client();
        for path in ["/", "/api/x", "/admin"] {
            assert_eq!(client.get(path).field("worker"), "home-1");
        }
        assert_eq!(handed_back(master), 0);
    });
}

/// Nearly a thousand moves leave no socket with anybody.
#[test]
fn nobody_is_left_with_a_socket_after_a_thousand_moves() {
    case("", |master| {
        let census = |master: &mut Master| {
            let workers: Vec<usize> = master.workers().into_iter().map(process::sockets).collect();
            (process::sockets(master.router()), workers)
        };
        let visit = |master: &Master| {
            let mut client = master.client();
            for turn in 0..50 {
                let (path, worker) =
                    [("/", "home-1"), ("/api/x", "api-1"), ("/admin", "admin-1")][turn % 3];
                assert_eq!(client.get(path).field("worker"), worker);
            }
        };
        let before = census(master);
        (0..20).for_each(|_| visit(master));
        until("everything is as before", || census(master) == before);
        assert_eq!(handed_back(master), 20 * 49);
    });
}
