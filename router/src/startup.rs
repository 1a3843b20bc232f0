//! `vestibule run`: what the options say becomes a plan, and the supervisor carries it out.

mod file;
mod sockets;

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use vestibule_protocol::supervision::{InspectSetup, ListenerSetup};
use vestibule_router::config::{self, Config, Overrides};
use vestibule_router::listener::{Bound, bind, local_address};
use vestibule_router::options::Output;
use vestibule_router::role::RoleError;
use vestibule_router::supervisor::admin::socket::{AdminError, AdminSocket};
use vestibule_router::supervisor::master::{
    Layout, ListenerPlan, MasterError, Plan, PoolPlan, Present, run as supervise,
};
use vestibule_router::supervisor::router_user;
use vestibule_router::{ListenError, Restart, WorkerOptions};

use crate::cli::{Run, Workers, chain};

/// Why the program ends with another code than 0.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartupError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The supervisor ended.
    #[error(transparent)]
    Master(#[from] MasterError),
    /// The configuration is wrong; what is has been said.
    #[error("{0} is not used")]
    Configuration(String),
    /// A program that speaks another protocol.
    #[error(
        "`node-cluster`, which `run -- {0} …` means, is not there yet: a worker links the Rust runtime, \
         or speaks what docs/wire-protocol.md says"
    )]
    NodeNotYet(String),
    /// `fd:NAME` names what nobody handed over.
    #[error(
        "no listening socket named `{name}` was inherited: LISTEN_FDS and LISTEN_FDNAMES name those \
         that are (`FileDescriptorName={name}` in the systemd socket unit)"
    )]
    NotInherited {
        /// The name.
        name: String,
    },
    /// A listener's clients have no address to be listed by.
    #[error(
        "`proxy-protocol` of the listener `{listener}` lists senders by their addresses, and whoever connects \
         to `{address}`, a Unix-domain socket, has none: let the proxy come in by a listener with an address, \
         or take it out"
    )]
    ProxiesWithoutAddress {
        /// The listener.
        listener: String,
        /// Where it listens.
        address: String,
    },
    /// A listener's clients have no address to be told apart by.
    #[error(
        "`limits.{limit}` of the listener `{listener}` tells clients apart by their addresses, and whoever \
         connects to `{address}`, a Unix-domain socket, has none: take it out"
    )]
    LimitWithoutAddress {
        /// The limit.
        limit: &'static str,
        /// The listener.
        listener: String,
        /// Where it listens.
        address: String,
    },
    /// The router's user.
    #[error(transparent)]
    RouterUser(#[from] router_user::UnknownUser),
    /// The admin socket cannot be made.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The router ended.
    #[error(transparent)]
    Router(#[from] RoleError),
    /// The built-in worker failed.
    #[error("the demonstration worker failed")]
    Demo(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Listens, starts a router and workers, and stays until a signal. `log`: what the router logs.
pub(crate) fn run(options: &Run, log: &str) -> Result<(), StartupError> {
    if let Some(program) = options.command.first()
        && config::means_node(Path::new(program))
    {
        return Err(StartupError::NodeNotYet(program.to_string_lossy().into_owned()));
    }
    let socket = bind(&options.listen)?;
    let count = match options.workers {
        Workers::Number(number) => number.get(),
        Workers::Auto => cpus(),
    };
    let port = local_address(socket.socket()).map(|address| address.port());
    let announcement = announcement(&options.listen, &socket, count);
    let pools = vec![PoolPlan { workers: count, options: worker_options(options, port) }];
    let listener = ListenerPlan {
        setup: ListenerSetup { name: "web".to_owned(), ..ListenerSetup::default() },
        address: options.listen.clone(),
        backlog: None,
        socket: Some(socket),
    };
    let plan = Plan {
        layout: Layout {
            listeners: vec![listener],
            inspect: InspectSetup::default(),
            rules: Vec::new(),
            routes: Vec::new(),
            script: None,
            router_identity: router_user::choose(&pools),
            pools,
            admin: None,
        },
        source: None,
        inherited: Vec::new(),
        log: log.to_owned(),
        admin: admin_socket(options.socket.admin.as_deref(), false)?,
        announcement,
    };
    supervise(plan)?;
    Ok(())
}

/// Reads a configuration, and carries it out until a signal.
pub(crate) fn run_file(path: &Path, overrides: &Overrides) -> Result<(), StartupError> {
    let not_used = || StartupError::Configuration(path.display().to_string());
    let (config, warnings) = Config::load(path, overrides).map_err(|mistakes| {
        crate::check::show(path, &[], &mistakes);
        not_used()
    })?;
    let mistakes = config.run_tests();
    crate::check::show(path, &warnings, &mistakes);
    if !mistakes.is_empty() {
        return Err(not_used());
    }
    let mut inherited = sockets::Inherited::from_env();
    let layout = file::layout(&config, &mut inherited, Present::default())?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let plan = Plan {
        announcement: file::announcement(&layout.listeners),
        layout,
        source: Some(Box::new(file::File { path, overrides: overrides.clone() })),
        inherited: inherited.rest(),
        log: config.log.value.clone(),
        admin: admin_socket(config.admin.socket.as_deref(), true)?,
    };
    supervise(plan)?;
    Ok(())
}

/// The CPUs that this process may use: its affinity and its cgroup's quota.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The admin socket at this path, or in the first of the usual folders. `strict`, as with a file:
/// what cannot be made is an error; else a warning, and there is none. A folder that is not there is
/// a warning always.
fn admin_socket(named: Option<&Path>, strict: bool) -> Result<Option<AdminSocket>, AdminError> {
    match AdminSocket::open(named) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if strict && !error.is_mere_absence() => Err(error),
        Err(error) => {
            tracing::warn!("{}", chain(&error));
            Ok(None)
        }
    }
}

/// Connections that a worker can hold: its descriptor limit, to which the soft one is raised, less what
/// a program needs for itself.
fn most_connections(nofile: Option<u64>) -> u32 {
    const ITS_OWN: u64 = 64;
    let limit = nofile.or_else(|| getrlimit(Resource::Nofile).maximum).unwrap_or(u64::MAX);
    u32::try_from(limit.saturating_sub(ITS_OWN).max(1)).unwrap_or(u32::MAX)
}

/// `vestibule router`, which only the supervisor starts.
pub(crate) fn router() -> Result<(), StartupError> {
    // `/proc/self/exe` would show as `exe` in `ps` and `top`. A name is no condition for serving.
    let _ = rustix::thread::set_name(c"vestibule");
    let control = vestibule_router::role::inherited_control()?;
    vestibule_router::role::run(control)?;
    Ok(())
}

fn worker_options(options: &Run, port: Option<u16>) -> WorkerOptions {
    let worker = match options.command.split_first() {
        Some((program, arguments)) => {
            arguments.iter().fold(WorkerOptions::new(program), WorkerOptions::arg)
        }
        None => WorkerOptions::new("/proc/self/exe").arg0("vestibule").arg("demo-worker"),
    };
    let worker = worker
        .balance(options.balance.clone())
        .restart(Restart::default())
        .output(Output::Lines)
        .no_new_privileges()
        .max_connections(most_connections(None));
    let worker = match port {
        Some(port) => worker.port(port),
        None => worker,
    };
    match &options.user {
        Some(user) => worker.user(user),
        // Root only if written.
        None if rustix::process::geteuid().is_root() => worker.user("nobody"),
        None => worker,
    }
}

/// The address to open: port 0 has become a number.
fn announcement(asked: &str, socket: &Bound, workers: usize) -> String {
    let location = socket.location().unwrap_or_else(|| asked.to_owned());
    let plural = if workers == 1 { "" } else { "s" };
    format!("{location} ({workers} worker{plural})")
}
