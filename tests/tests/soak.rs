//! Many connections one after another leave memory and descriptors as they were. By hand, a million:
//! `SOAK_CONNECTIONS=1000000 cargo test --release -p vestibule-tests --test soak -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::time::Duration;

use vestibule_tests::family::Family;
use vestibule_tests::load::Load;
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::turn;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Connections unless `SOAK_CONNECTIONS` says how many.
const CONNECTIONS: usize = 20_000;

/// Connections before anything is counted: buffers have their size by then.
const FIRST: usize = 2_000;

/// What an allocator may take more: less than one byte a connection when it is a million of them.
const SLACK: u64 = 512 << 10;

#[test]
fn many_connections_leave_memory_and_descriptors_flat() {
    let _turn = turn();
    let wanted = std::env::var("SOAK_CONNECTIONS").map_or(CONNECTIONS, |n| n.parse().unwrap());
    // Its own log would be the only thing that grows.
    let setting = Setting { worker: WORKER, ..Setting::default() };
    let mut scene = Scene::start_with(&setting, |command| {
        command.args(["--log", "warn"]);
    });
    some(&scene, FIRST);
    let before = Family::below(scene.master.pid());
    some(&scene, wanted);
    before.assert_no_more_below_within(scene.master.pid(), SLACK);
    println!("{wanted} connections");
    scene.ledger.assert_nothing_served_twice();
    scene.master.router();
    scene.master.workers();
    scene.master.stop();
}

fn some(scene: &Scene, count: usize) {
    let load = Load::start_with(scene.faulty, 4, Duration::ZERO);
    while load.answered() < count {
        load.flows(1);
    }
    load.end().assert_all_answered();
}
