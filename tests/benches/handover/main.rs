//! The hand-over benchmark: `cargo bench -p vestibule-tests --bench handover -- [options]`.
//!
//! One executable: it starts itself again for each of its server processes ([`server`]), puts load on them from two threads
//! ([`load`]) and reads the CPU clocks of all server processes by pid ([`processes`]), in alternating rounds ([`rounds`]).
//! Exit status 1 when anything failed, one wrong answer included.

mod allocations;
mod cli;
mod contender;
mod counting;
mod hello;
mod load;
mod processes;
mod report;
mod rounds;
mod server;
mod sys;

use std::error::Error;
use std::process::ExitCode;
use std::{env, fs};

use clap::{Parser, ValueEnum};

use crate::cli::{Cli, Options, Role};
use crate::contender::{Contender, Kind, Started};
use crate::load::{Load, Mode};
use crate::sys::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Result<bool, Box<dyn Error>> = match cli.role {
        Some(Role::Serve(serve)) => server::run(serve).map(|()| true).map_err(Into::into),
        None if env::args_os().len() == 1 => bench(&cli.options.brief()),
        None if cli.options.allocations => allocations(&cli.options),
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

/// Prints the table; `false` when a client saw an error.
fn bench(options: &Options) -> Result<bool, Box<dyn Error>> {
    processes::adopt_orphans()?;
    let contenders = start(options)?;
    println!("{}\n{}", machine(), settings(options));
    let mut errors = 0;
    for &clients in &options.clients {
        let mut progress = |contender: &Contender, round: &rounds::Round| {
            errors += round.errors;
            if let Some(error) = round.first_error {
                println!("{}: {} errors, the first: {error}", contender.kind.name(), round.errors);
            }
            if options.verbose {
                println!(
                    "{:12} {:8.0}/s {:6.1} µs",
                    contender.kind.name(),
                    round.throughput,
                    round.cpu
                );
            }
        };
        let load = load(options, clients);
        let all = rounds::alternate(&contenders, &load, options.rounds, &mut progress)?;
        let rows: Vec<_> = contenders.iter().map(|contender| contender.kind).zip(all).collect();
        println!("\n{clients} clients\n{}", report::table(&rows));
    }
    println!("errors: {errors}");
    Ok(errors == 0)
}

/// Starts what was asked for and is installed.
fn start(options: &Options) -> Result<Vec<Contender>, Box<dyn Error>> {
    let mut contenders = Vec::new();
    for kind in Kind::value_variants() {
        if !options.only.is_empty() && !options.only.contains(kind) {
            continue;
        }
        match contender::start(*kind, options.workers)? {
            Started::Running(contender) => contenders.push(contender),
            Started::Skipped(reason) => println!("{} is skipped: {reason}", kind.name()),
        }
    }
    Ok(contenders)
}

fn allocations(options: &Options) -> Result<bool, Box<dyn Error>> {
    processes::adopt_orphans()?;
    println!("{}\n{}", machine(), settings(options));
    for &clients in &options.clients {
        for one in allocations::measure(&load(options, clients), options.workers)? {
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

fn load(options: &Options, clients: usize) -> Load {
    Load {
        port: 0,
        clients,
        mode: options.mode,
        rate: options.rate,
        warm_up: options.warm_up,
        measure: options.seconds,
    }
}

/// What a reader must know to compare: kernel and processors.
fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {processors} processors", kernel.trim())
}

fn settings(options: &Options) -> String {
    let unit = match options.mode {
        Mode::Short => "short connections",
        Mode::Keepalive => "requests on kept-alive connections",
    };
    let offered =
        options.rate.map_or("saturated".into(), |rate| format!("{rate} a second offered"));
    format!(
        "{unit}, {offered}; {} workers; medians of {} alternating rounds of {:?} (min–max)",
        options.workers, options.rounds, options.seconds
    )
}
