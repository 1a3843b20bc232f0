//! `[[route]]`: conditions and a target.

use ipnet::IpNet;
use toml::de::DeValue;

use super::super::problem::{Caution, Problem};
use super::super::source::Sourced;
use super::super::tree::{Item, Report, Section};
use super::super::types::{Conditions, Named};
use super::super::values;
use super::super::words::ROUTE;
use super::{RouteDraft, TargetDraft, name, open};
use crate::inspect::label::LevelRange;
use crate::route::pattern::{ContextPattern, Names, NotAPattern, PathPattern, ValuePattern};
use crate::route::table::{DEFAULT, NO_ROUTE, SCRIPT, UNKNOWN};

const NETWORK: &str = "a network or a list of networks, such as `\"10.0.0.0/8\"`";

pub(super) fn read(item: &Item<'_>, report: &mut Report) -> Option<RouteDraft> {
    let table = open(item, report, &ROUTE)?;
    let name = table.item("name").and_then(|item| {
        let name = name(&item, report)?;
        if [DEFAULT, NO_ROUTE, SCRIPT, UNKNOWN].contains(&name.as_str()) {
            report.wrong(&item.place, Problem::TakenName(name));
            return None;
        }
        Some(Sourced { value: name, origin: item.origin() })
    });
    let listeners = table.optional(report, "listener", |item, report| {
        let text = |item: &Item<'_>, report: &mut Report| {
            let text = item.text(report, "the name of a listener, or a list of them")?;
            Some((text.to_owned(), item.place.clone()))
        };
        item.one_or_more(report)?.iter().map(|item| text(item, report)).collect()
    });
    let peers = table.optional(report, "peer", |item, report| {
        let networks = item.one_or_more(report)?;
        // All of them are looked at, whichever is wrong.
        let networks: Vec<_> = networks.iter().map(|item| network(item, report)).collect();
        networks.into_iter().collect()
    });
    let conditions = conditions(&table, report);
    conflicts(&conditions, report);
    let target = target(&table, item, report);
    let message = table.optional(report, "message", |item, report| {
        let result = json(item.value()).ok_or_else(|| item.other_kind(MESSAGE));
        report.take(&item.place, result)
    });
    if let (Some(place), Some(target)) = (message.place(), &target)
        && !matches!(target.value, TargetDraft::Pool(_))
    {
        report.wrong(place, Problem::MessageToNobody);
    }
    Some(RouteDraft {
        place: item.place.clone(),
        name,
        listeners,
        peers,
        conditions,
        target,
        message,
    })
}

fn network(item: &Item<'_>, report: &mut Report) -> Option<IpNet> {
    let text = item.text(report, NETWORK)?;
    let network = report.take(&item.place, values::network(text))?;
    if network.addr() != network.network() {
        let (written, network) = (text.to_owned(), network.trunc().to_string());
        report.doubtful(&item.place, Caution::HostBits { written, network });
    }
    Some(network.trunc())
}

fn conditions(table: &Section<'_>, report: &mut Report) -> Conditions {
    let mut texts = |key, takes, judge: fn(&str) -> Result<(), Problem>| {
        table.optional(report, key, |item, report| self::texts(item, report, takes, judge))
    };
    Conditions {
        users: texts(
            "peer-user",
            "a text or a list of texts, each the name or the number of a user, such as `\"1000\"`",
            |text| values::account(text).map(drop),
        ),
        contexts: texts("peer-context", CONTEXT, |text| Ok(ContextPattern::parse(text).map(drop)?)),
        levels: texts("peer-level", "a level or a range, such as `\"s0-s0:c0.c5\"`", |text| {
            let level = text.parse::<LevelRange>();
            level.map(drop).map_err(|error| Problem::Level(text.to_owned(), error))
        }),
        server_names: texts("sni", NAME, |text| Ok(Names::default().add_server_name(text)?)),
        alpn: texts("alpn", "a protocol or a list of them, such as `\"h2\"`", values::protocol),
        hosts: texts("host", NAME, |text| Ok(Names::default().add(text)?)),
        paths: texts("path", "a path or a list of them, such as `\"/api/*\"`", |text| {
            Ok(PathPattern::parse(text).map(drop)?)
        }),
        http2: table.optional(report, "http2", |item, report| item.flag(report)),
        query: named(table, report, "query", |_| Ok(())),
        headers: named(table, report, "header", values::token),
        cookies: named(table, report, "cookie", values::token),
    }
}

const CONTEXT: &str =
    "a context or a list of them, such as `\"*:*:staff_client_t:*\"` or `\"none\"`";
