//! Reading the configuration again: whole and valid, or nothing changes.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;
use vestibule_protocol::supervision::{
    ListenerSetup, PoolSetup, Setup, SlotMode, SlotSetup, ToRouter,
};

use super::plan::{Layout, Present};
use super::pools::{Listening, Pool, worker_name};
use super::removed::Removed;
use super::{Master, PoolPlan};
use crate::listener::{Bound, local_address};
use crate::supervisor::router_user;

/// Why nothing has changed.
pub(super) enum NotReloaded {
    /// There is nothing to read.
    NoFile,
    /// Another reload is under way, or a router takes over from another.
    Busy,
    /// Everything ends.
    Stopping,
    /// The router ended while it tried the script.
    RouterEnded,
    /// What was read cannot be used; every mistake.
    Mistakes(String),
}

/// Hears what came of a reload: what is different, a line each, or why nothing is.
pub(super) type Hears = Box<dyn FnOnce(Result<String, NotReloaded>)>;

/// A configuration whose script the router tries: only that one ever runs it.
pub(super) struct Trying {
    layout: Layout,
    hears: Hears,
}

impl Master {
    /// For whom nobody waits: what comes of it is in the log.
    pub(super) fn reload_on_signal(&mut self) {
        if self.stopping {
            return;
        }
        if self.is_reloading() {
            self.reload_wanted = true;
            return;
        }
        self.reload(Box::new(|_| {}));
    }

    fn is_reloading(&self) -> bool {
        self.trying.is_some() || self.is_succeeding()
    }

    /// Reads everything again and becomes it; with a script, once the router has tried it.
    pub(super) fn reload(&mut self, hears: Hears) {
        if self.is_reloading() {
            return hears(Err(NotReloaded::Busy));
        }
        let mut present = Present { router_identity: Some(self.identity), ..Present::default() };
        for Listening { setup, address, socket, .. } in &self.listeners {
            let place = local_address(socket.socket());
            present.listeners.push((setup.name.clone(), address.clone(), place));
        }
        for gone in self.removed.iter().filter(|gone| gone.can_come_back()) {
            let place = local_address(gone.socket());
            present.listeners.push((gone.name.clone(), gone.address.clone(), place));
        }
        for (address, socket) in &self.inherited {
            present.listeners.push((String::new(), address.clone(), local_address(socket)));
        }
        let Some(source) = &mut self.source else { return hears(Err(NotReloaded::NoFile)) };
        self.notifier.reloading();
        self.reloading = true;
        let read = source.read(present).and_then(|layout| {
            let checked = router_user::check(layout.router_identity, &layout.pools);
            checked.map(|()| layout).map_err(|error| error.to_string())
        });
        match read {
            Ok(layout) => match &self.router {
                Some(router) if layout.script.is_some() => {
                    router.tell(ToRouter::Try(self.setup_of(&layout)), None);
                    self.trying = Some(Trying { layout, hears });
                }
                // Without a router the next one will be told, and says what it makes of it.
                _ => self.go_over(layout, hears),
            },
            Err(mistakes) => self.stay(NotReloaded::Mistakes(mistakes), hears),
        }
    }

    /// The router has tried a script.
    pub(super) fn tried(&mut self, problem: Option<String>) {
        let Some(Trying { layout, hears }) = self.trying.take() else { return };
        match problem {
            None => self.go_over(layout, hears),
            Some(problem) => self.stay(NotReloaded::Mistakes(problem), hears),
        }
        self.close_dry();
    }

    /// The router will not say any more what it makes of a script.
    pub(super) fn give_up_trying(&mut self) {
        if let Some(Trying { hears, .. }) = self.trying.take() {
            let why = if self.stopping { NotReloaded::Stopping } else { NotReloaded::RouterEnded };
            self.stay(why, hears);
            self.close_dry();
        }
    }

    fn go_over(&mut self, layout: Layout, hears: Hears) {
        let differences = self.become_as(layout);
        let text = match differences.is_empty() {
            true => "reloaded: nothing is different".to_owned(),
            false => format!("reloaded:\n{}", differences.join("\n")),
        };
        tracing::info!(?differences, "the configuration is reloaded");
        hears(Ok(text));
        if self.router.is_none() {
            self.reloaded();
        }
    }

    fn stay(&mut self, why: NotReloaded, hears: Hears) {
        let mistakes = match &why {
            NotReloaded::Mistakes(mistakes) => mistakes.as_str(),
            _ => "the router ended while it tried the script",
        };
        tracing::error!(mistakes, "the configuration is not reloaded: nothing has changed");
        hears(Err(why));
        self.reloaded();
    }

