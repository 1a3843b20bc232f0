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

use rustix::process::Signal;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::process;
use vestibule_tests::world::until;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Every other time the listener has another name, and the same socket.
fn text(user: u32) -> String {
    let listener = if user.is_multiple_of(2) { "web" } else { "front" };
    let pool = |name: &str| {
        format!(
            "[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'serve']\nworkers = 2\n\
             user = 'root'\n[[route]]\nname = '{name}'\npath = '/{name}'\npool = '{name}'\n"
        )
    };
    format!(
        "[router]\nuser = '{user}'\n[[listener]]\nname = '{listener}'\naddress = '127.0.0.1:0'\n{}{}",
        pool("a"),
        pool("b")
    )
}

/// The program with both pools and this user's router, every worker ready.
fn start(user: u32) -> (Place, Master) {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root's routers can become another user: run this as root"
    );
    let place = Place::new();
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(&text(user)));
    let master = Master::launch(command);
    place.until("every worker is ready", |status| status["health"] == "healthy");
    (place, master)
}

#[test]
fn connections_that_workers_hand_back_are_not_lost_between_two_routers() {
    const CHANGES: u32 = 10;
    let (place, master) = start(61_500);
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
            let said = place.reload(&text(61_500 + change));
            assert!(said.contains(": was ") && said.contains("router: another user"), "{said}");
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

#[test]
fn a_router_that_does_not_hand_over_is_replaced_all_the_same() {
    let (place, mut master) = start(61_600);
    let router = master.router();
    process::freeze(router);
    place.order_reload(&text(61_602));
    place.says("the router hands over");
    // They wait in the kernel's queue.
    let mut waiting: Vec<_> = (0..20).map(|_| master.client()).collect();
    for client in &mut waiting {
        client.ask("/a");
    }
    for client in &mut waiting {
        assert_eq!(client.answer().status, 200);
    }
    place.says("it does not answer");
    assert!(process::is_gone(router));
    assert_eq!(place.status()["router"]["epoch"], 2);
    drop(waiting);
    master.stop();
}

#[test]
fn a_router_that_dies_before_it_takes_over_costs_nothing_that_comes_after() {
    let (place, mut master) = start(61_600);
    let mut kept = master.client();
    assert_eq!(kept.get("/a").status, 200);
    let router = master.router();
    process::freeze(router);
    place.order_reload(&text(61_602));
    place.says("the router hands over");
    process::signal(master.next_router(router), Signal::KILL);
    place.says("the next router does not take over");
    process::thaw(router);
    // Whichever of the two it is in the end.
    let mut client = master.client();
    assert_eq!(client.get("/b").status, 200);
    assert_eq!(kept.get("/a").status, 200, "a worker has it, and no router");
    place.until("a router accepts", |status| status["health"] == "healthy");
    place.reload(&text(61_604));
    place.until("another takes over", |status| {
        status["health"] == "healthy" && status["router"]["epoch"].as_u64() >= Some(3)
    });
    assert_eq!(master.client().get("/b").status, 200);
    drop((client, kept));
    master.stop();
}
