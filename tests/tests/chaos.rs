//! Everything at once, at random: workers are killed and stopped, routers are killed, workers are
//! drained, held, restarted and scaled, the configuration changes, routers take over from one another and
//! are killed while they do, clients misbehave, all under load. Nobody is given a wrong
//! answer, no connection is served twice, failures are no more than what deaths may cost (semantics 19
//! to 21), and afterwards everything is as it was.
//!
//! The seed is printed, and the same seed does the same things in the same order. By hand:
//! `CHAOS_SEED=7 CHAOS_SECONDS=600 cargo test -p vestibule-tests --test chaos -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::SendFlags;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use vestibule_tests::load::{Load, Outcome};
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Unless `CHAOS_SECONDS` says how long.
const SECONDS: u64 = 12;

/// Clients of the pool that is hurt, and of the other.
const CLIENTS: usize = 4;
const OTHERS: usize = 2;

/// Most workers of the pool.
const WORKERS: u64 = 4;

/// Whoever waits for a worker waits for one that comes, and goes to as many as it takes.
const POOL: &str = "queue = { max = 10000, timeout = \"1m\" }";
const ROUTER: &str = "max-attempts = 100\nstuck-timeout = \"2s\"";

const SETTING: Setting<'_> =
    Setting { worker: WORKER, pool: POOL, router: ROUTER, route: "", faulty: &[], env: &[] };

/// Users that routers become.
const USERS: u32 = 61_250;

const BALANCES: [&str; 3] = ["least-connections", "round-robin", "hash:peer-ip"];

/// Numbers that follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    KillWorker(u64),
    StopWorker(u64),
    KillRouter,
    Drain(u64),
    Hold(u64),
    Ready,
    Scale(u64),
    Restart,
    Reload(u64),
    AnotherRouter,
    KillNext(u64),
    StopNext(u64),
    Twice(u64),
    Silent(u64),
    Reset(u64),
    HalfClosed,
    Urgent,
}

impl Deed {
    fn random(random: &mut Random) -> Self {
        let number = random.below(1000);
        match random.below(22) {
            0..=2 => Self::KillWorker(number),
            3 | 4 => Self::StopWorker(number),
            5 => Self::KillRouter,
            6 | 7 => Self::Drain(number),
            8 => Self::Hold(number),
            9 => Self::Ready,
            10 => Self::Scale(1 + number % WORKERS),
            11 => Self::Restart,
            12 => Self::Silent(number),
            13 => Self::Reset(number),
            14 => Self::HalfClosed,
            15 => Self::Reload(number),
            16 | 17 => Self::AnotherRouter,
            18 => Self::KillNext(number),
            19 => Self::StopNext(number),
            20 => Self::Twice(number),
            _ => Self::Urgent,
        }
    }
}

/// What is under way, and what it may have cost.
struct Chaos {
    scene: Scene,
    /// What the file says.
    balance: &'static str,
    version: u64,
    /// Whom routers become, for root.
    user: u32,
    stopped: Option<u32>,
    /// The one worker that is held: a pool of which all are held has nobody to wait for.
    held: Option<String>,
    silent: Vec<TcpStream>,
    /// Deaths of workers that may have had acknowledged connections, and of routers.
    deaths: usize,
    crashes: usize,
}

impl Chaos {
    fn worker(&self, number: u64) -> Option<(String, u32)> {
        let pool = self.scene.pool();
        let workers = pool["workers"].as_array()?;
        let alive: Vec<&Value> = workers.iter().filter(|worker| worker["pid"].is_u64()).collect();
        let worker = alive.get(number as usize % alive.len().max(1))?;
        let pid = u32::try_from(worker["pid"].as_u64()?).ok()?;
        Some((worker["name"].as_str()?.to_owned(), pid))
    }

    /// The worker may be gone by now, and its number is not yet another's: its supervisor needs
    /// longer than this to go through all numbers.
    fn signal(pid: u32, signal: Signal) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn go_on(&mut self) {
        if let Some(pid) = self.stopped.take() {
            Self::signal(pid, Signal::CONT);
        }
    }

    fn let_go(&mut self) {
        if let Some(name) = self.held.take() {
            self.command(&["ready", &name]);
        }
    }

    fn hold(&mut self, number: u64) {
        self.let_go();
        if self.scene.pool()["wanted"].as_u64() > Some(1)
            && let Some((name, _)) = self.worker(number)
        {
            self.command(&["drain", "--hold", &name]);
            self.held = Some(name);
        }
    }

