//! The example as its README shows it: the program itself, four workers, and the client of socket.io.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vestibule_tests::files::Folder;
use vestibule_tests::master::{Master, vestibule};

const CHAT: &str = env!("CARGO_BIN_EXE_chat-worker");
const CLIENTS: usize = 8;

/// The example with another word for its balance.
fn launch(balance: &str) -> (Master, Folder) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vestibule.toml");
    let config = std::fs::read_to_string(file).unwrap();
    let user = if rustix::process::geteuid().is_root() { "\nuser = \"root\"" } else { "" };
    let config = config.replace("[\"chat-worker\"]", &format!("[\"{CHAT}\"]{user}"));
    let config = config.replace("\"sticky:worker\"", &format!("\"{balance}\""));
    let folder = Folder::new();
    let path = folder.write("vestibule.toml", &config.replace(":8080", ":0"), 0o644);
    let mut command = Command::new(vestibule(CHAT));
    command.arg("run").arg(path).arg("--admin").arg(folder.join("admin.sock"));
    (Master::launch(command), folder)
}

/// Runs the clients; what they print.
fn clients(master: &Master) -> (Output, String) {
    // Programs are in `target/debug` or `target/release`, the tools of the checks beside it.
    let target = Path::new(CHAT).ancestors().nth(2).unwrap();
    let modules: PathBuf = target.join("tools/node_modules");
    assert!(
        modules.join("socket.io-client").exists(),
        "no socket.io-client in {}: .ci/setup installs it",
        modules.display()
    );
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("client.js"));
    command.arg(format!("http://{}", master.address())).arg(CLIENTS.to_string());
    let output = command.env("NODE_PATH", modules).output().expect("node is installed");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output, text)
}

/// What a client prints of one request.
struct Request<'a> {
    client: &'a str,
    transport: &'a str,
    port: &'a str,
    status: &'a str,
    worker: &'a str,
}

fn requests(text: &str) -> Vec<Request<'_>> {
    let read = |line| {
        let words: Vec<&str> = str::split(line, ' ').collect();
        match *words.as_slice() {
            ["client", client, transport, _, port, status, worker] => {
                Some(Request { client, transport, port, status, worker })
            }
            _ => None,
        }
    };
    text.lines().filter_map(read).collect()
}

#[test]
fn every_request_of_a_client_comes_to_one_worker_of_four() {
    let (master, _folder) = launch("sticky:worker");
    let (output, text) = clients(&master);
    assert!(output.status.success(), "{output:?}");
    let mut workers = BTreeMap::<_, BTreeSet<_>>::new();
    let mut ports = BTreeMap::<_, BTreeSet<_>>::new();
    let mut transports = BTreeMap::<_, BTreeSet<_>>::new();
    for request in requests(&text) {
        workers.entry(request.client).or_default().insert(request.worker);
        ports.entry(request.client).or_default().insert(request.port);
        transports.entry(request.client).or_default().insert(request.transport);
        assert!(["200", "101"].contains(&request.status), "{}", request.status);
    }
    assert_eq!(workers.len(), CLIENTS);
    for (client, workers) in &workers {
        assert_eq!(workers.len(), 1, "client {client} went to {workers:?}");
        let worker = workers.first().unwrap();
        let said =
            format!("client {client} said hello to {worker} and again to {worker} by websocket");
        assert!(text.lines().any(|line| line == said), "{said:?} is missing");
        assert_eq!(transports[client].len(), 2, "polling, and a websocket");
        assert!(ports[client].len() >= 2, "several connections, so that each was decided");
    }
    let all: BTreeSet<_> = workers.values().flatten().collect();
    assert_eq!(all.len(), 4, "clients without a cookie go round");
    master.stop();
}

/// What the cookie is for: the same clients fail where nobody looks at it.
#[test]
fn without_the_cookie_clients_meet_workers_that_do_not_know_them() {
    let (master, _folder) = launch("round-robin");
    let (output, text) = clients(&master);
    assert!(!output.status.success(), "{output:?}");
    let strangers = requests(&text).iter().filter(|request| request.status == "400").count();
    assert!(strangers > 0, "no worker said that it does not know the session");
    master.stop();
}
