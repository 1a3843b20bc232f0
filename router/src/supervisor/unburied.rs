//! Processes that were killed and do not come to an end: a thread of theirs sleeps in the kernel, where no
//! signal reaches it, in the close of a file whose file system does not answer. Whoever had them hold
//! that file says for how long.
//!
//! They are dead all the same. A thread that was sent SIGKILL executes nothing of its program any more; what
//! it may still finish is the one system call that it is in, and of those by which one here acts on
//! others none waits (`MSG_DONTWAIT`). So whoever is to follow them does not wait for them. They keep
//! what they have open until they end, and are reaped then.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use vestibule_protocol::supervision::Exit;

use crate::sys::process::{self, Started};
use crate::sys::reactor;

/// How long what was killed may take to end before nobody waits for it any longer: milliseconds, where
/// nothing sleeps, and some hundred with 100,000 descriptors.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// What is left of one place's processes. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unburied(Arc<Left>);

#[derive(Debug, Default)]
struct Left {
    count: AtomicUsize,
    /// One was reaped. The place itself waits, nobody else does.
    reaped: Notify,
}

impl Unburied {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Waits until there are fewer than so many. One caller at a time.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn fewer_than(&self, many: usize) {
        while self.count() >= many {
            self.0.reaped.notified().await;
        }
    }

    /// Leaves one that was killed, and reaps it whenever it ends: its status would stay for good, and
    /// orphans behind it, see `sys::children`. Returns how it ends, as far as is
    /// known.
    pub(crate) fn leave(&self, name: &str, process: Started) -> Exit {
        let unburied = self.0.count.fetch_add(1, Ordering::Relaxed) + 1;
        let pid = process.pid.as_raw_nonzero().get();
        tracing::warn!(name, pid, unburied, "it was killed and cannot end: nobody waits for it");
        let (left, name) = (Arc::clone(&self.0), name.to_owned());
        tokio::spawn(async move {
            let exited = reactor::readable_duplicate(process.pidfd.as_fd());
            let exit = loop {
                ended(&exited).await;
                if let Ok(Some(exit)) = process::reap(&process) {
                    break exit;
                }
            };
            left.count.fetch_sub(1, Ordering::Relaxed);
            left.reaped.notify_one();
            tracing::info!(name, pid, %exit, "what could not end has ended");
        });
        Exit::Signal(libc::SIGKILL)
    }
}

/// Waits until a process has ended: its descriptor becomes readable (`pidfd_open(2)`).
///
/// Without a descriptor it is only time to look, now and then.
///
/// # Cancel safety
/// Safe.
pub(crate) async fn ended(process: &io::Result<AsyncFd<OwnedFd>>) {
    match process {
        Ok(process) => match process.readable().await {
            // Stays readable for good.
            Ok(mut guard) => guard.retain_ready(),
            Err(_) => std::future::pending().await,
        },
        // Out of descriptors.
        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
    }
}
