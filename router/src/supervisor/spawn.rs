//! Starting one worker: its program, port, environment and identity.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use vestibule_protocol::sys::seqpacket_pair;

use super::environment::{self, About};
use super::identity::Identity;
use super::output::{Capture, Tail};
use super::program::{self, StartError};
use crate::options::{Output, WorkerOptions};
use crate::sys::process::{self, Started};

/// Starts the process, and the reading of its output if it is read. Also the router's end of its port.
pub(crate) fn start(
    name: &Arc<str>,
    number: u32,
    options: &WorkerOptions,
    identity: &Identity,
    tail: &Tail,
) -> Result<(Started, Option<Capture>, OwnedFd), StartError> {
    let path = std::env::var_os("PATH");
    let program = program::find(&options.program, path.as_deref(), identity)?;
    let system = |source: std::io::Error| StartError::System { program: program.clone(), source };
    let (router_end, worker_end) = seqpacket_pair().map_err(|error| system(error.into()))?;
    let about = About {
        account: identity.account.as_ref(),
        chosen: identity.chosen,
        worker: name,
        pool: &options.pool,
        port_descriptor: worker_end.as_raw_fd(),
        port: options.port,
        instance: number,
    };
    let environment = environment::of_worker(std::env::vars_os(), &options.environment, &about);
    let mut command = Command::new(&program);
    if let Some(name) = &options.arg0 {
        command.arg0(name);
    }
    command.args(&options.arguments).env_clear().envs(environment);
    let capture = match options.output {
        Output::Inherit => None,
        Output::Lines => {
            let (capture, [stdout, stderr]) =
                Capture::start(Arc::clone(name), tail.clone()).map_err(system)?;
            command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
            Some(capture)
        }
    };
    let preparation = identity.preparation.clone();
    let process = process::spawn_as(&mut command, worker_end.as_fd(), preparation)
        .map_err(|source| program::explain(program.clone(), identity, source))?;
    Ok((process, capture, router_end))
}
