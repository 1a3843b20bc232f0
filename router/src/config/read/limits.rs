//! What a listener asks of its clients: `proxy-protocol`, `ech` and `limits`.

use ipnet::IpNet;

use super::super::problem::Problem;
use super::super::source::Sourced;
use super::super::tree::{Item, Report, Section};
use super::super::types::{Limits, Rate};
use super::super::values;
use super::super::words::LIMITS;
use super::NUMBER;

const NETWORK: &str = "a network or a list of networks, such as `[\"10.0.0.0/8\"]`";

/// Networks of senders that begin with a PROXY header.
pub(super) fn proxies(table: &Section<'_>, report: &mut Report) -> Sourced<Vec<IpNet>> {
    table.or(report, "proxy-protocol", Vec::new(), |item, report| {
        let networks = item.one_or_more(report)?;
        // All of them are looked at, whichever is wrong.
        let read = |item: &Item<'_>, report: &mut Report| {
            let text = item.text(report, NETWORK)?;
            report.take(&item.place, values::network(text))
        };
        let networks: Vec<_> = networks.iter().map(|item| read(item, report)).collect();
        networks.into_iter().collect()
    })
}

/// Whether the outer hello of an encrypted one is believed.
pub(super) fn outer_hello(table: &Section<'_>, report: &mut Report) -> Sourced<bool> {
    table.or(report, "ech", false, |item, report| {
        let text = item.text(report, "`\"hidden\"` or `\"outer\"`")?;
        let result = match text {
            "hidden" => Ok(false),
            "outer" => Ok(true),
            _ => Err(Problem::Word {
                found: text.to_owned(),
                what: "way to take an encrypted hello",
                write: "`hidden` or `outer`".to_owned(),
            }),
        };
        report.take(&item.place, result)
    })
}

pub(super) fn limits(table: &Section<'_>, report: &mut Report) -> Limits {
    let takes = "a table, such as `{ per-peer = 256, rate = \"100/s\" }`";
    let item = table.item("limits");
    let Some(table) = item.and_then(|item| item.section(report, &LIMITS, takes)) else {
        return Limits::default();
    };
    let default = Limits::default();
    let count = |item: &Item<'_>, report: &mut Report| item.count(report, NUMBER, 1..=1_000_000);
    let rate = table.optional(report, "rate", |item, report| {
        let text = item.text(report, "a rate, such as `\"100/s\"`")?;
        report.take(&item.place, values::rate(text))
    });
    let burst = rate.value.as_ref().map_or(1, |rate: &Rate| rate.connections);
    if table.item("rate").is_none()
        && let Some(item) = table.item("burst")
    {
        report.wrong(&item.place, Problem::BurstWithoutRate);
    }
    Limits {
        per_peer: table.optional(report, "per-peer", count),
        prefix: table.or(report, "prefix", default.prefix.value, prefix),
        rate,
        burst: table.or(report, "burst", burst, count),
        inspecting: table.optional(report, "inspecting", count),
    }
}

/// The lengths of what two addresses of one peer have in common: IPv4, IPv6.
fn prefix(item: &Item<'_>, report: &mut Report) -> Option<(u8, u8)> {
    let takes = "two lengths, of IPv4 and of IPv6, such as `[32, 64]`";
    let elements = item.elements();
    let [v4, v6] = elements.as_deref().unwrap_or_default() else {
        report.wrong(&item.place, item.other_kind(takes));
        return None;
    };
    let v4 = v4.number(report, takes, &(1..=32));
    let v6 = v6.number(report, takes, &(1..=128));
    Some((u8::try_from(v4?).ok()?, u8::try_from(v6?).ok()?))
}
