//! Workers that fail or break the rules in the running program, again and again, under load: nobody is
//! lost that semantics 19 to 24 keep, those of another pool are all answered, and when it is over the
//! program has no more processes, descriptors or memory than before. How long the others waited
//! before and meanwhile is printed (phases 0 and 1), never judged.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::process::Signal;
use vestibule_tests::DEADLINE;
use vestibule_tests::load::{Load, Outcome, Tally};
use vestibule_tests::process;
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");
const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-worker");

/// Times that a fault has to happen in a test.
const TIMES: u64 = 5;

/// Short enough to be waited for several times.
const STUCK: &str = "stuck-timeout = \"300ms\"";

/// The first of two workers does this, the second behaves. Returns what became of their clients.
fn happens_with(behaviour: &str, setting: Setting<'_>, times: u64) -> Tally {
    let _turn = turn();
    let mut scene = scene(behaviour, setting);
    let tally = happens_in(&mut scene, behaviour, times);
    scene.end();
    tally
}

fn scene(behaviour: &str, setting: Setting<'_>) -> Scene {
    let faulty = [HOSTILE, behaviour];
    let env = [setting.env, &[("TEST_HOSTILE", "1")]].concat();
    Scene::start(&Setting { worker: WORKER, faulty: &faulty, env: &env, ..setting })
}

fn happens_in(scene: &mut Scene, behaviour: &str, times: u64) -> Tally {
    let tally = scene.until_happened(behaviour, times);
    let pool = scene.pool();
    let lost = tally.failed() as u64;
    println!(
        "{behaviour}: touched {}, moved {}, faults {}",
        pool["touched"], pool["moved"], pool["faults"]
    );
    // Whoever was not answered had a worker that touched the connection, or took it and failed.
    let touched = pool["touched"].as_u64().unwrap();
    let rejected = tally.outcomes.keys().any(|outcome| matches!(outcome, Outcome::Rejected(_)));
    assert!(!rejected, "{tally}");
    if !takes_and_fails(behaviour) {
        assert!(lost <= touched, "{lost} lost, {touched} touched: {tally}");
    }
    tally
}

fn happens(behaviour: &str) -> Tally {
    happens_with(behaviour, Setting::default(), TIMES)
}

/// What it acknowledged, or took the client's word for, was its own to lose.
fn takes_and_fails(behaviour: &str) -> bool {
    matches!(behaviour, "settles-twice" | "lingers" | "refuses-and-reads-on")
}

#[test]
fn who_never_acknowledges_is_killed_and_loses_nobody() {
    let setting = Setting { router: STUCK, ..Setting::default() };
    happens_with("holds", setting, TIMES).assert_all_answered();
}

#[test]
fn who_acknowledges_what_it_was_not_sent_loses_nobody() {
    happens("acknowledges-more").assert_all_answered();
}

#[test]
fn who_settles_twice_loses_only_what_it_took() {
    happens("settles-twice").assert_nothing_wrong();
}

#[test]
fn who_refuses_everything_loses_nobody() {
    happens("refuses-full").assert_all_answered();
}

#[test]
fn who_refuses_and_reads_all_the_same_has_its_clients_closed() {
    happens("reads-and-refuses").assert_nothing_wrong();
}

#[test]
fn who_keeps_what_it_refused_and_reads_on_hurts_its_own_pool_only() {
    happens("refuses-and-reads-on").assert_nothing_wrong();
}

#[test]
fn who_clears_nonblocking_loses_nobody() {
    happens("refuses-blocking").assert_all_answered();
}

#[test]
fn who_makes_closes_linger_holds_up_nobody() {
    happens("lingers");
}

#[test]
fn who_sends_garbage_loses_nobody() {
    for behaviour in ["garbage", "short", "oversized", "unknown-kind"] {
        happens_with(behaviour, Setting::default(), 3).assert_all_answered();
    }
}

#[test]
fn who_shakes_half_a_hand_never_gets_a_client() {
    happens("half-a-hello").assert_all_answered();
    let setting = Setting { pool: "start-timeout = \"200ms\"", ..Setting::default() };
    happens_with("never-greets", setting, 3).assert_all_answered();
}

