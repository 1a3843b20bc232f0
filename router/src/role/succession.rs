//! From one router to the next, in a planned change: what waits for a worker, and whoever is looked at,
//! is passed on, so that nothing is lost.
//!
//! The supervisor gives the two the ends of one channel. The old one has accepted its last; it waits
//! until every offer is settled, says what waits and who is looked at, with their descriptors, and that
//! this was all. When the new one has said that it has it, the old one ends, and the supervisor lets
//! the new one begin.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::supervision::{FromRouter, ToRouter};
use vestibule_protocol::{ConnectionInfo, Data};

use super::Router;
use crate::connection::{Connection, Orders};
use crate::control::{ControlPort, Parcel};
use crate::dispatch::{Before, Switch, Used};
use crate::handoff::{Cargo, Entry};
use crate::inspect::PausedConnection;
use crate::inspect::proxy_header::Announced;
use crate::pool::{Core, Shared};
use crate::reject;
use crate::route::Affinity;

/// How long workers may take to settle what they were offered: far more than one needs that takes
/// anything at all. What a worker has not taken then stays in its port, which the next router opens
/// no other of: it is served if the worker lives. So long, too, clients of listeners that a reload has
/// just removed may take, whose rules the next router does not know: the others of them are turned away.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the next router may take to say that it has everything.
const ARRIVE: Duration = Duration::from_secs(3);
/// How long it may take to route what came back before that: as a rule a turn of the event loop.
const ROUTE: Duration = Duration::from_secs(1);
/// Rates that are said in one message.
const RATES: usize = 1_000;

/// What the old router says.
#[derive(Debug, Serialize, Deserialize)]
enum Passed {
    /// A connection that waits; the packet's descriptor.
    Waiting {
        /// Its pool.
        pool: u32,
        /// What is known about it.
        what: Known,
        /// Workers that did not take it.
        attempts: u32,
        /// Their slots.
        tried: Vec<u32>,
        /// Its descriptor is to travel alone.
        alone: bool,
        /// The worker that it belongs to.
        affinity: Option<Affinity>,
        /// For which later requests the decision holds.
        scope: Option<Vec<u8>>,
    },
    /// A connection that is looked at; the packet's descriptor.
    Inspected {
        /// The number of its listener.
        listener: u32,
        /// What is known about it.
        what: Known,
        /// Its PROXY header is taken off, if it had to have one, and its peer's limits have let it in.
        admitted: bool,
        /// What that header said.
        announced: Option<Announced>,
        /// How long it may still take.
        left: Duration,
    },
    /// What peers have used up of their rates.
    Used(Vec<Used>),
    /// This was all.
    All,
}

/// What is known about a connection.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    /// As on a worker's port.
    info: Vec<u8>,
    /// The format of the message that goes with it.
    codec: u8,
    /// That message.
    message: Vec<u8>,
    /// What a worker that handed it back had read of it.
    prefix: Vec<u8>,
    /// How often it was handed back before its client got anything.
    hops: u8,
}

impl Known {
    fn of(connection: &Connection, message: Data) -> Self {
        let mut info = Vec::new();
        connection.info().encode(&mut info);
        let codec = message.codec() as u8;
        Self {
            info,
            codec,
            message: message.into_bytes(),
            prefix: connection.prefix().to_vec(),
            hops: connection.stamp().hops,
        }
    }

