//! A checked configuration becomes a plan.

use std::path::PathBuf;
use std::time::Duration;

use vestibule_protocol::supervision::{
    InspectSetup, LimitSetup, ListenerSetup, RateSetup, RuleSetup, ScriptSetup, TargetSetup,
};
use vestibule_router::config::{self, Account, Command, Config, OnError, Overrides, Workers};
use vestibule_router::listener::{self, Bound, local_address};
use vestibule_router::options::{Output, Recycle};
use vestibule_router::supervisor::master::{Layout, ListenerPlan, PoolPlan, Present, Source};
use vestibule_router::supervisor::router_user;
use vestibule_router::{Restart, WorkerOptions};

use super::{StartupError, cpus, most_connections, sockets::Inherited};
use crate::cli::chain;

/// Offers without an answer are never called stuck: longer than any process lives.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Binds what the configuration names and lays out what to run.
pub(crate) fn layout(
    config: &Config,
    inherited: &mut Inherited,
    mut present: Present,
) -> Result<Layout, StartupError> {
    let mut listeners = Vec::new();
    let mut port = None;
    for listener in &config.listeners {
        let (name, address) = (listener.name.value.clone(), listener.address.to_string());
        let (socket, place) = match present.take(&name, &address) {
            Some(place) => (None, place),
            None => {
                let socket = socket(listener, inherited)?;
                let place = local_address(socket.socket());
                (Some(socket), place)
            }
        };
        // What was inherited shows only now what it is.
        if place.is_none() && !listener.proxies.is_empty() {
            return Err(StartupError::ProxiesWithoutAddress { listener: name, address });
        }
        if let (None, Some((limit, _))) = (place, listener.limits.by_address().next()) {
            return Err(StartupError::LimitWithoutAddress { limit, listener: name, address });
        }
        if listeners.is_empty() {
            port = place;
        }
        let backlog = match &*listener.address {
            config::Address::Inherited(_) => None,
            _ => Some(*listener.backlog),
        };
        let setup = ListenerSetup {
            unchecked: *listener.reuse == config::Reuse::Connection,
            // Given later.
            id: 0,
            former: Vec::new(),
            name,
            proxies: listener.proxies.iter().map(ToString::to_string).collect(),
            outer_hello: *listener.outer_hello,
            limits: limits(&listener.limits),
            // There are never as many.
            unknown: listener.unknown.and_then(|pool| u32::try_from(pool).ok()),
        };
        listeners.push(ListenerPlan { setup, address, backlog, socket });
    }
    let port = port.map(|address| address.port());
    let pools = config.pools.iter().map(|pool| PoolPlan {
        workers: match *pool.workers {
            Workers::Number(number) => number.get() as usize,
            Workers::Auto => cpus(),
        },
        options: options(config, pool, port),
    });
    let pools: Vec<PoolPlan> = pools.collect();
    let mut rules: Vec<RuleSetup> = config.routes.iter().map(config::Route::setup).collect();
    // The kernel tells numbers, and the router must not wait for a database between two connections:
    // names become numbers here, anew with each reload.
    for user in rules.iter_mut().filter_map(|rule| rule.users.as_mut()).flatten() {
        *user = router_user::resolve(user)?.0.to_string();
    }
    Ok(Layout {
        routes: rules.iter().map(|rule| described(config, rule)).collect(),
        rules,
        script: script(config),
        router_identity: match (&*config.router.user, present.router_identity) {
            (Some(account), _) => Some(router_user::resolve(&account.to_string())?),
            // Nobody says another one: it stays, for as long as no worker is it.
            (None, Some(Some(identity))) if router_user::is_free(identity, &pools) => {
                Some(identity)
            }
            (None, _) => router_user::choose(&pools),
        },
        admin: config.admin.socket.value.clone(),
        pools,
        listeners,
        inspect: InspectSetup {
            timeout: *config.router.inspect_timeout,
            // At most 64 KiB.
            most: *config.router.peek_max as usize,
        },
    })
}

/// Name and text of a rule, without the places of what it names.
fn described(config: &Config, rule: &RuleSetup) -> (String, String) {
    let listeners: Option<Vec<&str>> = rule.listeners.as_ref().map(|all| {
        let name = |at: &u32| config.listeners.get(*at as usize).map(|l| l.name.value.as_str());
        all.iter().filter_map(name).collect()
    });
    let pool = match rule.target {
        TargetSetup::Pool(pool) => config.pools.get(pool as usize).map(|p| p.name.value.as_str()),
        _ => None,
    };
    let target = if pool.is_some() { TargetSetup::Close } else { rule.target };
    let rest = RuleSetup { listeners: None, target, ..rule.clone() };
    (rule.name.clone(), format!("{listeners:?} {pool:?} {rest:?}"))
}

/// The file, to be read again and again.
#[derive(Debug)]
pub(crate) struct File {
    /// Where it is, whatever the working directory is by then.
    pub(crate) path: PathBuf,
    /// What was said beside it.
    pub(crate) overrides: Overrides,
}