    /// A layout as a router could become it. Pools that there are not yet have numbers from the end, which
    /// none ever has, and no place among the counters.
    fn setup_of(&self, layout: &Layout) -> Setup {
        let pools = layout.pools.iter().zip((0..=u32::MAX).rev()).map(|(plan, unused)| {
            let name = plan.options.pool.clone();
            match self.pools.iter().find(|pool| pool.name() == name) {
                Some(pool) => PoolSetup {
                    settings: plan.options.settings(),
                    ..pool.setup(&self.table, false)
                },
                None => PoolSetup {
                    id: unused,
                    counters: u32::MAX,
                    settings: plan.options.settings(),
                    slots: (0..plan.workers as u32)
                        .map(|slot| SlotSetup {
                            name: worker_name(&name, slot),
                            mode: SlotMode::Wanted,
                        })
                        .collect(),
                    name,
                    leaving: false,
                },
            }
        });
        Setup {
            pools: pools.collect(),
            listeners: layout.listeners.iter().map(|plan| plan.setup.clone()).collect(),
            inspect: layout.inspect,
            rules: layout.rules.clone(),
            script: layout.script.clone(),
            ..self.setup()
        }
    }

    /// Whatever was to follow a reload has: the manager is told, and who asked meanwhile has its turn.
    pub(super) fn reloaded(&mut self) {
        if self.is_reloading() {
            return;
        }
        if std::mem::take(&mut self.reloading) {
            self.notifier.ready();
        }
        if std::mem::take(&mut self.reload_wanted) {
            self.reload_on_signal();
        }
    }

    fn become_as(&mut self, layout: Layout) -> Vec<String> {
        let Layout { listeners, pools, inspect, rules, routes, script, router_identity, admin } =
            layout;
        let mut differences = Vec::new();
        let before = self.setup();
        self.number += 1;
        let old = std::mem::take(&mut self.listeners);
        self.listeners = self.listen_on(old, listeners, before.clone(), &mut differences);
        let steps = self.adopt(pools, &mut differences);
        tell_routes(&self.routes, &routes, &mut differences);
        self.inspect = inspect;
        self.rules = rules;
        if script != self.script {
            differences.push("script: changed".to_owned());
            self.script_before = Some(std::mem::replace(&mut self.script, script));
        }
        self.routes = routes;
        if admin != self.admin_path {
            differences.push("admin socket: another path, from the next start on".to_owned());
            self.admin_path = admin;
        }
        let setup = self.setup();
        self.former.keep(before, &setup, Instant::now());
        self.tell_router(ToRouter::Change(setup));
        for step in steps {
            match step {
                Step::Resize(pool, workers) => self.resize(pool, workers),
                Step::Roll(pool) => {
                    self.roll(pool);
                }
            }
        }
        self.forget_left();
        if router_identity != self.identity {
            differences.push("router: another user; the next router takes over".to_owned());
            self.begin_succession(router_identity);
        }
        differences
    }

    /// The new listeners, with the numbers of those that are the same. Clients of those that go are decided
    /// about by the setup until now.
    fn listen_on(
        &mut self,
        mut old: Vec<Listening>,
        plans: Vec<super::ListenerPlan>,
        by: Setup,
        differences: &mut Vec<String>,
    ) -> Vec<Listening> {
        let mut new = Vec::with_capacity(plans.len());
        // New ones, with the number of who has had their sockets.
        let mut added = Vec::new();
        for plan in plans {
            let same = |known: &Listening| known.address == plan.address;
            let at = old
                .iter()
                .position(|known| same(known) && known.setup.name == plan.setup.name)
                .or_else(|| old.iter().position(same));
            let (before, mut socket) = match at.map(|at| old.remove(at)) {
                Some(Listening { setup, backlog, socket, .. }) => {
                    (Some((setup, backlog)), Some(socket))
                }
                None => (None, None),
            };
            let mut number = before.as_ref().map(|(setup, _)| setup.id);
            if plan.socket.is_none() && socket.is_none() {
                let back = self.come_back(&plan);
                (number, socket) = back.unzip();
                socket = socket.or_else(|| self.take_inherited(&plan.address));
            }
            // Whoever made the plan has seen the same listeners.
            let Some(mut listening) = Listening::new(&mut self.numbers, plan, socket) else {
                continue;
            };
            let name = listening.setup.name.clone();
            if before.as_ref().is_none_or(|(setup, _)| setup.name != name) {
                added.push((listening.setup.id, number));
            }
            match before {
                None => differences.push(format!("listener {name}: added")),
                Some((setup, before)) => {
                    if before != listening.backlog
                        && let Some(backlog) = listening.backlog
                    {
                        // Changes the length of the queue of a socket that listens (listen(2)).
                        let length = i32::try_from(backlog).unwrap_or(i32::MAX);
                        match rustix::net::listen(listening.socket.socket(), length) {
                            Ok(()) => differences.push(format!("listener {name}: backlog")),
                            Err(error) => {
                                tracing::error!(listener = name, %error, "backlog stays as it is");
                            }
                        }
                    }
                    // Without another name it is the same; its part of the table changes in place.
                    if setup.name == name {
                        listening.setup.id = setup.id;
                    } else {
                        differences.push(format!("listener {name}: was {}", setup.name));
                    }
                    listening.setup.former = former(setup, &name);
                }
            }
            new.push(listening);
        }
        let by = Rc::new(by);
        for gone in old {
            differences.push(format!("listener {}: removed", gone.setup.name));
            self.removed.push(Removed::new(gone, &by));
        }
        if let Some(router) = &self.router {
            for (listener, before) in added {
                let socket = new.iter().find(|listening| listening.setup.id == listener);
                let socket = socket.map(|listening| listening.socket.socket().try_clone());
                if let Some(Ok(socket)) = socket {
                    router.tell(ToRouter::Listener { listener, before }, Some(socket));
                }
            }
        }
        new
    }

