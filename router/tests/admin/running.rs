//! A running `vestibule`, its clients, and waiting for what it says of itself.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::copies::copy_program;

/// How long anything may take before a test has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Whom tests that are run by root take for an ordinary user.
pub(crate) const NOBODY: u32 = 65_534;

/// Who runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever runs the tests.
    Same,
    /// Nobody; for tests that are run by root.
    Ordinary,
}

/// Everybody that the tests can be.
pub(crate) fn everybody() -> Vec<Who> {
    match rustix::process::geteuid().is_root() {
        true => vec![Who::Same, Who::Ordinary],
        false => vec![Who::Same],
    }
}

/// A folder that is gone after the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(who: Who) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vestibule-admin-{}-{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        if who == Who::Ordinary {
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind in a temporary folder hurts nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program that this user may run: the build's folder may be one that only root can enter.
fn program(who: Who) -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let built = PathBuf::from(env!("CARGO_BIN_EXE_vestibule"));
    if who == Who::Same {
        return built;
    }
    let copy = COPY.get_or_init(|| {
        let copy = std::env::temp_dir().join("vestibule-admin-program");
        // Another run's tests may be running it: a new file takes its place.
        let new = copy.with_extension(std::process::id().to_string());
        copy_program(&built, &new);
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &copy).unwrap();
        copy
    });
    copy.clone()
}

/// The program, as somebody.
pub(crate) fn vestibule(who: Who) -> Command {
    let mut command = Command::new(program(who));
    if who == Who::Ordinary {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env_remove("VESTIBULE_ADMIN").env_remove("RUNTIME_DIRECTORY");
    command.env("VESTIBULE_LOG", "warn");
    command
}

/// A running program. Dropping it ends it.
pub(crate) struct Running {
    child: Child,
    pub(crate) who: Who,
    pub(crate) socket: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Running {
    /// With demonstration workers, on a free port.
    pub(crate) fn start(who: Who, socket: &Path, workers: u32) -> Self {
        Self::start_as(who, socket, |command| {
            command.args(["run", "--listen", "127.0.0.1:0", "--workers", &workers.to_string()]);
            command.arg("--admin").arg(socket);
        })
    }

    /// With arguments of one's own; returns once it accepts.
    pub(crate) fn start_as(who: Who, socket: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = vestibule(who);
        configure(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_once("http://").unwrap().1;
        let address = address.split([' ', '\n', ',']).next().unwrap().parse().unwrap();
        Self { child, who, socket: socket.to_owned(), address }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command that asks this one.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        let mut command = vestibule(self.who);
        command.args(arguments).arg("--admin").arg(&self.socket).output().unwrap()
    }

    /// Runs a command that succeeds; what it says.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// How it goes, asked on the socket itself.
    pub(crate) fn status(&self) -> Value {
        ask(&self.socket, r#"{"command":"status"}"#)["status"].take()
    }

    /// Waits until it says so of itself.
    pub(crate) fn until(&self, what: &str, mut state: impl FnMut(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let status = self.status();
            if state(&status) {
                return status;
            }
            assert!(begin.elapsed() < DEADLINE, "waited in vain until {what}: {status:#}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn until_healthy(&self, workers: usize) -> Value {
        self.until(&format!("{workers} are ready"), |status| {
            status["health"] == "healthy" && self::workers(status).len() == workers
        })
    }

    /// Waits for the end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < DEADLINE, "it does not end");
            std::thread::yield_now();
        }
    }

    /// The fields of an answer to a new client.
    pub(crate) fn served_by(&self) -> String {
        get(self.address).unwrap_or_else(|why| panic!("{why}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already. A second signal stops at once.
        let _ = rustix::process::kill_process(number(self.pid()), Signal::TERM);
        let _ = rustix::process::kill_process(number(self.pid()), Signal::INT);
        let _ = self.child.wait();
    }
}

/// Says a line on an admin socket; the answer.
pub(crate) fn ask(socket: &Path, question: &str) -> Value {
    let mut stream = connect(socket);
    writeln!(stream, "{question}").unwrap();
    answer(&mut stream)
}

/// One answer.
pub(crate) fn answer(stream: &mut UnixStream) -> Value {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// All workers of a status, by name and state.
pub(crate) fn workers(status: &Value) -> Vec<(String, String)> {
    let pools = status["pools"].as_array().unwrap();
    let all = pools.iter().flat_map(|pool| pool["workers"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|worker| (text(&worker["name"]), text(&worker["state"]))).collect()
}

/// One worker of a status.
pub(crate) fn worker<'v>(status: &'v Value, name: &str) -> &'v Value {
    let pools = status["pools"].as_array().unwrap();
    let mut all = pools.iter().flat_map(|pool| pool["workers"].as_array().unwrap());
    all.find(|worker| worker["name"] == name).unwrap_or(&Value::Null)
}

pub(crate) fn number(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

pub(crate) fn signal(pid: &Value, signal: Signal) {
    let pid = pid.as_u64().unwrap().try_into().unwrap();
    rustix::process::kill_process(number(pid), signal).unwrap();
}

/// One request on a connection of its own: the worker's name.
pub(crate) fn get(address: SocketAddr) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().map_err(|error| error.to_string())?;
    let worker = text.split("worker=").nth(1).and_then(|rest| rest.split(';').next());
    match worker {
        Some(worker) if text.starts_with("HTTP/1.1 200 ") => Ok(worker.to_owned()),
        _ => Err(format!("an answer that is none: {text:?}")),
    }
}

/// Requests and who answered them, or the first that failed.
type Served = Result<(u64, BTreeSet<String>), String>;

/// Clients that ask all the time.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Served>>,
}

impl Load {
    pub(crate) fn on(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let client = |_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                let (mut count, mut workers) = (0, BTreeSet::new());
                while !stop.load(Ordering::Relaxed) {
                    workers.insert(get(address)?);
                    count += 1;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok((count, workers))
            })
        };
        Self { clients: (0..4).map(client).collect(), stop, served }
    }

    /// Waits until so many more were answered, or a client has failed.
    pub(crate) fn flows(&self, more: u64) {
        let begin = Instant::now();
        let before = self.served.load(Ordering::Relaxed);
        while self.served.load(Ordering::Relaxed) < before + more
            && !self.clients.iter().any(JoinHandle::is_finished)
        {
            assert!(begin.elapsed() < DEADLINE, "nobody is answered");
            std::thread::yield_now();
        }
    }

    /// Ends; every request was answered. How many, and by whom.
    pub(crate) fn end(self) -> (u64, BTreeSet<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut total, mut all) = (0, BTreeSet::new());
        for client in self.clients {
            let (count, workers) = client.join().unwrap().expect("a connection was lost");
            total += count;
            all.extend(workers);
        }
        (total, all)
    }
}
