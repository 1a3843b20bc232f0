//! A router that runs out of descriptors: run in a process of its own, for the limit is a process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use tracing::span;
use vestibule_router::{Connection, Listener};

/// Descriptors that the child may have, and what the router keeps of them.
const LIMIT: u64 = 64;
const RESERVE: usize = 8;
const CLIENTS: usize = 100;
/// How long, on the stopped clock, a shortage lasts.
const LASTS: Duration = Duration::from_secs(60);
/// How often a shortage is looked at, at most.
const LOOKS: u64 = 60 * 20 + 1;

/// Counts what is logged as an error.
struct Errors(Arc<AtomicUsize>);

impl tracing::Subscriber for Errors {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The child's half of a test: listens, waits until all clients are in the kernel's queue.
struct Short {
    listener: Listener,
    errors: Arc<AtomicUsize>,
    _log: tracing::subscriber::DefaultGuard,
}

impl Short {
    async fn new() -> Self {
        let errors = Arc::new(AtomicUsize::new(0));
        let log = tracing::subscriber::set_default(Errors(Arc::clone(&errors)));
        setrlimit(Resource::Nofile, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) }).unwrap();
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        println!("listening {}", listener.local_addr().unwrap());
        std::io::stdin().read_line(&mut String::new()).unwrap();
        Self { listener, errors, _log: log }
    }

    /// Accepts until nothing came for as long as a shortage lasts.
    async fn accept_all(&mut self) -> Vec<Connection> {
        let mut taken = Vec::new();
        while let Ok(connection) = tokio::time::timeout(LASTS, self.listener.accept()).await {
            taken.push(connection.unwrap());
        }
        taken
    }

    fn errors(&self) -> usize {
        self.errors.load(Ordering::Relaxed)
    }
}

fn free() -> usize {
    let mut taken = Vec::new();
    while let Ok(one) = rustix::io::dup(std::io::stdin()) {
        taken.push(one);
    }
    taken.len()
}

#[tokio::test(start_paused = true)]
#[ignore = "runs in a process of its own"]
async fn child_keeps_a_reserve() {
    let mut short = Short::new().await;
    let mut served = 0;
    let taken = short.accept_all().await;
    assert!(!taken.is_empty() && taken.len() < CLIENTS, "{}", taken.len());
    assert_eq!(free(), RESERVE - 1, "the last one accepted was the first of the reserve");
    let during = short.listener.counters();
    assert_eq!(during.calls, taken.len() as u64, "nothing was tried while descriptors were short");
    assert!((1..=LOOKS).contains(&during.pauses), "{during:?}");
    assert_eq!(short.errors(), 1);
    served += taken.len();
    drop(taken);
    while served < CLIENTS {
        served += short.accept_all().await.len();
    }
    assert_eq!(served, CLIENTS, "every client that waited in the kernel's queue came through");
    assert_eq!(short.errors(), 1, "one line for one shortage");
}

#[tokio::test(start_paused = true)]
#[ignore = "runs in a process of its own"]
async fn child_has_no_descriptor_at_all() {
    let mut short = Short::new().await;
    let mut taken = Vec::new();
    while let Ok(one) = rustix::io::dup(std::io::stdin()) {
        taken.push(one);
    }
    assert_eq!(short.accept_all().await.len(), 0);
    let during = short.listener.counters();
    assert_eq!((during.calls, during.accepted), (1, 0), "one call found out");
    assert!((1..=LOOKS).contains(&during.pauses), "{during:?}");
    assert_eq!(short.errors(), 1);
    drop(taken);
    let mut served = 0;
    while served < CLIENTS {
        served += short.accept_all().await.len();
    }
    assert_eq!((served, short.errors()), (CLIENTS, 1));
}

/// Ends the child if the test ends first.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(name: &str) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture", "--test-threads=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Ended(child);
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    let address: SocketAddr = loop {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended early");
        // The test runner's own words may stand before it on the line.
        if let Some((_, address)) = line.split_once("listening ") {
            break address.trim().parse().unwrap();
        }
    };
    // None is refused, though the child accepts none yet.
    let clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
    child.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(child.0.wait().unwrap().success(), "{rest}");
    drop(clients);
}

#[test]
fn accepting_stops_before_the_last_descriptor_and_goes_on_when_some_are_free() {
    run("child_keeps_a_reserve");
}

#[test]
fn without_any_descriptor_nothing_spins() {
    run("child_has_no_descriptor_at_all");
}
