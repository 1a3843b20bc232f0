//! One router after the other takes over while a worker stands still that was sent connections and has not
//! answered: it serves them when it goes on, whichever router there is by then, and others serve them if it
//! dies. Nobody is lost, nobody is served twice, and no descriptor stays.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::json;
use vestibule_tests::family::Family;
use vestibule_tests::ledger::{Ledger, VARIABLE};
use vestibule_tests::load::Load;
use vestibule_tests::master::{Master, is_over, is_router};
use vestibule_tests::place::Place;
use vestibule_tests::world::{turn, until};
use vestibule_tests::{Client, Response, process, sockets};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Fewer than a worker may leave unanswered (64), in packets of many and of one.
const OFFERED: usize = 50;
/// What a good part of them takes in memory: the kernel counts some 800 bytes each.
const MANY: i32 = 20_000;
/// What the supervisor says when one router is to take over from another, and a router that another one
/// has everything.
const HANDS_OVER: &str = "the router hands over";
const PASSED_ON: &str = "what waited is passed on";

/// Two workers of a pool whose clients come by a listener of their own, and one of another pool.
fn text(user: u32, stuck: &str) -> String {
    let pool = |name: &str, workers: usize| {
        format!(
            "[[listener]]\nname = '{name}'\naddress = '127.0.0.1:0'\n\
             [[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = {workers}\n\
             user = 'root'\nrestart = {{ delay = '20ms', max-delay = '20ms' }}\n\
             [[route]]\nname = '{name}'\nlistener = '{name}'\npool = '{name}'\n"
        )
    };
    format!(
        "[router]\nuser = '{user}'\nstuck-timeout = '{stuck}'\n{}{}",
        pool("a", 2),
        pool("b", 1)
    )
}

/// The program, with a worker that stands still and has many offers in its port.
struct Hall {
    place: Place,
    master: Master,
    ledger: Ledger,
    /// Where the other pool's clients come.
    others: SocketAddr,
    before: Family,
    user: u32,
    stuck: &'static str,
    /// The worker that stands still.
    frozen: u32,
    offered: Vec<Client>,
}

impl Hall {
    fn start() -> Self {
        Self::start_with("60s")
    }

