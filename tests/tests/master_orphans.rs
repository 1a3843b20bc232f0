//! What workers leave behind is given to the supervisor, as PID 1 and as subreaper: it reaps that,
//! and never what somebody waits for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use rustix::process::Signal;
use vestibule_tests::master::{Master, is_over, vestibule};
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Gate, process, user};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Times that a worker is killed while orphans end.
const KILLS: usize = 6;

/// Orphans that each worker leaves behind, and waits: in sessions of their own, until the gate opens.
const LASTING: usize = 3;

/// Starts `vestibule run` behind these words. Each of its two workers leaves orphans behind before it
/// is one: some that wait at the gate, and many that end at once.
fn start(place: &Place, gate: &Gate, worker: &str, behind: &[&str]) -> Master {
    let program = vestibule(worker);
    let mut command: Command = match behind {
        [] => place.command(&program),
        [first, rest @ ..] => {
            let mut command = place.command(*first);
            command.args(rest).arg(&program);
            command
        }
    };
    command.args(["run", "--listen", "127.0.0.1:0", "--workers", "2"]);
    if rustix::process::geteuid().is_root() {
        command.args(["--user", "root"]);
    }
    let script = format!(
        "for n in $(seq {LASTING}); do (setsid sh -c 'read line <\"$0\"' {0} &); done; \
         for n in $(seq 50); do (true &); done; exec \"$0\" recv",
        gate.path().display(),
    );
    command.args(["--", "sh", "-c", &script, worker]);
    if behind.is_empty() { Master::launch(command) } else { Master::launch_below(command) }
}

fn command_line(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// The orphans that wait at the gate, once that is all that is left below the supervisor besides its
/// router and its two workers.
fn waiting(master: &Master) -> Option<Vec<u32>> {
    let (orphans, others): (Vec<u32>, Vec<u32>) = master
        .children()
        .into_iter()
        .partition(|pid| command_line(*pid).starts_with(b"sh\0-c\0read line <\"$0\"\0"));
    let workers = others.iter().filter(|pid| command_line(**pid).ends_with(b"test-worker\0recv\0"));
    (workers.count() == 2 && others.len() == 3).then_some(orphans)
}

/// Lets everybody through who waits at the gate now.
fn open(gate: &Gate) {
    // Without a reader there is an error, and nobody to be let through.
    let _ =
        std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(gate.path());
}

fn reaps_orphans_and_loses_no_child(worker: &str, behind: &[&str]) {
    let place = Place::new();
    let gate = Gate::new();
    let mut master = start(&place, &gate, worker, behind);
    assert_eq!(master.client().get("/").status, 200);
    for kill in 1..=KILLS {
        let old = master.client().get("/").field("pid");
        let pid = host_pid(&master, &old);
        process::signal(pid, Signal::KILL);
        // Whoever waits for it is told how it ended, and starts another one. Nothing is asked before:
        // what is offered to the dead stays with the orphans, which hold a worker's port.
        until("the end of the worker is noticed", || {
            let ended = place.told("worker ended");
            ended.iter().filter(|end| end["fields"]["exit"] == "signal 9").count() == kill
        });
        until("another one runs", || place.told("worker started").len() == 2 + kill);
    }
    assert_eq!(master.client().get("/").status, 200);
    // Those of the two that run; of the killed ones as many as had left in time.
    let mut orphans = Vec::new();
    until("orphans wait", || {
        orphans = waiting(&master).unwrap_or_default();
        orphans.len() >= 2 * LASTING
    });
    until("orphans are reaped", || {
        open(&gate);
        orphans.iter().all(|orphan| process::is_gone(*orphan))
    });
    until("nobody waits to be reaped", || master.children().iter().all(|child| !is_over(*child)));
    let router = master.router();
    assert!(!process::is_gone(router), "the router is nobody's orphan");
    assert_eq!(place.told("the router ended").len(), 0);
    master.stop();
}

/// What this process calls the worker that calls itself so.
fn host_pid(master: &Master, own: &str) -> u32 {
    let mut found = None;
    until("the worker is found", || {
        found = master.children().into_iter().find(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let names = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            names.and_then(|names| names.split_whitespace().last()) == Some(own)
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn as_pid_1_it_reaps_orphans_and_loses_no_child() {
    let mut behind = vec!["unshare", "--pid", "--fork"];
    if !rustix::process::geteuid().is_root() {
        behind.extend(["--user", "--map-current-user"]);
    }
    reaps_orphans_and_loses_no_child(WORKER, &behind);
}

#[test]
fn as_subreaper_it_reaps_orphans_and_loses_no_child() {
    reaps_orphans_and_loses_no_child(WORKER, &[]);
}

#[test]
fn as_an_ordinary_user_it_reaps_orphans_and_loses_no_child() {
    let vestibule = vestibule(WORKER);
    let programs = [WORKER, vestibule.to_str().unwrap()];
    if user::as_nobody("as_an_ordinary_user_it_reaps_orphans_and_loses_no_child", &programs) {
        reaps_orphans_and_loses_no_child(&user::program(0, WORKER), &[]);
    }
}
