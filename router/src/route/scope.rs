//! For which later requests a rule's decision holds: computed when rules are loaded, told to workers.
//!
//! A scope names the conditions of the earlier rules that could match another request on the same
//! connection, and the rule's own. What does not change between two requests of a connection is left
//! out: the peer, its context, its TLS hello. An earlier rule that can have nothing in common with the
//! rule (other hosts, other paths) is left out too, so that a table of 10,000 hosts has short scopes.

use std::collections::HashMap;
use std::sync::Arc;

use vestibule_protocol::scope::{self, Texts};
use vestibule_protocol::supervision::{RuleSetup, Setup};

use super::rule::{Rule, Target};

/// So many earlier rules are named in one scope. A scope of more would be longer than any that
/// travels, and to find that out is not to cost a step for each pair of rules.
const MOST_EARLIER: usize = 64;

/// The scopes of all rules, on each listener.
#[derive(Clone, Debug, Default)]
pub struct Scopes {
    listeners: Vec<Option<HashMap<usize, Arc<[u8]>>>>,
    nothing: Arc<[u8]>,
}

impl Scopes {
    /// The scopes of these rules, compiled from this setup.
    pub fn new(setup: &Setup, rules: &[Rule]) -> Self {
        let of_listener =
            |(at, listener): (usize, &vestibule_protocol::supervision::ListenerSetup)| {
                let proxied = !listener.proxies.is_empty();
                (!listener.unchecked).then(|| of_listener(at, proxied, &setup.rules, rules))
            };
        let listeners = setup.listeners.iter().enumerate().map(of_listener).collect();
        Self { listeners, nothing: Arc::default() }
    }

    /// The scope of what a rule decided; `None`: it holds for all later requests.
    pub fn of_rule(&self, listener: usize, rule: usize) -> Option<Arc<[u8]>> {
        self.listeners.get(listener)?.as_ref()?.get(&rule).map(Arc::clone)
    }

    /// The scope of a decision that holds for no later request, where later requests are looked at.
    pub fn nothing(&self, listener: usize) -> Option<Arc<[u8]>> {
        self.listeners.get(listener)?.as_ref()?;
        Some(Arc::clone(&self.nothing))
    }
}

fn of_listener(
    listener: usize,
    proxied: bool,
    setups: &[RuleSetup],
    rules: &[Rule],
) -> HashMap<usize, Arc<[u8]>> {
    let mut scopes = HashMap::new();
    let mut earlier = Earlier { proxied, ..Earlier::default() };
    for (at, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.covers(listener)) {
        let before = earlier.in_common_with(rule, rules);
        if rule.conditions.need_head() || !matches!(before.as_deref(), Some([])) {
            let named = before.map(|before| {
                let all = before.into_iter().chain([at]);
                scope::encode(all.filter_map(|at| setups.get(at)).map(texts))
            });
            scopes.insert(at, named.unwrap_or_default().into());
        }
        if rule.is_open() {
            break;
        }
        earlier.add(at, rule);
    }
    scopes
}

fn texts(rule: &RuleSetup) -> Texts<'_> {
    Texts {
        hosts: rule.hosts.as_deref(),
        paths: rule.paths.as_deref(),
        query: &rule.query,
        headers: &rule.headers,
        cookies: &rule.cookies,
    }
}

/// Rules that look at requests, by the hosts that they are about.
#[derive(Debug, Default)]
struct Earlier<'a> {
    /// Whether proxies in front may say a TLS name of a client whose requests are in clear.
    proxied: bool,
    all: Vec<usize>,
    /// Those that are about any host, or about what is below one.
    wide: Vec<usize>,
    by_host: HashMap<&'a str, Vec<usize>>,
}

/// The hosts of a rule, if they are a list.
fn hosts(rule: &Rule) -> Option<impl Iterator<Item = &str>> {
    let names = rule.conditions.hosts.as_ref()?;
    let listed = !names.any && names.below.is_empty();
    listed.then(|| names.exact.iter().map(|name| &**name))
}

impl<'a> Earlier<'a> {
    fn add(&mut self, at: usize, rule: &'a Rule) {
        let conditions = &rule.conditions;
        // A client that speaks HTTP/1 in clear is none of its clients, and never will be.
        let tls = conditions.server_names.is_some() || conditions.alpn.is_some();
        let hidden = (tls && !self.proxied) || conditions.http2 == Some(true);
        let looks = conditions.need_head() || rule.target == Target::Redirect;
        if hidden || !looks {
            return;
        }
        self.all.push(at);
        match hosts(rule) {
            Some(hosts) => hosts.for_each(|host| self.by_host.entry(host).or_default().push(at)),
            None => self.wide.push(at),
        }
    }

    /// The rules that some request could match as well as this one, in order; `None`: too many.
    fn in_common_with(&self, rule: &Rule, rules: &[Rule]) -> Option<Vec<usize>> {
        let mut found = match hosts(rule) {
            None => self.all.iter().copied().take(MOST_EARLIER + 1).collect::<Vec<_>>(),
            Some(hosts) => {
                let mine = hosts.filter_map(|host| self.by_host.get(host)).flatten();
                let mut found: Vec<_> =
                    self.wide.iter().chain(mine).copied().take(MOST_EARLIER + 1).collect();
                found.sort_unstable();
                found.dedup();
                found
            }
        };
        if found.len() > MOST_EARLIER {
            return None;
        }
        found.retain(|at| rules.get(*at).is_some_and(|other| share_paths(other, rule)));
        Some(found)
    }
}

