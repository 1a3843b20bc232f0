//! `vestibule status` for a person.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use vestibule_router::supervisor::admin::status::{
    Health, LastExit, Pool, RouterState, Status, Worker, WorkerState,
};

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The whole text. `now`: seconds since 1970.
pub(crate) fn text(status: &Status, now: u64) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = head(&mut text, status, now);
    for pool in &status.pools {
        let _ = pool_part(&mut text, pool, now);
    }
    text
}

fn head(out: &mut String, status: &Status, now: u64) -> std::fmt::Result {
    let supervisor = &status.supervisor;
    let health = match status.health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
    };
    writeln!(
        out,
        "vestibule {}: {health}; process {}, for {}",
        supervisor.program,
        supervisor.pid,
        age(now, supervisor.since)
    )?;
    for problem in &status.problems {
        writeln!(out, "  ! {problem}")?;
    }
    let router = &status.router;
    let state = match router.state {
        RouterState::Starting => "starting",
        RouterState::Accepting => "accepting",
        RouterState::Silent => "does not answer",
        RouterState::Stopping => "stopping",
        RouterState::None => "not running",
    };
    write!(out, "router    {state}")?;
    if let (Some(pid), Some(since)) = (router.pid, router.since) {
        write!(out, "; process {pid}, for {}", age(now, since))?;
    }
    write!(out, "; epoch {}, {}", router.epoch, plural(router.restarts, "restart"))?;
    if let Some(exit) = router.last_exit {
        write!(out, ", the last one ended with {exit}")?;
    }
    writeln!(out)?;
    for listener in &status.listeners {
        let address = listener.address.as_deref().unwrap_or("-");
        writeln!(out, "listener  {}  {address}", listener.name)?;
    }
    let connections = &status.connections;
    write!(out, "accepted  {}; rejected ", connections.accepted)?;
    let rejected: Vec<_> = connections
        .rejected
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    match rejected.is_empty() {
        true => writeln!(out, "0"),
        false => writeln!(out, "{}", rejected.join(", ")),
    }
}

fn pool_part(out: &mut String, pool: &Pool, now: u64) -> std::fmt::Result {
    writeln!(
        out,
        "\npool {}: {} of {} ready, {} queued; delivered {}, moved {}, touched {}, client-gone {}",
        pool.name,
        pool.ready,
        pool.wanted,
        pool.queued.map_or("?".to_owned(), |queued| queued.to_string()),
        pool.delivered,
        pool.moved,
        pool.touched,
        pool.client_gone
    )?;
    let mut rows = vec![
        ["WORKER", "STATE", "PID", "CONNECTIONS", "RESTARTS", "SINCE", "LAST EXIT"]
            .map(str::to_owned),
    ];
    rows.extend(pool.workers.iter().map(|worker| row(worker, now)));
    let widths: [usize; 7] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    });
    // The first line is the heading, which has no worker.
    let workers = std::iter::once(None).chain(pool.workers.iter().map(Some));
    for (cells, worker) in rows.iter().zip(workers) {
        let mut line = String::from(" ");
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            match column {
                // Numbers.
                2..=4 => write!(line, " {cell:>width$} ")?,
                _ => write!(line, " {cell:<width$} ")?,
            }
        }
        writeln!(out, "{}", line.trim_end())?;
        if let Some(worker) = worker {
            explain(out, worker)?;
        }
    }
    Ok(())
}

fn row(worker: &Worker, now: u64) -> [String; 7] {
    let number =
        |number: Option<u32>, none: &str| number.map_or(none.to_owned(), |n| n.to_string());
    // A worker without a process holds nothing; of others the router may not have said it.
    let unknown = if worker.pid.is_some() { "?" } else { "-" };
    let mut state = worker.state.as_str().to_owned();
    if worker.held && worker.state != WorkerState::Held {
        state.push_str(", held");
    }
    [
        worker.name.clone(),
        state,
        number(worker.pid, "-"),
        number(worker.connections.filter(|_| worker.pid.is_some()), unknown),
        worker.restarts.to_string(),
        age(now, worker.since),
        worker.last_exit.map_or("-".to_owned(), |exit: LastExit| exit.to_string()),
    ]
}

/// Why there is no process, and what it said last.
fn explain(out: &mut String, worker: &Worker) -> std::fmt::Result {
    if let Some(error) = &worker.last_error {
        writeln!(out, "      {error}")?;
    }
    for line in &worker.last_lines {
        writeln!(out, "      | {line}")?;
    }
    Ok(())
}

fn plural(count: u64, word: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {word}{s}")
}

/// How long ago, in two units at most.
fn age(now: u64, since: u64) -> String {
    let seconds = now.saturating_sub(since);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let texts = [0, 59, 61, 3599, 3660, 90_000].map(|seconds| age(100_000, 100_000 - seconds));
        assert_eq!(texts, ["0s", "59s", "1m01s", "59m59s", "1h01m", "1d01h"]);
        assert_eq!(age(1, 2), "0s", "a clock that was set back");
    }
}
