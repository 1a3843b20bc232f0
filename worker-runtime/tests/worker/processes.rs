//! What needs a process of its own: the environment, descriptor limits, panics, privileges. A test
//! starts this binary again with the worker's end of a port as its standard input and the name of a
//! part to play; the part is `play`, below.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vestibule_protocol::sys;
use vestibule_worker::privileges::{PrivilegeError, become_user};
use vestibule_worker::{Data, Event, RefusalReason, WorkerScope};

use crate::support::{Router, Said, connection};

const PART: &str = "VESTIBULE_TEST_PART";
const DRAIN: Duration = Duration::from_secs(60);
/// Threads that exist before the privileges are dropped, besides the test harness's.
const THREADS: usize = 4;

/// Another process that plays a part.
struct Player(Child);

impl Player {
    fn start(part: &str) -> (Self, Router) {
        let (ours, theirs) = sys::seqpacket_pair().unwrap();
        (Self::with(part, Stdio::from(theirs), Some("0")), Router::over(ours))
    }

    fn with(part: &str, input: Stdio, descriptor: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "processes::play", "--nocapture", "--test-threads=1"])
            .env_remove("VESTIBULE_FD")
            .env(PART, part)
            .env("VESTIBULE_WORKER", "app-3")
            .env("VESTIBULE_POOL", "app")
            .stdin(input)
            .stdout(Stdio::null());
        if let Some(descriptor) = descriptor {
            command.env("VESTIBULE_FD", descriptor);
        }
        Self(command.spawn().unwrap())
    }

    /// Waits for its end, which says whether its own assertions held.
    fn assert_success(mut self) {
        assert!(self.0.wait().unwrap().success(), "see the other process's output");
    }
}

/// Plays the part that the environment names; without one there is nothing to play.
#[test]
fn play() {
    let Ok(part) = std::env::var(PART) else { return };
    match part.as_str() {
        "not-set" => refused_scope("VESTIBULE_FD is not set"),
        "not-a-number" => refused_scope("\"seven\", not the number of a descriptor"),
        "not-open" => refused_scope("descriptor 999, which is not open"),
        "not-a-port" => refused_scope("no Unix seqpacket socket"),
        "twice" => twice(),
        "starved" => block_on(starved()),
        "panic" => block_on(panicking()),
        "privileges" => privileges(),
        other => panic!("no part {other}"),
    }
}

fn block_on(part: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(part);
}

fn refused_scope(expected: &str) {
    let error = WorkerScope::from_env().unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_program_that_nobody_started_says_so() {
    Player::with("not-set", Stdio::null(), None).assert_success();
}

#[test]
fn a_variable_that_names_no_port_is_an_error_that_says_what_it_names() {
    Player::with("not-a-number", Stdio::null(), Some("seven")).assert_success();
    Player::with("not-open", Stdio::null(), Some("999")).assert_success();
    Player::with("not-a-port", Stdio::null(), Some("0")).assert_success();
}

fn twice() {
    let scope = WorkerScope::from_env().unwrap();
    assert_eq!((scope.name(), scope.pool()), ("app-3", "app"));
    refused_scope("has been taken");
}

#[tokio::test]
async fn the_port_is_taken_once_and_the_name_can_be_read() {
    let (player, _router) = Player::start("twice");
    player.assert_success();
}

/// Holds what it gets, with room for two descriptors more once it is told to starve.
async fn starved() {
    let scope = WorkerScope::from_env().unwrap();
    let mut held = Vec::new();
    while let Some(event) = scope.recv().await {
        match event {
            Event::Message { .. } => leave_room_for(2),
            event => held.push(event),
        }
        if matches!(held.last(), Some(Event::Draining { .. })) {
            held.clear();
        }
    }
}

/// Lowers the limit so that exactly this many more descriptors fit.
fn leave_room_for(more: usize) {
    let mut open: BTreeSet<u64> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap())
        .collect();
    // The listing's own descriptor is closed by now.
    open.retain(|number| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
    let free = (0..).filter(|number| !open.contains(number));
    let last = free.take(more).last().unwrap();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(last + 1), maximum: limit.maximum })
        .unwrap();
}

