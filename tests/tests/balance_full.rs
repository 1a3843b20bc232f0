//! What `when-full` says where the worker of a client's key has no room, for every balance with a key:
//! who waits comes to that very worker, and who does not comes to another, and to that one later.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use rustix::process::Signal;
use serde_json::json;
use vestibule_tests::Client;
use vestibule_tests::balancing::{Hall, Visitor, WORDS, Word};
use vestibule_tests::process::{self, Frozen};
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Longer than any test: whoever waits, waits for something else.
const QUEUE: &str = "queue = { max = 9, timeout = \"600s\" }\n";

/// A pool, and clients of two keys.
struct Scene {
    hall: Hall,
    word: Word,
    waits: bool,
    visitors: usize,
    /// Whom the first key leads to.
    worker: String,
}

impl Scene {
    /// One for each balance with a key and each word of `when-full`, with these lines for its pool. The
    /// case sees to it that `worker` has no room.
    fn each(pool: &str, case: impl Fn(&mut Self)) {
        let _turn = turn();
        for word in WORDS {
            let lines = |when_full| {
                let balance = word.balance;
                let balance = format!("balance = \"{balance}\"\nwhen-full = \"{when_full}\"\n");
                format!("{balance}{QUEUE}{pool}")
            };
            let hall = Hall::new(WORKER, "", &lines("wait"));
            let worker = word.order(0)[0].clone();
            let mut scene = Self { hall, word, waits: true, visitors: 0, worker };
            case(&mut scene);
            scene.hall.until_empty();
            // In place.
            scene.hall.reload(WORKER, "", &lines("spill"));
            scene.waits = false;
            case(&mut scene);
            scene.hall.stop();
        }
    }

    /// Another client of the first key, or of one that leads elsewhere.
    fn next(&mut self, first: bool) -> Visitor {
        self.visitors += 1;
        let key = if first { 0 } else { self.word.other_key() };
        self.word.visitor(key, self.visitors)
    }

    /// A client of the first key that is answered at once: by whom.
    fn visit(&mut self) -> (Client, String) {
        let visitor = self.next(true);
        self.hall.visit(&visitor)
    }

    fn come(&mut self) -> Client {
        let visitor = self.next(true);
        self.hall.come(&visitor)
    }

    /// A client of the first key, answered by that one's worker.
    fn visit_its_own(&mut self) -> Client {
        let (client, worker) = self.visit();
        assert_eq!(worker, self.worker, "{}", self.word.balance);
        client
    }

    /// A client of the first key, answered at once by the one that is next, or after a cookie's by another.
    fn visit_another(&mut self) -> Client {
        let (client, worker) = self.visit();
        self.assert_another(&worker);
        client
    }

    fn assert_another(&self, worker: &str) {
        match self.word.order(0).get(1) {
            Some(next) => assert_eq!(worker, next, "{}", self.word.balance),
            None => assert_ne!(worker, self.worker, "{}", self.word.balance),
        }
    }

    /// With `wait`, a client of the first key that waits although clients of other keys do not; with
    /// `spill` one that was answered by another.
    fn wait_or_spill(&mut self) -> Client {
        if !self.waits {
            return self.visit_another();
        }
        let waits = self.come();
        self.hall.until_queued(1);
        let visitor = self.next(false);
        let expected = self.word.order(self.word.other_key())[0].clone();
        assert_eq!(self.hall.visit(&visitor).1, expected, "{}", self.word.balance);
        self.hall.until_queued(1);
        waits
    }

    /// With `wait`, it is answered now, by its own worker: its process.
    fn assert_answered(&self, client: &mut Client) -> Option<String> {
        if !self.waits {
            return None;
        }
        let answer = client.answer();
        assert_eq!(answer.field("worker"), self.worker, "{}", self.word.balance);
        self.hall.until_queued(0);
        Some(answer.field("pid"))
    }

    fn pid(&self) -> u32 {
        let pid = self.hall.status(&self.worker)["pid"].as_u64().unwrap();
        u32::try_from(pid).unwrap()
    }

    fn until_ready(&self) {
        self.hall.until("it is ready", &self.worker, |worker| worker["state"] == "ready");
    }

    fn until_connections(&self, count: usize) {
        let has = |worker: &serde_json::Value| worker["connections"] == count;
        self.hall.until("it has so many", &self.worker, has);
    }
}

#[test]
fn a_worker_that_has_all_it_may_have() {
    Scene::each("max-connections = 1\n", |scene| {
        let has = scene.visit_its_own();
        let mut client = scene.wait_or_spill();
        drop(has);
        if !scene.waits {
            scene.until_connections(0);
        }
        scene.assert_answered(&mut client);
        if scene.waits {
            drop(client);
            scene.until_connections(0);
        }
        // Who was sent elsewhere is still there.
        scene.visit_its_own();
    });
}

#[test]
fn a_worker_that_died_and_is_not_ready_again() {
    Scene::each("", |scene| {
        drop(scene.visit_its_own());
        let died = scene.pid();
        scene.hall.keep_from_starting(&scene.worker, true);
        process::signal(died, Signal::KILL);
        scene.hall.until("another one starts", &scene.worker, |worker| {
            worker["state"] == "starting" && worker["pid"] != died
        });
        let mut client = scene.wait_or_spill();
        scene.hall.keep_from_starting(&scene.worker, false);
        let process = scene.assert_answered(&mut client);
        scene.until_ready();
        let next = scene.pid().to_string();
        assert!(process.is_none_or(|process| process == next));
        scene.visit_its_own();
    });
}

#[test]
fn a_worker_that_stands_still_with_as_much_as_it_may_leave_unanswered() {
    Scene::each("handoff-window = 1\n", |scene| {
        let frozen = Frozen::new(scene.pid());
        let mut first = scene.come();
        scene.until_connections(1);
        let mut client = scene.wait_or_spill();
        drop(frozen);
        assert_eq!(first.answer().field("worker"), scene.worker);
        scene.assert_answered(&mut client);
        drop(first);
        let (master, all) = (&scene.hall.master, "nothing is left unanswered");
        until(all, || {
            let (accepted, acknowledged) = master.accepted_and_acknowledged();
            accepted == acknowledged
        });
        scene.visit_its_own();
    });
}

/// Nobody knows how long it is held for: its clients do not wait for that, those that wait for it already
/// neither.
#[test]
fn a_worker_that_is_held_counts_as_gone_until_it_is_ready() {
    Scene::each("max-connections = 1\n", |scene| {
        let has = scene.visit_its_own();
        let mut client = scene.wait_or_spill();
        let held = json!({"command": "drain", "worker": scene.worker, "hold": true});
        scene.hall.place.order(&held);
        if scene.waits {
            let worker = client.answer().field("worker");
            scene.assert_another(&worker);
        }
        drop((has, client));
        scene.hall.until_empty();
        drop(scene.visit_another());
        scene.hall.place.order(&json!({"command": "ready", "worker": scene.worker}));
        scene.until_ready();
        scene.hall.until_empty();
        scene.visit_its_own();
    });
}
