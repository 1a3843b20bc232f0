//! The whole program with a worker that leaves many offers without an answer, while one router takes over
//! from another.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::json;

use crate::client::{Client, Response};
use crate::family::Family;
use crate::ledger::{Ledger, VARIABLE};
use crate::master::Master;
use crate::place::Place;
use crate::process;
use crate::world::until;

/// Fewer than a worker may leave unanswered (64), in packets of many and of one.
pub const OFFERED: usize = 50;
/// What the supervisor says when one router is to take over from another.
pub const HANDS_OVER: &str = "the router hands over";
/// What a router says when another one has everything.
pub const PASSED_ON: &str = "what waited is passed on";

/// How the program is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The well-behaved worker's program.
    pub worker: &'static str,
    /// How it takes connections.
    pub way: &'static str,
    /// The program and the argument of the first worker, where it is another one.
    pub hostile: Option<[&'static str; 2]>,
    /// How long an offer may be without an answer.
    pub stuck: &'static str,
    /// Lines of the listener.
    pub listener: &'static str,
    /// What a client says before it asks.
    pub greeting: &'static str,
}

impl Setting {
    /// Every worker is this program.
    pub fn of(worker: &'static str) -> Self {
        Self { worker, way: "recv", hostile: None, stuck: "60s", listener: "", greeting: "" }
    }

    /// Two workers of a pool whose clients come by a listener of their own, and one of another pool.
    fn text(&self, user: u32) -> String {
        let Self { worker, way, hostile, stuck, listener, .. } = *self;
        let pool = |name: &str, workers: usize, [program, argument]: [&str; 2], more: [&str; 2]| {
            let [listener, ends] = more;
            format!(
                "[[listener]]\nname = '{name}'\naddress = '127.0.0.1:0'\n{listener}\n\
                 [[pool]]\nname = '{name}'\ncommand = [{program:?}, {argument:?}]\n\
                 workers = {workers}\nuser = 'root'\n{ends}\n\
                 restart = {{ delay = '20ms', max-delay = '20ms' }}\n\
                 [[route]]\nname = '{name}'\nlistener = '{name}'\npool = '{name}'\n"
            )
        };
        let good = [worker, way];
        // It does not listen: to wait for it at the end is a waste of time.
        let ends = match hostile {
            Some(_) => "drain-timeout = '200ms'\nstop-timeout = '200ms'",
            None => "",
        };
        format!(
            "[router]\nuser = '{user}'\nstuck-timeout = '{stuck}'\n{}{}",
            pool("a", 2, hostile.unwrap_or(good), [listener, ends]),
            pool("b", 1, good, [""; 2])
        )
    }
}

/// The program, with a worker that has many offers in its port and says nothing to them.
#[derive(Debug)]
pub struct Stalled {
    /// Its files.
    pub place: Place,
    /// Its processes.
    pub master: Master,
    /// Who served what.
    pub ledger: Ledger,
    /// Where the other pool's clients come.
    pub others: SocketAddr,
    /// What it had when everybody was there and idle.
    pub before: Family,
    /// The worker, which stands still unless it is a hostile one.
    pub stalled: u32,
    /// Whom it was sent.
    pub offered: Vec<Client>,
    user: u32,
    setting: Setting,
}

