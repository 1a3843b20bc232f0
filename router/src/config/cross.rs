//! What values say about each other: names are looked up, routes are compiled.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::Overrides;
use super::doubts;
use super::load::Files;
use super::mistake::Whereabouts;
use super::problem::{Advice, Others, Problem};
use super::read::{Draft, ListenerDraft, RouteDraft, TargetDraft, TestDraft};
use super::source::{Place, Sourced};
use super::tree::Report;
use super::types::{Address, Config, Listener, Pool, Route, Test};
use super::words::near;
use crate::reject::Reason;
use crate::route::table::{DEFAULT, NO_ROUTE, SCRIPT, UNKNOWN};
use crate::route::{self, KeySource, Table, Target, Unseen};
use crate::sys::users::number_of;

/// Names of one kind, and what they stand for.
struct Names<'a> {
    what: &'static str,
    index: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    /// Every name once; what is there twice is noted.
    fn new(
        what: &'static str,
        names: impl Iterator<Item = (&'a str, Option<&'a Place>)>,
        report: &mut Report,
    ) -> Self {
        let mut found: HashMap<&str, (usize, &Place)> = HashMap::new();
        for (at, (name, place)) in names.enumerate() {
            // Without a place it stands in for one that is missing.
            let Some(place) = place else { continue };
            if let Some((_, first)) = found.get(name) {
                let (name, first) = (name.to_owned(), first.short());
                report.wrong(place, Problem::NameTwice { what, name, first });
            } else {
                found.insert(name, (at, place));
            }
        }
        Self { what, index: found.into_iter().map(|(name, (at, _))| (name, at)).collect() }
    }

    fn find(&self, name: &str, place: &Place, report: &mut Report) -> Option<usize> {
        if let Some(index) = self.index.get(name) {
            return Some(*index);
        }
        let mut known: Vec<&str> = self.index.keys().copied().collect();
        known.sort_unstable();
        let advice = advice(name, &known);
        report.wrong(place, Problem::Nothing { what: self.what, name: name.to_owned(), advice });
        None
    }
}

/// A near name, or all of them if they are few.
fn advice(name: &str, known: &[&str]) -> Advice {
    const FEW: usize = 8;
    match near(name, known.iter().copied()) {
        Some(near) => Advice::DidYouMean(near.to_owned()),
        None if known.is_empty() || known.len() > FEW => Advice::None,
        None => {
            let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            Advice::OneOf(quoted.join(", "))
        }
    }
}

