//! `[[route]]` and `[[test]]`.

use ipnet::IpNet;

use super::super::problem::{Caution, Problem};
use super::super::source::Sourced;
use super::super::tree::{Item, Report};
use super::super::values;
use super::super::words::{ROUTE, TEST};
use super::{RouteDraft, TargetDraft, TestDraft, name, open};
use crate::route::table::{DEFAULT, NO_ROUTE, SCRIPT};

const NETWORK: &str = "a network or a list of networks, such as `\"10.0.0.0/8\"`";

pub(super) fn read(item: &Item<'_>, report: &mut Report) -> Option<RouteDraft> {
    let table = open(item, report, &ROUTE)?;
    let name = table.item("name").and_then(|item| {
        let name = name(&item, report)?;
        if name == DEFAULT || name == NO_ROUTE || name == SCRIPT {
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
    let target = match (pool, reject) {
        (None, None) => {
            report.wrong(&item.place, Problem::NoTarget);
            None
        }
        (Some(_), Some(reject)) => {
            let place = reject.as_ref().and_then(Sourced::place).unwrap_or(&item.place);
            report.wrong(place, Problem::TwoTargets);
            None
        }
        (Some(target), None) | (None, Some(target)) => target,
    };
    Some(RouteDraft { place: item.place.clone(), name, listeners, peers, target })
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

pub(super) fn read_test(item: &Item<'_>, report: &mut Report) -> Option<TestDraft> {
    let table = open(item, report, &TEST)?;
    let peer = table.need(report, "peer", |item, report| {
        let text = item.text(report, "an address, such as `\"10.1.2.3\"`")?;
        report.take(&item.place, values::peer(text))
    });
    let listener = table.item("listener").map(|item| {
        let value = item.text(report, "the name of a listener")?.to_owned();
        Some(Sourced { value, origin: item.origin() })
    });
    let expect = table.need(report, "expect", |item, report| {
        item.text(report, "the name of a route").map(str::to_owned)
    });
    let listener = match listener {
        None => None,
        Some(listener) => Some(listener?),
    };
    Some(TestDraft { place: item.place.clone(), peer: peer?, listener, expect: expect? })
}
