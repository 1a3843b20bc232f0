//! The tables, in Markdown: medians over rounds with their spread, and each contender's ratio to another of the same round.

use std::fmt::Write;

use crate::contender::Kind;
use crate::rounds::Round;

/// A contender with its rounds.
pub(crate) type Row = (Kind, Vec<Round>);

/// Median, smallest and largest of some rounds.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` of nothing.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Self { median: (lower + upper) / 2.0, min, max })
    }

    fn show(spread: Option<Self>, digits: usize) -> String {
        spread.map_or_else(
            || "-".into(),
            |Self { median, min, max }| {
                format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
            },
        )
    }
}

/// The median of what direct workers served a second.
pub(crate) fn maximum(rounds: &[Round]) -> Option<f64> {
    Spread::of(rounds.iter().map(|round| round.throughput)).map(|spread| spread.median)
}

/// What every contender took and gave.
pub(crate) fn absolute(rows: &[Row]) -> String {
    let mut cells = vec![
        ["contender", "a second", "CPU µs", "router CPU ns", "p50 µs", "p99 µs", "p99.9 µs"]
            .map(str::to_owned),
    ];
    for (kind, rounds) in rows {
        let [p50, p99, p999] = quantiles(rounds, |round| round.latency);
        let router = rounds.iter().filter_map(|round| round.router_cpu);
        cells.push([
            kind.name().to_owned(),
            Spread::show(Spread::of(rounds.iter().map(|round| round.throughput)), 0),
            Spread::show(Spread::of(rounds.iter().map(|round| round.cpu)), 1),
            Spread::show(Spread::of(router.map(|microseconds| microseconds * 1e3)), 0),
            p50,
            p99,
            p999,
        ]);
    }
    markdown(&cells)
}

/// From accept to first read.
pub(crate) fn first_read(rows: &[Row]) -> String {
    let mut cells =
        vec![["contender", "a second", "p50 µs", "p99 µs", "p99.9 µs"].map(str::to_owned)];
    for (kind, rounds) in rows {
        let [p50, p99, p999] = quantiles(rounds, |round| round.first_read);
        let throughput = Spread::of(rounds.iter().map(|round| round.throughput));
        cells.push([kind.name().to_owned(), Spread::show(throughput, 0), p50, p99, p999]);
    }
    markdown(&cells)
}

fn quantiles(rounds: &[Round], of: impl Fn(&Round) -> [f64; 3]) -> [String; 3] {
    [0, 1, 2].map(|index| {
        let values = rounds.iter().filter_map(|round| of(round).get(index).copied());
        Spread::show(Spread::of(values), 0)
    })
}

/// One contender as a multiple of each other, round by round: what the machine did to a round it did to both.
/// Empty without it or without others.
pub(crate) fn relative(of: Kind, rows: &[Row]) -> String {
    let ours = rows.iter().find(|(kind, _)| *kind == of);
    let others: Vec<_> = rows.iter().filter(|(kind, _)| *kind != of).collect();
    let (Some((_, ours)), false) = (ours, others.is_empty()) else { return String::new() };
    let head = [format!("{} ÷", of.name()), "CPU".to_owned(), "a second".to_owned()];
    let mut cells = vec![head];
    cells.extend(others.iter().map(|(kind, theirs)| ratios(*kind, ours, theirs)));
    markdown(&cells)
}

/// The program with rules as a multiple of the program without. Empty without that.
pub(crate) fn rules(rows: &[Row]) -> String {
    let Some((_, without)) = rows.iter().find(|(kind, _)| *kind == Kind::Program) else {
        return String::new();
    };
    let with = rows.iter().filter(|(kind, _)| *kind != Kind::Program);
    let mut cells = vec![["÷ program", "CPU", "a second"].map(str::to_owned)];
    cells.extend(with.map(|(kind, with)| ratios(*kind, with, without)));
    markdown(&cells)
}

/// The program with many rules as a multiple of the program with few. Empty without both.
pub(crate) fn many(rows: &[Row]) -> String {
    let rounds = |wanted| rows.iter().find(|(kind, _)| *kind == wanted).map(|(_, rounds)| rounds);
    let mut cells = vec![["÷ few", "CPU", "a second"].map(str::to_owned)];
    for (many, few) in [
        (Kind::ProgramManyNetworks, Kind::ProgramFewNetworks),
        (Kind::ProgramManyHosts, Kind::ProgramFewHosts),
    ] {
        if let (Some(with_many), Some(with_few)) = (rounds(many), rounds(few)) {
            cells.push(ratios(many, with_many, with_few));
        }
    }
    if cells.len() > 1 { markdown(&cells) } else { String::new() }
}

/// A line of what `ours` took and gave as a multiple of `theirs`.
fn ratios(name: Kind, ours: &[Round], theirs: &[Round]) -> [String; 3] {
    let ratio = |value: fn(&Round) -> f64| {
        let pairs = ours.iter().zip(theirs);
        Spread::show(Spread::of(pairs.map(|(our, their)| value(our) / value(their))), 2)
    };
    [name.name().to_owned(), ratio(|round| round.cpu), ratio(|round| round.throughput)]
}

/// A table that can be read as it is and copied into a document.
fn markdown<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [3; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (index, (width, cell)) in widths.iter().zip(row).enumerate() {
            let gap = width - cell.chars().count();
            // Writing to a String does not fail.
            let _ = match index {
                0 => write!(text, "| {cell}{:gap$} ", ""),
                _ => write!(text, "| {:gap$}{cell} ", ""),
            };
        }
        text.push_str("|\n");
        if number == 0 {
            for (index, width) in widths.iter().enumerate() {
                let line = "-".repeat(width + 1);
                let _ = match index {
                    0 => write!(text, "|:{line}"),
                    _ => write!(text, "|{line}:"),
                };
            }
            text.push_str("|\n");
        }
    }
    text
}