fn share_paths(one: &Rule, other: &Rule) -> bool {
    match (&one.conditions.paths, &other.conditions.paths) {
        (Some(one), Some(other)) => {
            one.iter().any(|one| other.iter().any(|other| one.may_share(other)))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use vestibule_protocol::scope::{Request, Scope};
    use vestibule_protocol::supervision::{ListenerSetup, TargetSetup};

    use super::super::{Facts, Table, Why};
    use super::*;

    fn rule(pool: u32, hosts: &[&str], paths: &[&str]) -> RuleSetup {
        let list = |texts: &[&str]| {
            (!texts.is_empty()).then(|| texts.iter().map(|text| (*text).to_owned()).collect())
        };
        RuleSetup {
            hosts: list(hosts),
            paths: list(paths),
            ..RuleSetup::new(format!("pool-{pool}"), TargetSetup::Pool(pool))
        }
    }

    fn table(rules: Vec<RuleSetup>, unchecked: bool) -> Table {
        let listener = ListenerSetup { unchecked, ..ListenerSetup::default() };
        Table::of(&Setup { rules, listeners: vec![listener], ..Setup::default() }).unwrap()
    }

    fn scope(table: &Table, rule: usize) -> Option<Arc<[u8]>> {
        table.scope(&Facts::of_address(0, None), Why::Rule(rule))
    }

    fn covers(scope: &[u8], host: &str, target: &str) -> bool {
        let lines = [("host", host.as_bytes())];
        Scope::decode(scope).unwrap().covers(&Request::new("GET", target, &lines))
    }

    #[test]
    fn rules_that_look_at_no_request_hold_for_all_of_them() {
        let peers = |rule| RuleSetup { peers: Some(vec!["10.0.0.0/8".to_owned()]), ..rule };
        let table = table(vec![peers(rule(0, &[], &[])), rule(1, &[], &[])], false);
        assert_eq!((scope(&table, 0), scope(&table, 1)), (None, None));
    }

    #[test]
    fn a_later_request_stays_where_the_same_rule_decides() {
        let rules = vec![
            rule(0, &[], &["/admin/*"]),
            rule(1, &["app.example"], &["/api/*"]),
            rule(2, &["app.example"], &[]),
            rule(3, &[], &[]),
        ];
        let table = table(rules, false);
        // Whatever the rules say of a request, the scope of the rule that they choose covers it, and
        // that of no other.
        for (host, target, expected) in [
            ("app.example", "/admin", 0),
            ("app.example", "/api/x", 1),
            ("app.example", "/api/../admin/x", 0),
            ("app.example", "/", 2),
            ("other.example", "/api/x", 3),
            ("other.example", "/admin/x", 0),
        ] {
            for at in 0..4 {
                let covered = covers(&scope(&table, at).unwrap(), host, target);
                assert_eq!(covered, at == expected, "{host}{target} and rule {at}");
            }
        }
    }

    #[test]
    fn scopes_of_ten_thousand_hosts_are_short() {
        let hosts: Vec<String> = (0..10_000).map(|at| format!("tenant-{at}.example")).collect();
        let mut rules = vec![rule(0, &[], &["/health"])];
        rules.extend(hosts.iter().map(|host| rule(1, &[host], &[])));
        rules.push(rule(2, &[], &[]));
        let table = table(rules, false);
        let of_one = scope(&table, 5_000).unwrap();
        assert!(of_one.len() < 100, "{}", of_one.len());
        assert!(covers(&of_one, "tenant-4999.example", "/x"));
        assert!(!covers(&of_one, "tenant-4999.example", "/health"));
        assert!(!covers(&of_one, "tenant-4998.example", "/x"));
        // Any host could be an earlier rule's: too many to name, so each request comes back.
        assert_eq!(scope(&table, 10_001).as_deref(), Some(&[][..]));
    }

    /// A proxy that has ended TLS says the name, and the request behind it is in clear.
    #[test]
    fn a_rule_by_name_and_path_counts_where_proxies_say_names() {
        let mut named = rule(0, &[], &["/admin"]);
        named.server_names = Some(vec!["app.example".to_owned()]);
        for (proxies, stays) in [(vec![], true), (vec!["127.0.0.1".to_owned()], false)] {
            let listener = ListenerSetup { proxies, ..ListenerSetup::default() };
            let rules = vec![named.clone(), rule(1, &["app.example"], &[])];
            let setup = Setup { rules, listeners: vec![listener], ..Setup::default() };
            let table = Table::of(&setup).unwrap();
            let scope = scope(&table, 1).unwrap();
            assert_eq!(covers(&scope, "app.example", "/admin"), stays);
            assert!(covers(&scope, "app.example", "/"));
        }
    }

    #[test]
    fn a_listener_that_does_not_look_at_later_requests_has_no_scopes() {
        let table = table(vec![rule(0, &["a.example"], &[])], true);
        assert_eq!(scope(&table, 0), None);
        let cause = crate::inspect::Cause::NotHttp;
        assert_eq!(table.scope(&Facts::of_address(0, None), Why::Unknown { rule: 0, cause }), None);
    }

    #[test]
    fn what_could_not_be_told_holds_for_no_later_request() {
        let table = table(vec![rule(0, &["a.example"], &[])], false);
        let cause = crate::inspect::Cause::NotHttp;
        let scope = table.scope(&Facts::of_address(0, None), Why::Unknown { rule: 0, cause });
        assert_eq!(scope.as_deref(), Some(&[][..]));
        assert_eq!(table.scope(&Facts::of_address(0, None), Why::OnlyPool), None);
        assert_eq!(
            table.scope_of_route(0, "pool-0"),
            table.scope(&Facts::of_address(0, None), Why::Rule(0))
        );
        assert_eq!(table.scope_of_route(0, "default"), None);
        assert_eq!(table.scope_of_route(0, "gone").as_deref(), Some(&[][..]));
    }
}