    /// The connection and its message; nothing if the other router is another program.
    fn with(self, socket: OwnedFd, names: &mut Names) -> Option<(Connection, Data)> {
        let info = ConnectionInfo::decode(&self.info, names).ok()?;
        // Nobody but its router had it while it waited.
        let paused = PausedConnection::from_passed(socket.into(), true);
        let connection = match info.handed_back_by {
            Some(_) => Connection::handed_back(paused, info, self.prefix.into(), self.hops),
            None => Connection::new(paused, info),
        };
        let codec = Codec::from_byte(self.codec)?;
        Some((connection, Data::from_parts(codec, self.message)))
    }
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
        for pool in self.ports.pools().values() {
            pool.step(|core| core.begin_settling());
        }
        let settled = async {
            loop {
                let open = self.ports.pools().values().find(|pool| !pool.core().is_settled());
                let open = open.map(Arc::clone);
                let looks = self.replaced.iter().find(|table| table.looks()).map(Arc::clone);
                if open.is_none() && looks.is_none() {
                    return;
                }
                tokio::select! {
                    () = async { if let Some(open) = &open { open.settles().await } },
                        if open.is_some() => {}
                    () = async { if let Some(table) = looks.clone() { table.all_decided().await } },
                        if looks.is_some() => {}
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
            tracing::warn!(
                "not everything that was offered or looked at is settled before the next router"
            );
        }
        self.replaced.iter().for_each(|table| table.end_inspections());
        for pool in self.ports.pools().values() {
            pool.step(Core::stop_listening);
        }
        // What workers have handed back by now is routed first, by those who follow the pools.
        let routed = async {
            while self.ports.pools().values().any(|pool| pool.core().has_events()) {
                tokio::task::yield_now().await;
            }
        };
        if timeout(ROUTE, routed).await.is_err() {
            tracing::warn!("not everything that workers handed back goes to the next router");
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
        let count = self.pass_waiting(&say)? + self.pass_inspected(&say)?;
        say.send((Passed::All, None)).ok()?;
        channel.recv().await.ok()??;
        Some(count)
    }

    fn pass_waiting(&self, say: &mpsc::UnboundedSender<Parcel<Passed>>) -> Option<usize> {
        let mut count = 0;
        for (id, pool) in self.ports.pools() {
            for entry in pool.step(|core| core.take_everything()) {
                let Entry { data, cargo, attempts, tried, alone } = entry;
                let Cargo::Connection(connection) = cargo else { continue };
                let what = Known::of(&connection, data);
                let affinity = connection.affinity().cloned();
                let scope = connection.scope().map(<[u8]>::to_vec);
                let pool = *id;
                let passed =
                    Passed::Waiting { pool, what, attempts, tried, alone, affinity, scope };
                say.send((passed, Some(connection.into_socket()))).ok()?;
                count += 1;
            }
        }
        Some(count)
    }

    fn pass_inspected(&self, say: &mpsc::UnboundedSender<Parcel<Passed>>) -> Option<usize> {
        let (now, present) = (Instant::now(), self.switch.present());
        let mut count = 0;
        for (listener, before) in present.take_all_looked_at() {
            let Before { connection, admitted, announced, deadline } = before;
            let message = connection.message();
            let passed = Passed::Inspected {
                listener,
                what: Known::of(&connection, message),
                admitted,
                announced: announced.map(|announced| *announced),
                left: deadline.saturating_duration_since(now),
            };
            say.send((passed, Some(connection.into_socket()))).ok()?;
            count += 1;
        }
        for used in present.used_rates().chunks(RATES) {
            say.send((Passed::Used(used.to_vec()), None)).ok()?;
        }
        Some(count)
    }
}

/// What came from the router before this one.
enum Inherited {
    /// It waits for a worker of this pool.
    Waiting(u32, Entry),
    /// It is looked at, of this listener.
    Inspected(u32, Before),
    Used(Vec<Used>),
}

/// What the router before this one passes on.
pub(super) struct Inheritance(JoinHandle<Vec<Inherited>>);

impl Inheritance {
    /// Takes it from the channel as it comes.
    pub(super) fn expect(predecessor: OwnedFd) -> Self {
        Self(tokio::spawn(receive(predecessor)))
    }

    /// What came goes to wait where it waited, and whoever was looked at is looked at from the first
    /// look; the router before this one has ended.
    pub(super) async fn take_in(self, pools: &BTreeMap<u32, Arc<Shared>>, switch: &Switch) {
        let Ok(inherited) = self.0.await else { return };
        let table = switch.present();
        for inherited in inherited {
            let (pool, mut entry) = match inherited {
                Inherited::Waiting(pool, entry) => (pool, entry),
                Inherited::Inspected(listener, before) => {
                    table.resume(listener, before);
                    continue;
                }
                Inherited::Used(used) => {
                    table.take_used_rates(&used);
                    continue;
                }
            };
            if let Cargo::Connection(connection) = &mut entry.cargo {
                table.count_again(connection);
            }
            let given = match pools.get(&pool) {
                Some(pool) => pool.step(|core| {
                    let given = core.offer(entry);
                    core.flush();
                    given.map_err(|(refused, entry)| (crate::accept::rejection(refused), entry))
                }),
                None => Err((reject::Rejection::because(reject::Reason::NoWorker), entry)),
            };
            if let Err((rejection, Entry { cargo: Cargo::Connection(connection), .. })) = given {
                table.reject(connection, rejection);
            }
        }
    }
}

async fn receive(predecessor: OwnedFd) -> Vec<Inherited> {
    let mut inherited = Vec::new();
    let Ok(mut channel) = ControlPort::<Taken, Passed>::new(predecessor) else { return inherited };
    let mut names = Names::default();
    // Its end without a last word is that of a router that crashed: what came has come.
    while let Ok(Some((passed, descriptor))) = channel.recv().await {
        match (passed, descriptor) {
            (
                Passed::Waiting { pool, what, attempts, tried, alone, affinity, scope },
                Some(socket),
            ) => {
                let Some((mut connection, data)) = what.with(socket, &mut names) else { continue };
                let scope = scope.map(Into::into);
                connection.order(Orders { affinity, scope, message: None });
                let cargo = Cargo::Connection(connection);
                let entry = Entry { data, cargo, attempts, tried, alone };
                inherited.push(Inherited::Waiting(pool, entry));
            }
            (Passed::Inspected { listener, what, admitted, announced, left }, Some(socket)) => {
                let Some((mut connection, message)) = what.with(socket, &mut names) else {
                    continue;
                };
                if message != Data::NONE {
                    connection = connection.with_message(message);
                }
                let now = Instant::now();
                let deadline = now.checked_add(left).unwrap_or(now);
                let announced = announced.map(Box::new);
                let before = Before { connection, admitted, announced, deadline };
                inherited.push(Inherited::Inspected(listener, before));
            }
            (Passed::Waiting { .. } | Passed::Inspected { .. }, None) => {
                tracing::error!("a connection that was passed on did not arrive");
            }
            (Passed::Used(used), _) => inherited.push(Inherited::Used(used)),
            (Passed::All, _) => {
                let _ = channel.sender().send((Taken, None));
            }
        }
    }
    inherited
}
