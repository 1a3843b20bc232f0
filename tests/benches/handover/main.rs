//! The hand-over benchmark: `cargo bench -p vestibule-tests --bench handover -- [options]`.
//!
//! One executable: it starts itself again for each of its server processes ([`server`]), puts load on them from two threads
//! ([`load`]) and reads the CPU clocks of all server processes by pid ([`processes`]), in alternating rounds ([`rounds`]).
//! What each number means is in `docs/benchmarks.md`.
//! Exit status 1 when anything failed, one wrong answer included.

mod allocations;
mod cli;
mod contender;
mod counting;
mod hello;
mod instructions;
mod load;
mod machine;
mod processes;
mod report;
mod rounds;
mod server;
mod sys;

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::cli::{Cli, Options, Role, Scenario};
use crate::contender::{Contender, Kind, Started};
use crate::instructions::{Rules, Shape};
use crate::load::{Asking, Load, Mode};
use crate::sys::CountingAllocator;

/// What is offered to every contender alike, as a part of what direct workers take at most: nobody is at an end then, but
/// for those that cost more than twice as much.
const OFFERED: f64 = 0.4;
/// Connections a second at which accept to first read is measured: a load that leaves every contender idle for the most part.
const FIRST_READ_RATE: f64 = 2_000.0;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Result<bool, Box<dyn Error>> = match cli.role {
        Some(Role::Serve(serve)) => server::run(serve).map(|()| true).map_err(Into::into),
        None if env::args_os().len() == 1 => bench(&cli.options.brief()),
        None if cli.options.allocations => allocations(&cli.options),
        None if cli.options.instructions => instructions(),
        None => bench(&cli.options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("handover: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// An error and its sources on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Prints the tables; `false` when a client saw an error.
fn bench(options: &Options) -> Result<bool, Box<dyn Error>> {
    processes::adopt_orphans()?;
    println!("{}\n", machine::facts());
    let mut bench = Bench { options, errors: 0, maxima: Vec::new() };
    for &scenario in &options.load {
        let contenders = bench.start(scenario)?;
        for &clients in &options.clients {
            bench.block(scenario, clients, &contenders)?;
        }
    }
    println!("errors: {}", bench.errors);
    Ok(bench.errors == 0)
}

struct Bench<'a> {
    options: &'a Options,
    errors: u64,
    /// What direct workers served at most with so many clients.
    maxima: Vec<(usize, f64)>,
}

impl Bench<'_> {
    /// Starts what was asked for and is installed.
    fn start(&self, scenario: Scenario) -> Result<Vec<Contender>, Box<dyn Error>> {
        let timed = scenario == Scenario::FirstRead;
        let asked = |kind| self.options.only.is_empty() || self.options.only.contains(&kind);
        let mut contenders = Vec::new();
        for kind in Kind::value_variants() {
            if !asked(*kind) || !kind.joins(scenario) {
                continue;
            }
            match contender::start(*kind, self.options.workers, timed)? {
                Started::Running(contender) => contenders.push(contender),
                Started::Skipped(reason) => println!("{} is skipped: {reason}\n", kind.name()),
            }
        }
        Ok(contenders)
    }

    /// One scenario with one number of clients.
    fn block(
        &mut self,
        scenario: Scenario,
        clients: usize,
        contenders: &[Contender],
    ) -> Result<(), Box<dyn Error>> {
        let rate = match scenario {
            Scenario::Short | Scenario::Keepalive | Scenario::Rules => None,
            Scenario::Offered => Some(match self.options.rate {
                Some(rate) => rate,
                None => OFFERED * self.maximum(clients)?,
            }),
            Scenario::FirstRead => Some(self.options.rate.unwrap_or(FIRST_READ_RATE)),
        };
        let rows = self.rounds(contenders, &load(self.options, scenario, clients, rate))?;
        println!("### {}\n", title(scenario, clients, rate));
        if scenario == Scenario::FirstRead {
            println!("{}", report::first_read(&rows));
            return Ok(());
        }
        let table = match scenario {
            Scenario::Rules => format!("{}\n{}", report::rules(&rows), report::many(&rows)),
            _ => {
                let ours = [Kind::Vestibule, Kind::Program];
                ours.map(|kind| report::relative(kind, &rows)).join("\n")
            }
        };
        println!("{}\n{table}", report::absolute(&rows));
        if scenario == Scenario::Short
            && let Some((_, direct)) = rows.iter().find(|(kind, _)| *kind == Kind::Direct)
            && let Some(maximum) = report::maximum(direct)
        {
            self.maxima.push((clients, maximum));
        }
        Ok(())
    }

    /// What direct workers serve at most: as measured before, or now.
    fn maximum(&mut self, clients: usize) -> Result<f64, Box<dyn Error>> {
        if let Some((_, maximum)) = self.maxima.iter().find(|(of, _)| *of == clients) {
            return Ok(*maximum);
        }
        let mut direct = Vec::new();
        if let Started::Running(contender) =
            contender::start(Kind::Direct, self.options.workers, false)?
        {
            direct.push(contender);
        }
        let rows = self.rounds(&direct, &load(self.options, Scenario::Short, clients, None))?;
        let maximum = rows.first().and_then(|(_, rounds)| report::maximum(rounds));
        Ok(maximum.ok_or("direct workers served nothing")?)
    }

    fn rounds(
        &mut self,
        contenders: &[Contender],
        load: &Load,
    ) -> Result<Vec<report::Row>, rounds::RoundError> {
        let mut progress = |contender: &Contender, round: &rounds::Round| {
            self.errors += round.errors;
            let name = contender.kind.name();
            if let Some(error) = round.first_error {
                println!("{name}: {} errors, the first: {error}", round.errors);
            }
            if self.options.verbose {
                println!("{name:12} {:8.0}/s {:6.1} µs", round.throughput, round.cpu);
            }
        };
        let all = rounds::alternate(contenders, load, self.options.rounds, &mut progress)?;
        Ok(contenders.iter().map(|contender| contender.kind).zip(all).collect())
    }
}

fn allocations(options: &Options) -> Result<bool, Box<dyn Error>> {
    processes::adopt_orphans()?;
    println!("{}\n", machine::facts());
    for &clients in &options.clients {
        let load = load(options, Scenario::Short, clients, options.rate);
        for one in allocations::measure(&load, options.workers)? {
            let each = |number: u64| number as f64 / one.handovers.max(1) as f64;
            println!(
                "{}, {} clients: {:.3} allocations and {:.1} bytes a hand-over ({} over {} hand-overs)",
                one.name,
                one.clients,
                each(one.count.allocations),
                each(one.count.bytes),
                one.count.allocations,
                one.handovers
            );
        }
    }
    Ok(true)
}

/// Prints what a hand-over costs the router with few and many workers, listeners and rules: instructions in user space, and CPU.
/// `false` when a promised ratio is exceeded.
fn instructions() -> Result<bool, Box<dyn Error>> {
    println!("{}\n", machine::facts());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let one = Shape { workers: 10, listeners: 1, rules: Rules::One, burst: 1 };
    let by_network = |count| Shape { rules: Rules::Networks(count), ..one };
    let by_host = |count| Shape { rules: Rules::Hosts(count), ..one };
    let burst = Shape { burst: 64, ..one };
    let mut kept = true;
    // Beside each the ratio that is promised of its instructions.
    for (what, few, many, bound) in [
        ("workers, one connection at a time", one, Shape { workers: 1000, ..one }, Some(1.2)),
        ("listeners, one connection at a time", one, Shape { listeners: 100, ..one }, Some(1.1)),
        (
            "rules by network, one connection at a time",
            by_network(10),
            by_network(10_000),
            Some(1.3),
        ),
        ("rules by host, one connection at a time", by_host(10), by_host(10_000), Some(1.3)),
        ("workers, 64 connections at once", burst, Shape { workers: 1000, ..burst }, None),
    ] {
        let count = [instructions::count(few, folder)?, instructions::count(many, folder)?];
        let cpu = [instructions::cpu(few)?, instructions::cpu(many)?];
        let ratio = |[few, many]: [f64; 2]| many / few;
        println!(
            "{what}: {:.0} instructions, with many {:.0}: {:.2} ×; CPU {:.1} µs, with many {:.1}: {:.2} ×",
            count[0],
            count[1],
            ratio(count),
            cpu[0],
            cpu[1],
            ratio(cpu)
        );
        // The promise is about what is installed, which is optimized.
        if !cfg!(debug_assertions) && bound.is_some_and(|bound| ratio(count) > bound) {
            println!("more than {:.1} × of the instructions", bound.unwrap_or_default());
            kept = false;
        }
    }
    println!(
        "callgrind_annotate reads {}/callgrind.WORKERS-LISTENERS-RULES-BURST",
        folder.display()
    );
    Ok(kept)
}

fn load(options: &Options, scenario: Scenario, clients: usize, rate: Option<f64>) -> Load {
    Load {
        port: 0,
        clients,
        mode: match scenario {
            Scenario::Keepalive => Mode::Keepalive,
            Scenario::Short | Scenario::Offered | Scenario::FirstRead | Scenario::Rules => {
                Mode::Short
            }
        },
        asking: Asking::Alike,
        timed: scenario == Scenario::FirstRead,
        rate,
        warm_up: options.warm_up,
        measure: options.seconds,
    }
}

fn title(scenario: Scenario, clients: usize, rate: Option<f64>) -> String {
    let what = match scenario {
        Scenario::Short => "short connections, saturated",
        Scenario::Offered => "short connections, offered",
        Scenario::Rules => "short connections, saturated, through rules",
        Scenario::Keepalive => "requests on kept-alive connections, saturated",
        Scenario::FirstRead => "accept to first read, offered",
    };
    let rate = rate.map_or(String::new(), |rate| format!(" {rate:.0} a second"));
    format!("{clients} clients: {what}{rate}")
}
