//! Commands, options and exit codes.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use vestibule_router::Balance;
use vestibule_router::config::{Origin, Overrides, Sourced};

use vestibule_router::role::RoleError;
use vestibule_router::supervisor::admin::wire::{Question, Refusal};
use vestibule_router::supervisor::master::MasterError;

use crate::ask::{AskError, Socket};
use crate::check::Check;
use crate::explain::{Explain, NotExplained};
use crate::follow::Trace;
use crate::startup::StartupError;

/// The command was not used as it can be (`sysexits.h`: EX_USAGE).
const USAGE: u8 = 64;
/// Nobody is there who could be asked (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;
/// `status` found something that is not as it should be.
const DEGRADED: u8 = 1;
/// Something went wrong inside: no worker came up (EX_SOFTWARE).
const INTERNAL: u8 = 70;
/// The system refused: an address cannot be bound (EX_OSERR).
const SYSTEM: u8 = 71;
/// The configuration is wrong (EX_CONFIG).
const CONFIGURATION: u8 = 78;

#[derive(Debug, Parser)]
#[command(name = "vestibule", version, about, long_about = None, disable_help_subcommand = true)]
/// Accepts connections, leaves them unread, and hands each to a worker process.
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log: a level, or `tracing` directives such as `info,vestibule_router=debug`.
    #[arg(long, global = true, env = "VESTIBULE_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listen on an address and hand every connection to one of several worker processes.
    Run(Run),
    /// Read a configuration and all that it names, run its tests, and say what is wrong.
    Check(Check),
    /// Say what becomes of a client: every route in order, why it matches or not, and the result.
    Explain(Explain),
    /// Show how a running vestibule does: exit code 0 if it is healthy, 1 if not, 69 if there is none.
    Status {
        #[command(flatten)]
        socket: Socket,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show decisions as they are made, or the last rejections, with what each route said.
    Trace(Trace),
    /// Let workers finish what they have, and end; as SIGTERM does. Returns at once.
    Stop {
        #[command(flatten)]
        socket: Socket,
    },
    /// Give a worker nothing new; when it is empty, another process takes its place.
    Drain {
        #[command(flatten)]
        socket: Socket,
        /// Its name, such as `app-1`.
        worker: String,
        /// Keep it, and give it nothing new until `ready`.
        #[arg(long)]
        hold: bool,
    },
    /// Give a worker connections again that is held.
    Ready {
        #[command(flatten)]
        socket: Socket,
        /// Its name, such as `app-1`.
        worker: String,
    },
    /// Change how many workers a pool has, until the program ends.
    Scale {
        #[command(flatten)]
        socket: Socket,
        /// Its name, such as `app`.
        pool: String,
        /// How many, from 1 to 4096.
        #[arg(value_name = "N")]
        workers: u32,
    },
    /// Replaces every worker of a pool, one at a time: the next is ready before the last one drains.
    Restart {
        #[command(flatten)]
        socket: Socket,
        /// A pool's name.
        pool: String,
    },
    /// Reads the configuration again: whole and valid, or nothing changes. Says what is different.
    Reload {
        #[command(flatten)]
        socket: Socket,
    },
    /// The process that accepts and hands over; the supervisor starts it.
    #[command(hide = true)]
    Router,
    /// The built-in worker: answers each request with its process and the request's facts.
    #[command(hide = true)]
    DemoWorker,
}

/// The options of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Where to listen: `127.0.0.1:8080`, `[::1]:8080`, `*:80` (IPv4 and IPv6).
    #[arg(long, value_name = "ADDR", env = "VESTIBULE_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: String,
    /// How many workers: a number, or `auto` for the CPUs that this process may use.
    #[arg(long, value_name = "N|auto", env = "VESTIBULE_WORKERS", default_value = "auto", value_parser = workers)]
    pub(crate) workers: Workers,
    /// Who workers run as. Default: `nobody` if started as root, else whoever starts them.
    #[arg(long, value_name = "USER", env = "VESTIBULE_USER")]
    pub(crate) user: Option<String>,
    /// How connections are spread over workers.
    #[arg(long, env = "VESTIBULE_BALANCE", default_value = "least-connections", value_parser = balance)]
    pub(crate) balance: Balance,
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// A configuration file: then only `--admin` and `--log` may stand beside it.
    #[arg(value_name = "CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The worker's program and its arguments. Without one: the built-in demonstration worker.
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<OsString>,
}