const MESSAGE: &str = "a value that JSON has, without dates, `nan` and `inf` within";
const NAME: &str = "a name or a list of names, such as `\"*.example.org\"`";
const VALUES: &str = "a text or a list of texts, such as `\"gold\"`, `\"go*\"` or `\"*\"`";

fn texts(
    item: &Item<'_>,
    report: &mut Report,
    takes: &'static str,
    judge: impl Fn(&str) -> Result<(), Problem>,
) -> Option<Vec<String>> {
    let read = |item: &Item<'_>, report: &mut Report| {
        let text = item.text(report, takes)?;
        report.take(&item.place, judge(text)).map(|()| text.to_owned())
    };
    let all: Vec<_> = item.one_or_more(report)?.iter().map(|item| read(item, report)).collect();
    all.into_iter().collect()
}

/// A table of names, each with a value or a list of values.
fn named(
    table: &Section<'_>,
    report: &mut Report,
    key: &'static str,
    judge: fn(&str) -> Result<(), Problem>,
) -> Sourced<Named> {
    table.or(report, key, Vec::new(), |item, report| {
        let takes = "a table of names and values, such as `{ name = \"value\" }`";
        let mut all = Vec::new();
        for (place, item) in item.pairs(report, takes) {
            report.take(&place, judge(item.key()));
            let value = |text: &str| match key {
                "cookie" if text.contains(';') => Err(Problem::CookieValue(text.to_owned())),
                _ => Ok(ValuePattern::parse(text).map(drop)?),
            };
            if let Some(values) = texts(&item, report, VALUES, value) {
                all.push((item.key().to_owned(), values));
            }
        }
        Some(all)
    })
}

/// What no client can be at the same time: HTTP/2 in clear hides its requests. TLS hides them too, but
/// a proxy in front can have ended it and tell its name: see `hidden_by_tls`.
fn conflicts(conditions: &Conditions, report: &mut Report) {
    let http2 = conditions.http2.value == Some(true);
    if let (true, Some((other, place))) = (http2, conditions.about_request()) {
        report.wrong(place, Problem::NeverBoth { one: "http2", other });
    }
}

fn target(
    table: &Section<'_>,
    item: &Item<'_>,
    report: &mut Report,
) -> Option<Sourced<TargetDraft>> {
    let pool = table.item("pool").map(|item| {
        let name = item.text(report, "the name of a pool")?.to_owned();
        Some(Sourced { value: TargetDraft::Pool(name), origin: item.origin() })
    });
    let reject = table.item("reject").map(|item| {
        let result = match item.digits() {
            Some(_) => {
                let number = item.number(report, "", &(i64::MIN..=i64::MAX))?;
                values::status(number)
            }
            None => values::refusal(item.text(report, "a status, `\"reset\"` or `\"close\"`")?),
        };
        let refusal = report.take(&item.place, result)?;
        Some(Sourced { value: TargetDraft::Reject(refusal), origin: item.origin() })
    });
    let redirect = table.item("redirect").map(|item| {
        let text = item.text(report, "`\"https\"`")?;
        report.take(&item.place, values::redirect(text))?;
        Some(Sourced { value: TargetDraft::Redirect, origin: item.origin() })
    });
    let mut targets = [pool, reject, redirect].into_iter().flatten();
    match (targets.next(), targets.next()) {
        (None, _) => {
            report.wrong(&item.place, Problem::NoTarget);
            None
        }
        (Some(target), None) => target,
        (Some(_), Some(second)) => {
            let place = second.as_ref().and_then(Sourced::place).unwrap_or(&item.place);
            report.wrong(place, Problem::TwoTargets);
            None
        }
    }
}

/// What a value of TOML is in JSON, which has no dates and only finite numbers.
fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => text.to_string().into(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok()?.into()
        }
        DeValue::Float(number) => {
            let number: f64 = number.as_str().parse().ok()?;
            serde_json::Number::from_f64(number)?.into()
        }
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(_) => return None,
        DeValue::Array(values) => {
            let values = values.iter().map(|value| json(value.get_ref()));
            values.collect::<Option<Vec<_>>>()?.into()
        }
        DeValue::Table(table) => {
            let pair = |(key, value): (
                &toml::Spanned<std::borrow::Cow<'_, str>>,
                &toml::Spanned<DeValue<'_>>,
            )| { Some((key.get_ref().to_string(), json(value.get_ref())?)) };
            serde_json::Value::Object(table.iter().map(pair).collect::<Option<_>>()?)
        }
    })
}

impl From<NotAPattern> for Problem {
    fn from(problem: NotAPattern) -> Self {
        Self::Condition(problem)
    }
}
