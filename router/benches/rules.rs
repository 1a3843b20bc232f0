//! What a decision costs with ten rules and with ten thousand, by network and by host: medians of many
//! short runs, one beside the other, and their ratio. `cargo bench -p vestibule-router --bench rules`.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

use std::hint::black_box;
use std::time::Instant;

use vestibule_protocol::supervision::{RuleSetup, TargetSetup};
use vestibule_router::inspect::{Facts, HttpHead, Speech};
use vestibule_router::route::{Outcome, Table, Unseen, compile};

const FEW: u32 = 10;
const MANY: u32 = 10_000;
/// Decisions of one run: long enough for the clock, short enough to be undisturbed now and then.
const DECISIONS: u32 = 2_000;
const RUNS: usize = 301;

fn main() {
    let networks = [FEW, MANY].map(|count| (table(count, by_network), count));
    let hosts = [FEW, MANY].map(|count| (table(count, by_host), count));
    let by_address: fn(&Table, u32) = |table, at| {
        let peer = [10, (at / 256) as u8, (at % 256) as u8, 7].into();
        decided(table, &Facts::of_address(0, Some(peer)));
    };
    report("network", &networks, by_address);
    let by_name: fn(&Table, u32) = |table, at| {
        let host = format!("www.tenant-{at}.example");
        let lines = vec![("host".into(), host.as_bytes().into())];
        let speech = Speech::Http1(HttpHead::new("GET", "/", 1, lines));
        decided(table, &Facts { speech: &speech, ..Facts::of_address(0, None) });
    };
    report("host", &hosts, by_name);
}

fn by_network(at: u32) -> RuleSetup {
    let network = format!("10.{}.{}.0/24", at / 256, at % 256);
    RuleSetup { peers: Some(vec![network]), ..RuleSetup::new("net", TargetSetup::Pool(0)) }
}

fn by_host(at: u32) -> RuleSetup {
    let host = format!("*.tenant-{at}.example");
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

/// Runs of both in turn, so that what disturbs one disturbs the other.
fn report(what: &str, tables: &[(Table, u32); 2], decide: fn(&Table, u32)) {
    let mut times = [const { Vec::new() }; 2];
    for run in 0..RUNS {
        for ((table, count), times) in tables.iter().zip(&mut times) {
            let mut at = run as u32;
            let begin = Instant::now();
            for _ in 0..DECISIONS {
                // Another rule each time, far from the last one.
                at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                decide(table, (at >> 8) % count);
            }
            times.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(DECISIONS));
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let [few, many] = &mut times;
    let (few, many) = (median(few), median(many));
    println!("{what}: {FEW} rules {few:.0} ns, {MANY} rules {many:.0} ns, ratio {:.2}", many / few);
}
