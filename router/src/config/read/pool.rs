//! `[[pool]]`.

use std::path::PathBuf;
use std::time::Duration;

use vestibule_protocol::supervision::PoolSettings;

use super::super::problem::Problem;
use super::super::source::{Origin, Sourced};
use super::super::tree::{Item, Report, Section};
use super::super::types::{Command, OnError, Pool, Protocol, Queue, Restart, Workers};
use super::super::values;
use super::super::words::{POOL, QUEUE, RESTART};
use super::{DAY, DURATION, NUMBER, account, name, open, path, plain_path};
use crate::pool::{Otherwise, WhenFull};

const LIST: &str = "a list of texts, such as `[\"./worker\"]`, or `\"demo\"`";
const WORKERS: &str = "a number or `\"auto\"`";

/// Most workers of a pool: each has a process, a port and a slot in every table.
pub(super) const MOST_WORKERS: i64 = 4096;

pub(super) fn read(item: &Item<'_>, report: &mut Report) -> Option<Pool> {
    let table = open(item, report, &POOL)?;
    let name = table.need(report, "name", name);
    let root = table.optional(report, "root", path);
    let inside = root.value.is_some();
    let protocol = table.or(report, "protocol", Protocol::Auto, protocol);
    let command = table.need(report, "command", |item, report| command(item, report, inside));
    if let Some(command) = &command
        && *protocol == Protocol::Auto
        && is_node(command)
        && let Some(place) = command.place()
    {
        report.wrong(place, Problem::NodeNotYet);
    }
    let directory = directory(&table, item, report, inside);
    let timeout = |report: &mut Report, key, default, least| {
        table.or(report, key, Duration::from_secs(default), |item, report| {
            item.duration(report, DURATION, &(least..=Duration::from_secs(DAY)))
        })
    };
    let some = Duration::from_millis(1);
    Some(Pool {
        workers: table.or(report, "workers", Workers::Auto, workers),
        balance: table.or(report, "balance", crate::pool::Balance::default(), |item, report| {
            let text = item.text(report, "a balance, such as `\"least-connections\"`")?;
            report.take(&item.place, values::balance(text))
        }),
        otherwise: table.or(report, "otherwise", Otherwise::default(), |item, report| {
            let text = item.text(report, "a balance, such as `\"least-connections\"`")?;
            report.take(&item.place, values::otherwise(text))
        }),
        when_full: table.or(report, "when-full", WhenFull::default(), when_full),
        on_error: table.or(report, "on-error", OnError::Continue, on_error),
        hand_back_to: table.optional(report, "hand-back-to", |item, report| {
            let text = |item: &Item<'_>, report: &mut Report| {
                item.text(report, "the name of a pool, or a list of them").map(str::to_owned)
            };
            item.one_or_more(report)?.iter().map(|item| text(item, report)).collect()
        }),
        max_connections: table.or(report, "max-connections", None, |item, report| {
            match item.word() {
                Some("auto") => Some(None),
                _ => item.count(report, WORKERS, 1..=1_000_000).map(Some),
            }
        }),
        handoff_window: table.or(report, "handoff-window", 64, |item, report| {
            item.count(report, NUMBER, 1..=PoolSettings::MOST_WINDOW)
        }),
        queue: queue(&table, report),
        start_timeout: timeout(report, "start-timeout", 25, some),
        drain_timeout: timeout(report, "drain-timeout", 60, Duration::ZERO),
        stop_timeout: timeout(report, "stop-timeout", 10, Duration::ZERO),
        stop_signal: table.or(
            report,
            "stop-signal",
            rustix::process::Signal::TERM,
            |item, report| {
                let text = item.text(report, "the name of a signal, such as `\"SIGTERM\"`")?;
                report.take(&item.place, values::signal(text))
            },
        ),
        restart: restart(&table, report),
        user: table.optional(report, "user", account),
        group: table.optional(report, "group", account),
        groups: table.optional(report, "groups", |item, report| {
            let Some(elements) = item.elements() else {
                report.wrong(&item.place, item.other_kind("a list of groups"));
                return None;
            };
            elements.iter().map(|item| account(item, report)).collect()
        }),
        umask: table.optional(report, "umask", umask),
        nice: table.optional(report, "nice", |item, report| {
            let nice = item.number(report, "a number from -20 to 19", &(-20..=19))?;
            i32::try_from(nice).ok()
        }),
        nofile: table.optional(report, "nofile", |item, report| {
            // The least leaves a worker its 64 besides connections; the most is the kernel's own.
            item.number(report, NUMBER, &(128..=0x3fff_ffc0))
                .and_then(|limit| u64::try_from(limit).ok())
        }),
        max_age: table.optional(report, "max-age", |item, report| {
            // Less would replace workers that have hardly begun.
            let (least, most) = (Duration::from_secs(1), Duration::from_secs(366 * DAY));
            item.duration(report, DURATION, &(least..=most))
        }),
        max_served: table.optional(report, "max-connections-served", |item, report| {
            let most = i64::MAX;
            item.number(report, NUMBER, &(1..=most)).and_then(|count| u64::try_from(count).ok())
        }),
        max_memory: table.optional(report, "max-memory", |item, report| {
            let text = item.text(report, "a size, such as `\"512MiB\"`")?;
            // Less than any program has; up to a petabyte.
            report.take(&item.place, values::size(text, &(1 << 20..=1 << 50)))
        }),
        env: env(&table, report),
        // Something stands in for what is wrong, as with listeners.
        name: name.unwrap_or_else(|| Sourced::default(String::new())),
        command: command.unwrap_or_else(|| Sourced::default(Command::Demo)),
        protocol,
        directory,
        root,
    })
}

