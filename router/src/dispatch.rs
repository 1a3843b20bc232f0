//! From a listener's burst to the pools that its connections belong to.
//!
//! What can be decided by the address that comes with a connection goes straight on. Anything else
//! is an [`Inspection`]: looked at once at once, and then, if that was not enough, one that waits.

mod destination;
mod inspecting;
mod inspection;
mod returned;
#[cfg(feature = "script")]
pub(crate) mod script;
pub(crate) mod tracer;
mod turning;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use vestibule_protocol::supervision::{InspectSetup, Setup};

use self::destination::Destinations;
pub(crate) use self::inspection::Before;
use self::inspection::{Gate, Goal, Inspection, address};
pub(crate) use self::returned::watch;
#[cfg(feature = "script")]
use self::tracer::About;
use self::tracer::{Ruled, Tracer};
pub(crate) use self::turning::Used;

use crate::accept;
use crate::connection::{Connection, Orders};
use crate::inspect::waiting::Waiting;
use crate::inspect::watch::{Sign, Watch};
use crate::inspect::{Depth, proxy_header};
use crate::metrics::Metrics;
use crate::pool::Shared;
use crate::reject::{Reason, Rejection};
use crate::route::{Facts, Outcome, RuleError, Table, Target, Why};

/// The table that decides now. Another one takes its place as a whole, between two bursts.
pub(crate) struct Switch {
    present: Mutex<Arc<Dispatch>>,
}

impl Switch {
    /// One that leads nowhere yet.
    ///
    /// # Errors
    /// See [`DispatchError`].
    pub(crate) fn new(metrics: Arc<Metrics>) -> Result<Self, DispatchError> {
        let nowhere = Dispatch::with(
            (Vec::new(), Vec::new(), Vec::new()),
            Table::only_pool(0),
            InspectSetup::default(),
            metrics,
        )?;
        Ok(Self { present: Mutex::new(Arc::new(nowhere)) })
    }

