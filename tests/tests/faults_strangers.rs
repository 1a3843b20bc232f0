//! Things that nobody asked a worker for and that do not go away when they are closed: a file whose
//! close waits for somebody, sockets whose close waits for a peer that does not read.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::net::TcpListener;

use rustix::process::Signal;
use vestibule_tests::fuse::Sleepy;
use vestibule_tests::load::{Load, Outcome};
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::{turn, until};
use vestibule_tests::{process, sockets};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-worker");

fn scene(behaviour: &str, env: &[(&str, &str)]) -> Scene {
    let env = [env, &[("TEST_HOSTILE", "1")]].concat();
    let faulty = [HOSTILE, behaviour];
    Scene::start(&Setting { worker: WORKER, faulty: &faulty, env: &env, ..Setting::default() })
}

/// A file of a FUSE mount; where the system gives none, the closest thing to it: sockets whose close
/// waits for ten minutes.
#[test]
fn files_whose_close_sleeps_hold_up_nobody() {
    let _turn = turn();
    let sleepy = match Sleepy::mount() {
        Ok(sleepy) => sleepy,
        Err(error) => {
            println!("no FUSE here ({error}): with lingering sockets instead");
            let mut scene = scene("sends-lingering", &[]);
            scene.until_happened("lingering sockets", 6).assert_all_answered();
            return scene.end();
        }
    };
    let file = sleepy.file();
    let mut scene = scene("sends-files", &[("TEST_FILE", file.to_str().unwrap())]);
    scene.until_happened("files that sleep", 6).assert_all_answered();
    let flushes = sleepy.flushes();
    assert!(flushes > 0, "no close ever waited");
    println!("{flushes} closes have waited so far");
    // While closes still sleep, it goes on.
    scene.until_happened("files that sleep, again", 12).assert_all_answered();
    sleepy.wake();
    scene.end();
}

/// The router cannot end while one of its threads sleeps in a close. It ends for everybody else.
#[test]
fn a_program_whose_router_sleeps_in_a_close_ends_all_the_same() {
    let _turn = turn();
    let Ok(sleepy) = Sleepy::mount() else {
        println!("no FUSE here: a close that lingers does not keep a process from its end");
        return;
    };
    let file = sleepy.file();
    let mut scene = scene("sends-files", &[("TEST_FILE", file.to_str().unwrap())]);
    scene.until_happened("files that sleep", 3).assert_all_answered();
    assert!(sleepy.flushes() > 0);
    let master = &mut scene.master;
    master.router();
    master.workers();
    master.signal(Signal::TERM);
    assert!(master.wait().success());
    sleepy.wake();
    master.assert_all_gone();
}

/// A worker that leaves lingering sockets in its port while no router reads it: whoever closes the
/// port last closes them, and that is the supervisor.
#[test]
fn lingering_sockets_in_a_dead_workers_port_do_not_stop_the_supervisor() {
    let _turn = turn();
    // Accepts nothing and reads nothing.
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = peer.local_addr().unwrap().to_string();
    let mut scene = scene("leaves-lingering", &[("TEST_PEER", &address)]);
    let router = scene.master.router();
    let pid = scene.pool()["workers"][0]["pid"].as_u64().unwrap() as u32;
    let others = Load::start(scene.others, 2);
    others.flows(300);
    others.next_phase();
    let load = Load::start(scene.faulty, 2);
    // It dies with its port full of them, and so does the router that would have read them.
    until("the worker has left them", || {
        process::status(pid).is_none_or(|status| status.state == 'Z') || process::is_gone(pid)
    });
    // What the router has now is what it has accepted and nobody has acknowledged (semantics, 21): those
    // of the dead worker wait for another, of the others at most one each is on its way. Whoever it has
    // not accepted waits in the kernel, whose queue is the supervisor's, too.
    process::freeze(router);
    let held = sockets::peers(router);
    process::signal(router, Signal::KILL);
    scene.settle();
    load.flows(50);
    others.flows(300);
    let (own, others) = (load.end(), others.end());
    println!("lingering sockets in a dead worker's port: own {own}\nothers {others}");
    for tally in [own, others] {
        tally.assert_nothing_wrong();
        let rejected = tally.outcomes.keys().any(|outcome| matches!(outcome, Outcome::Rejected(_)));
        assert!(!rejected, "{tally}");
        let kept = tally.lost.iter().find(|client| !held.contains(client));
        assert_eq!(kept, None, "it was not the router's when that was killed: {held:?}");
    }
    assert_eq!(scene.command(&["stop"]).status.code(), Some(0));
    assert!(scene.master.wait().success());
}
