//! The table: medians over rounds with their spread, and each contender's ratio to two others of the same round.

use std::fmt::Write;

use crate::contender::Kind;
use crate::rounds::Round;

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

    fn show_median(spread: Option<Self>, digits: usize) -> String {
        spread.map_or_else(|| "-".into(), |Self { median, .. }| format!("{median:.digits$}"))
    }
}

const HEAD: [&str; 11] = [
    "contender",
    "a second",
    "CPU µs all",
    "CPU µs router",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "CPU × direct",
    "CPU × bare",
    "a second × direct",
    "× bare",
];

/// One block of the table: all contenders with one number of clients.
pub(crate) fn table(rows: &[(Kind, Vec<Round>)]) -> String {
    let rounds_of =
        |kind| rows.iter().find(|(k, _)| *k == kind).map(|(_, rounds)| rounds.as_slice());
    let (direct, bare) = (rounds_of(Kind::Direct), rounds_of(Kind::Bare));
    let mut cells = vec![HEAD.map(str::to_owned)];
    for (kind, rounds) in rows {
        let latency = |index: usize| {
            let values = rounds.iter().filter_map(|round| round.latency.get(index).copied());
            Spread::show(Spread::of(values), 0)
        };
        cells.push([
            kind.name().to_owned(),
            Spread::show(Spread::of(rounds.iter().map(|round| round.throughput)), 0),
            Spread::show(Spread::of(rounds.iter().map(|round| round.cpu)), 1),
            Spread::show(Spread::of(rounds.iter().filter_map(|round| round.router_cpu)), 1),
            latency(0),
            latency(1),
            latency(2),
            Spread::show(ratio(rounds, direct, |round| round.cpu), 2),
            Spread::show(ratio(rounds, bare, |round| round.cpu), 2),
            Spread::show_median(ratio(rounds, direct, |round| round.throughput), 2),
            Spread::show_median(ratio(rounds, bare, |round| round.throughput), 2),
        ]);
    }
    align(&cells)
}

/// A value as a multiple of another contender's, round by round: what the machine did to a round it did to both.
fn ratio(
    rounds: &[Round],
    base: Option<&[Round]>,
    value: impl Fn(&Round) -> f64,
) -> Option<Spread> {
    let base = base.unwrap_or_default();
    Spread::of(rounds.iter().zip(base).map(|(round, base)| value(round) / value(base)))
}

fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        for (index, (width, cell)) in widths.iter().zip(row).enumerate() {
            let gap = width - cell.chars().count();
            // Writing to a String does not fail.
            let _ = match index {
                0 => write!(text, "{cell}{:gap$}", ""),
                _ => write!(text, "  {:gap$}{cell}", ""),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}
