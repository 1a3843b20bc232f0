//! What a decision costs with ten rules and with ten thousand, by network and by host: medians of many
//! short runs, one beside the other, and their ratio. `cargo bench -p vestibule-router --bench rules`.
//!
//! Any rule may be the next connection's, so that the ten thousand are asked for in no order; a second
//! ratio is of the same table when only ten of them are ever asked for: what is left of the difference
//! then is not the processor's caches. What a client said is in memory before the clock starts.
//!
//! `-- host` measures the case whose name ends so, `-- host 3 many` in so many runs and of the
//! tables only `few` (ten rules), `many` or `hot` (many, of which ten are asked for): for who counts
//! instructions and what misses caches of a given size (`valgrind --tool=callgrind --cache-sim=yes
//! '--toggle-collect=*Table::decide*'`).
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use vestibule_protocol::supervision::{RuleSetup, TargetSetup};
use vestibule_router::inspect::{Facts, HttpHead, Speech};
use vestibule_router::route::{Outcome, Table, Unseen, compile};

const FEW: u32 = 10;
const MANY: u32 = 10_000;
/// Decisions under one look at the clock: what clients said is then still at hand, as it is when it has
/// just been read.
const BURST: u32 = 64;
const BURSTS: u32 = 32;
const RUNS: usize = 301;

/// Which cases, how often, and with which tables.
struct Options {
    case: String,
    runs: usize,
    table: String,
}

impl Options {
    fn of_arguments() -> Self {
        // Cargo says `--bench`.
        let mut given = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
        let case = given.next().unwrap_or_default();
        let runs = given.next().map_or(RUNS, |number| number.parse().unwrap());
        Self { case, runs, table: given.next().unwrap_or_default() }
    }
}

fn main() {
    let options = Options::of_arguments();
    let report = |what: &str, rule, client| report(&options, what, rule, client);
    report("network", by_network, |at| {
        (Some([10, (at / 256) as u8, (at % 256) as u8, 7].into()), Speech::Unasked)
    });
    report("network, far apart", by_far_network, |at| (Some(far(at).into()), Speech::Unasked));
    report("network, IPv6", by_network6, |at| (Some(far6(at).into()), Speech::Unasked));
    report("host", by_host, |at| (None, request(&format!("tenant-{at}.example"))));
    report("host below", by_parent, |at| (None, request(&format!("www.tenant-{at}.example"))));
}

type Client = (Option<IpAddr>, Speech);

fn request(host: &str) -> Speech {
    Speech::Http1(HttpHead::new("GET", "/", 1, vec![("host".into(), host.as_bytes().into())]))
}

fn by_network(at: u32) -> RuleSetup {
    let network = format!("10.{}.{}.0/24", at / 256, at % 256);
    RuleSetup { peers: Some(vec![network]), ..RuleSetup::new("net", TargetSetup::Pool(0)) }
}

/// Addresses all over the Internet.
fn far(at: u32) -> Ipv4Addr {
    at.wrapping_mul(2_654_435_761).into()
}

fn by_far_network(at: u32) -> RuleSetup {
    let network = format!("{}/24", far(at));
    RuleSetup { peers: Some(vec![network]), ..RuleSetup::new("net", TargetSetup::Pool(0)) }
}

fn far6(at: u32) -> Ipv6Addr {
    let [a, b, c, d] = far(at).octets().map(u16::from);
    [0x2001, a << 8 | b, c << 8 | d, 0, 0, 0, 0, 7].into()
}

fn by_network6(at: u32) -> RuleSetup {
    let network = format!("{}/48", far6(at));
    RuleSetup { peers: Some(vec![network]), ..RuleSetup::new("net", TargetSetup::Pool(0)) }
}

fn by_parent(at: u32) -> RuleSetup {
    let host = format!("*.tenant-{at}.example");
    RuleSetup { hosts: Some(vec![host]), ..RuleSetup::new("host", TargetSetup::Pool(0)) }
}

fn by_host(at: u32) -> RuleSetup {
    let host = format!("tenant-{at}.example");
    RuleSetup { hosts: Some(vec![host]), ..RuleSetup::new("host", TargetSetup::Pool(0)) }
}

fn table(count: u32, rule: fn(u32) -> RuleSetup) -> Table {
    let rules = (0..count).map(|at| compile(&rule(at)).unwrap()).collect();
    Table::new(rules, &[Unseen::Reject], vec![None])
}

fn decided(table: &Table, facts: &Facts<'_>) {
    match black_box(table.decide(facts)) {
        Outcome::Decided(decision) => assert!(decision.rejection().is_none()),
        Outcome::Need(depth) => panic!("{depth:?} was not looked at"),
    }
}

/// Of three runs in turn, so that what disturbs one disturbs the others.
fn report(options: &Options, what: &str, rule: fn(u32) -> RuleSetup, client: fn(u32) -> Client) {
    if !what.ends_with(&options.case) {
        return;
    }
    let (few, many) = (table(FEW, rule), table(MANY, rule));
    let cases = [("few", &few, FEW), ("many", &many, MANY), ("hot", &many, FEW)];
    let mut times = [const { Vec::new() }; 3];
    for run in 0..options.runs {
        for ((name, table, asked), times) in cases.iter().zip(&mut times) {
            if !name.contains(&options.table) {
                continue;
            }
            times.push(one_run(run as u32, table, *asked, client));
        }
    }
    let [few, many, hot] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    });
    println!(
        "{what}: {FEW} rules {few:.0} ns, {MANY} rules {many:.0} ns, ratio {:.2}; {FEW} of {MANY} {hot:.0} ns, ratio {:.2}",
        many / few,
        hot / few
    );
}

/// What a decision takes, in nanoseconds.
fn one_run(run: u32, table: &Table, asked: u32, client: fn(u32) -> Client) -> f64 {
    let (mut at, mut time) = (run, Duration::ZERO);
    for _ in 0..BURSTS {
        let clients = [(); BURST as usize].map(|()| {
            // Another rule each time, far from the last one.
            at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            client((at >> 8) % asked)
        });
        let begin = Instant::now();
        for (peer, speech) in &clients {
            decided(table, &Facts { speech, ..Facts::of_address(0, *peer) });
        }
        time += begin.elapsed();
    }
    time.as_secs_f64() * 1e9 / f64::from(BURST * BURSTS)
}