/// How many workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workers {
    /// One a CPU.
    Auto,
    /// So many.
    Number(NonZeroUsize),
}

fn workers(text: &str) -> Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    match text.parse::<NonZeroUsize>() {
        Ok(number) if number.get() <= 4096 => Ok(Workers::Number(number)),
        _ => Err("write a number from 1 to 4096, or `auto`".to_owned()),
    }
}

/// Our word for what others call otherwise.
fn balance(text: &str) -> Result<Balance, String> {
    let meant = |word: &str| Err(format!("write `{word}`"));
    if let Ok(balance) = text.parse() {
        return Ok(balance);
    }
    match text {
        "leastconn" | "least_conn" | "least-conn" => meant("least-connections"),
        "roundrobin" | "round_robin" | "rr" => meant("round-robin"),
        "ip_hash" | "ip-hash" | "iphash" | "source" => meant("hash:peer-ip"),
        _ => Err(
            "write `least-connections`, `round-robin`, `hash:peer-ip`, `hash:host`, `sticky:NAME` \
                  or another one of the documentation"
                .to_owned(),
        ),
    }
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let parsed = Cli::command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nothing is left to be done if standard error is closed.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    if let Err(message) = crate::log::start(&cli.log) {
        complain(&message);
        return ExitCode::from(USAGE);
    }
    let result = match cli.command {
        Command::Status { socket, json } => {
            return asked(crate::ask::status(&socket, json).map(|healthy| match healthy {
                true => ExitCode::SUCCESS,
                false => ExitCode::from(DEGRADED),
            }));
        }
        Command::Trace(trace) => {
            return asked(crate::follow::run(&trace).map(|()| ExitCode::SUCCESS));
        }
        Command::Stop { socket } => return command(&socket, &Question::Stop {}),
        Command::Drain { socket, worker, hold } => {
            return command(&socket, &Question::Drain { worker, hold });
        }
        Command::Ready { socket, worker } => return command(&socket, &Question::Ready { worker }),
        Command::Scale { socket, pool, workers } => {
            return command(&socket, &Question::Scale { pool, workers });
        }
        Command::Restart { socket, pool } => return command(&socket, &Question::Restart { pool }),
        Command::Reload { socket } => return command(&socket, &Question::Reload {}),
        Command::Run(Run { config: Some(file), command, socket, .. }) => {
            if let Some(instead) = no_configuration(&file) {
                complain(&instead);
                return ExitCode::from(USAGE);
            }
            if let Err(message) = beside_a_file(&matches, &command) {
                complain(&message);
                return ExitCode::from(USAGE);
            }
            crate::startup::run_file(&file, &overrides(&matches, socket.admin.as_deref(), true))
        }
        Command::Run(run) => crate::startup::run(&run, &cli.log),
        Command::Check(check) => {
            let overrides = overrides(&matches, check.admin.as_deref(), check.here);
            if let Some(instead) = no_configuration(&check.config) {
                complain(&instead);
                return ExitCode::from(USAGE);
            }
            return match crate::check::run(&check, &overrides) {
                true => ExitCode::SUCCESS,
                false => ExitCode::from(CONFIGURATION),
            };
        }
        Command::Explain(explain) => {
            if let Some(instead) = no_configuration(&explain.config) {
                complain(&instead);
                return ExitCode::from(USAGE);
            }
            return match crate::explain::run(&explain, &overrides(&matches, None, false)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(NotExplained::Configuration) => ExitCode::from(CONFIGURATION),
                Err(NotExplained::Usage(text)) => {
                    complain(&text);
                    ExitCode::from(USAGE)
                }
            };
        }
        Command::Router => crate::startup::router(),
        Command::DemoWorker => crate::demo::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&chain(&error));
            ExitCode::from(match error {
                StartupError::Listen(vestibule_router::ListenError::Address(_)) => USAGE,
                StartupError::Configuration(_)
                | StartupError::NodeNotYet(_)
                | StartupError::ProxiesWithoutAddress { .. }
                | StartupError::LimitWithoutAddress { .. }
                | StartupError::RouterUser(_)
                | StartupError::Master(MasterError::SharedUser(_) | MasterError::Script(_)) => {
                    CONFIGURATION
                }
                StartupError::NotInherited { .. } | StartupError::Admin(_) => SYSTEM,
                StartupError::Listen(_)
                | StartupError::Master(
                    MasterError::Runtime(_) | MasterError::Signals(_) | MasterError::Router(_),
                ) => SYSTEM,
                StartupError::Router(RoleError::ByHand) => USAGE,
                _ => INTERNAL,
            })
        }
    }
}