#[test]
fn who_floods_or_reads_nothing_loses_nobody() {
    for behaviour in ["floods", "deaf"] {
        let setting = Setting { router: STUCK, ..Setting::default() };
        happens_with(behaviour, setting, 4).assert_all_answered();
    }
}

#[test]
fn a_message_of_four_gigabytes_costs_nothing() {
    happens("four-gigabytes").assert_all_answered();
}

#[test]
fn who_closes_its_port_and_lives_loses_nobody() {
    happens("hangs-up").assert_all_answered();
}

#[test]
fn who_leaves_somebody_behind_with_its_port_has_those_clients_closed() {
    happens("leaves-a-child").assert_nothing_wrong();
}

#[test]
fn who_sends_unasked_sockets_loses_nobody() {
    happens("unasked-descriptor").assert_all_answered();
    happens("sends-lingering").assert_all_answered();
}

/// Clients that stay fill what the first worker may open: whoever comes then is sent to it, as it has
/// fewer than the other, and moves on.
#[test]
fn who_is_short_of_descriptors_loses_nobody() {
    let _turn = turn();
    let mut scene = scene("short-of-descriptors", Setting::default());
    let stay: Vec<TcpStream> = (0..2 * TIMES).map(|_| kept_alive(scene.faulty)).collect();
    happens_in(&mut scene, "short-of-descriptors", TIMES).assert_all_answered();
    drop(stay);
    scene.end();
}

/// A client that has its answer, and stays.
fn kept_alive(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "it is answered");
    stream
}

/// Something is done to a worker of the faulty pool, again and again. Returns what became of its
/// clients, and how many acknowledged connections that may have cost.
fn under_load(name: &str, mut deed: impl FnMut(&mut Scene, u32)) -> Tally {
    let _turn = turn();
    let setting = Setting { worker: WORKER, router: STUCK, ..Setting::default() };
    let mut scene = Scene::start(&setting);
    let others = Load::start(scene.others, 2);
    others.flows(300);
    others.next_phase();
    let own = Load::start(scene.faulty, 2);
    for round in 0..TIMES as usize {
        own.flows(20);
        let status = scene.pool();
        let worker = &status["workers"][round % 2];
        let Some(pid) = worker["pid"].as_u64() else { continue };
        deed(&mut scene, pid as u32);
    }
    own.flows(20);
    others.flows(300);
    let (own, others) = (own.end(), others.end());
    println!("{name}: others {others}\n{name}: its own {own}");
    others.assert_all_answered();
    own.assert_nothing_wrong();
    scene.settle();
    scene.end();
    own
}

/// A worker that is killed loses what it had acknowledged and not answered: at most what each of the
/// two clients had under way.
#[test]
fn workers_killed_under_load_lose_only_what_they_had_taken() {
    let own = under_load("SIGKILL", |scene, pid| {
        process::signal(pid, Signal::KILL);
        until("it is gone", || process::is_gone(pid));
        scene.settle();
    });
    assert!(own.failed() <= 2 * TIMES as usize, "{own}");
}

#[test]
fn workers_stopped_and_continued_under_load_lose_nobody() {
    let own = under_load("SIGSTOP, SIGCONT", |scene, pid| {
        process::freeze(pid);
        let others = Load::start(scene.others, 1);
        others.flows(20);
        others.end().assert_all_answered();
        process::thaw(pid);
    });
    own.assert_all_answered();
}

/// It may have been stopped with an acknowledged connection that it had not answered.
#[test]
fn workers_stopped_for_good_under_load_are_replaced() {
    let own = under_load("SIGSTOP", |scene, pid| {
        process::freeze(pid);
        until("it is replaced", || {
            // Whoever is stopped before it was offered anything is offered it by these.
            vestibule_tests::load::one_request(scene.faulty);
            process::is_gone(pid)
        });
        scene.settle();
    });
    assert!(own.failed() <= 2 * TIMES as usize, "{own}");
}