fn workers(item: &Item<'_>, report: &mut Report) -> Option<Workers> {
    if item.word() == Some("auto") {
        return Some(Workers::Auto);
    }
    if item.is_table() {
        report.wrong(&item.place, Problem::TableOfWorkers);
        return None;
    }
    let number = item.number(report, WORKERS, &(1..=MOST_WORKERS))?;
    u32::try_from(number).ok().and_then(std::num::NonZeroU32::new).map(Workers::Number)
}

fn command(item: &Item<'_>, report: &mut Report, inside: bool) -> Option<Command> {
    if item.word() == Some("demo") {
        return Some(Command::Demo);
    }
    if item.is_text() {
        let written = item.filled(report, LIST)?;
        let words = written.split_whitespace().map(|word| format!("{word:?}"));
        let list = format!("[{}]", words.collect::<Vec<_>>().join(", "));
        report.wrong(&item.place, Problem::CommandLine(list));
        return None;
    }
    let elements = match item.elements() {
        Some(elements) => elements,
        None => {
            report.wrong(&item.place, item.other_kind(LIST));
            return None;
        }
    };
    let Some((first, arguments)) = elements.split_first() else {
        report.wrong(&item.place, Problem::Empty("command".to_owned()));
        return None;
    };
    let program = first.filled(report, LIST);
    let arguments: Vec<_> = arguments.iter().map(|item| item.text(report, LIST)).collect();
    let program = program?;
    let mut argv = vec![program.to_owned()];
    for argument in arguments {
        argv.push(argument?.to_owned());
    }
    if inside && !program.starts_with('/') {
        report.wrong(&first.place, Problem::InsideRoot("the program"));
        return None;
    }
    let program = match program.contains('/') {
        true => plain_path(item.source().folder().join(program)),
        false => PathBuf::from(program),
    };
    Some(Command::Program { program, argv })
}

/// Whether `auto` would mean Node's own protocol.
fn is_node(command: &Command) -> bool {
    match command {
        Command::Demo => false,
        Command::Program { program, .. } => super::super::means_node(program),
    }
}

fn protocol(item: &Item<'_>, report: &mut Report) -> Option<Protocol> {
    let text = item.text(report, "`\"auto\"` or `\"vestibule\"`")?;
    let result = match text {
        "auto" => Ok(Protocol::Auto),
        "vestibule" => Ok(Protocol::Vestibule),
        "node-cluster" | "node" | "preload" => Err(Problem::NotYet(text.to_owned())),
        _ => Err(Problem::Word {
            found: text.to_owned(),
            what: "protocol between router and worker",
            write: "`auto` or `vestibule`".to_owned(),
        }),
    };
    report.take(&item.place, result)
}

fn on_error(item: &Item<'_>, report: &mut Report) -> Option<OnError> {
    let text = item.text(report, "`\"continue\"` or `\"restart\"`")?;
    let result = match text {
        "continue" => Ok(OnError::Continue),
        "restart" => Ok(OnError::Restart),
        _ => Err(Problem::Word {
            found: text.to_owned(),
            what: "answer to an error",
            write: "`continue` or `restart`".to_owned(),
        }),
    };
    report.take(&item.place, result)
}

fn when_full(item: &Item<'_>, report: &mut Report) -> Option<WhenFull> {
    let text = item.text(report, "`\"wait\"` or `\"spill\"`")?;
    let result = match text {
        "wait" => Ok(WhenFull::Wait),
        "spill" => Ok(WhenFull::Spill),
        _ => Err(Problem::Word {
            found: text.to_owned(),
            what: "answer to a full worker",
            write: "`wait` or `spill`".to_owned(),
        }),
    };
    report.take(&item.place, result)
}

