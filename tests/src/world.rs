//! The world of one case: a runtime in which router and supervisor run, and an account of what was
//! there before and must not be more afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::runtime::Runtime;
use vestibule_router::{
    Connection, Listener, Undelivered, Worker, WorkerEvent, WorkerOptions, WorkerPool,
};

use crate::client::{Client, Response};
use crate::orders::Said;
use crate::{census, process};

/// How long anything that must happen may take before the case fails. Never how long a case takes:
/// generous, for machines that do much else.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a state that tells nobody of its change is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Threads of a case's runtime.
const THREADS: usize = 2;

/// Cases take turns: each counts the descriptors and children of the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// What a case works with.
#[derive(Debug)]
pub struct World {
    runtime: Runtime,
    children: BTreeMap<u32, String>,
    descriptors: BTreeMap<u32, String>,
}

/// Runs one case. It is plain, blocking code; what it starts runs on the runtime's own threads.
///
/// # Panics
/// The case failed, or something of it is still there.
pub fn run(case: impl FnOnce(&World)) {
    let _turn = turn();
    log();
    let world = World::new();
    {
        let _inside = world.runtime.enter();
        case(&world);
    }
    world.assert_nothing_left();
}

/// Waits for this case's turn: for what starts processes and is no [`run`].
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Options for tests: a worker that does not end when told is not waited for long.
pub fn options(program: impl AsRef<Path>) -> WorkerOptions {
    WorkerOptions::new(program)
        .stop_timeouts(Duration::from_secs(10), Duration::from_secs(10))
        .drain_timeout(Duration::from_secs(10))
}

/// Waits for a state.
///
/// # Panics
/// It does not come about.
pub fn until(what: &str, mut state: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !state() {
        assert!(begin.elapsed() < DEADLINE, "waited in vain until {what}");
        std::thread::sleep(LOOK);
    }
}

/// The router's own words, shown when a case fails: `RUST_LOG=debug` for more.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
    // It is there already after the first case of a process.
    let _ = subscriber.try_init();
}

impl World {
    fn new() -> Self {
        let children = census::children();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()
            .unwrap();
        Self { runtime, children, descriptors: census::descriptors() }
    }

    /// Waits for something asynchronous.
    ///
    /// # Panics
    /// It does not come about.
    pub fn wait<F: Future>(&self, what: &str, future: F) -> F::Output {
        let limited = async { tokio::time::timeout(DEADLINE, future).await };
        self.runtime.block_on(limited).unwrap_or_else(|_| panic!("waited in vain until {what}"))
    }

    /// Runs a step while nothing of the router or the supervisor runs: what it starts begins after.
    pub fn still<R>(&self, step: impl FnOnce() -> R) -> R {
        let held = Arc::new(Barrier::new(THREADS + 1));
        let done = Arc::new(Barrier::new(THREADS + 1));
        for _ in 0..THREADS {
            let (held, done) = (Arc::clone(&held), Arc::clone(&done));
            self.runtime.spawn(async move {
                // Each keeps one of the runtime's threads busy.
                held.wait();
                done.wait();
            });
        }
        held.wait();
        let result = step();
        done.wait();
        result
    }

    /// Returns when the router has done what was due: what was posted is sent, as far as it can be.
    ///
    /// The runtime takes up tasks in the order in which they were woken from outside, and all of
    /// its threads come to a step that is taken up after those.
    pub fn catch_up(&self) {
        self.still(|| {});
    }

    /// A pool whose workers are ready.
    pub fn pool(&self, count: usize, options: &WorkerOptions) -> WorkerPool {
        self.wait("the pool is ready", WorkerPool::spawn(count, options)).unwrap()
    }

    /// A worker that is ready.
    pub fn worker(&self, options: &WorkerOptions) -> Worker {
        let worker = Worker::spawn(options).unwrap();
        self.wait("the worker is ready", worker.ready()).unwrap();
        worker
    }

    /// A listener on a free port of loopback.
    pub fn listener(&self) -> Listener {
        self.wait("the listener is bound", Listener::bind("127.0.0.1:0")).unwrap()
    }

    /// A client and its connection, accepted and paused.
    pub fn connect(&self, listener: &mut Listener) -> (Client, Connection) {
        let client = Client::connect(listener.local_addr().unwrap());
        let connection = self.accept(listener);
        assert_eq!(connection.peer_addr(), Some(client.address()), "another client's connection");
        (client, connection)
    }

    /// Asks one worker for `/` over a connection of its own. What was sent to it before has been
    /// taken when the answer is there.
    pub fn connect_and_ask(&self, worker: &Worker) -> Response {
        let mut listener = self.listener();
        let (mut client, connection) = self.connect(&mut listener);
        worker.post_message(&0u64, [connection]).unwrap();
        client.get("/")
    }

    /// The next connection, paused.
    pub fn accept(&self, listener: &mut Listener) -> Connection {
        self.wait("a connection is accepted", listener.accept()).unwrap()
    }

    /// The next event of a worker; `None` after the last.
    pub fn event(&self, worker: &Worker) -> Option<WorkerEvent> {
        self.wait("the worker has an event", worker.recv())
    }

    /// The next event of a worker, which is something that it says.
    pub fn said(&self, worker: &Worker) -> Said {
        match self.event(worker) {
            Some(WorkerEvent::Message(data)) => data.decode().unwrap(),
            other => panic!("no message of the worker's: {other:?}"),
        }
    }

    /// The next event of a worker, which is a message that comes back.
    pub fn undelivered(&self, worker: &Worker) -> Undelivered {
        match self.event(worker) {
            Some(WorkerEvent::Undelivered(undelivered)) => undelivered,
            other => panic!("nothing came back: {other:?}"),
        }
    }

    /// All events of a worker to its last.
    pub fn events(&self, worker: &Worker) -> Vec<WorkerEvent> {
        std::iter::from_fn(|| self.event(worker)).collect()
    }

    fn assert_nothing_left(&self) {
        until("the case's processes are reaped", || self.new_children().is_empty());
        until("the router's tasks have ended", || self.runtime.metrics().num_alive_tasks() == 0);
        let begin = Instant::now();
        loop {
            let now = census::descriptors();
            let more = now.len() > self.descriptors.len();
            if !more {
                return;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "descriptors are left over: {now:#?}, before: {:#?}",
                self.descriptors
            );
            std::thread::sleep(LOOK);
        }
    }

    fn new_children(&self) -> Vec<u32> {
        census::children().into_keys().filter(|pid| !self.children.contains_key(pid)).collect()
    }
}

impl Drop for World {
    /// After a case that failed, its processes go too. Their supervisor reaps them, as long as it
    /// has a runtime; they are this process's own children, so the numbers are theirs until then.
    fn drop(&mut self) {
        let begin = Instant::now();
        loop {
            let left = self.new_children();
            if left.is_empty() || begin.elapsed() > DEADLINE {
                return;
            }
            for pid in left {
                let group = process::number(pid);
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                let _ = rustix::process::kill_process(group, Signal::KILL);
            }
            std::thread::sleep(LOOK);
        }
    }
}
