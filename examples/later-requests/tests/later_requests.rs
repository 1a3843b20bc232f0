//! The example as its README shows it, with the program itself and curl, and with what clients may do
//! besides.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::process::Command;

use vestibule_tests::files::Folder;
use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::process;
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_later-requests-worker");

fn case(case: impl FnOnce(&mut Master)) {
    let _turn = turn();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vestibule.toml");
    let config = std::fs::read_to_string(file).unwrap();
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let config = config
        .replace("\"later-requests-worker\"", &format!("{WORKER:?}"))
        .replace("workers = 1\n", &format!("workers = 1\n{user}"))
        .replace(":8080", ":0");
    let folder = Folder::new();
    let path = folder.write("vestibule.toml", &config, 0o644);
    let mut command = Command::new(vestibule(WORKER));
    command.arg("run").arg(path).arg("--admin").arg(folder.join("admin.sock"));
    let mut master = Master::launch(command);
    case(&mut master);
    master.stop();
}

fn handed_back(master: &Master) -> u64 {
    (0..3).map(|pool| master.handed_back(pool)).sum()
}

const TURNS: [(&str, &str); 7] = [
    ("/", "home-1"),
    ("/api/x", "api-1"),
    ("/admin", "admin-1"),
    ("/api/y", "api-1"),
    ("/api/z", "api-1"),
    ("/", "home-1"),
    ("/admin/x", "admin-1"),
];

#[test]
fn curl_gets_each_answer_from_the_worker_that_it_is_of_on_one_connection() {
    case(|master| {
        let base = format!("http://{}", master.address());
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--write-out", "connects=%{num_connects}\n"])
            .args(TURNS.map(|(path, _)| format!("{base}{path}")))
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
        let expected: String = (0..)
            .zip(TURNS)
            .map(|(at, (path, worker))| {
                let connects = u8::from(at == 0);
                format!("worker={worker} path={path}\nconnects={connects}\n")
            })
            .collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        assert_eq!(handed_back(master), 5);
    });
}

#[test]
fn pipelined_requests_come_to_their_workers_in_any_pieces() {
    case(|master| {
        let ask = |path: &str, body: &str| {
            let length = body.len();
            format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
        };
        // A body that looks like another worker's request is a body.
        let decoy = "GET /admin HTTP/1.1\r\nhost: test\r\n\r\n".repeat(2);
        let bodies = ["", decoy.as_str(), "x", "", "\r\n\r\n", "", ""];
        let all: String =
            TURNS.iter().zip(bodies).map(|((path, _), body)| ask(path, body)).collect();
        for size in [all.len(), 1, 2, 3, 7, 64, 300] {
            let mut client = master.client();
            for piece in all.as_bytes().chunks(size) {
                client.send(piece);
            }
            for (path, worker) in TURNS {
                let answer = client.answer();
                assert_eq!(answer.field("worker"), worker, "{path} in pieces of {size}");
                assert_eq!(answer.field("path"), path);
            }
            client.finish();
            assert_eq!(client.end().0, b"", "pieces of {size}");
        }
        assert_eq!(handed_back(master), 7 * 5);
    });
}

/// A rule that rejects counts for later requests of each kind of worker.
#[test]
fn nobody_slips_past_a_rejection_by_asking_for_something_else_first() {
    case(|master| {
        for (path, worker) in [("/", "home-1"), ("/api/x", "api-1"), ("/admin", "admin-1")] {
            let mut client = master.client();
            assert_eq!(client.get(path).field("worker"), worker);
            client.send(b"GET //%61dmin HTTP/1.1\r\nhost: test\r\nx-stolen: yes\r\n\r\n");
            let answer = client.answer();
            assert_eq!((answer.status, answer.header("vestibule-reason")), (403, Some("rejected")));
        }
    });
}

#[test]
fn what_cannot_be_handed_back_is_told_421_or_closed_by_each_kind_of_worker() {
    case(|master| {
        let long = "x".repeat(70_000);
        for (path, worker, other) in
            [("/", "home-1", "/admin"), ("/api/x", "api-1", "/admin"), ("/admin", "admin-1", "/")]
        {
            let mut client = master.client();
            assert_eq!(client.get(path).field("worker"), worker);
            let head = format!("GET {other} HTTP/1.1\r\nhost: test\r\nx-long: {long}\r\n\r\n");
            client.send(head.as_bytes());
            let answer = client.answer();
            assert_eq!((answer.status, answer.header("connection")), (421, Some("close")));
            assert_eq!(client.end().0, b"", "{worker}");
            // Nobody can tell where a chunked body ends but who reads it.
            let mut client = master.client();
            let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\n");
            client.send(format!("{head}transfer-encoding: chunked\r\n\r\n0\r\n\r\n").as_bytes());
            client.ask(other);
            let answer = client.answer();
            assert_eq!(answer.field("worker"), worker);
            assert_eq!(answer.header("connection"), Some("close"));
            assert_eq!(client.end().0, b"", "{worker}");
        }
        assert_eq!(handed_back(master), 0);
    });
}

#[test]
fn nobody_is_left_with_a_socket_after_hundreds_of_moves() {
    case(|master| {
        let census = |master: &mut Master| {
            let workers: Vec<usize> = master.workers().into_iter().map(process::sockets).collect();
            (process::sockets(master.router()), workers)
        };
        // Once each: only then is everybody's port there.
        let mut first = master.client();
        for (path, worker) in TURNS {
            assert_eq!(first.get(path).field("worker"), worker);
        }
        drop(first);
        let before = census(master);
        for _ in 0..20 {
            let mut client = master.client();
            for (path, worker) in TURNS.into_iter().cycle().take(30) {
                assert_eq!(client.get(path).field("worker"), worker);
            }
        }
        // The first client's may have been still open.
        until("nobody has more than before", || {
            let (router, workers) = census(master);
            router <= before.0 && workers.iter().zip(&before.1).all(|(now, before)| now <= before)
        });
    });
}
