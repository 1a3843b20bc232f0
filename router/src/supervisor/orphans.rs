//! Processes that the system gives to this one when their parents end: as PID 1 of a container, and
//! as subreaper. What workers leave behind is reaped here, or it would stay in the process table.

use std::io;

use rustix::process::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::sys::children::{self, Look};

/// Reaps orphans whenever a child ends.
#[derive(Debug)]
pub(crate) struct Orphans {
    ends: Signal,
}

impl Orphans {
    /// Becomes the one to whom orphans below this process are given. To be called before the first
    /// child is started.
    ///
    /// # Errors
    /// Signals cannot be received.
    pub(crate) fn adopt() -> io::Result<Self> {
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            // Then init reaps them, as it does for everybody.
            tracing::debug!(%error, "orphans are left to init");
        }
        Ok(Self { ends: signal(SignalKind::child())? })
    }

    /// Runs on the thread that starts children, see [`children::reap_orphans`]. Never ends.
    pub(crate) async fn run(mut self) {
        loop {
            match children::reap_orphans(told) {
                Ok(Look::More) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Look::Done) => {}
                Err(error) => tracing::error!(%error, "orphans cannot be reaped"),
            }
            tokio::select! {
                _ = self.ends.recv() => {}
                // Perhaps it stood before an orphan.
                () = children::own_child_reaped() => {}
            }
        }
    }
}

fn told(orphan: Pid) {
    tracing::debug!(pid = orphan.as_raw_nonzero().get(), "an orphan is reaped");
}