    /// The present table.
    pub(crate) fn present(&self) -> Arc<Dispatch> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Dispatch>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The route table and the pools that it names.
pub(crate) struct Dispatch {
    /// The listeners that the table was compiled for, in its order.
    listeners: Vec<u32>,
    /// What they were before: numbers and names.
    former: Vec<Vec<(u32, String)>>,
    pools: Vec<Arc<Shared>>,
    /// Their names, and whom their workers may hand connections to.
    destinations: Destinations,
    /// Names of the listeners, in the table's order.
    names: Vec<String>,
    table: Table,
    gates: Vec<Gate>,
    metrics: Arc<Metrics>,
    #[cfg(feature = "script")]
    script: Option<script::Script>,
    state: Mutex<State>,
    /// Wakes when somebody who is looked at says more.
    watch: Arc<Watch>,
    /// Somebody is due before all others.
    sooner: Notify,
    tracer: Arc<Tracer>,
    /// Nobody is looked at any more.
    decided: Notify,
    /// How long a client may take to show what a rule must see.
    timeout: Duration,
    /// Inspections at one time.
    most: usize,
}

/// What changes with each connection.
struct State {
    /// What of a burst goes to each pool; kept, so that a burst allocates nothing.
    parts: Vec<Vec<Connection>>,
    waiting: Waiting<Inspection>,
    /// Where everything is looked at, one connection after the other.
    buffer: Box<[u8]>,
    signs: Vec<Sign>,
    /// Whether a task follows those who wait.
    followed: bool,
}

/// Why a router cannot dispatch.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// A text that is no pattern: the supervisor has checked them.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// Out of descriptors or memory.
    #[error("clients cannot be watched")]
    Watch(#[source] std::io::Error),
}

impl Dispatch {
    /// Compiles the rules.
    ///
    /// # Errors
    /// See [`DispatchError`].
    pub(crate) fn new(
        setup: &Setup,
        pools: Vec<Arc<Shared>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, DispatchError> {
        let table = Table::of(setup)?;
        let gates = setup.listeners.iter().map(|listener| Gate::new(listener, setup.inspect));
        let gates = gates.collect::<Result<_, _>>()?;
        let listeners = setup.listeners.iter().map(|listener| listener.id).collect();
        let mut this = Self::with((listeners, gates, pools), table, setup.inspect, metrics)?;
        if let Some(script) = &setup.script {
            this.most = this.most.min(inspecting::most_handlers(script.memory));
        }
        this.destinations = Destinations::new(&setup.pools);
        this.former = setup.listeners.iter().map(|listener| listener.former.clone()).collect();
        this.names = setup.listeners.iter().map(|listener| listener.name.clone()).collect();
        Ok(this)
    }

    fn with(
        (listeners, gates, pools): (Vec<u32>, Vec<Gate>, Vec<Arc<Shared>>),
        table: Table,
        inspect: InspectSetup,
        metrics: Arc<Metrics>,
    ) -> Result<Self, DispatchError> {
        let watch = Arc::new(Watch::new().map_err(DispatchError::Watch)?);
        let state = State {
            parts: pools.iter().map(|_| Vec::new()).collect(),
            waiting: Waiting::new(Arc::clone(&watch)),
            buffer: vec![0; inspect.most.max(proxy_header::LONGEST)].into_boxed_slice(),
            signs: Vec::new(),
            followed: false,
        };
        Ok(Self {
            listeners,
            former: Vec::new(),
            pools,
            destinations: Destinations::default(),
            names: Vec::new(),
            table,
            gates,
            metrics,
            state: Mutex::new(state),
            watch,
            sooner: Notify::new(),
            tracer: Arc::default(),
            decided: Notify::new(),
            timeout: inspect.timeout,
            most: inspecting::most_inspections(),
            #[cfg(feature = "script")]
            script: None,
        })
    }

    /// Notes here what is decided.
    pub(crate) fn traced_by(mut self, tracer: &Arc<Tracer>) -> Self {
        self.tracer = Arc::clone(tracer);
        self
    }

    /// Asks this script before the rules.
    #[cfg(feature = "script")]
    pub(crate) fn asking(mut self, script: script::Script) -> Self {
        self.script = Some(script);
        self
    }

    /// Whether connections of a pool of this table have scopes, which its workers have to keep to.
    pub(crate) fn scopes_lead_to(&self, pool: usize) -> bool {
        self.table.scopes_lead_to(pool)
    }

    /// Slots of a pool came or went.
    pub(crate) fn slots_changed(&self) {
        #[cfg(feature = "script")]
        if let Some(script) = &self.script {
            script.slots_changed();
        }
    }

    /// Whether clients of a listener have to be heard before they can be told where to go: then the
    /// kernel may keep them until they have said something.
    pub(crate) fn hears(&self, listener: u32) -> bool {
        let listener = self.place(listener);
        let gate = self.gates.get(listener as usize);
        self.table.depth(listener as usize) >= Depth::Bytes
            || gate.is_some_and(Gate::hears_everybody)
    }

    /// A listener's place in the table, by its number; one that is in no table if it has none.
    fn place(&self, listener: u32) -> u32 {
        let place = self.listeners.iter().position(|id| *id == listener);
        // There are never as many.
        place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX)
    }

    /// Hands over what one burst of a listener brought; what nobody takes is rejected, and what cannot
    /// be decided yet is looked at.
    pub(crate) fn hand_over(self: &Arc<Self>, listener: u32, burst: &mut Vec<Connection>) {
        self.metrics.accepted(burst.len());
        let listener = self.place(listener);
        let open = self.gates.get(listener as usize).is_some_and(Gate::is_open);
        let mut state = self.state();
        for connection in burst.drain(..) {
            let goal = self.first_goal();
            if !open {
                self.inspect(&mut state, listener, connection, goal);
                continue;
            }
            let facts = Facts::of_address(listener as usize, address(&connection));
            if let Some((connection, goal)) =
                self.settle(&mut state.parts, connection, &facts, goal)
            {
                self.inspect(&mut state, listener, connection, goal);
            }
        }
        self.flush(&mut state.parts);
    }

    /// What is asked first about a connection.
    fn first_goal(&self) -> Goal {
        #[cfg(feature = "script")]
        if self.script.is_some() {
            return Goal::Script;
        }
        Goal::Rules(None)
    }

    /// Does what is decided about a connection. It comes back with what is to be asked next, if more
    /// has to be known first.
    fn settle(
        &self,
        parts: &mut [Vec<Connection>],
        connection: Connection,
        facts: &Facts<'_>,
        goal: Goal,
    ) -> Option<(Connection, Goal)> {
        #[cfg(feature = "script")]
        let (connection, goal) = match self.ask(connection, facts, goal)? {
            (connection, Goal::Rules(reason)) => (connection, Goal::Rules(reason)),
            waits => return Some(waits),
        };
        let connection = self.decide(parts, connection, facts, goal.unruled())?;
        Some((connection, goal))
    }