impl Source for File {
    fn read(&mut self, present: Present) -> Result<Layout, String> {
        let (config, warnings) =
            Config::load(&self.path, &self.overrides).map_err(|mistakes| said(&mistakes))?;
        let mistakes = config.run_tests();
        if !mistakes.is_empty() {
            return Err(said(&mistakes));
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        // What was inherited is present by now.
        layout(&config, &mut Inherited::default(), present).map_err(|error| chain(&error))
    }
}

fn said(mistakes: &[config::Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn limits(limits: &config::Limits) -> LimitSetup {
    LimitSetup {
        per_peer: *limits.per_peer,
        prefix: *limits.prefix,
        rate: limits.rate.map(|rate| RateSetup {
            connections: rate.connections,
            per: rate.unit.duration(),
            burst: *limits.burst,
        }),
        inspecting: *limits.inspecting,
    }
}

fn socket(listener: &config::Listener, inherited: &mut Inherited) -> Result<Bound, StartupError> {
    match &*listener.address {
        config::Address::Inherited(name) => {
            let socket = inherited.take(name);
            let missing = || StartupError::NotInherited { name: name.clone() };
            Ok(socket.ok_or_else(missing)?.into())
        }
        address => {
            Ok(listener::bind_with(&address.to_string(), *listener.backlog, *listener.mode)?)
        }
    }
}

fn options(config: &Config, pool: &config::Pool, port: Option<u16>) -> WorkerOptions {
    let mut options = match &*pool.command {
        Command::Demo => WorkerOptions::new("/proc/self/exe").arg0("vestibule").arg("demo-worker"),
        Command::Program { program, argv } => {
            let options = WorkerOptions::new(program);
            let options = match argv.first() {
                Some(name) => options.arg0(name),
                None => options,
            };
            argv.iter().skip(1).fold(options, WorkerOptions::arg)
        }
    };
    options = options
        .pool(&*pool.name)
        .balance(pool.balance.value.clone())
        .otherwise(*pool.otherwise)
        .when_full(*pool.when_full)
        .max_attempts(*config.router.max_attempts)
        .stuck_timeout(config.router.stuck_timeout.unwrap_or(NEVER))
        .handoff_window(*pool.handoff_window as usize)
        .queue(*pool.queue.max as usize, *pool.queue.timeout)
        .start_timeout(*pool.start_timeout)
        .drain_timeout(*pool.drain_timeout)
        .stop_timeouts(Duration::from_secs(5), *pool.stop_timeout)
        .stop_signal(*pool.stop_signal)
        .restart_on_error(*pool.on_error == OnError::Restart)
        .hand_back_to(pool.hand_back_to.iter().flatten().cloned())
        .restart(Restart {
            delay: *pool.restart.delay,
            max_delay: *pool.restart.max_delay,
            attempts: *pool.restart.attempts,
        })
        .recycle(Recycle {
            max_age: *pool.max_age,
            max_served: *pool.max_served,
            max_memory: *pool.max_memory,
        })
        .output(Output::Lines)
        .no_new_privileges()
        .directory(&*pool.directory);
    if let Some(port) = port {
        options = options.port(port);
    }
    let most = pool.max_connections.unwrap_or_else(|| most_connections(*pool.nofile));
    options = options.max_connections(most);
    identity(options, pool)
}

fn identity(mut options: WorkerOptions, pool: &config::Pool) -> WorkerOptions {
    for (name, value) in &pool.env {
        options = options.env(name, &**value);
    }
    match &*pool.user {
        Some(user) => options = options.user(user.to_string()),
        // Root only if written.
        None if rustix::process::geteuid().is_root() => options = options.user("nobody"),
        None => {}
    }
    if let Some(group) = &*pool.group {
        options = options.group(group.to_string());
    }
    if let Some(groups) = &*pool.groups {
        options = options.groups(groups.iter().map(Account::to_string));
    }
    if let Some(mask) = *pool.umask {
        options = options.umask(mask);
    }
    if let Some(nice) = *pool.nice {
        options = options.nice(nice);
    }
    if let Some(descriptors) = *pool.nofile {
        options = options.nofile(descriptors);
    }
    if let Some(root) = &*pool.root {
        options = options.root(root);
    }
    options
}

/// The script's text: whoever runs this may be root and never runs it.
fn script(config: &Config) -> Option<ScriptSetup> {
    let script = config.router.script.value.as_ref()?;
    Some(ScriptSetup {
        name: script.path.display().to_string(),
        text: script.text.to_string(),
        timeout: *config.router.script_timeout,
        memory: *config.router.script_memory,
    })
}

/// One line a listener.
pub(crate) fn announcement(listeners: &[ListenerPlan]) -> String {
    let location = |plan: &ListenerPlan| plan.socket.as_ref().and_then(Bound::location);
    let line = |plan: &ListenerPlan| match (location(plan), &plan.setup) {
        (Some(location), setup) => format!("{}: {location}", setup.name),
        (None, setup) => setup.name.clone(),
    };
    listeners.iter().map(line).collect::<Vec<_>>().join("\n")
}
