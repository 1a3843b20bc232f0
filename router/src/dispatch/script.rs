//! Connections that a script is asked about.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use vestibule_protocol::supervision::ScriptSetup;

use crate::connection::Connection;
use crate::handoff::{Cargo, Entry};
use crate::inspect::proxy_header::Announced;
use crate::inspect::{ClientHello, Fact, Label, Speech};
use crate::pool::Shared;
use crate::pool::core::Refused;
use crate::reject::Reason;
use crate::route::script::{
    Engine, Failure, Limits, Outcome, Pools, ROUTE, Source, Subject, Ticket, To, Verdict,
};

/// The script of this router.
#[derive(Debug)]
pub(crate) struct Script {
    engine: Mutex<Engine<Connection>>,
    pools: Arc<LivePools>,
    route: Arc<str>,
}

/// What the script makes of a connection, as far as a burst is concerned.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It waits for what its client says.
    Waits(Connection, Ticket),
    /// It went to this pool.
    Posted(usize),
    /// Nobody of the pool takes it.
    Refused(Refused, Connection),
    /// It is turned away.
    Rejected(Connection, crate::route::Refusal),
    /// The rules decide; the reason is for where none does.
    Rules(Connection, Reason),
    /// It is gone.
    Gone,
}

impl Script {
    /// Compiles a script.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn new(
        setup: &ScriptSetup,
        names: Vec<Arc<str>>,
        pools: Vec<Arc<Shared>>,
    ) -> Result<Self, Failure> {
        let source = Source { name: setup.name.clone(), text: setup.text.clone() };
        let memory = usize::try_from(setup.memory).unwrap_or(usize::MAX);
        let limits = Limits { time: setup.timeout, memory };
        let pools = Arc::new(LivePools { names, pools });
        let engine = Engine::new(source, limits, pools.clone())?;
        Ok(Self { engine: Mutex::new(engine), pools, route: ROUTE.into() })
    }

    /// Asks the script, and gives the connection to a pool if it says so.
    pub(crate) fn ask(&self, connection: Connection) -> Asked {
        // An engine is whole between its calls.
        let verdict = self.engine.lock().unwrap_or_else(PoisonError::into_inner).decide(connection);
        self.obey(verdict)
    }

    /// Tells the script what a client has said that it waits for.
    pub(crate) fn tell(&self, ticket: Ticket, connection: Connection, speech: Speech) -> Asked {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = engine.resume(ticket, connection, Arc::new(speech));
        drop(engine);
        self.obey(verdict)
    }

    /// Forgets a connection that waits.
    pub(crate) fn forget(&self, ticket: Ticket) {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).forget(ticket);
    }

    /// Slots of a pool came or went.
    pub(crate) fn slots_changed(&self) {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).slots_changed();
    }

    fn obey(&self, verdict: Verdict<Connection>) -> Asked {
        let (mut connection, outcome) = match verdict {
            Verdict::Decided(connection, outcome) => (connection, outcome),
            Verdict::Waits(connection, ticket) => return Asked::Waits(connection, ticket),
            Verdict::Gone => return Asked::Gone,
        };
        match outcome {
            Outcome::Post { pool, to, message } => {
                connection.set_route(&self.route);
                let Some(shared) = self.pools.pools.get(pool) else {
                    return Asked::Refused(Refused::NoWorker, connection);
                };
                let entry = Entry::new(message, Cargo::Connection(connection));
                // At once and not at the end of the burst: a script that counts connections counts
                // this one too. Packets are sent at the end.
                let posted = shared.step(|core| match to {
                    To::Balance => core.offer(entry),
                    To::Slot(slot) => core.offer_to(slot, entry),
                });
                match posted {
                    Ok(()) => Asked::Posted(pool),
                    Err((refused, entry)) => match entry.cargo {
                        Cargo::Connection(connection) => Asked::Refused(refused, connection),
                        Cargo::List(_) => Asked::Gone,
                    },
                }
            }
            Outcome::Reject(refusal) => {
                connection.set_route(&self.route);
                Asked::Rejected(connection, refusal)
            }
            Outcome::Undecided | Outcome::Failed => Asked::Rules(connection, Reason::ScriptFailed),
            Outcome::Unknown(cause) => Asked::Rules(connection, cause.reason()),
        }
    }
}

impl Subject for Connection {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer_addr()
    }

    fn local(&self) -> Option<SocketAddr> {
        self.info().destination.or_else(|| self.local_addr())
    }

    fn listener(&self) -> Arc<str> {
        Arc::clone(&self.info().listener)
    }

    fn context(&mut self) -> Fact<Label> {
        self.ask_context()
    }

    fn user(&self) -> Fact<String> {
        self.credentials().map(|who| who.uid.to_string())
    }

    fn announced(&self) -> Option<ClientHello> {
        Announced::from_proxied(self.info().proxied.as_deref()?).tls
    }
}

/// The pools of this router, as scripts see them.
#[derive(Debug)]
struct LivePools {
    names: Vec<Arc<str>>,
    pools: Vec<Arc<Shared>>,
}

impl Pools for LivePools {
    fn names(&self) -> Vec<Arc<str>> {
        self.names.clone()
    }

    fn slots(&self, pool: usize) -> Vec<(u32, Arc<str>)> {
        let Some(pool) = self.pools.get(pool) else { return Vec::new() };
        let core = pool.core();
        let used = (0u32..).zip(core.slots()).filter(|(_, slot)| !slot.is_unwanted());
        used.map(|(number, slot)| (number, Arc::clone(&slot.name))).collect()
    }

    fn ready(&self, pool: usize, slot: u32) -> bool {
        self.pools.get(pool).is_some_and(|pool| pool.core().is_ready(slot))
    }

    fn connections(&self, pool: usize, slot: u32) -> u32 {
        let load = |pool: &Arc<Shared>| Some(pool.core().slot(slot)?.handoff.load());
        self.pools.get(pool).and_then(load).unwrap_or_default()
    }

    fn worker_for(&self, pool: usize, key: &[u8]) -> Option<u32> {
        self.pools.get(pool)?.core().slot_for(key)
    }
}