/// A configuration, if nothing stands against it.
pub(super) fn resolve(
    path: &Path,
    files: Files,
    overrides: &Overrides,
    report: &mut Report,
) -> Option<Config> {
    let Files { draft, broken, .. } = files;
    if broken {
        return None;
    }
    let wrong_before = report.mistakes.len();
    whole(path, &draft, report);
    let Draft { router, admin, listeners, pools, routes, tests, .. } = draft;
    let listener_names =
        Names::new("listener", named(listeners.iter().map(|l| &l.listener.name)), report);
    let pool_names = Names::new("pool", named(pools.iter().map(|pool| &pool.name)), report);
    let listeners: Vec<Listener> =
        listeners.iter().map(|draft| listener(draft, &pool_names, report)).collect();
    for pool in &pools {
        let Some(place) = pool.hand_back_to.place() else { continue };
        for name in pool.hand_back_to.iter().flatten() {
            pool_names.find(name, place, report);
        }
    }
    addresses(&listeners, report);
    let route_names = route_names(&routes);
    let names = route_names.iter().zip(&routes).map(|(name, route)| {
        let place = route.name.as_ref().and_then(Sourced::place).unwrap_or(&route.place);
        (name.as_str(), Some(place))
    });
    Names::new("route", names, report);
    let listeners_of = |route: &RouteDraft, report: &mut Report| {
        let names = route.listeners.value.as_ref()?;
        let find = |(name, place): &(String, Place)| listener_names.find(name, place, report);
        Some(names.iter().map(find).collect::<Option<Vec<usize>>>().unwrap_or_default())
    };
    let places: Vec<Place> = routes.iter().map(|route| route.place.clone()).collect();
    let mut resolved = Vec::with_capacity(routes.len());
    for (route, name) in routes.into_iter().zip(&route_names) {
        let listeners = listeners_of(&route, report);
        let Some(target) = target(&route, &pool_names, report) else { continue };
        resolved.push(Route {
            name: route.name.unwrap_or_else(|| Sourced::default(name.clone())),
            listeners: Sourced { value: listeners, origin: route.listeners.origin },
            peers: route.peers,
            conditions: route.conditions,
            target,
            message: route.message,
        });
    }
    let scripted = router.as_ref().is_some_and(|(_, router)| router.script.value.is_some());
    let tests = tests
        .into_iter()
        .filter_map(|test| {
            let named = (&listener_names, listeners.as_slice());
            self::test(test, named, &route_names, scripted, report)
        })
        .collect();
    if report.mistakes.len() > wrong_before {
        return None;
    }
    let table = compile(&resolved, &listeners, &pools);
    doubts::doubts(&table, &resolved, &places, &listeners, &pools, scripted, report);
    let mut admin = admin.map(|(_, admin)| admin).unwrap_or_default();
    if let Some(socket) = &overrides.admin {
        admin.socket = Sourced { value: Some(socket.value.clone()), origin: socket.origin.clone() };
    }
    Some(Config {
        path: path.to_owned(),
        log: overrides.log.clone().unwrap_or_else(|| Sourced::default("info".to_owned())),
        router: router.map(|(_, router)| router).unwrap_or_default(),
        admin,
        listeners,
        pools,
        routes: resolved,
        table: Arc::new(table),
        tests,
    })
}

fn named<'a>(
    names: impl Iterator<Item = &'a Sourced<String>>,
) -> impl Iterator<Item = (&'a str, Option<&'a Place>)> {
    names.map(|name| (name.value.as_str(), name.place()))
}

/// Nothing can be done without a listener and a pool, nor with pools that nothing chooses from.
fn whole(path: &Path, draft: &Draft, report: &mut Report) {
    let mut note = |problem| report.note(Whereabouts::File(path.to_owned()), problem);
    let unread = |table| draft.unread.contains(&table);
    if draft.listeners.is_empty() && !unread("listener") {
        note(Problem::NoListener);
    }
    let script = draft.router.as_ref().is_some_and(|(_, router)| router.script.is_written());
    match (draft.pools.len(), draft.routes.len()) {
        (0, _) if !unread("pool") => note(Problem::NoPool),
        (2.., 0) if !unread("route") && !script => note(Problem::NoRoute),
        _ => {}
    }
}

fn addresses(listeners: &[Listener], report: &mut Report) {
    for (index, listener) in listeners.iter().enumerate() {
        let taken = |earlier: &&Listener| overlap(&earlier.address, &listener.address);
        let Some(earlier) = listeners.iter().take(index).find(taken) else { continue };
        let (Some(place), Some(first)) = (listener.address.place(), earlier.address.place()) else {
            continue;
        };
        let same = earlier.address == listener.address;
        let with = if same { String::new() } else { earlier.address.to_string() };
        let (address, name) = (listener.address.to_string(), earlier.name.value.clone());
        let first = first.short();
        report.wrong(place, Problem::AddressTwice { address, name, with: Others(with), first });
    }
}

/// Whether the kernel refuses the second of two (`bind(2)`, EADDRINUSE). Port 0 is another one each
/// time.
fn overlap(one: &Address, other: &Address) -> bool {
    if one.port().is_none() || other.port().is_none() {
        return one == other;
    }
    let (Some(port), Some(other_port)) = (one.port(), other.port()) else { return false };
    if port == 0 || port != other_port {
        return false;
    }
    match (one, other) {
        (Address::Inet(one), Address::Inet(other)) => {
            let any = one.ip().is_unspecified() || other.ip().is_unspecified();
            one.ip() == other.ip() || (any && one.is_ipv4() == other.is_ipv4())
        }
        _ => true,
    }
}

