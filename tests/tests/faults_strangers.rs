//! Things that nobody asked a worker for and that do not go away when they are closed: a file whose
//! close waits for somebody, sockets whose close waits for a peer that does not read.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::net::TcpListener;

use rustix::process::Signal;
use vestibule_tests::fuse::Sleepy;
use vestibule_tests::load::{Load, Outcome};
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::{turn, until};
use vestibule_tests::{census, process, sockets};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");
/// How many killed routers that cannot end there may be before another is started.
const MOST: usize = 8;

const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-worker");

fn scene(behaviour: &str, env: &[(&str, &str)]) -> Scene {
    set("", behaviour, env, Scene::start)
}

fn with_file(sleepy: &Sleepy, behaviour: &str) -> Scene {
    scene(behaviour, &[("TEST_FILE", sleepy.file().to_str().unwrap())])
}

fn set<T>(
    router: &str,
    behaviour: &str,
    env: &[(&str, &str)],
    then: impl FnOnce(&Setting<'_>) -> T,
) -> T {
    let env = [env, &[("TEST_HOSTILE", "1")]].concat();
    let faulty = [HOSTILE, behaviour];
    then(&Setting { worker: WORKER, faulty: &faulty, env: &env, router, ..Setting::default() })
}

/// What this process has.
fn own() -> (BTreeMap<u32, String>, BTreeMap<u32, String>) {
    (census::descriptors(), census::children())
}

/// The case before may have been closing something still.
fn nothing_more_than(
    (descriptors, children): &(BTreeMap<u32, String>, BTreeMap<u32, String>),
) -> bool {
    let (now, running) = own();
    now.iter().all(|(at, what)| descriptors.get(at) == Some(what))
        && running.keys().all(|pid| children.contains_key(pid))
}

/// A file of a FUSE mount; where the system gives none, the closest thing to it: sockets whose close
/// waits for ten minutes.
#[test]
fn files_whose_close_sleeps_hold_up_nobody() {
    let _turn = turn();
    let Some(sleepy) = Sleepy::wanted() else {
        let mut scene = scene("sends-lingering", &[]);
        scene.until_happened("lingering sockets", 6).assert_all_answered();
        return scene.end();
    };
    let mut scene = with_file(&sleepy, "sends-files");
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
    let Some(sleepy) = Sleepy::wanted() else { return };
    let before = own();
    let mut scene = with_file(&sleepy, "sends-files");
    scene.until_happened("files that sleep", 3).assert_all_answered();
    assert!(sleepy.flushes() > 0);
    ends_asleep(scene, &sleepy);
    until("nothing is left", || nothing_more_than(&before));
}

/// So does a worker that has such a file open itself.
#[test]
fn a_program_whose_worker_sleeps_in_its_end_ends_all_the_same() {
    let _turn = turn();
    let Some(sleepy) = Sleepy::wanted() else { return };
    let before = own();
    let mut scene = with_file(&sleepy, "holds-file");
    scene.until_happened("an end that sleeps", 1);
    until("it sleeps", || sleepy.flushes() > 0);
    ends_asleep(scene, &sleepy);
    until("nothing is left", || nothing_more_than(&before));
}

/// Ends a program of which something sleeps, and wakes it when the program has ended.
fn ends_asleep(mut scene: Scene, sleepy: &Sleepy) {
    let master = &mut scene.master;
    master.router();
    master.workers();
    master.signal(Signal::TERM);
    assert!(master.wait().success());
    sleepy.wake();
    master.assert_all_gone();
}

/// A router that is killed while one of its threads sleeps in a close does not come to an end. The next
/// one does not wait for that.
#[test]
fn a_router_that_is_killed_in_its_sleep_is_followed_by_another() {
    let _turn = turn();
    let Some(sleepy) = Sleepy::wanted() else { return };
    let mut scene = with_file(&sleepy, "sends-files");
    let mut dead = Vec::new();
    for _ in 0..MOST {
        dead.push(is_killed_in_its_sleep(&mut scene, &sleepy));
        is_followed(&mut scene, &dead);
    }
    // There is an end to that: they have what they had open, and their memory.
    let last = is_killed_in_its_sleep(&mut scene, &sleepy);
    dead.push(last);
    scene.place.says("so many killed routers cannot end");
    let status = scene.status();
    assert_eq!(
        (&status["router"]["state"], &status["router"]["pid"]),
        (&"silent".into(), &last.into())
    );
    assert_eq!(status["router"]["unburied"], MOST, "{status}");
    all_are_buried(scene, &sleepy, &dead);
}

fn is_killed_in_its_sleep(scene: &mut Scene, sleepy: &Sleepy) -> u32 {
    let router = until_it_sleeps(scene, sleepy);
    process::signal(router, Signal::KILL);
    router
}

/// Nor for one that stands still, and is killed for it.
#[test]
fn a_router_that_stands_still_in_its_sleep_is_followed_by_another() {
    let _turn = turn();
    let Some(sleepy) = Sleepy::wanted() else { return };
    let mut scene = with_file(&sleepy, "sends-files");
    let router = until_it_sleeps(&mut scene, &sleepy);
    process::freeze(router);
    is_followed(&mut scene, &[router]);
    all_are_buried(scene, &sleepy, &[router]);
}

/// One that has handed over, and should end by itself.
#[test]
fn a_router_that_hands_over_in_its_sleep_is_reaped_when_it_wakes() {
    let _turn = turn();
    let Some(sleepy) = Sleepy::wanted() else { return };
    let mut scene = with_file(&sleepy, "sends-files");
    let router = until_it_sleeps(&mut scene, &sleepy);
    let file = sleepy.file();
    let env = [("TEST_FILE", file.to_str().unwrap())];
    set("user = 61700", "sends-files", &env, |setting| scene.reconfigure(setting));
    let others = Load::start(scene.others, 2);
    assert_eq!(scene.command(&["reload"]).status.code(), Some(0));
    until("it is left", || scene.status()["router"]["unburied"] == 1);
    others.flows(50);
    others.end().assert_all_answered();
    assert!(!process::is_gone(router));
    all_are_buried(scene, &sleepy, &[router]);
}

/// Until a thread of the present router sleeps in a close.
fn until_it_sleeps(scene: &mut Scene, sleepy: &Sleepy) -> u32 {
    let router = scene.master.router();
    let load = Load::start(scene.faulty, 2);
    until("the router sleeps in a close", || sleepy.holds(router));
    load.end().assert_all_answered();
    router
}

/// The others are served, though those that were killed are all still there.
fn is_followed(scene: &mut Scene, dead: &[u32]) {
    // They wait in the kernel's queue until there is a router.
    let load = Load::start(scene.others, 2);
    load.flows(50);
    load.end().assert_all_answered();
    assert!(dead.iter().all(|pid| !process::is_gone(*pid)), "none of {dead:?} slept");
    assert!(!dead.contains(&scene.master.router()));
    let status = scene.status();
    assert_eq!(status["router"]["state"], "accepting", "{status}");
    assert_eq!(status["router"]["unburied"], dead.len(), "{status}");
    assert_eq!(status["router"]["last-exit"]["signal"], 9, "{status}");
    assert_eq!(status["health"], "degraded", "{status}");
}

/// They end when they are let, and nothing of them is left.
fn all_are_buried(scene: Scene, sleepy: &Sleepy, dead: &[u32]) {
    sleepy.wake();
    until("they are reaped", || dead.iter().all(|pid| process::is_gone(*pid)));
    until("it knows, and has another", || {
        let router = &scene.status()["router"];
        router["unburied"] == 0 && router["state"] == "accepting"
    });
    scene.end();
}

/// A worker that has such a file open does not come to an end, either. Its slot goes on, and no more than
/// two of them are left there.
#[test]
fn of_workers_that_sleep_in_their_end_no_more_than_two_are_left_in_a_slot() {
    let _turn = turn();
    let Some(sleepy) = Sleepy::wanted() else { return };
    let mut scene = with_file(&sleepy, "holds-file");
    scene.until_happened("ends that sleep", 2);
    let others = Load::start(scene.others, 2);
    // Comes as long as it takes: its pool's other worker answers.
    let own = Load::start(scene.faulty, 2);
    until("the slot waits", || {
        let slot = &scene.pool()["workers"][0];
        slot["state"] == "backoff" && slot["last-exit"]["signal"] == 9 && sleepy.flushes() == 2
    });
    others.flows(300);
    own.flows(100);
    own.end().assert_nothing_wrong();
    others.end().assert_all_answered();
    assert_eq!(sleepy.flushes(), 2, "a third one was started, and was killed");
    let sleeping = || scene.master.children().into_iter().filter(|pid| sleepy.holds(*pid)).count();
    assert_eq!(sleeping(), 2);
    let restarts = || scene.pool()["workers"][0]["restarts"].as_u64();
    let before = restarts();
    sleepy.wake();
    until("it goes on", || restarts() > before && sleeping() == 0);
    scene.end();
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
    // Those that were left linger no more.
    drop(peer);
    scene.assert_as_before();
    assert_eq!(scene.command(&["stop"]).status.code(), Some(0));
    assert!(scene.master.wait().success());
    scene.master.assert_all_gone();
}
