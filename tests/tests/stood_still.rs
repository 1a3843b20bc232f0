//! Processes that stand still for a while and go on: a container that is paused, a machine that is moved,
//! a debugger. Time has passed, and nobody has failed: nobody is taken for dead, and nobody is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::{Client, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Longer than a router may leave questions unanswered (5 s), and than an offer may (`stuck-timeout`).
const LONG: Duration = Duration::from_secs(7);
/// Longer than an offer may be unanswered, and not than a router may.
const STUCK: Duration = Duration::from_secs(3);

const QUEUED: usize = 40;
const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n";

/// The program, with clients that wait in a queue, that have said half a head, and that are served.
struct Hall {
    place: Place,
    master: Master,
    workers: BTreeSet<u32>,
    full: Client,
    queued: Vec<Client>,
    halves: Vec<Client>,
}

impl Hall {
    fn start() -> Self {
        let place = Place::new();
        let user = if rustix::process::geteuid().is_root() { "user = 'root'" } else { "" };
        let pool = |name: &str, more: &str| {
            format!(
                "[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = 1\n{user}\n\
                 queue = {{ max = 1000, timeout = '60s' }}\n{more}\n"
            )
        };
        let text = format!(
            "[router]\ninspect-timeout = '60s'\nstuck-timeout = '1s'\n\
             [[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\n{}{}\
             [[route]]\npath = '/b'\npool = 'b'\n[[route]]\nname = 'rest'\npool = 'a'\n",
            pool("a", ""),
            pool("b", "max-connections = 1"),
        );
        let mut command = place.vestibule(WORKER);
        command.arg(place.config(&text));
        let mut master = Master::launch(command);
        place.until("every worker is ready", |status| status["health"] == "healthy");
        let mut full = master.client();
        assert_eq!(full.get("/b").field("worker"), "b-1");
        let connect = |_| master.client();
        let mut queued: Vec<_> = (0..QUEUED).map(connect).collect();
        queued.iter_mut().for_each(|client| client.ask("/b"));
        let mut halves: Vec<_> = (1..HEAD.len()).map(connect).collect();
        halves.iter_mut().enumerate().for_each(|(cut, client)| client.send(&HEAD[..=cut]));
        place.until("everybody waits", |status| status["pools"][1]["queued"] == QUEUED);
        let workers = master.workers();
        Self { place, master, workers, full, queued, halves }
    }

    /// These stand still for so long.
    fn stand_still(&self, who: &[u32], time: Duration) {
        let begin = Instant::now();
        who.iter().for_each(|pid| process::freeze(*pid));
        while begin.elapsed() < time {
            std::thread::sleep(Duration::from_millis(50));
        }
        who.iter().for_each(|pid| process::thaw(*pid));
        // Everything that was due is done: it is asked once a second.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            self.place.status();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everybody is there still, and is served.
    fn goes_on(self, router: u32) {
        let Self { place, mut master, workers, mut full, queued, halves } = self;
        assert_eq!(full.get("/b").field("worker"), "b-1");
        drop(full);
        for mut client in queued {
            assert_eq!(client.answer().field("worker"), "b-1");
        }
        for (cut, mut client) in halves.into_iter().enumerate() {
            client.send(&HEAD[cut + 1..]);
            assert_eq!(client.answer().field("worker"), "a-1");
        }
        assert_eq!((master.router(), master.workers()), (router, workers), "the same processes");
        let status = place.status();
        let rejected = status["connections"]["rejected"].as_object().unwrap();
        assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
        master.stop();
    }
}

#[test]
fn a_supervisor_that_stood_still_does_not_take_its_router_for_dead() {
    let mut hall = Hall::start();
    let router = hall.master.router();
    hall.stand_still(&[hall.master.pid()], LONG);
    hall.goes_on(router);
}

#[test]
fn a_program_all_of_which_stood_still_goes_on_as_it_was() {
    let mut hall = Hall::start();
    let router = hall.master.router();
    let mut all: Vec<u32> = hall.workers.iter().copied().collect();
    // Of this one nobody has heard yet.
    process::freeze(all[0]);
    let mut offered = hall.master.client();
    offered.ask("/");
    hall.place
        .until("it is on its way", |status| status["pools"][0]["workers"][0]["connections"] == 1);
    all.extend([router, hall.master.pid()]);
    hall.stand_still(&all, LONG);
    assert_eq!(offered.answer().field("worker"), "a-1");
    drop(offered);
    hall.goes_on(router);
}

#[test]
fn a_router_that_stood_still_hears_what_was_answered_before_it_takes_a_worker_for_stuck() {
    let mut hall = Hall::start();
    let router = hall.master.router();
    let worker = hall.place.status()["pools"][0]["workers"][0]["pid"].as_u64().unwrap() as u32;
    process::freeze(worker);
    let mut offered = hall.master.client();
    offered.ask("/");
    hall.place
        .until("it is on its way", |status| status["pools"][0]["workers"][0]["connections"] == 1);
    process::freeze(router);
    process::thaw(worker);
    assert_eq!(offered.answer().field("worker"), "a-1");
    hall.stand_still(&[router], STUCK);
    drop(offered);
    hall.goes_on(router);
}