fn command(socket: &Socket, question: &Question) -> ExitCode {
    asked(crate::ask::command(socket, question).map(|()| ExitCode::SUCCESS))
}

/// What a program that asked another one ends with.
fn asked(result: Result<ExitCode, AskError>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    complain(&chain(&error));
    ExitCode::from(match error {
        AskError::Nobody(_) | AskError::Refused { reason: Refusal::Stopping, .. } => UNAVAILABLE,
        AskError::Denied(_)
        | AskError::System { .. }
        | AskError::Refused { reason: Refusal::NotAllowed, .. } => SYSTEM,
        AskError::Foreign { .. } => INTERNAL,
        AskError::Refused { reason: Refusal::Configuration, .. } => CONFIGURATION,
        AskError::Refused { .. } => USAGE,
    })
}

/// What was said beside a configuration file, and by what: an option or its variable.
fn overrides(matches: &ArgMatches, admin: Option<&Path>, here: bool) -> Overrides {
    // An option of the program may stand after the command too; its value is the command's then.
    let command = matches.subcommand().map_or(matches, |(_, command)| command);
    let origin = |id: &str, option, variable| match command.value_source(id)? {
        ValueSource::CommandLine => Some(Origin::CommandLine(option)),
        ValueSource::EnvVariable => Some(Origin::Environment(variable)),
        _ => None,
    };
    let log = origin("log", "--log", "VESTIBULE_LOG").and_then(|origin| {
        let value = command.get_one::<String>("log")?.clone();
        Some(Sourced { value, origin })
    });
    let admin = admin.and_then(|path| {
        let origin = origin("admin", "--admin", "VESTIBULE_ADMIN")?;
        let value = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Some(Sourced { value, origin })
    });
    Overrides { admin, log, here }
}

/// Options that say what a file says are refused beside it; their variables are ignored, with one
/// warning, as they may be meant for others.
fn beside_a_file(matches: &ArgMatches, command: &[OsString]) -> Result<(), String> {
    let Some((_, run)) = matches.subcommand() else { return Ok(()) };
    if !command.is_empty() {
        return Err("a program is the `command` of a pool in the file, not given beside it".into());
    }
    let mut ignored = Vec::new();
    for option in ["listen", "workers", "user", "balance"] {
        match run.value_source(option) {
            Some(ValueSource::CommandLine) => {
                return Err(format!("--{option} cannot stand beside a file, which says it itself"));
            }
            Some(ValueSource::EnvVariable) => {
                ignored.push(format!("VESTIBULE_{}", option.to_uppercase()));
            }
            _ => {}
        }
    }
    if !ignored.is_empty() {
        tracing::warn!("ignored beside a file: {}", ignored.join(", "));
    }
    Ok(())
}

/// What to write instead of a file that is a program.
fn no_configuration(path: &Path) -> Option<String> {
    let script = path.extension().is_some_and(|end| end == "js" || end == "mjs" || end == "cjs");
    script.then(|| {
        let path = path.display();
        format!("`{path}` is no configuration: did you mean `run -- node {path}`?")
    })
}

/// Says on standard error why it ends.
fn complain(why: &str) {
    use std::io::Write;
    // Nobody is left to be told if that cannot be written: a full disk is no reason to panic.
    let _ = writeln!(std::io::stderr(), "vestibule: {why}");
}

/// An error and what it comes from, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn foreign_words_are_answered_with_ours() {
        assert_eq!(balance("leastconn"), Err("write `least-connections`".to_owned()));
        assert_eq!(balance("ip_hash"), Err("write `hash:peer-ip`".to_owned()));
        assert_eq!(balance("hash:peer-ip"), Ok(Balance::HashPeerIp));
        assert!(workers("0").is_err());
        assert_eq!(workers("auto"), Ok(Workers::Auto));
    }
}
