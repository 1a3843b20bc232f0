//! The half that starts processes and ends them. It never touches a connection: it speaks with the
//! router's half in messages over a real port, and keeps nothing but processes and descriptors.

#[cfg(feature = "cli")]
pub mod admin;
pub(crate) mod backoff;
mod deadlines;
pub(crate) mod environment;
pub(crate) mod identity;
pub(crate) mod life;
#[cfg(feature = "cli")]
pub mod master;
#[cfg(feature = "cli")]
mod notify;
#[cfg(feature = "cli")]
mod orphans;
pub(crate) mod output;
pub(crate) mod process_table;
pub(crate) mod program;
#[cfg(feature = "cli")]
mod router_process;
#[cfg(feature = "cli")]
pub mod router_user;
pub(crate) mod spawn;
pub(crate) mod unburied;
mod worker_state;

use std::sync::Arc;

use vestibule_protocol::supervision::{FromRouter, ToRouter};

use self::process_table::{ProcessTable, Seat};
use crate::control::ControlPort;
use crate::options::WorkerOptions;

/// The supervising task of a library's pool: until every slot is empty for good, or the router's half
/// is gone. Then every process group is killed, for nobody could speak to it any more.
pub(crate) async fn run(
    mut control: ControlPort<ToRouter, FromRouter>,
    options: Arc<WorkerOptions>,
    names: Vec<Arc<str>>,
) {
    let sender = control.sender();
    let mut table = ProcessTable::new();
    for (slot, name) in (0u32..).zip(names) {
        table.add(Seat::new(0, slot, name, Arc::clone(&options)));
    }
    loop {
        tokio::select! {
            biased;
            report = table.next_report() => {
                let Some(parcel) = report else { break };
                if sender.send(parcel).is_err() {
                    break;
                }
            }
            message = control.recv() => match message {
                Ok(Some((message, _))) => table.obey(message),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the router cannot be understood");
                    break;
                }
            },
        }
    }
    table.end().await;
}
