//! `bare` and `vestibule`: a router of this executable's own that starts its workers itself, see [`crate::server`].

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use super::{Contender, Kind, Router, StartError, listen};
use crate::processes::{Server, Stop, own_role};

/// The two hand-overs that are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Routed {
    Bare,
    Vestibule,
}

impl Routed {
    fn kind(self) -> Kind {
        match self {
            Self::Bare => Kind::Bare,
            Self::Vestibule => Kind::Vestibule,
        }
    }

    fn role(self) -> &'static str {
        match self {
            Self::Bare => "bare-router",
            Self::Vestibule => "vestibule-router",
        }
    }
}

pub(super) fn start(routed: Routed, workers: usize, timed: bool) -> Result<Contender, StartError> {
    spawn(routed, workers, timed, None)
}

/// The same with a router that counts its allocations and tells them over the returned socket ([`crate::counting::ask`]).
///
/// # Errors
/// [`StartError`].
pub(crate) fn start_counted(
    routed: Routed,
    workers: usize,
) -> Result<(Contender, UnixStream), StartError> {
    let (control, theirs) = UnixStream::pair().map_err(StartError::SocketPair)?;
    let contender = spawn(routed, workers, false, Some(theirs))?;
    contender.wait_until_ready()?;
    Ok((contender, control))
}

fn spawn(
    routed: Routed,
    workers: usize,
    timed: bool,
    control: Option<UnixStream>,
) -> Result<Contender, StartError> {
    let (listener, port) = listen(0)?;
    let mut command = own_role(routed.role(), ["--workers".to_owned(), workers.to_string()])?;
    command.stdin(Stdio::from(listener));
    if timed {
        command.arg("--timed");
    }
    match control {
        Some(control) => command.arg("--counted").stdout(Stdio::from(OwnedFd::from(control))),
        None => command.stdout(Stdio::null()),
    };
    let servers = vec![(Server::spawn(command, Stop::Kill)?, Router::First)];
    Ok(Contender { kind: routed.kind(), port, servers, _folder: None })
}
