//! `--allocations`: what a router allocates a hand-over once it is warm.

use std::io;
use std::os::unix::net::UnixStream;

use thiserror::Error;

use crate::contender::{Contender, Routed, StartError, start_counted};
use crate::counting::{Count, ask};
use crate::load::{self, ClientError, Load, LoadError};

#[derive(Debug, Error)]
pub(crate) enum AllocationError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the router that counts its allocations is gone")]
    Ask(#[source] io::Error),
    #[error("{errors} connections went wrong, the first: {first}")]
    Failed { errors: u64, first: ClientError },
}

/// One router's count over one load.
pub(crate) struct Allocations {
    pub(crate) name: &'static str,
    pub(crate) clients: usize,
    pub(crate) handovers: u64,
    pub(crate) count: Count,
}

/// Measures every router that can count under `load`.
///
/// # Errors
/// [`AllocationError`].
pub(crate) fn measure(load: &Load, workers: usize) -> Result<Vec<Allocations>, AllocationError> {
    [Routed::Bare, Routed::Vestibule]
        .into_iter()
        .map(|routed| {
            let (contender, control) = start_counted(routed, workers)?;
            one(&contender, control, load)
        })
        .collect()
}

fn one(
    contender: &Contender,
    mut control: UnixStream,
    load: &Load,
) -> Result<Allocations, AllocationError> {
    let mut marks = Vec::with_capacity(2);
    let seen = load::run(&Load { port: contender.port, ..*load }, || {
        marks.push(ask(&mut control));
    })?;
    if let Some(first) = seen.first_error {
        return Err(AllocationError::Failed { errors: seen.errors, first });
    }
    let mut count = Count::default();
    for mark in marks {
        count = mark.map_err(AllocationError::Ask)?.since(count);
    }
    Ok(Allocations {
        name: contender.kind.name(),
        clients: load.clients,
        handovers: seen.latency.total(),
        count,
    })
}