    fn command(&self, arguments: &[&str]) {
        let output = self.scene.command(arguments);
        // 64: the worker is gone or retired by now; 69: no time for an answer.
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 64 | 69)), "{arguments:?}: {output:?}");
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::KillWorker(number) => {
                if let Some((_, pid)) = self.worker(number) {
                    Self::signal(pid, Signal::KILL);
                    self.deaths += 1;
                }
            }
            Deed::StopWorker(number) => {
                self.go_on();
                if let Some((_, pid)) = self.worker(number) {
                    Self::signal(pid, Signal::STOP);
                    self.stopped = Some(pid);
                    // Stopped for too long it is killed.
                    self.deaths += 1;
                }
            }
            Deed::KillRouter => {
                until("a router accepts", || self.scene.status()["router"]["state"] == "accepting");
                self.scene.master.kill_router();
                self.crashes += 1;
            }
            Deed::Drain(number) => {
                if let Some((name, _)) = self.worker(number) {
                    self.command(&["drain", &name]);
                }
            }
            Deed::Hold(number) => self.hold(number),
            Deed::Ready => self.let_go(),
            Deed::Scale(count) => {
                self.let_go();
                self.command(&["scale", "faulty", &count.to_string()]);
            }
            Deed::Restart => self.command(&["restart", "faulty"]),
            Deed::Reload(number) => {
                self.balance = BALANCES[number as usize % BALANCES.len()];
                // Another environment: the pool is rolled.
                self.version = number / 8 % 2;
                self.write();
                self.command(&["reload"]);
            }
            Deed::AnotherRouter => self.another_router(),
            Deed::KillNext(number) => {
                if let Some(next) = self.another_router_begins(number) {
                    Self::signal(next, Signal::KILL);
                    // It may be the one that acts by now.
                    self.crashes += 1;
                }
            }
            Deed::StopNext(number) => {
                if let Some(next) = self.another_router_begins(number) {
                    Self::signal(next, Signal::STOP);
                    std::thread::sleep(Duration::from_millis(number));
                    Self::signal(next, Signal::CONT);
                }
            }
            Deed::Twice(number) => {
                self.version = number % 2;
                self.another_router();
                self.scene.master.signal(Signal::HUP);
                self.balance = BALANCES[number as usize % BALANCES.len()];
                self.another_router();
            }
            Deed::Silent(number) => {
                self.silent.push(self.connect());
                if number % 2 == 0 {
                    self.silent.clear();
                }
            }
            Deed::Reset(number) => {
                let mut stream = self.connect();
                let _ = stream.write_all(&b"GET / HTTP/1.1\r\n\r\n"[..number as usize % 19]);
                let none = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(&stream, none).unwrap();
            }
            Deed::HalfClosed => self.connect().shutdown(Shutdown::Write).unwrap(),
            Deed::Urgent => {
                let _ = rustix::net::send(self.connect(), b"!", SendFlags::OOB);
            }
        }
    }

    fn write(&self) {
        let user = match rustix::process::geteuid().is_root() {
            true => format!("user = \"{}\"\n", self.user),
            false => String::new(),
        };
        self.scene.reconfigure(&Setting {
            pool: &format!("{POOL}\nbalance = {:?}", self.balance),
            router: &format!("{ROUTER}\n{user}"),
            env: &[("TEST_VERSION", &self.version.to_string())],
            ..SETTING
        });
    }

    /// Another router takes over, unless that is under way already.
    fn another_router(&mut self) {
        self.user = USERS + (self.user - USERS + 1) % 50;
        self.write();
        self.command(&["reload"]);
    }

    /// As [`another_router`](Self::another_router): the youngest one, a little later.
    fn another_router_begins(&mut self, number: u64) -> Option<u32> {
        self.another_router();
        std::thread::sleep(Duration::from_micros(number * 30));
        self.scene.master.routers().last()
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.scene.faulty).unwrap()
    }

    /// Everything as it was at the start.
    fn calm(&mut self) {
        self.go_on();
        self.silent.clear();
        self.let_go();
        self.command(&["scale", "faulty", "2"]);
        until("all workers take connections", || self.scene.pool()["ready"] == 2);
        self.scene.settle();
    }
}

#[test]
fn chaos_loses_no_more_than_deaths_may_cost() {
    let _turn = turn();
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = number("CHAOS_SEED").unwrap_or_else(now);
    let seconds = number("CHAOS_SECONDS").unwrap_or(SECONDS);
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds}");
    let mut random = Random(seed);

    let scene = Scene::start(&SETTING);
    let own = Load::start(scene.faulty, CLIENTS);
    let others = Load::start(scene.others, OTHERS);
    own.flows(300);
    others.flows(300);
    own.next_phase();
    others.next_phase();
    let mut chaos = Chaos {
        scene,
        balance: BALANCES[0],
        version: 0,
        user: USERS,
        stopped: None,
        held: None,
        silent: Vec::new(),
        deaths: 0,
        crashes: 0,
    };
    let begin = Instant::now();
    let mut deeds = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        let deed = Deed::random(&mut random);
        println!("{deed:?}");
        chaos.act(deed);
        deeds += 1;
        // Whoever is stopped goes on before everybody waits for it.
        others.flows(5);
    }
    chaos.calm();
    own.flows(20);
    let (own, others) = (own.end(), others.end());
    let Chaos { scene, deaths, crashes, .. } = chaos;
    println!("{deeds} deeds, {deaths} deaths, {crashes} crashes\nown {own}\nothers {others}");
    for tally in [&own, &others] {
        tally.assert_nothing_wrong();
        // There is always somebody to wait for.
        let rejected = tally.outcomes.keys().any(|outcome| matches!(outcome, Outcome::Rejected(_)));
        assert!(!rejected, "{tally}");
    }
    assert!(own.failed() <= CLIENTS * (deaths + crashes), "{own}");
    assert!(others.failed() <= OTHERS * crashes, "{others}");
    scene.end();
}

#[test]
fn the_same_seed_does_the_same() {
    let deeds = |seed| {
        let mut random = Random(seed);
        (0..100).map(|_| format!("{:?}", Deed::random(&mut random))).collect::<Vec<String>>()
    };
    assert_eq!(deeds(7), deeds(7));
    assert_ne!(deeds(7), deeds(8));
}