/// `route-N`, by the place among all routes, for those without a name.
fn route_names(routes: &[RouteDraft]) -> Vec<String> {
    let name = |(index, route): (usize, &RouteDraft)| match &route.name {
        Some(name) => name.value.clone(),
        None => format!("route-{}", index + 1),
    };
    routes.iter().enumerate().map(name).collect()
}

fn target(route: &RouteDraft, pools: &Names<'_>, report: &mut Report) -> Option<Sourced<Target>> {
    let target = route.target.as_ref()?;
    let value = match &target.value {
        TargetDraft::Reject(refusal) => Target::Reject(*refusal),
        TargetDraft::Redirect => Target::Redirect,
        TargetDraft::Pool(name) => {
            Target::Pool(pools.find(name, target.place().unwrap_or(&route.place), report)?)
        }
    };
    Some(Sourced { value, origin: target.origin.clone() })
}

fn listener(draft: &ListenerDraft, pools: &Names<'_>, report: &mut Report) -> Listener {
    let ListenerDraft { listener, unknown } = draft;
    let pool = unknown.value.as_deref().zip(unknown.place());
    let pool = pool.and_then(|(name, place)| pools.find(name, place, report));
    Listener {
        unknown: Sourced { value: pool, origin: unknown.origin.clone() },
        ..listener.clone()
    }
}

fn test(
    test: TestDraft,
    (names, listeners): (&Names<'_>, &[Listener]),
    routes: &[String],
    scripted: bool,
    report: &mut Report,
) -> Option<Test> {
    let listener = match &test.listener {
        None => Some(Sourced::default(0)),
        Some(name) => {
            let place = name.place().unwrap_or(&test.place);
            let found = names.find(name, place, report);
            found.map(|value| Sourced { value, origin: name.origin.clone() })
        }
    };
    let proxied = listener
        .as_ref()
        .and_then(|at| listeners.get(at.value))
        .is_some_and(|listener| !listener.proxies.is_empty());
    let [in_clear, behind_proxies] = test.impossible;
    if let Some((place, impossible)) = if proxied { behind_proxies } else { in_clear } {
        report.wrong(&place, Problem::Impossible(impossible));
        return None;
    }
    let expect = &test.expect;
    let implicit = if routes.is_empty() { DEFAULT } else { NO_ROUTE };
    // `script`, or `script:` and what it decides.
    let script = scripted
        && (expect.value == SCRIPT
            || expect.value == Reason::ScriptFailed.as_str()
            || expect.strip_prefix(SCRIPT).is_some_and(|rest| rest.starts_with(':')));
    let implicit = if scripted { SCRIPT } else { implicit };
    if !script
        && expect.value != implicit
        && expect.value != UNKNOWN
        && !routes.contains(&expect.value)
    {
        let known: Vec<&str> = routes.iter().map(String::as_str).chain([implicit]).collect();
        let advice = advice(expect, &known);
        let problem = Problem::Nothing { what: "route", name: expect.value.clone(), advice };
        report.wrong(expect.place().unwrap_or(&test.place), problem);
        return None;
    }
    Some(Test {
        peer: test.peer,
        client: test.client,
        listener: listener?,
        expect: test.expect,
        place: test.place,
    })
}

/// What the router will make of the routes.
fn compile(routes: &[Route], listeners: &[Listener], pools: &[Pool]) -> Table {
    let rule = |route: &Route| {
        let mut setup = route.setup();
        // Names become numbers when it is run; here they stay, too, for users of another system.
        if let Some(users) = &mut setup.users {
            let numbers: Vec<_> = users.iter().filter_map(|user| number_of(user)).collect();
            users.extend(numbers.iter().map(u32::to_string));
        }
        // Every text was read by the same functions.
        route::compile(&setup).ok()
    };
    let rules = routes.iter().filter_map(rule).collect();
    let keys = pools.iter().map(|pool| KeySource::of(&pool.balance)).collect();
    let unseen =
        listeners.iter().map(|listener| listener.unknown.map_or(Unseen::Reject, Unseen::Pool));
    Table::new(rules, &unseen.collect::<Vec<_>>(), keys)
}
