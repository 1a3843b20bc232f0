//! What can be used and was hardly meant: warnings about a configuration as a whole.

use super::problem::Caution;
use super::source::{Origin, Place};
use super::tree::Report;
use super::types::{Listener, Pool, Reuse, Route};
use crate::pool::Balance;
use crate::route::{Rule, Table, Target};

/// Notes what is doubtful about routes, listeners and pools together.
pub(super) fn doubts(
    table: &Table,
    routes: &[Route],
    places: &[Place],
    listeners: &[Listener],
    pools: &[Pool],
    scripted: bool,
    report: &mut Report,
) {
    for (index, earlier) in table.unreachable() {
        if let (Some(route), Some(place)) = (routes.get(index), places.get(index))
            && let (Some(before), Some(first)) = (routes.get(earlier), places.get(earlier))
        {
            let (route, earlier) = (route.name.value.clone(), before.name.value.clone());
            report.doubtful(place, Caution::Unreachable { route, earlier, first: first.short() });
        }
    }
    hidden_by_tls(routes, listeners, report);
    for (index, pool) in pools.iter().enumerate() {
        let used = routes.iter().any(|route| route.target.value == Target::Pool(index))
            || listeners.iter().any(|listener| *listener.unknown == Some(index))
            || pools.iter().any(|other| {
                other.hand_back_to.iter().flatten().any(|name| *name == pool.name.value)
            });
        // What a script chooses is its own affair.
        if !used
            && !scripted
            && !routes.is_empty()
            && let Origin::File(place) = &pool.name.origin
        {
            report.doubtful(place, Caution::UnusedPool(pool.name.value.clone()));
        }
        if matches!(*pool.balance, Balance::LeastConnections | Balance::RoundRobin) {
            let keys =
                [("otherwise", pool.otherwise.place()), ("when-full", pool.when_full.place())];
            for (key, place) in keys {
                if let Some(place) = place {
                    let balance = pool.balance.to_string();
                    report.doubtful(place, Caution::NoKey { key, balance });
                }
            }
        }
    }
    for (index, listener) in listeners.iter().enumerate() {
        let looks = |rule: &Rule| rule.covers(index) && rule.conditions.need_head();
        if *listener.reuse == Reuse::Connection
            && table.rules().iter().any(looks)
            && let Some(place) = listener.reuse.place()
        {
            report.doubtful(place, Caution::Unchecked);
        }
    }
}

/// Routes about a TLS client's request, which only a proxy in front can have seen, where there is none.
fn hidden_by_tls(routes: &[Route], listeners: &[Listener], report: &mut Report) {
    for route in routes {
        let (Some(one), Some((other, place))) =
            (route.conditions.about_tls(), route.conditions.about_request())
        else {
            continue;
        };
        let all = || (0..listeners.len()).collect();
        let mine = route.listeners.value.clone().unwrap_or_else(all);
        let mut mine = mine.into_iter().filter_map(|index| listeners.get(index)).peekable();
        let Some(first) = mine.peek().map(|listener| listener.name.value.clone()) else { continue };
        if mine.all(|listener| listener.proxies.is_empty()) {
            report.doubtful(place, Caution::HiddenByTls { one, other, listener: first });
        }
    }
}
