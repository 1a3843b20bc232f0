//! A checked configuration becomes a plan.

use std::time::Duration;

use vestibule_protocol::supervision::{ListenerSetup, ScriptSetup};
use vestibule_router::config::{self, Account, Command, Config, OnError, Workers};
use vestibule_router::listener::{self, Bound, local_address};
use vestibule_router::options::Output;
use vestibule_router::supervisor::master::{Plan, PoolPlan};
use vestibule_router::supervisor::router_user;
use vestibule_router::{Restart, WorkerOptions};

use super::{StartupError, cpus, most_connections, sockets::Inherited};

/// Offers without an answer are never called stuck: longer than any process lives.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Binds what the configuration names and lays out what to run.
pub(crate) fn plan(config: &Config) -> Result<Plan, StartupError> {
    let mut inherited = Inherited::from_env();
    let mut listeners = Vec::new();
    for listener in &config.listeners {
        let setup = ListenerSetup { name: listener.name.value.clone(), unknown: None };
        listeners.push((setup, socket(listener, &mut inherited)?));
    }
    let port = listeners.first().and_then(|(_, socket)| local_address(socket.socket()));
    let port = port.map(|address| address.port());
    let pools = config.pools.iter().map(|pool| PoolPlan {
        workers: match *pool.workers {
            Workers::Number(number) => number.get() as usize,
            Workers::Auto => cpus(),
        },
        options: options(config, pool, port),
    });
    let pools: Vec<PoolPlan> = pools.collect();
    Ok(Plan {
        announcement: announcement(&listeners),
        from_file: true,
        log: config.log.value.clone(),
        admin: None,
        script: script(config),
        rules: config.routes.iter().map(config::Route::setup).collect(),
        router_identity: match &*config.router.user {
            Some(account) => Some(router_user::resolve(&account.to_string())?),
            None => router_user::choose(&pools),
        },
        pools,
        listeners,
    })
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
        .restart(Restart {
            delay: *pool.restart.delay,
            max_delay: *pool.restart.max_delay,
            attempts: *pool.restart.attempts,
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
fn announcement(listeners: &[(ListenerSetup, Bound)]) -> String {
    let line = |(setup, socket): &(ListenerSetup, Bound)| match socket.location() {
        Some(location) => format!("{}: {location}", setup.name),
        None => setup.name.clone(),
    };
    listeners.iter().map(line).collect::<Vec<_>>().join("\n")
}