    /// Asks the script, where it is to be asked.
    #[cfg(feature = "script")]
    fn ask(
        &self,
        connection: Connection,
        facts: &Facts<'_>,
        goal: Goal,
    ) -> Option<(Connection, Goal)> {
        let Some(script) = &self.script else { return Some((connection, goal)) };
        let followed = self.tracer.follows(&connection).then(|| About::of(&connection));
        let asked = match goal {
            Goal::Rules(_) => return Some((connection, goal)),
            Goal::Script => script.ask(connection),
            Goal::Speech(ticket) => {
                // What it says of another request only it can tell; behind TLS it can see none.
                let mut connection = connection;
                connection.set_scope(self.table.no_scope(facts));
                script.tell(ticket, connection, facts.speech.clone())
            }
        };
        match asked {
            script::Asked::Posted(pool) => {
                if let Some(about) = followed {
                    self.tracer.posted(
                        about.by(crate::route::script::ROUTE),
                        self.destinations.name(pool),
                    );
                }
                None
            }
            script::Asked::Gone => None,
            script::Asked::Waits(connection, ticket) => Some((connection, Goal::Speech(ticket))),
            script::Asked::Refused(refused, connection) => {
                self.reject(connection, accept::rejection(refused));
                None
            }
            script::Asked::Rejected(connection, refusal) => {
                self.reject(connection, refusal.rejection());
                None
            }
            script::Asked::Rules(connection, reason) => {
                Some((connection, Goal::Rules(Some(reason))))
            }
        }
    }

    /// Does what the rules say, or gives the connection back if they have to know more.
    fn decide(
        &self,
        parts: &mut [Vec<Connection>],
        mut connection: Connection,
        facts: &Facts<'_>,
        unruled: Option<Reason>,
    ) -> Option<Connection> {
        let Outcome::Decided(decision) = self.table.decide(facts) else {
            return Some(connection);
        };
        let ruled = Ruled { table: &self.table, facts, why: decision.why };
        if let Some(reason) = unruled
            && matches!(decision.why, Why::OnlyPool | Why::NoMatch)
        {
            // `default` is the route of whoever gets somewhere by it.
            connection.set_route(self.table.no_route());
            self.reject_by(connection, Rejection::because(reason), ruled);
            return None;
        }
        connection.set_route(decision.route);
        connection.order(Orders {
            affinity: self.table.affinity(decision.target, facts),
            message: decision.message.cloned(),
            scope: self.table.scope(facts, decision.why),
        });
        match decision.redirection(facts) {
            Some(Some(location)) => {
                self.metrics.rejected(Reason::Rejected);
                self.tracer.rejected(&connection, Some(ruled), "redirected");
                connection.redirect(location);
                return None;
            }
            // There is nowhere to send it: the request names no host (RFC 9112 3.2).
            Some(None) => {
                self.reject_by(connection, Rejection::status(400, Reason::Rejected), ruled);
                return None;
            }
            None => {}
        }
        if let Some(rejection) = decision.rejection() {
            self.reject_by(connection, rejection, ruled);
            return None;
        }
        if let Target::Pool(pool) = decision.target
            && let Some(part) = parts.get_mut(pool)
        {
            self.tracer.decided(&connection, ruled, self.destinations.name(pool));
            part.push(connection);
        }
        None
    }

    /// Hands over what was decided.
    fn flush(&self, parts: &mut [Vec<Connection>]) {
        for (pool, part) in self.pools.iter().zip(parts) {
            if part.is_empty() {
                // A script's posts are before the workers already, and not sent yet.
                if !matches!(self.first_goal(), Goal::Rules(_)) {
                    pool.flush();
                }
                continue;
            }
            for (refused, connection) in pool.hand_over(part) {
                self.reject(connection, accept::rejection(refused));
            }
        }
    }

    /// Rejects what the rules decided about.
    fn reject_by(&self, connection: Connection, rejection: Rejection, ruled: Ruled<'_>) {
        let reason = rejection.reason();
        self.metrics.rejected(reason);
        self.tracer.rejected(&connection, Some(ruled), reason.as_str());
        connection.reject_with(rejection);
    }

    pub(crate) fn reject(&self, connection: Connection, rejection: Rejection) {
        self.metrics.rejected(rejection.reason());
        self.tracer.rejected(&connection, None, rejection.reason().as_str());
        connection.reject_with(rejection);
    }
}

#[cfg(test)]
mod tests;
