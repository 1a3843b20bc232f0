//! The running program where something is used up: the disk of its log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs::OpenOptions;

use vestibule_tests::load::Load;
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::turn;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// A log that cannot be written (`/dev/full` answers every write as a full disk does) costs the log.
#[test]
fn a_full_disk_for_the_log_holds_up_nobody() {
    let _turn = turn();
    let setting = Setting { worker: WORKER, ..Setting::default() };
    let mut scene = Scene::start_with(&setting, |command| {
        command.args(["--log", "trace"]);
        command.stderr(OpenOptions::new().write(true).open("/dev/full").unwrap());
    });
    let own = Load::start(scene.faulty, 2);
    let others = Load::start(scene.others, 2);
    own.flows(300);
    others.flows(300);
    scene.master.kill_router();
    scene.settle();
    others.next_phase();
    own.flows(300);
    others.flows(300);
    let (own, others) = (own.end(), others.end());
    println!("full disk: own {own}\nfull disk: others {others}");
    for tally in [own, others] {
        tally.assert_nothing_wrong();
        assert!(tally.failed() <= 2, "more than one crash of the router costs: {tally}");
    }
    assert_eq!(scene.place.said(), "", "it went to the full disk");
    scene.end();
}
