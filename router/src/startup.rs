//! `vestibule run`: what the options say becomes a plan, and the supervisor carries it out.

use std::os::fd::OwnedFd;

use vestibule_router::listener::{bind, local_address};
use vestibule_router::options::Output;
use vestibule_router::role::RoleError;
use vestibule_router::supervisor::master::{MasterError, Plan, PoolPlan, run as supervise};
use vestibule_router::supervisor::router_user;
use vestibule_router::{ListenError, Restart, WorkerOptions};

use crate::cli::{Run, Workers};

/// Why the program ends with another code than 0.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartupError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The supervisor ended.
    #[error(transparent)]
    Master(#[from] MasterError),
    /// The router ended.
    #[error(transparent)]
    Router(#[from] RoleError),
    /// The built-in worker failed.
    #[error("the demonstration worker failed")]
    Demo(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Listens, starts a router and workers, and stays until a signal.
pub(crate) fn run(options: &Run) -> Result<(), StartupError> {
    let socket = bind(&options.listen)?;
    let count = match options.workers {
        Workers::Number(number) => number.get(),
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let port = local_address(&socket).map_or(0, |address| address.port());
    let announcement = announcement(&options.listen, &socket, count);
    let plan = Plan {
        listeners: vec![("web".to_owned(), socket)],
        pools: vec![PoolPlan { workers: count, options: worker_options(options, port) }],
        rules: Vec::new(),
        router_identity: router_user::choose(),
        announcement,
    };
    supervise(plan)?;
    Ok(())
}

/// `vestibule router`, which only the supervisor starts.
pub(crate) fn router() -> Result<(), StartupError> {
    // `/proc/self/exe` would show as `exe` in `ps` and `top`. A name is no condition for serving.
    let _ = rustix::thread::set_name(c"vestibule");
    let control = vestibule_router::role::inherited_control()?;
    vestibule_router::role::run(control)?;
    Ok(())
}

fn worker_options(options: &Run, port: u16) -> WorkerOptions {
    let worker = match options.command.split_first() {
        Some((program, arguments)) => {
            arguments.iter().fold(WorkerOptions::new(program), WorkerOptions::arg)
        }
        None => WorkerOptions::new("/proc/self/exe").arg0("vestibule").arg("demo-worker"),
    };
    let worker = worker
        .balance(options.balance)
        .restart(Restart::default())
        .output(Output::Lines)
        .no_new_privileges()
        .port(port);
    match &options.user {
        Some(user) => worker.user(user),
        // Root only if written.
        None if rustix::process::geteuid().is_root() => worker.user("nobody"),
        None => worker,
    }
}

/// The address to open: port 0 has become a number.
fn announcement(asked: &str, socket: &OwnedFd, workers: usize) -> String {
    let address =
        local_address(socket).map_or_else(|| asked.to_owned(), |address| address.to_string());
    let plural = if workers == 1 { "" } else { "s" };
    format!("http://{address} ({workers} worker{plural})")
}
