//! The program itself: `vestibule run` as a process, its router and its workers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use crate::client::Client;
use crate::process;
use crate::world::{DEADLINE, until};

/// A running `vestibule run`. Dropping it ends it, and fails if something of it is left.
#[derive(Debug)]
pub struct Master {
    child: Child,
    /// The supervisor's process: the child, or what it started.
    supervisor: u32,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
    /// Its processes, and when they started: in a long run a number comes again.
    seen: BTreeMap<u32, u64>,
}

/// The program under test, which `cargo test --workspace` builds beside the tests' own programs.
///
/// # Panics
/// It is not there: `cargo build -p vestibule-router` with the same profile brings it.
pub fn vestibule(beside: &str) -> PathBuf {
    let program = Path::new(beside).with_file_name("vestibule");
    // Whoever may not look into the build's folder runs copies, and is not asked.
    let there = program.try_exists().unwrap_or(true);
    assert!(there, "{}: run `cargo test --workspace`", program.display());
    program
}

impl Master {
    /// Starts the program on a free port, as whoever runs the tests, and waits until it accepts.
    /// `worker` is a test worker's path, `arguments` what follows it.
    pub fn start(worker: &str, arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(vestibule(worker));
        command.args(["run", "--listen", "127.0.0.1:0", "--workers", "2"]);
        if rustix::process::geteuid().is_root() {
            // The build's folder may be one that only root can enter.
            command.args(["--user", "root"]);
        }
        configure(&mut command);
        command.arg("--").arg(worker).args(arguments);
        Self::launch(command)
    }

    /// Starts a command that is, or becomes, the supervisor, and waits until it accepts.
    pub fn launch(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let address = read_address(&mut output);
        let supervisor = child.id();
        Self { child, supervisor, output, address, seen: BTreeMap::new() }
    }

    /// As [`launch`](Self::launch), and waits until every worker is ready, too: what one has open changes by itself
    /// before. `worker` and `admin` are a test worker's path and the admin socket's.
    pub fn launch_ready(mut command: Command, worker: &str, admin: &Path) -> Self {
        command.arg("--admin").arg(admin);
        let master = Self::launch(command);
        until("every worker is ready", || {
            let mut status = Command::new(vestibule(worker));
            status.args(["status", "--admin"]).arg(admin).output().unwrap().status.success()
        });
        master
    }

    /// As [`launch`](Self::launch), for a command whose only child is the supervisor.
    pub fn launch_below(command: Command) -> Self {
        let mut master = Self::launch(command);
        master.supervisor = master.children().into_iter().next().expect("the supervisor");
        master
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its next listener listens, which is said in the next line.
    pub fn next_address(&mut self) -> SocketAddr {
        read_address(&mut self.output)
    }

    /// A new client's connection.
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.supervisor
    }

    /// The router's process, once there is one.
    pub fn router(&mut self) -> u32 {
        let mut found = None;
        until("there is a router", || {
            found = self.routers().next();
            found.is_some()
        });
        let router = found.unwrap();
        self.see(router);
        router
    }

    /// Another router than this one, once there is one: the youngest.
    pub fn next_router(&self, router: u32) -> u32 {
        let mut found = None;
        until("there is another router", || {
            found = self.routers().filter(|pid| *pid != router).last();
            found.is_some()
        });
        found.unwrap()
    }

    /// The routers' processes, the oldest first: there are several while one takes over.
    pub fn routers(&self) -> impl Iterator<Item = u32> {
        self.children().into_iter().filter(|pid| is_router(*pid))
    }

    /// The workers' processes.
    pub fn workers(&mut self) -> BTreeSet<u32> {
        let workers: BTreeSet<u32> =
            self.children().into_iter().filter(|pid| !is_router(*pid)).collect();
        workers.iter().for_each(|worker| self.see(*worker));
        workers
    }

    fn see(&mut self, pid: u32) {
        if let Some(status) = process::status(pid) {
            self.seen.insert(pid, status.started);
        }
    }

    /// Its children, whatever they are, in the order in which they were started.
    pub fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Kills the router and waits for the next one.
    pub fn kill_router(&mut self) {
        let old = self.router();
        process::signal(old, Signal::KILL);
        self.next_router(old);
    }

    /// What all routers together have counted: connections accepted, and acknowledged by workers. The
    /// supervisor keeps them in a sealed memfd, one 64-bit number each.
    pub fn accepted_and_acknowledged(&self) -> (u64, u64) {
        (self.counter(0), self.counter(32))
    }

    /// How many connections the workers of a pool have handed back.
    pub fn handed_back(&self, pool: usize) -> u64 {
        self.counter(32 + 8 * pool + 7)
    }

    fn counter(&self, at: usize) -> u64 {
        let folder = format!("/proc/{}/fd", self.pid());
        let page = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                std::fs::read_link(path)
                    .is_ok_and(|target| target.to_string_lossy().contains("vestibule-counters"))
            })
            .expect("the page of counters");
        let mut numbers = Vec::new();
        std::fs::File::open(page).unwrap().read_to_end(&mut numbers).unwrap();
        u64::from_ne_bytes(numbers[at * 8..][..8].try_into().unwrap())
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Waits until the supervisor has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < DEADLINE, "the supervisor does not end");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Ends it regularly: code 0, and nothing of it is left.
    pub fn stop(mut self) {
        self.router();
        self.workers();
        self.signal(Signal::TERM);
        assert!(self.wait().success());
        self.assert_all_gone();
    }

    /// Waits until everything that was seen of it is gone.
    pub fn assert_all_gone(&self) {
        let is_another = |pid: u32, started: u64| {
            process::status(pid).is_some_and(|status| status.started != started)
        };
        until("every process is gone", || {
            self.seen.iter().all(|(pid, started)| is_over(*pid) || is_another(*pid, *started))
        });
    }

    /// Everything that it has printed on standard output since its address.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The workers end with their ports, the router with its parent.
            if self.supervisor != self.child.id() {
                process::signal(self.supervisor, Signal::KILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read_address(output: &mut impl BufRead) -> SocketAddr {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let address = line.split_once("http://").map(|(_, rest)| rest.trim_end());
    let address = address.and_then(|rest| rest.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("it does not say where: {line:?}"));
    address.parse().unwrap()
}

/// Whether a process is a router.
pub(crate) fn is_router(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.starts_with(b"vestibule\0router\0")
}

/// A process that is not reaped is over: its parent was killed and this machine's init is slow.
pub fn is_over(pid: u32) -> bool {
    process::status(pid).is_none_or(|status| status.state == 'Z')
}
