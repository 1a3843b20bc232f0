//! The running program where something is used up: descriptors under way, memory, the disk of its log.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpStream;

use rustix::process::{Pid, Resource, Rlimit, prlimit, setrlimit};
use vestibule_tests::load::Load;
use vestibule_tests::master::vestibule;
use vestibule_tests::memory::raise_descriptor_limit;
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::{turn, until};
use vestibule_tests::{process, user};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-worker");

/// Descriptors that the program's processes may have, and their user under way.
const FEW: u64 = 512;

/// Clients that wait: what is kept of them is more than [`ROOM`].
const MANY: u64 = 3000;

/// Address space that a process without memory may still take.
const ROOM: u64 = 64 << 10;

/// Times that a worker gets no memory.
const TIMES: usize = 5;

/// Where router and workers are one user, one of them can use up what that user may have under way:
/// the router's sends are refused (`ETOOMANYREFS`) and tried again. That costs time, and nobody.
#[test]
fn descriptors_under_way_that_are_used_up_lose_nobody() {
    let name = "descriptors_under_way_that_are_used_up_lose_nobody";
    let program = vestibule(WORKER);
    if !user::as_nobody(name, &[WORKER, HOSTILE, program.to_str().unwrap()]) {
        return;
    }
    let _turn = turn();
    let few = Rlimit { current: Some(FEW), maximum: Some(FEW) };
    setrlimit(Resource::Nofile, few).unwrap();
    let worker = user::program(0, WORKER);
    let hostile = user::program(1, HOSTILE);
    let mut scene = Scene::start(&Setting {
        worker: &worker,
        faulty: &[&hostile, "hoards-descriptors"],
        env: &[("TEST_HOSTILE", "1")],
        ..Setting::default()
    });
    scene.until_happened("hoards descriptors", 5).assert_all_answered();
    scene.end();
}

/// A router that gets no memory ends, and another takes its place: that costs what it had not handed
/// over, as any crash does.
#[test]
fn a_router_without_memory_is_replaced() {
    let _turn = turn();
    raise_descriptor_limit(2 * MANY);
    let pool = "max-connections = 1\nqueue = { max = 10000, timeout = \"60s\" }";
    let mut scene = Scene::start(&Setting { worker: WORKER, pool, ..Setting::default() });
    let others = Load::start(scene.others, 2);
    others.flows(300);
    others.next_phase();
    // The next router is born with the limit; the supervisor is rid of it once that one is there. Who
    // may not set another user's limits (CAP_SYS_RESOURCE) can do it this way.
    let room = address_space(scene.master.router()) + ROOM;
    limit_address_space(scene.master.pid(), Some(room));
    scene.master.kill_router();
    limit_address_space(scene.master.pid(), None);
    until("the next router accepts", || scene.status()["router"]["state"] == "accepting");
    let before = scene.status()["router"]["restarts"].as_u64().unwrap();
    // They wait for workers that are taken, until there is no room for more of them.
    let waiting: Vec<TcpStream> =
        (0..MANY).map(|_| TcpStream::connect(scene.faulty).unwrap()).collect();
    let ended = |scene: &Scene| scene.status()["router"]["restarts"].as_u64() > Some(before);
    until("the router is replaced", || ended(&scene));
    others.flows(300);
    drop(waiting);
    let others = others.end();
    let status = scene.status();
    let restarts = status["router"]["restarts"].as_u64().unwrap();
    println!("router without memory: {}; others {others}", status["router"]);
    others.assert_nothing_wrong();
    assert_eq!(status["router"]["last-exit"]["signal"], 6, "aborted for want of memory");
    // Each of the two had one connection under way, at most, when a router ended.
    assert!(others.failed() as u64 <= 2 * restarts, "{others}");
    scene.settle();
    scene.end();
}

/// A worker that gets no memory ends, and another takes its place: that costs what it had
/// acknowledged, and nobody in another pool.
#[test]
fn a_worker_without_memory_is_replaced() {
    let _turn = turn();
    let mut scene = Scene::start(&Setting { worker: WORKER, ..Setting::default() });
    let others = Load::start(scene.others, 2);
    others.flows(300);
    others.next_phase();
    let own = Load::start(scene.faulty, 2);
    for _ in 0..TIMES {
        own.flows(20);
        let pids = workers(&scene);
        for pid in &pids {
            limit_address_space(*pid, Some(address_space(*pid) + ROOM));
        }
        // A head that never ends is kept until it does.
        let mut endless = TcpStream::connect(scene.faulty).unwrap();
        while endless.write_all(&[b'x'; 16 << 10]).is_ok() {}
        until("it is gone", || pids.iter().any(|pid| process::is_gone(*pid)));
        for pid in pids.into_iter().filter(|pid| !process::is_gone(*pid)) {
            limit_address_space(pid, None);
        }
        scene.settle();
    }
    own.flows(20);
    others.flows(300);
    let (own, others) = (own.end(), others.end());
    println!("worker without memory: others {others}\nworker without memory: its own {own}");
    others.assert_all_answered();
    own.assert_nothing_wrong();
    // Each of the two had one connection under way, at most, when a worker ended.
    assert!(own.failed() <= 2 * TIMES, "{own}");
    scene.end();
}

/// The processes of the faulty pool's workers.
fn workers(scene: &Scene) -> Vec<u32> {
    let pool = scene.pool();
    let workers = pool["workers"].as_array().unwrap().iter();
    workers.filter_map(|worker| u32::try_from(worker["pid"].as_u64()?).ok()).collect()
}

fn limit_address_space(pid: u32, current: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::As, Rlimit { current, maximum: None }).unwrap();
}

fn address_space(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

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
