//! One router after the other takes over while connections go to and fro between workers: whoever is
//! handed back, or waits, meanwhile is answered all the same.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

fn text(user: u32) -> String {
    let pool = |name: &str| {
        format!(
            "[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'serve']\nworkers = 2\n\
             user = 'root'\n[[route]]\nname = '{name}'\npath = '/{name}'\npool = '{name}'\n"
        )
    };
    format!(
        "[router]\nuser = '{user}'\n[[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\n{}{}",
        pool("a"),
        pool("b")
    )
}

#[test]
fn connections_that_workers_hand_back_are_not_lost_between_two_routers() {
    const CHANGES: u32 = 10;
    assert!(
        rustix::process::geteuid().is_root(),
        "only root's routers can become another user: run this as root"
    );
    let place = Place::new();
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(&text(61_500)));
    let master = Master::launch(command);
    place.until("every worker is ready", |status| status["health"] == "healthy");
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // One connection, whose every request is another pool's.
                let mut client = master.client();
                while !over.load(Ordering::Relaxed) {
                    for path in ["/a", "/b"] {
                        let answer = client.get(path);
                        assert_eq!(answer.status, 200);
                        assert_eq!(answer.field("worker")[..1], path[1..]);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for change in 1..=CHANGES {
            let before = answered.load(Ordering::Relaxed);
            until("clients are served", || answered.load(Ordering::Relaxed) > before + 50);
            place.reload(&text(61_500 + change));
            place.until("the next router accepts", |status| {
                status["router"]["epoch"] == change + 1 && status["health"] == "healthy"
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    let back = master.handed_back(0) + master.handed_back(1);
    println!(
        "{} requests on 8 connections, handed back {back} times, over {CHANGES} changes of the router",
        answered.load(Ordering::Relaxed)
    );
    let status = place.status();
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
    master.stop();
}