    /// Only now: a configuration that is refused has not had it.
    fn take_inherited(&mut self, address: &str) -> Option<Bound> {
        let at = self.inherited.iter().position(|(known, _)| known == address)?;
        Some(self.inherited.remove(at).1.into())
    }

    /// The new pools, with the numbers of those that are the same. What is to be done once the router
    /// knows them.
    fn adopt(&mut self, plans: Vec<PoolPlan>, differences: &mut Vec<String>) -> Vec<Step> {
        let mut old = std::mem::take(&mut self.pools);
        let mut steps = Vec::new();
        for plan in plans {
            let name = plan.options.pool.clone();
            let Some(at) = old.iter().position(|pool| pool.name() == name) else {
                let pool = Pool::new(&mut self.numbers, plan);
                pool.fill(&mut self.table);
                differences.push(format!("pool {name}: added"));
                self.pools.push(pool);
                continue;
            };
            let mut pool = old.remove(at);
            let mut changes = Vec::new();
            let options = Arc::new(plan.options);
            let program = !options.is_same_program(&pool.options);
            if options.settings() != pool.options.settings()
                || !options.has_same_times(&pool.options)
            {
                changes.push("settings".to_owned());
            }
            pool.options = options;
            if program {
                changes.push("program, which is rolled".to_owned());
                steps.push(Step::Roll(pool.id));
            } else {
                let slots = self.table.of_pool(pool.id).filter(|r| r.version == pool.version);
                for worker in slots.map(|record| record.worker).collect::<Vec<_>>() {
                    self.table.change(worker, &pool.options);
                }
            }
            if plan.workers != pool.workers {
                pool.workers = plan.workers;
                changes.push(format!("{} workers", plan.workers));
                steps.push(Step::Resize(pool.id, plan.workers as u32));
            }
            if !changes.is_empty() {
                differences.push(format!("pool {name}: {}", changes.join(", ")));
            }
            self.pools.push(pool);
        }
        for gone in old {
            differences.push(format!("pool {}: removed", gone.name()));
            self.table.abandon(gone.id);
            self.leaving.push(gone);
        }
        steps
    }

    /// Forgets removed pools of which nothing is left.
    pub(super) fn forget_left(&mut self) {
        let table = &mut self.table;
        self.leaving.retain(|pool| {
            let left = table.of_pool(pool.id).any(|record| !record.is_over());
            if !left {
                tracing::info!(pool = pool.name(), "nothing of a removed pool is left");
                table.forget(pool.id);
            }
            left
        });
    }
}

/// What is done to a pool once the router knows the new configuration.
enum Step {
    Resize(u32, u32),
    Roll(u32),
}

/// What the listener was called before: connections of those days may still come back.
fn former(before: ListenerSetup, name: &str) -> Vec<(u32, String)> {
    /// Whoever renames a listener every day knows connections that are two weeks old.
    const MOST: usize = 16;
    let ListenerSetup { id, name: last, mut former, .. } = before;
    if last != name {
        former.insert(0, (id, last));
    }
    former.retain(|(_, known)| known != name);
    former.truncate(MOST);
    former
}

fn tell_routes(old: &[(String, String)], new: &[(String, String)], differences: &mut Vec<String>) {
    let find = |all: &[(String, String)], name: &str| {
        all.iter().find(|(known, _)| known == name).map(|(_, text)| text.clone())
    };
    let before = differences.len();
    for (name, text) in new {
        match find(old, name) {
            None => differences.push(format!("route {name}: added")),
            Some(known) if known != *text => differences.push(format!("route {name}: changed")),
            Some(_) => {}
        }
    }
    for (name, _) in old.iter().filter(|(name, _)| find(new, name).is_none()) {
        differences.push(format!("route {name}: removed"));
    }
    if differences.len() == before && old != new {
        differences.push("routes: another order".to_owned());
    }
}
