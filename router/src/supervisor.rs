//! The half that starts processes and ends them. It never touches a connection: it speaks with the
//! router's half in messages over a real port, and keeps nothing but processes.

pub(crate) mod backoff;
pub(crate) mod life;
pub(crate) mod program;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vestibule_protocol::supervision::{ToRouter, WorkerId};

use self::life::Order;
use crate::control::SupervisorEnd;
use crate::options::WorkerOptions;

/// What a slot's task reports: a message for the router, with the worker's port where one starts.
pub(crate) type Report = (ToRouter, Option<OwnedFd>);

/// The supervising task of one pool.
pub(crate) struct Supervisor {
    control: SupervisorEnd,
    options: Arc<WorkerOptions>,
    names: Vec<Arc<str>>,
}

impl Supervisor {
    pub(crate) fn new(
        control: SupervisorEnd,
        options: WorkerOptions,
        names: Vec<Arc<str>>,
    ) -> Self {
        Self { control, options: Arc::new(options), names }
    }

    /// Until every slot is empty for good, or the router's half is gone: then every process group is
    /// killed, for nobody could speak to it any more.
    pub(crate) async fn run(mut self) {
        let (report, mut reports) = mpsc::unbounded_channel::<Report>();
        let mut slots = JoinSet::new();
        let mut orders: HashMap<u32, mpsc::UnboundedSender<(WorkerId, Order)>> = HashMap::new();
        for (slot, name) in (0u32..).zip(&self.names) {
            let (order, received) = mpsc::unbounded_channel();
            orders.insert(slot, order);
            let options = Arc::clone(&self.options);
            slots.spawn(life::run(slot, Arc::clone(name), options, received, report.clone()));
        }
        drop(report);
        loop {
            tokio::select! {
                biased;
                message = reports.recv() => {
                    let Some((message, port)) = message else { break };
                    let port = port.as_ref().map(AsFd::as_fd);
                    if let Err(error) = self.control.send(&message, port).await {
                        tracing::debug!(%error, "the router is gone");
                        break;
                    }
                }
                message = self.control.recv() => match message {
                    Ok(Some((message, _))) => {
                        let (worker, order) = Order::from_router(message);
                        if let Some(slot) = orders.get(&worker.slot) {
                            // A slot that is over hears nothing more.
                            let _ = slot.send((worker, order));
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the router cannot be understood");
                        break;
                    }
                },
            }
        }
        // A slot whose orders end kills what it has and reaps it.
        orders.clear();
        drop(reports);
        while slots.join_next().await.is_some() {}
    }
}