fn queue(table: &Section<'_>, report: &mut Report) -> Queue {
    let takes = "a table, such as `{ max = 1024, timeout = \"5s\" }`";
    let item = table.item("queue");
    let section = item.and_then(|item| item.section(report, &QUEUE, takes));
    let (max, timeout) = (1024, Duration::from_secs(5));
    let Some(table) = section else {
        return Queue { max: Sourced::default(max), timeout: Sourced::default(timeout) };
    };
    Queue {
        max: table.or(report, "max", max, |item, report| item.count(report, NUMBER, 0..=1_000_000)),
        timeout: table.or(report, "timeout", timeout, |item, report| {
            item.duration(report, DURATION, &(Duration::from_millis(1)..=Duration::from_secs(3600)))
        }),
    }
}

fn restart(table: &Section<'_>, report: &mut Report) -> Restart {
    let takes = "a table, such as `{ delay = \"100ms\", max-delay = \"30s\" }`";
    let (delay, max_delay) = (Duration::from_millis(100), Duration::from_secs(30));
    let item = table.item("restart");
    let Some(table) = item.and_then(|item| item.section(report, &RESTART, takes)) else {
        return Restart {
            delay: Sourced::default(delay),
            max_delay: Sourced::default(max_delay),
            attempts: Sourced::default(None),
        };
    };
    let duration = |item: &Item<'_>, report: &mut Report| {
        item.duration(report, DURATION, &(Duration::from_millis(1)..=Duration::from_secs(DAY)))
    };
    let delay = table.or(report, "delay", delay, duration);
    // A first delay above the default bound raises it: nobody has to write both.
    let max_delay = table.or(report, "max-delay", max_delay.max(*delay), duration);
    if let Some(place) = max_delay.place()
        && *max_delay < *delay
    {
        report.wrong(place, Problem::DelayOrder(values::show_duration(*delay)));
    }
    let attempts = table.optional(report, "attempts", |item, report| {
        item.count(report, NUMBER, 1..=1_000_000).and_then(std::num::NonZeroU32::new)
    });
    Restart { delay, max_delay, attempts }
}

fn umask(item: &Item<'_>, report: &mut Report) -> Option<u32> {
    let result = match item.digits() {
        // A number in octal says what it is; `22` in decimal is not what it looks like.
        Some((digits, 8)) => values::umask(&format!("{digits:0>3}")),
        Some((digits, _)) => Err(values::no_umask(digits)),
        None => values::umask(item.text(report, "three octal digits, such as `\"027\"`")?),
    };
    report.take(&item.place, result)
}

fn directory(
    table: &Section<'_>,
    pool: &Item<'_>,
    report: &mut Report,
    inside: bool,
) -> Sourced<PathBuf> {
    let default = if inside { PathBuf::from("/") } else { pool.source().folder() };
    table.or(report, "directory", default, |item, report| {
        let relative = item.word().is_some_and(|text| !text.starts_with('/'));
        if inside && relative {
            report.wrong(&item.place, Problem::InsideRoot("the directory"));
            return None;
        }
        path(item, report)
    })
}

/// Variables that say who a worker is: the program sets them.
const OWN: [&str; 2] = ["VESTIBULE_", "LISTEN_"];

fn env(table: &Section<'_>, report: &mut Report) -> Vec<(String, Sourced<String>)> {
    let Some(item) = table.item("env") else { return Vec::new() };
    let mut variables = Vec::new();
    for (place, value) in item.pairs(report, "a table, such as `{ NODE_ENV = \"production\" }`") {
        let name = value.key();
        let problem = if name.is_empty() || name.contains(['=', '\0']) {
            Some(Problem::Word {
                found: name.to_owned(),
                what: "name of a variable",
                write: "one without `=`".to_owned(),
            })
        } else if OWN.iter().any(|own| name.starts_with(own)) || name == "NOTIFY_SOCKET" {
            Some(Problem::OwnVariable(name.to_owned()))
        } else {
            None
        };
        let text = value.text(report, "a text (write a number in quotes)");
        match (problem, text) {
            (Some(problem), _) => report.wrong(&place, problem),
            (None, Some(text)) => {
                let origin = Origin::File(place);
                variables.push((name.to_owned(), Sourced { value: text.to_owned(), origin }));
            }
            (None, None) => {}
        }
    }
    variables.sort_by(|one, other| one.0.cmp(&other.0));
    variables
}