#[tokio::test]
async fn descriptors_that_did_not_arrive_are_refused_the_first_of_them_for_that_reason() {
    let (player, mut router) = Player::start("starved");
    router.attached(DRAIN).await;
    router.post(&Data::json("starve").unwrap(), &[]);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 0 });
    let mut servers: Vec<OwnedFd> = Vec::new();
    for _ in 0..5 {
        servers.push(connection().await.1);
    }
    let none = Data::NONE;
    let offer: Vec<_> = servers.iter().map(|server| (server, &none)).collect();
    router.offer(&offer);
    let refused = vec![
        (4, RefusalReason::MissingDescriptor),
        (5, RefusalReason::BehindMissing),
        (6, RefusalReason::BehindMissing),
    ];
    assert_eq!(router.hears().await, Said::Refused(refused));
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 6, open: 2 });
    drop(router);
    player.assert_success();
}

/// Panics in a task for each message, and says that it lives.
async fn panicking() {
    let scope = WorkerScope::from_env().unwrap();
    scope.install_panic_hook();
    while let Some(event) = scope.recv().await {
        if matches!(event, Event::Message { .. }) {
            let task = tokio::spawn(async { panic!("boom {}", 1 + 1) });
            assert!(task.await.unwrap_err().is_panic());
            scope.post_message("alive").unwrap();
        }
    }
}

#[tokio::test]
async fn a_panic_is_reported_with_its_place_and_the_worker_goes_on() {
    let (player, mut router) = Player::start("panic");
    router.attached(DRAIN).await;
    for number in 1..=2 {
        router.post(&Data::json("panic").unwrap(), &[]);
        assert_eq!(router.hears().await, Said::Acknowledged { up_to: number, open: 0 });
        let Said::Error(report) = router.hears().await else { panic!("no error") };
        assert_eq!(report.message, "boom 2");
        assert!(report.file.ends_with("processes.rs") && report.line > 0 && report.column > 0);
        let data = Data::bincode("alive").unwrap();
        assert_eq!(router.hears().await, Said::Message { sequence: number, data });
    }
    drop(router);
    player.assert_success();
}

/// Becomes nobody with threads running, and looks at every one of them.
fn privileges() {
    assert!(matches!(become_user("root"), Err(PrivilegeError::Root(_))));
    assert!(matches!(become_user("no-such-user"), Err(PrivilegeError::UnknownUser(_))));
    if !rustix::process::geteuid().is_root() {
        let me = rustix::process::geteuid().as_raw().to_string();
        become_user(&me).unwrap();
        return assert!(matches!(become_user("daemon"), Err(PrivilegeError::NotPermitted { .. })));
    }
    let barrier = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // Running before the change, ending after it was looked at.
                barrier.wait();
                barrier.wait();
            });
        }
        barrier.wait();
        become_user("nobody").unwrap();
        let statuses = statuses();
        assert!(statuses.len() > THREADS, "{} threads", statuses.len());
        for status in statuses {
            for line in ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534"] {
                assert!(status.contains(line), "{status}");
            }
            assert!(status.contains("\nGroups:\t65534 \n"), "{status}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
            }
        }
        barrier.wait();
    });
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(own.contains("NoNewPrivs:\t1\n"), "{own}");
    // Already there: nothing to do. Anybody else: not from here.
    become_user("nobody").unwrap();
    assert!(matches!(become_user("daemon"), Err(PrivilegeError::NotPermitted { .. })));
    assert!(std::fs::File::open("/etc/shadow").is_err());
}

fn statuses() -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .collect()
}

#[test]
fn become_user_changes_every_thread_and_there_is_no_way_back() {
    Player::with("privileges", Stdio::null(), None).assert_success();
}
