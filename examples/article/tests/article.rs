//! The 2010 program on real connections: as root on port 80 in a network namespace of its own, and as
//! an ordinary user on a high port.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use vestibule_tests::files::Folder;

/// Five loopback addresses whose octets sum to five different remainders.
const CLIENTS: [&str; 5] = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"];
const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(30);

/// The two programs, where every user may execute them.
struct Programs(Folder);

impl Programs {
    fn copied() -> Self {
        let folder = Folder::new();
        folder.copy(env!("CARGO_BIN_EXE_article-master"));
        folder.copy(env!("CARGO_BIN_EXE_article-worker"));
        Self(folder)
    }

    fn master(&self) -> PathBuf {
        self.0.join("article-master")
    }
}

/// A running master. Its workers end with it: their ports close.
struct Master {
    child: Child,
    _output: BufReader<ChildStdout>,
    address: String,
}

impl Master {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        output.read_line(&mut address).unwrap();
        assert!(address.starts_with("http://"), "the master says where it listens: {address:?}");
        Self { child, _output: output, address: address.trim().to_owned() }
    }

    fn workers(&self) -> BTreeSet<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    /// Ends the master and waits for its workers.
    fn stop(mut self) {
        let workers = self.workers();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let begun = Instant::now();
        while workers.iter().any(|pid| is_alive(*pid)) {
            assert!(begun.elapsed() < PATIENCE, "workers outlive their master");
            std::thread::yield_now();
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// The article's line, taken apart; the whole of it has to be exactly that.
fn process_and_reqno(answer: &str) -> (u32, u64) {
    let rest = answer.strip_prefix("process=").unwrap_or_else(|| panic!("{answer:?}"));
    let (process, reqno) = rest.split_once("; reqno=").unwrap_or_else(|| panic!("{answer:?}"));
    let numbers = (process.parse().unwrap(), reqno.trim_end_matches('\n').parse().unwrap());
    assert_eq!(answer, format!("process={}; reqno={}\n", numbers.0, numbers.1));
    numbers
}

/// Each client comes three times, in turn; the master counts.
fn five_clients_reach_five_processes(master: &Master, curl: impl Fn() -> Command) -> BTreeSet<u32> {
    let mut of_client: BTreeMap<&str, u32> = BTreeMap::new();
    let mut expected = 0;
    for _ in 0..3 {
        for client in CLIENTS {
            let output = curl()
                .args(["--silent", "--show-error", "--max-time", "20", "--interface", client])
                .arg(&master.address)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let (process, reqno) = process_and_reqno(&String::from_utf8(output.stdout).unwrap());
            expected += 1;
            assert_eq!(reqno, expected, "the master's counter");
            assert_eq!(*of_client.entry(client).or_insert(process), process, "always the same");
        }
    }
    let processes: BTreeSet<u32> = of_client.into_values().collect();
    assert_eq!(processes.len(), CLIENTS.len(), "five processes");
    assert_eq!(processes, master.workers(), "the master's own children");
    processes
}

/// The user of every thread of a process: real, effective, saved and file system.
fn users_of_threads(pid: u32) -> Vec<Vec<u32>> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
            line.split_whitespace().skip(1).map(|uid| uid.parse().unwrap()).collect()
        })
        .collect()
}

fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A network namespace with nothing but its loopback, as long as the process lives that made it.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
        let namespace = Self { holder };
        let begun = Instant::now();
        while fs::read_link(namespace.path()).ok() == fs::read_link("/proc/self/ns/net").ok() {
            assert!(begun.elapsed() < PATIENCE, "no network namespace is made");
            std::thread::yield_now();
        }
        run(namespace.command("ip").args(["link", "set", "lo", "up"]));
        namespace
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
fn as_root_on_port_80_every_thread_of_a_worker_becomes_nobody() {
    if !am_root() {
        eprintln!("not root: binding port 80 and becoming nobody are left to the run as root");
        return;
    }
    let programs = Programs::copied();
    let namespace = Namespace::new();
    let master = Master::start(&mut namespace.command(programs.master()));
    assert_eq!(master.address, "http://0.0.0.0:80", "the article's port, without being told");
    let processes = five_clients_reach_five_processes(&master, || namespace.command("curl"));
    for process in processes {
        let users = users_of_threads(process);
        assert!(users.len() > 1, "a multi-threaded runtime has several threads");
        assert!(users.iter().all(|thread| *thread == [NOBODY; 4]), "{users:?}");
    }
    master.stop();
}

#[test]
fn an_ordinary_user_runs_it_on_a_high_port() {
    let programs = Programs::copied();
    let mut command = if am_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
            .arg(programs.master());
        command
    } else {
        Command::new(programs.master())
    };
    let master = Master::start(command.arg("127.0.0.1:0"));
    five_clients_reach_five_processes(&master, || Command::new("curl"));
    master.stop();
}

/// Whether the kernel has given a connection of this client's port to a process: what nobody accepted
/// yet has no inode (`proc_net_tcp(5)`).
fn is_accepted(client: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{client:04X}")) && fields[9] != "0"
    })
}

#[test]
fn a_client_whose_worker_and_all_others_died_is_told() {
    let programs = Programs::copied();
    let master = Master::start(Command::new(programs.master()).arg("127.0.0.1:0"));
    let workers = master.workers();
    let signal = |signal| {
        for worker in &workers {
            let worker = rustix::process::Pid::from_raw(*worker as i32).unwrap();
            rustix::process::kill_process(worker, signal).unwrap();
        }
    };
    signal(rustix::process::Signal::STOP);
    let mut client = TcpStream::connect(master.address.trim_start_matches("http://")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let begun = Instant::now();
    while !is_accepted(client.local_addr().unwrap().port()) {
        assert!(begun.elapsed() < PATIENCE, "nobody accepts");
        std::thread::yield_now();
    }
    signal(rustix::process::Signal::KILL);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}");
    master.stop();
}
