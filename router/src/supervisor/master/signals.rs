//! Signals: what they mean, and the stop that most of them ask for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use vestibule_protocol::supervision::ToRouter;

use super::Master;
use crate::supervisor::life::Order;
use crate::supervisor::router_process::RouterProcess;

impl Master {
    /// Returns whether to go on.
    pub(super) fn signal(&mut self, kind: SignalKind) -> bool {
        if kind == SignalKind::user_defined2() {
            tracing::warn!("an upgrade in place is not there yet: restart the service instead");
            return true;
        }
        if kind == SignalKind::hangup() && self.source.is_some() {
            self.reload_on_signal();
            return true;
        }
        if self.stopping {
            return false;
        }
        self.stop();
        true
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
        self.give_up_trying();
        self.notifier.stopping();
        tracing::info!(listeners = self.listeners.len(), "stopping");
        self.forget_unprepared();
        // First the slots: a worker that is done at once must not be started again.
        match self.router.take() {
            // One that hands over is followed by another, which is told then.
            Some(router) if self.parting.is_none() => {
                self.table.order_all(&Order::Finishing);
                self.tell_to_stop(&router);
                self.router = Some(router);
            }
            Some(router) => {
                self.table.order_all(&Order::Finishing);
                self.router = Some(router);
            }
            None => {
                self.close_listeners();
                self.table.order_all(&Order::Term);
            }
        }
    }

    /// The last router there is accepts what waits, and then nothing more.
    pub(super) fn tell_to_stop(&mut self, router: &RouterProcess) {
        self.close_listeners();
        router.tell(ToRouter::AskLoads { number: 0 }, None);
        router.tell(ToRouter::Stop, None);
    }
}

/// For a person, whatever is logged.
pub(super) fn tell_what_is_left(open: u32) {
    use std::io::Write;
    let connections = if open == 1 { "connection is" } else { "connections are" };
    // A closed standard error is no reason not to stop.
    let _ = writeln!(
        io::stderr(),
        "stopping: {open} {connections} left; a second signal stops at once"
    );
}

/// The signals that mean something.
pub(super) struct Signals {
    received: mpsc::UnboundedReceiver<SignalKind>,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let (note, received) = mpsc::unbounded_channel();
        for kind in [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::hangup(),
            SignalKind::user_defined2(),
        ] {
            let signal = signal(kind)?;
            tokio::spawn(forward(signal, kind, note.clone()));
        }
        Ok(Self { received })
    }

    /// The next one.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> SignalKind {
        match self.received.recv().await {
            Some(kind) => kind,
            // Every forwarder is gone: so is the runtime.
            None => std::future::pending().await,
        }
    }
}

async fn forward(mut signal: Signal, kind: SignalKind, note: mpsc::UnboundedSender<SignalKind>) {
    while signal.recv().await.is_some() {
        if note.send(kind).is_err() {
            return;
        }
    }
}
