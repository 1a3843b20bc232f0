//! From one router to the next, in a planned change: what waits for a worker is passed on, so that
//! nothing is lost.
//!
//! The supervisor gives the two the ends of one channel. The old one has accepted its last; it waits
//! until every offer is settled, says what waits, with its descriptors, and that this was all. When
//! the new one has said that it has it, the old one ends, and the supervisor lets the new one begin.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::supervision::{FromRouter, ToRouter};
use vestibule_protocol::{ConnectionInfo, Data};

use super::Router;
use crate::connection::Connection;
use crate::control::ControlPort;
use crate::dispatch::Switch;
use crate::handoff::{Cargo, Entry};
use crate::inspect::PausedConnection;
use crate::pool::Shared;
use crate::reject;

/// How long workers may take to settle what they were offered: far more than one needs that takes
/// anything at all. What a worker has not taken then stays in its port, which the next router opens
/// no other of: it is served if the worker lives.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the next router may take to say that it has everything.
const ARRIVE: Duration = Duration::from_secs(3);

/// What the old router says.
#[derive(Debug, Serialize, Deserialize)]
enum Passed {
    /// A connection that waits; the packet's descriptor.
    Waiting {
        /// Its pool.
        pool: u32,
        /// What is known about it, as on a worker's port.
        info: Vec<u8>,
        /// The format of the message that goes with it.
        codec: u8,
        /// That message.
        message: Vec<u8>,
        /// Workers that did not take it.
        attempts: u32,
        /// Their slots.
        tried: Vec<u32>,
        /// Its descriptor is to travel alone.
        alone: bool,
        /// What a worker that handed it back had read of it.
        prefix: Vec<u8>,
        /// How often it was handed back before its client got anything.
        hops: u8,
    },
    /// This was all.
    All,
}

/// What the new router says: it has everything.
#[derive(Debug, Serialize, Deserialize)]
struct Taken;

impl Router {
    /// Nothing is accepted any more: everything that waits goes to the next router.
    pub(super) async fn hand_over(
        mut self,
        successor: OwnedFd,
        mut control: ControlPort<FromRouter, ToRouter>,
    ) {
        // Whoever is being looked at is decided about first: each has a deadline.
        let mut decided = std::pin::pin!(self.switch.present().all_decided());
        loop {
            tokio::select! {
                () = &mut decided => break,
                message = control.recv() => match message {
                    Ok(Some((message, descriptor))) => self.take(message, descriptor),
                    _ => break,
                },
                Some(message) = self.told.recv() => {
                    let _ = self.sender.send((message, None));
                }
            }
        }
        for pool in self.ports.pools().values() {
            pool.step(|core| core.begin_settling());
        }
        let settled = async {
            loop {
                let open = self.ports.pools().values().find(|pool| !pool.core().is_settled());
                let Some(open) = open.map(Arc::clone) else { return };
                tokio::select! {
                    () = open.settles() => {}
                    // A worker that dies meanwhile settles what it had; what the pools say goes on.
                    message = control.recv() => match message {
                        Ok(Some((message, descriptor))) => self.take(message, descriptor),
                        _ => return,
                    },
                    Some(message) = self.told.recv() => {
                        let _ = self.sender.send((message, None));
                    }
                }
            }
        };
        if timeout(SETTLE, settled).await.is_err() {
            tracing::warn!("a worker has not settled what it was offered before the next router");
        }
        match timeout(ARRIVE, self.pass_on(successor)).await {
            Ok(Some(count)) => tracing::info!(count, "what waited is passed on"),
            _ => tracing::error!("the next router did not say that it has everything"),
        }
        // Who is being turned away gets to read it.
        reject::all_said().await;
    }

    async fn pass_on(&mut self, successor: OwnedFd) -> Option<usize> {
        let mut channel = ControlPort::<Passed, Taken>::new(successor).ok()?;
        let say = channel.sender();
        let mut count = 0;
        for (id, pool) in self.ports.pools() {
            for entry in pool.step(|core| core.take_everything()) {
                let Entry { data, cargo, attempts, tried, alone } = entry;
                let Cargo::Connection(connection) = cargo else { continue };
                let mut info = Vec::new();
                connection.info().encode(&mut info);
                let Ok(socket) = connection.as_fd().try_clone_to_owned() else { continue };
                let codec = data.codec() as u8;
                let message = data.into_bytes();
                let pool = *id;
                let prefix = connection.prefix().to_vec();
                let hops = connection.stamp().hops;
                let passed = Passed::Waiting {
                    pool,
                    info,
                    codec,
                    message,
                    attempts,
                    tried,
                    alone,
                    prefix,
                    hops,
                };
                say.send((passed, Some(socket))).ok()?;
                count += 1;
            }
        }
        say.send((Passed::All, None)).ok()?;
        channel.recv().await.ok()??;
        Some(count)
    }
}

/// What the router before this one passes on.
pub(super) struct Inheritance(JoinHandle<Vec<(u32, Entry)>>);

impl Inheritance {
    /// Takes it from the channel as it comes.
    pub(super) fn expect(predecessor: OwnedFd) -> Self {
        Self(tokio::spawn(receive(predecessor)))
    }

    /// What came goes to wait where it waited; the router before this one has ended.
    pub(super) async fn take_in(self, pools: &BTreeMap<u32, Arc<Shared>>, switch: &Switch) {
        let Ok(entries) = self.0.await else { return };
        for (pool, entry) in entries {
            let given = match pools.get(&pool) {
                Some(pool) => pool.step(|core| {
                    let given = core.offer(entry);
                    core.flush();
                    given.map_err(|(refused, entry)| (crate::accept::rejection(refused), entry))
                }),
                None => Err((reject::Rejection::because(reject::Reason::NoWorker), entry)),
            };
            if let Err((rejection, Entry { cargo: Cargo::Connection(connection), .. })) = given {
                switch.present().reject(connection, rejection);
            }
        }
    }
}

async fn receive(predecessor: OwnedFd) -> Vec<(u32, Entry)> {
    let mut entries = Vec::new();
    let Ok(mut channel) = ControlPort::<Taken, Passed>::new(predecessor) else { return entries };
    let mut names = Names::default();
    // Its end without a last word is that of a router that crashed: what came has come.
    while let Ok(Some((passed, descriptor))) = channel.recv().await {
        match (passed, descriptor) {
            (
                Passed::Waiting {
                    pool,
                    info,
                    codec,
                    message,
                    attempts,
                    tried,
                    alone,
                    prefix,
                    hops,
                },
                Some(socket),
            ) => {
                let Ok(info) = ConnectionInfo::decode(&info, &mut names) else { continue };
                // Nobody but its router had it while it waited.
                let paused = PausedConnection::from_passed(socket.into(), true);
                let connection = match info.handed_back_by {
                    Some(_) => Connection::handed_back(paused, info, prefix.into(), hops),
                    None => Connection::new(paused, info),
                };
                let Some(codec) = Codec::from_byte(codec) else { continue };
                let data = Data::from_parts(codec, message);
                let cargo = Cargo::Connection(connection);
                entries.push((pool, Entry { data, cargo, attempts, tried, alone }));
            }
            (Passed::Waiting { .. }, None) => {
                tracing::error!("a connection that was passed on did not arrive");
            }
            (Passed::All, _) => {
                let _ = channel.sender().send((Taken, None));
            }
        }
    }
    entries
}
