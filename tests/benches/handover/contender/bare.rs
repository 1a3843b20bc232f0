//! `bare`: the hand-over and nothing else, see [`crate::server`].

use std::os::unix::net::UnixStream;
use std::process::Stdio;

use super::{Contender, Kind, Router, StartError, listen};
use crate::processes::{Server, Stop, own_role};

pub(super) fn start(workers: usize) -> Result<Contender, StartError> {
    spawn(workers, None)
}

/// The same with a router that counts its allocations and tells them over the returned socket ([`crate::counting::ask`]).
///
/// # Errors
/// [`StartError`].
pub(crate) fn start_counted(workers: usize) -> Result<(Contender, UnixStream), StartError> {
    let (control, theirs) = UnixStream::pair().map_err(StartError::SocketPair)?;
    let contender = spawn(workers, Some(theirs))?;
    contender.wait_until_ready()?;
    Ok((contender, control))
}

fn spawn(workers: usize, control: Option<UnixStream>) -> Result<Contender, StartError> {
    let (listener, port) = listen(0)?;
    let mut command = own_role("bare-router", ["--workers".to_owned(), workers.to_string()])?;
    command.stdin(Stdio::from(listener));
    match control {
        Some(control) => {
            command.arg("--counted").stdout(Stdio::from(std::os::fd::OwnedFd::from(control)))
        }
        None => command.stdout(Stdio::null()),
    };
    let servers = vec![(Server::spawn(command, Stop::Kill)?, Router::First)];
    Ok(Contender { kind: Kind::Bare, port, servers, _folder: None })
}