    fn start_with(stuck: &'static str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root's routers can become another user: run this as root"
        );
        let (place, ledger, user) = (Place::new(), Ledger::new(), 61_800);
        let mut command = place.vestibule(WORKER);
        command.arg(place.config(&text(user, stuck))).env(VARIABLE, ledger.path());
        let mut master = Master::launch(command);
        let others = master.next_address();
        place.until("every worker is ready", |status| status["health"] == "healthy");
        let before = Family::below(master.pid());
        let mut hall = Self {
            place,
            master,
            ledger,
            others,
            before,
            user,
            stuck,
            frozen: 0,
            offered: Vec::new(),
        };
        // What is made at first use is there.
        hall.change();
        assert_eq!(hall.master.client().get("/").status, 200);
        assert_eq!(Client::connect(others).get("/").status, 200);
        hall.until_idle();
        hall.before = Family::below(hall.master.pid());
        hall.offer();
        hall
    }

    fn until_idle(&self) {
        self.place.until("nobody is served", |status| {
            let pools = status["pools"].as_array().unwrap().iter();
            let mut workers = pools.flat_map(|pool| pool["workers"].as_array().unwrap());
            status["health"] == "healthy" && workers.all(|worker| worker["connections"] == 0)
        });
    }

    /// Sends many connections to a worker that stands still.
    fn offer(&mut self) {
        self.place.order(&json!({"command": "drain", "worker": "a-2", "hold": true}));
        let status = self.place.status();
        let worker = &status["pools"][0]["workers"][0];
        assert_eq!(worker["name"], "a-1");
        self.frozen = worker["pid"].as_u64().unwrap() as u32;
        process::freeze(self.frozen);
        self.offered = (0..OFFERED).map(|_| self.master.client()).collect();
        self.offered.iter_mut().for_each(|client| client.ask("/"));
        self.until_offered();
        self.place.order(&json!({"command": "ready", "worker": "a-2"}));
    }

    /// The present router has all of it.
    fn until_offered(&self) {
        self.place.until("everything is on its way to it", |status| {
            status["pools"][0]["workers"][0]["connections"] == OFFERED
        });
    }

    /// Has another router take over; the present one's process.
    fn order_change(&mut self) -> u32 {
        let router = self.master.router();
        self.user += 1;
        self.place.order_reload(&text(self.user, self.stuck));
        router
    }

    /// Another router takes over.
    fn change(&mut self) {
        let router = self.order_change();
        self.until_changed(router);
    }

    /// The router before this is gone, and another accepts.
    fn until_changed(&mut self, before: u32) {
        until("the router before is gone", || process::is_gone(before));
        self.place.until("another accepts", |status| {
            status["router"]["state"] == "accepting" && status["router"]["pid"] != before
        });
        self.master.router();
    }

    /// The router that is to take over from this one.
    fn next(&self, router: u32) -> u32 {
        let mut next = None;
        until("there is another router", || {
            let all = self.master.children().into_iter();
            next = all.filter(|pid| is_router(*pid) && *pid != router).max();
            next.is_some()
        });
        next.unwrap()
    }

    /// Another router takes over as far as to where it has everything, and the supervisor, which stands
    /// still, has not heard of it. The two routers.
    fn pass_on(&mut self) -> (u32, u32) {
        let old = self.master.router();
        let told = self.said(HANDS_OVER);
        process::freeze(old);
        self.order_change();
        until("it is asked to hand over", || self.said(HANDS_OVER) > told);
        (old, self.until_passed_on(old))
    }

    /// The router that stands still, and was asked to, passes everything on to the one that is named last.
    fn until_passed_on(&self, old: u32) -> u32 {
        // What it is told is sent by then.
        self.place.status();
        let next = self.next(old);
        let passed = self.said(PASSED_ON);
        process::freeze(self.master.pid());
        process::thaw(old);
        until("everything is passed on", || self.said(PASSED_ON) > passed);
        next
    }

    fn said(&self, message: &str) -> usize {
        self.place.said().matches(message).count()
    }

    /// The worker goes on, and answers everybody.
    fn goes_on(mut self) {
        self.answer();
        self.ends_well(0);
    }

    /// The worker goes on, and answers everybody. Their connections stay.
    fn answer(&mut self) {
        process::thaw(self.frozen);
        let frozen = self.frozen.to_string();
        self.are_answered(|answer| answer.field("pid") == frozen);
    }

    /// It is killed as it stands: the other one answers everybody.
    fn dies(self) {
        process::signal(self.frozen, Signal::KILL);
        self.ends_killed();
    }

    fn ends_killed(mut self) {
        self.are_answered(|answer| answer.field("worker") == "a-2");
        self.ends_well(OFFERED);
    }

    fn are_answered(&mut self, by: impl Fn(&Response) -> bool) {
        for client in &mut self.offered {
            let answer = client.answer();
            assert!(answer.status == 200 && by(&answer), "{}", answer.text());
        }
    }

    /// Everybody was answered once.
    fn ends_well(mut self, moved: usize) {
        self.offered.clear();
        let status = self.place.until("all is counted", |status| {
            status["pools"][0]["delivered"].as_u64() >= Some(OFFERED as u64 + 1)
        });
        assert_eq!(status["pools"][0]["moved"], moved);
        assert_eq!(status["pools"][0]["touched"], 0);
        let rejected = status["connections"]["rejected"].as_object().unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
        assert_eq!(self.master.client().get("/").status, 200);
        self.ledger.assert_nothing_served_twice();
        self.until_idle();
        self.before.assert_no_more_below(self.master.pid());
        self.master.workers();
        self.master.stop();
    }
}

#[test]
fn a_worker_that_goes_on_after_a_change_answers_what_it_was_sent_before() {
    let _turn = turn();
    let mut hall = Hall::start();
    hall.change();
    hall.until_offered();
    hall.goes_on();
}

#[test]
fn others_answer_what_a_worker_was_sent_before_a_change_that_dies_after_it() {
    let _turn = turn();
    let mut hall = Hall::start();
    hall.change();
    hall.until_offered();
    hall.dies();
}

