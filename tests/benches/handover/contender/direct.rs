//! `direct`: worker processes with a listener each in one SO_REUSEPORT group. What any router is compared with.

use std::process::Stdio;

use super::{Contender, Kind, Router, StartError, listen};
use crate::processes::{Server, Stop, own_role};

pub(super) fn start(workers: usize, timed: bool) -> Result<Contender, StartError> {
    let (servers, port) = spawn(workers, timed)?;
    let servers = servers.into_iter().map(|server| (server, Router::None)).collect();
    Ok(Contender { kind: Kind::Direct, port, servers, _folder: None })
}

/// Starts `workers` direct workers; they share the returned port.
pub(super) fn spawn(workers: usize, timed: bool) -> Result<(Vec<Server>, u16), StartError> {
    let mut servers = Vec::with_capacity(workers);
    let mut group = 0;
    for _ in 0..workers {
        let (listener, port) = listen(group)?;
        group = port;
        let mut command = own_role("direct-worker", timed.then_some("--timed"))?;
        command.stdin(Stdio::from(listener)).stdout(Stdio::null());
        servers.push(Server::spawn(command, Stop::Kill)?);
    }
    Ok((servers, group))
}
