//! The command line of the benchmark.

use std::time::Duration;

use crate::contender::Kind;
use crate::server::Serve;

/// CPU, throughput and latency of handing connections over, beside what else shares a port among processes.
#[derive(clap::Parser, Debug)]
#[command(name = "handover", args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Role {
    /// A server process of a contender: started by the benchmark itself
    #[command(hide = true)]
    Serve(Serve),
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// A connection a request, as many as the clients can
    Short,
    /// A connection a request, at the same rate for every contender
    Offered,
    /// Requests on kept-alive connections, as many as the clients can
    Keepalive,
    /// From accept to first read, as the servers see it (those that can be asked)
    FirstRead,
    /// What rules cost: the program with and without, a connection a request, as many as the clients can
    Rules,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often each contender has its turn
    #[arg(long, default_value_t = 7, value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// How long a round counts, in seconds
    #[arg(long, default_value = "2", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// How long load runs before a round counts, in seconds
    #[arg(long, default_value = "0.5", value_parser = seconds)]
    pub(crate) warm_up: Duration,
    /// Clients at the same time; one block of the table each
    #[arg(long, value_delimiter = ',', default_value = "8,64,256", value_parser = at_least_one)]
    pub(crate) clients: Vec<usize>,
    /// Only these contenders
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Kind>,
    /// What is measured; one block of the table each
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "short,offered,keepalive,first-read,rules"
    )]
    pub(crate) load: Vec<Scenario>,
    /// Connections a second of `offered` and `first-read`; without it 40 % of what direct workers take at most (measured
    /// first), and 2,000
    #[arg(long, value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Worker processes
    #[arg(long, default_value_t = 2, value_parser = at_least_one)]
    pub(crate) workers: usize,
    /// Print allocations of the router a hand-over instead
    #[arg(long)]
    pub(crate) allocations: bool,
    /// Print the router's instructions a hand-over instead, as callgrind (valgrind) counts them
    #[arg(long)]
    pub(crate) instructions: bool,
    /// Print every round as it ends
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Given by `cargo bench`. Without it and without other options (`cargo test --benches`) every contender has one short round
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

impl Options {
    /// What `cargo test` runs: whether everything starts, answers and ends.
    pub(crate) fn brief(self) -> Self {
        let moment = Duration::from_millis(200);
        Self { rounds: 1, seconds: moment, warm_up: moment, clients: vec![8], ..self }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(number).map_err(|error| format!("{error}"))
}

fn rate(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (1.0..=1e7).contains(&number) { Ok(number) } else { Err("1 to 10,000,000".into()) }
}