#[test]
fn a_worker_that_goes_on_after_several_changes_answers_what_it_was_sent_before() {
    let _turn = turn();
    let mut hall = Hall::start();
    for _ in 0..3 {
        hall.change();
        hall.until_offered();
    }
    hall.goes_on();
}

#[test]
fn others_answer_what_a_worker_was_sent_before_several_changes_that_dies_after_them() {
    let _turn = turn();
    let mut hall = Hall::start();
    for _ in 0..3 {
        hall.change();
        hall.until_offered();
    }
    hall.dies();
}

/// It has the rest of its time, whichever router there is.
#[test]
fn a_worker_that_answers_nothing_ends_killed_after_a_change_and_others_answer() {
    let _turn = turn();
    let mut hall = Hall::start_with("3s");
    hall.change();
    hall.ends_killed();
}

/// While both kinds of clients come and go: none of them is lost, either.
#[test]
fn nobody_else_is_lost_in_changes_in_which_a_worker_stands_still() {
    let _turn = turn();
    for ends in [Hall::goes_on, Hall::dies] {
        let mut hall = Hall::start();
        let loads = [hall.master.address(), hall.others].map(|to| Load::start(to, 3));
        for _ in 0..3 {
            loads.iter().for_each(|load| load.flows(50));
            hall.change();
        }
        loads.iter().for_each(|load| load.flows(50));
        for load in loads {
            let tally = load.end();
            println!("{OFFERED} offered: all; others: {tally}");
            tally.assert_all_answered();
        }
        ends(hall);
    }
}

/// Another router has everything, and does not know that it is to act: nobody does.
fn between(then: impl FnOnce(&mut Hall), ends: impl FnOnce(Hall)) {
    let _turn = turn();
    let mut hall = Hall::start();
    let (old, _) = hall.pass_on();
    then(&mut hall);
    process::thaw(hall.master.pid());
    hall.until_changed(old);
    ends(hall);
}

#[test]
fn what_a_worker_answers_between_two_routers_the_next_one_hears() {
    between(Hall::answer, |hall| hall.ends_well(0));
}

/// The port of the dead says that it had taken them all.
#[test]
fn what_a_worker_answers_that_dies_between_two_routers_the_next_one_hears() {
    let answers_and_dies = |hall: &mut Hall| {
        hall.answer();
        process::signal(hall.frozen, Signal::KILL);
        until("it is dead", || is_over(hall.frozen));
    };
    between(answers_and_dies, |hall| hall.ends_well(0));
}

#[test]
fn others_answer_what_a_worker_was_sent_that_dies_between_two_routers() {
    let dies = |hall: &mut Hall| {
        process::signal(hall.frozen, Signal::KILL);
        until("it is dead", || is_over(hall.frozen));
    };
    between(dies, Hall::ends_killed);
}

/// Of two routers that are to take over one dies while it is told, and one when it has everything.
fn after_deaths(ends: impl FnOnce(Hall)) {
    let _turn = turn();
    let mut hall = Hall::start();
    let old = hall.master.router();
    process::freeze(old);
    let told = hall.said(HANDS_OVER);
    hall.order_change();
    until("it is asked to hand over", || hall.said(HANDS_OVER) > told);
    let next = hall.next(old);
    process::freeze(next);
    process::thaw(old);
    until("the one has been told of many", || {
        sockets::unread_by_others(old).into_iter().max() > Some(MANY)
    });
    process::freeze(old);
    let told = hall.said(HANDS_OVER);
    process::signal(next, Signal::KILL);
    until("another is asked", || hall.said(HANDS_OVER) > told);
    let next = hall.until_passed_on(old);
    process::signal(next, Signal::KILL);
    process::thaw(hall.master.pid());
    hall.until_changed(old);
    hall.until_offered();
    ends(hall);
}

#[test]
fn a_worker_that_goes_on_after_routers_died_in_a_change_answers_what_it_was_sent_before() {
    after_deaths(Hall::goes_on);
}

#[test]
fn others_answer_what_a_worker_was_sent_before_routers_died_in_a_change() {
    after_deaths(Hall::dies);
}
