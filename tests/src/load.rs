//! Clients that come again and again, each for one request: who was answered, rightly, and how fast.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::world::{DEADLINE, until};

/// Between two requests of a client: a machine that does much else is not to be filled by it.
const PAUSE: Duration = Duration::from_micros(500);

/// How long a client waits: the queue's, an offer's and a start's deadlines come one after another.
const PATIENCE: Duration = DEADLINE.saturating_mul(2);

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The answer to this client's own request, from a worker.
    Answered,
    /// The connection ended without an answer.
    Ended,
    /// The router said no: the reason.
    Rejected(String),
    /// Something else than this client's answer came.
    Wrong(String),
}

/// Clients under way.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    phase: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    others: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Request>>>,
}

/// What became of one request, when.
#[derive(Debug)]
struct Request {
    phase: usize,
    took: Duration,
    outcome: Outcome,
    from: SocketAddr,
}

/// What became of all requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many of each outcome.
    pub outcomes: BTreeMap<Outcome, usize>,
    /// Clients' addresses, each of one request that was not answered.
    pub lost: Vec<SocketAddr>,
    /// How long answers took, by phase, sorted.
    pub times: BTreeMap<usize, Vec<Duration>>,
}

impl Load {
    /// So many clients at once.
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        Self::start_with(address, clients, PAUSE)
    }

    /// So many clients at once, each with this pause between two requests.
    pub fn start_with(address: SocketAddr, clients: usize, pause: Duration) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let phase = Arc::new(AtomicUsize::new(0));
        let (answered, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let client = |_| {
            let (over, phase) = (Arc::clone(&over), Arc::clone(&phase));
            let (answered, others) = (Arc::clone(&answered), Arc::clone(&others));
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let (phase, begin) = (phase.load(Ordering::Relaxed), Instant::now());
                    let (outcome, from) = ask(address);
                    let count = if outcome == Outcome::Answered { &answered } else { &others };
                    count.fetch_add(1, Ordering::Relaxed);
                    seen.push(Request { phase, took: begin.elapsed(), outcome, from });
                    std::thread::sleep(pause);
                }
                seen
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { over, phase, answered, others, clients }
    }

    /// How many were answered so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// How many requests ended otherwise so far.
    pub fn others(&self) -> usize {
        self.others.load(Ordering::Relaxed)
    }

    /// Waits until so many more are answered.
    pub fn flows(&self, more: usize) {
        let before = self.answered();
        until("clients are served", || {
            assert!(!self.clients.iter().all(JoinHandle::is_finished), "the clients have failed");
            self.answered() >= before + more
        });
    }

    /// What begins now is counted apart.
    pub fn next_phase(&self) {
        self.phase.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for all.
    pub fn end(self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for client in self.clients {
            for request in client.join().expect("a client waited in vain") {
                let Request { phase, took, outcome, from } = request;
                match outcome {
                    Outcome::Answered => tally.times.entry(phase).or_default().push(took),
                    _ => tally.lost.push(from),
                }
                *tally.outcomes.entry(outcome).or_default() += 1;
            }
        }
        tally.times.values_mut().for_each(|times| times.sort());
        tally
    }
}

impl Tally {
    /// Requests with their answer.
    pub fn answered(&self) -> usize {
        self.outcomes.get(&Outcome::Answered).copied().unwrap_or_default()
    }

    /// Requests without.
    pub fn failed(&self) -> usize {
        self.outcomes.values().sum::<usize>() - self.answered()
    }

    /// Fails if somebody was given what was not for them.
    pub fn assert_nothing_wrong(&self) {
        let wrong = self.outcomes.keys().find(|outcome| matches!(outcome, Outcome::Wrong(_)));
        assert_eq!(wrong, None, "not this client's answer");
    }

    /// Fails unless every request was answered.
    pub fn assert_all_answered(&self) {
        assert_eq!(self.failed(), 0, "not answered: {self}");
    }
}

/// Times are shown and never judged: the machine may do much else.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (outcome, count) in &self.outcomes {
            write!(f, "{outcome:?} {count}; ")?;
        }
        for (phase, times) in &self.times {
            let at = |part: usize| times[(times.len() - 1) * part / 100];
            write!(f, "phase {phase}: p50 {:?} p99 {:?} of {}; ", at(50), at(99), times.len())?;
        }
        Ok(())
    }
}

/// One request on a connection of its own. That it can connect is not left open.
///
/// # Panics
/// Nobody answers, and nobody ends the connection.
pub fn one_request(address: SocketAddr) -> Outcome {
    ask(address).0
}

/// As [`one_request`], with the client's address.
fn ask(address: SocketAddr) -> (Outcome, SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("nobody is refused");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let own = stream.local_addr().unwrap();
    // Who ends the connection may do so while it is written.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    (answer(&mut stream, own), own)
}

/// The answer that a client at this address waits for.
pub fn answer(stream: &mut TcpStream, own: SocketAddr) -> Outcome {
    let mut text = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("a client waited in vain, with {:?}", String::from_utf8_lossy(&text))
            }
            Err(_) => break,
        }
        if text.ends_with(b"\n") && text.starts_with(b"HTTP/1.1 200") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let rejected = text.split("vestibule-reason: ").nth(1).and_then(|rest| rest.split('\r').next());
    let own = format!(" peer={own} ");
    match (text.is_empty(), rejected) {
        (true, _) => Outcome::Ended,
        (_, Some(reason)) => Outcome::Rejected(reason.to_owned()),
        _ if text.starts_with("HTTP/1.1 200 ") && text.contains(&own) => Outcome::Answered,
        _ => Outcome::Wrong(text.chars().take(200).collect()),
    }
}
