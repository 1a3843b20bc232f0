//! What a routing script's decision costs, in nanoseconds: `cargo bench -p vestibule-router --bench script`.
//!
//! Decisions are timed in bursts of 64, as they come in, and the median of all bursts is printed: what
//! a decision costs that is neither the first nor disturbed. Waiting for a client is no part of it.
//!
//! `-- host` measures the cases with that in their names, `-- host 100` in so many bursts: few are
//! enough for who counts instructions (`valgrind --tool=callgrind`).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use vestibule_router::inspect::{ClientHello, Fact, HttpHead, Label, Speech};
use vestibule_router::route::script::{Engine, Limits, Outcome, Pools, Source, Subject, Verdict};

const BURST: u32 = 64;
const BURSTS: usize = 4000;

/// Which cases, and how long.
struct Options {
    case: String,
    bursts: usize,
}

impl Options {
    fn of_arguments() -> Self {
        // Cargo says `--bench`.
        let mut given = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
        let case = given.next().unwrap_or_default();
        let bursts = given.next().map_or(BURSTS, |number| number.parse().unwrap());
        Self { case, bursts }
    }
}

struct Client(SocketAddr);

impl Subject for Client {
    fn peer(&self) -> Option<SocketAddr> {
        Some(self.0)
    }

    fn local(&self) -> Option<SocketAddr> {
        None
    }

    fn listener(&self) -> Arc<str> {
        "web".into()
    }

    fn context(&mut self) -> Fact<Label> {
        Fact::Absent
    }

    fn user(&self) -> Fact<String> {
        Fact::Absent
    }

    fn announced(&self) -> Option<ClientHello> {
        None
    }
}

struct FiveWorkers;

impl Pools for FiveWorkers {
    fn names(&self) -> Vec<Arc<str>> {
        vec!["app".into(), "canary".into(), "stable".into()]
    }

    fn slots(&self, _: usize) -> Vec<(u32, Arc<str>)> {
        (0..5u32).map(|slot| (slot, format!("app-{}", slot + 1).into())).collect()
    }

    fn ready(&self, _: usize, _: u32) -> bool {
        true
    }

    fn connections(&self, _: usize, slot: u32) -> u32 {
        slot
    }

    fn worker_for(&self, _: usize, _: &[u8]) -> Option<u32> {
        None
    }
}

fn engine(text: &str) -> Engine<Client> {
    let source = Source { name: "route.js".to_owned(), text: text.to_owned() };
    Engine::new(source, Limits::default(), Arc::new(FiveWorkers)).unwrap()
}

fn decide(engine: &mut Engine<Client>, client: Client, speech: Option<&Arc<Speech>>) {
    let mut verdict = engine.decide(client);
    if let (Verdict::Waits(..), Some(speech)) = (&verdict, speech) {
        let Verdict::Waits(client, ticket) = verdict else { return };
        verdict = engine.resume(ticket, client, Arc::clone(speech));
    }
    let posted = matches!(verdict, Verdict::Decided(_, Outcome::Post { .. }));
    assert!(posted, "{:?}", engine.last_failure());
}

fn measure(options: &Options, name: &str, text: &str, speech: Option<Speech>) {
    if !name.contains(&options.case) {
        return;
    }
    let speech = speech.map(Arc::new);
    let mut engine = engine(text);
    let mut bursts = Vec::with_capacity(options.bursts);
    for burst in 0..options.bursts as u32 {
        let begin = Instant::now();
        for number in 0..BURST {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + burst * BURST + number);
            decide(&mut engine, Client((address, 51234).into()), speech.as_ref());
        }
        bursts.push(begin.elapsed().as_nanos() as f64 / f64::from(BURST));
    }
    bursts.sort_by(f64::total_cmp);
    let (median, tenth) = (bursts[bursts.len() / 2], bursts[bursts.len() / 10]);
    println!("{name:<34} median {median:>6.0} ns, lowest tenth {tenth:>6.0} ns");
}

fn main() {
    let options = Options::of_arguments();
    measure(
        &options,
        "address: to the pool",
        "onconnection = ({ connection }) => pools.app.postMessage(undefined, [connection]);",
        None,
    );
    measure(
        &options,
        "address: hash, a number posted",
        "let n = 0;
         onconnection = ({ connection }) => {
           const worker = pools.app.workers[hash(connection.remoteAddress) % pools.app.workers.length];
           worker.postMessage(++n, [connection]);
         };",
        None,
    );
    measure(
        &options,
        "address: hash, an object posted",
        "let n = 0;
         onconnection = ({ connection }) => {
           const worker = pools.app.workers[hash(connection.remoteAddress) % pools.app.workers.length];
           worker.postMessage({ reqno: ++n }, [connection]);
         };",
        None,
    );
    let fields = [("host", "app.example.org"), ("cookie", "session=abc; theme=dark")];
    let fields = fields.map(|(name, value)| (name.into(), value.as_bytes().into()));
    let head = HttpHead::new("GET", "/api/v1?x=1", 1, fields.into());
    measure(
        &options,
        "peeked: by host",
        "onconnection = async ({ connection }) => {
           const http = await connection.http();
           const pool = http?.host === 'app.example.org' ? pools.app : pools.stable;
           pool.postMessage(undefined, [connection]);
         };",
        Some(Speech::Http1(head.clone())),
    );
    measure(
        &options,
        "peeked: canary by cookie",
        "onconnection = async ({ connection }) => {
           const http = await connection.http();
           const chosen = hash(http?.cookie('session') ?? connection.remoteAddress) % 100 < 5;
           (chosen ? pools.canary : pools.stable).postMessage(chosen, [connection]);
         };",
        Some(Speech::Http1(head)),
    );
}