impl Stalled {
    /// Starts it, and comes to where all offers are in the worker's port.
    pub fn start(setting: Setting) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root's routers can become another user: run this as root"
        );
        let (place, ledger, user) = (Place::new(), Ledger::new(), 61_800);
        let mut command = place.vestibule(setting.worker);
        command.arg(place.config(&setting.text(user))).env(VARIABLE, ledger.path());
        command.env("TEST_GOOD_WORKER", setting.worker).env("TEST_HOSTILE", "1");
        // Who follows it is well-behaved, and may be sent what it was sent.
        command.env("TEST_HOSTILE_ONCE", place.join("hostile"));
        let mut master = Master::launch(command);
        let others = master.next_address();
        place.until("every worker is ready", |status| status["health"] == "healthy");
        let before = Family::below(master.pid());
        let mut this = Self {
            place,
            master,
            ledger,
            others,
            before,
            stalled: 0,
            offered: Vec::new(),
            user,
            setting,
        };
        this.order("drain", "a-1");
        // What is made at first use is there.
        this.change();
        this.serves();
        this.until_idle();
        this.before = Family::below(this.master.pid());
        this.order("ready", "a-1");
        this.offer();
        this
    }

    /// Both pools answer.
    fn serves(&self) {
        self.pool_serves();
        assert_eq!(Client::connect(self.others).get("/").status, 200);
    }

    /// Somebody of the first pool answers: while its first worker stands still, the other one, which the
    /// present router has heard by then.
    pub fn pool_serves(&self) {
        let mut client = self.master.client();
        client.send(self.setting.greeting.as_bytes());
        assert_eq!(client.get("/").status, 200);
    }

    fn order(&self, command: &str, worker: &str) {
        let mut order = json!({"command": command, "worker": worker});
        if command == "drain" {
            order["hold"] = true.into();
        }
        self.place.order(&order);
    }

    /// Waits until nobody is served any more.
    pub fn until_idle(&self) {
        self.place.until("nobody is served", |status| {
            let pools = status["pools"].as_array().unwrap().iter();
            let mut workers = pools.flat_map(|pool| pool["workers"].as_array().unwrap());
            workers.all(|worker| worker["connections"] == 0)
        });
    }

    /// Sends many connections to a worker that stands still.
    fn offer(&mut self) {
        self.order("drain", "a-2");
        let status = self.place.status();
        let worker = &status["pools"][0]["workers"][0];
        assert_eq!(worker["name"], "a-1");
        self.stalled = worker["pid"].as_u64().unwrap() as u32;
        if self.setting.hostile.is_none() {
            process::freeze(self.stalled);
        }
        self.offered = (0..OFFERED).map(|_| self.master.client()).collect();
        for client in &mut self.offered {
            client.send(self.setting.greeting.as_bytes());
            client.ask("/");
        }
        self.until_offered();
        self.order("ready", "a-2");
    }

    /// The present router has all of it.
    pub fn until_offered(&self) {
        self.place.until("everything is on its way to it", |status| {
            status["pools"][0]["workers"][0]["connections"] == OFFERED
        });
    }

    /// Has another router take over; the present one's process.
    pub fn order_change(&mut self) -> u32 {
        let router = self.master.router();
        self.user += 1;
        self.place.order_reload(&self.setting.text(self.user));
        router
    }

    /// Another router takes over.
    pub fn change(&mut self) {
        let router = self.order_change();
        self.until_changed(router);
    }

    /// The router before this is gone, and another accepts.
    pub fn until_changed(&mut self, before: u32) {
        until("the router before is gone", || process::is_gone(before));
        self.place.until("another accepts", |status| {
            status["router"]["state"] == "accepting" && status["router"]["pid"] != before
        });
        self.master.router();
    }

    /// The router that stands still, and was asked to, passes everything on to the one that is named last.
    pub fn until_passed_on(&self, old: u32) -> u32 {
        // What it is told is sent by then.
        self.place.status();
        let next = self.master.next_router(old);
        let passed = self.said(PASSED_ON);
        process::freeze(self.master.pid());
        process::thaw(old);
        until("everything is passed on", || self.said(PASSED_ON) > passed);
        next
    }

    /// How often something was said on standard error.
    pub fn said(&self, message: &str) -> usize {
        self.place.said().matches(message).count()
    }

    /// The worker goes on, and answers everybody.
    pub fn goes_on(mut self) {
        self.answer();
        self.ends_well(0);
    }

    /// The worker goes on, and answers everybody. Their connections stay.
    pub fn answer(&mut self) {
        process::thaw(self.stalled);
        let stalled = self.stalled.to_string();
        self.are_answered(|answer| answer.field("pid") == stalled);
    }

    /// It is killed as it stands: the other one answers everybody.
    pub fn dies(self) {
        process::signal(self.stalled, Signal::KILL);
        self.ends_killed();
    }

    /// It was killed as it stood: others answer everybody.
    pub fn ends_killed(mut self) {
        self.are_answered_by_others();
        self.ends_well(OFFERED);
    }

    /// Everybody is answered by another process: the other worker, or who follows this one.
    pub fn are_answered_by_others(&mut self) {
        let stalled = self.stalled.to_string();
        self.are_answered(|answer| answer.field("pid") != stalled);
    }

    /// Everybody is answered, by such a worker.
    pub fn are_answered(&mut self, by: impl Fn(&Response) -> bool) {
        for client in &mut self.offered {
            let answer = client.answer();
            assert!(answer.status == 200 && by(&answer), "{}", answer.text());
        }
    }

    /// Everybody was answered once.
    pub fn ends_well(mut self, moved: usize) {
        self.offered.clear();
        let status = self.place.until("all is counted", |status| {
            status["pools"][0]["delivered"].as_u64() >= Some(OFFERED as u64 + 1)
        });
        assert_eq!(status["pools"][0]["moved"], moved);
        assert_eq!(status["pools"][0]["touched"], 0);
        let rejected = status["connections"]["rejected"].as_object().unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
        self.serves();
        self.ledger.assert_nothing_served_twice();
        self.until_idle();
        self.before.assert_no_more_below(self.master.pid());
        self.master.workers();
        self.master.stop();
    }
}
