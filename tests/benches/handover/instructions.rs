//! `--instructions`: what a hand-over costs the router in user space, counted by callgrind.
//!
//! The program's own router process ([`vestibule_router::role`]) runs under valgrind. This process stands in for its
//! supervisor and its workers: it sends listeners and ports, and answers offers over them. Two runs that differ by a known
//! number of hand-overs give the cost of one: what starting takes is in both.
//!
//! One connection at a time: each hand-over is a turn of its own (wake, accept, packet; wake, acknowledgement, close), so the
//! count does not hang on what happened to come together. In bursts, the router is stopped (SIGSTOP) until all of one have
//! connected.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, Signal, getpid, kill_process};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use vestibule_protocol::codec::{Codec, Data, EncodeError};
use vestibule_protocol::handshake::Hello;
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{kind, put_acknowledge, transferred};
use vestibule_protocol::port::SocketError;
use vestibule_protocol::socket::{PacketBuffer, PacketSocket, ReceiveError, SendError, Sent};
use vestibule_protocol::supervision::{
    Balance, ListenerSetup, Otherwise, PoolSettings, PoolSetup, RuleSetup, Setup, SlotMode,
    SlotSetup, TargetSetup, ToRouter, WhenFull, WorkerId,
};
use vestibule_protocol::sys::seqpacket_pair;

use crate::processes::find_program;
use crate::server::raise_descriptor_limit;
use crate::sys;

/// Everything under valgrind takes some fifty times as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Hand-overs of the shorter run; the longer one has [`COUNTED`] more.
const WARM_UP: usize = 512;
const COUNTED: usize = 2048;
/// The same where time is taken, which is not as exact: a quarter of a second or more.
const TIMED: usize = 8192;
/// The length of the memory for the router's counters.
const COUNTERS: u64 = 4096;

#[derive(Debug, Error)]
pub(crate) enum InstructionError {
    #[error("no program valgrind")]
    NoValgrind,
    #[error("cannot start the router under valgrind")]
    Start(#[source] io::Error),
    #[error("a socket")]
    Socket(#[from] io::Error),
    #[error("a port")]
    Port(#[from] SocketError),
    #[error("a message to the router cannot be written")]
    Encode(#[from] EncodeError),
    #[error("a message cannot be sent to the router")]
    Send(#[from] SendError),
    #[error("what the router sent cannot be read")]
    Receive(#[from] ReceiveError),
    #[error("the router did not let a connection go within {PATIENCE:?}")]
    Stuck,
    #[error("the router ended with {0}")]
    Ended(ExitStatus),
    #[error("valgrind's report has no count")]
    NoCount,
}

impl From<rustix::io::Errno> for InstructionError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Socket(errno.into())
    }
}

/// What a router has around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) workers: u32,
    pub(crate) listeners: u32,
    pub(crate) rules: Rules,
    /// Connections that come at once.
    pub(crate) burst: usize,
}

/// The rules, of which any may be the next connection's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rules {
    /// One, for everybody.
    One,
    /// So many, each about a network.
    Networks(u32),
    /// So many, each about the names below one.
    Hosts(u32),
}

impl Rules {
    fn count(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Networks(count) | Self::Hosts(count) => count,
        }
    }

    fn setup(self, at: u32) -> RuleSetup {
        let rule = RuleSetup::new("default", TargetSetup::Pool(0));
        match self {
            Self::One => rule,
            Self::Networks(_) => {
                let [.., high, low] = at.to_be_bytes();
                RuleSetup { peers: Some(vec![format!("127.{high}.{low}.0/24")]), ..rule }
            }
            Self::Hosts(_) => {
                RuleSetup { hosts: Some(vec![format!("*.tenant-{at}.example")]), ..rule }
            }
        }
    }

    /// A client of the rule that has this place, which has said what it is looked at for.
    async fn client(self, at: u32, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Self::Networks(_) = self {
            let [.., high, low] = at.to_be_bytes();
            socket.bind((Ipv4Addr::new(127, high, low, 7), 0).into())?;
        }
        let mut client = socket.connect(to).await?;
        if let Self::Hosts(_) = self {
            let head = format!("GET / HTTP/1.1\r\nhost: www.tenant-{at}.example\r\n\r\n");
            client.write_all(head.as_bytes()).await?;
        }
        Ok(client)
    }
}

/// Instructions of one hand-over. Callgrind's file of the longer run stays in `folder`, for `callgrind_annotate`.
///
/// # Errors
/// [`InstructionError`].
pub(crate) fn count(shape: Shape, folder: &Path) -> Result<f64, InstructionError> {
    let Shape { workers, listeners, rules, burst } = shape;
    let name = format!("callgrind.{workers}-{listeners}-{}-{burst}", rules.count());
    each(shape, COUNTED, Meter::Callgrind(&folder.join(name)))
}

/// CPU of one hand-over in the same router without valgrind, user and system, in µs.
///
/// # Errors
/// [`InstructionError`].
pub(crate) fn cpu(shape: Shape) -> Result<f64, InstructionError> {
    each(shape, TIMED, Meter::Clock).map(|nanoseconds| nanoseconds / 1e3)
}

/// What is counted of a router.
#[derive(Clone, Copy)]
enum Meter<'a> {
    /// Instructions in user space, by callgrind, whose report goes to this file.
    Callgrind(&'a Path),
    /// Nanoseconds of CPU, by the process's clock.
    Clock,
}

fn each(shape: Shape, counted: usize, meter: Meter<'_>) -> Result<f64, InstructionError> {
    // A thousand ports, in this process and in the router's.
    raise_descriptor_limit();
    let short = run(shape, WARM_UP, meter)?;
    let long = run(shape, WARM_UP + counted, meter)?;
    Ok(long.saturating_sub(short) as f64 / counted as f64)
}

fn run(shape: Shape, connections: usize, meter: Meter<'_>) -> Result<u64, InstructionError> {
    let Shape { workers, listeners, rules, burst } = shape;
    let number = rules.count();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (ours, theirs) = seqpacket_pair()?;
        let mut router = Router(start(theirs, meter)?);
        let control = PacketSocket::new(ours)?;
        let counters = counters()?;
        send(&control, &ToRouter::Setup(setup(shape)), Some(counters.as_fd())).await?;
        let mut addresses = Vec::new();
        for listener in 0..listeners {
            let socket = TcpListener::bind("127.0.0.1:0")?;
            addresses.push(socket.local_addr()?);
            send(&control, &ToRouter::Listener { listener, before: None }, Some(socket.as_fd()))
                .await?;
        }
        let ready = Arc::new(tokio::sync::Semaphore::new(0));
        for slot in 0..workers {
            let (port, theirs) = seqpacket_pair()?;
            tokio::spawn(answer(PacketSocket::new(port)?, Arc::clone(&ready)));
            let worker = WorkerId { pool: 0, slot, generation: 1 };
            let started = ToRouter::Started { worker, pid: router.0.id() };
            send(&control, &started, Some(theirs.as_fd())).await?;
        }
        send(&control, &ToRouter::Begin, None).await?;
        // What the router says is not needed, but must not fill its port.
        let control = Arc::new(control);
        let listening = tokio::spawn(ignore(Arc::clone(&control)));
        let all = tokio::time::timeout(PATIENCE, ready.acquire_many(workers)).await;
        drop(all.map_err(|_| InstructionError::Stuck)?);
        let mut next = addresses.iter().cycle();
        let (mut left, mut at) = (connections, 0u32);
        while left > 0 {
            let now = left.min(burst);
            left -= now;
            router.signal(burst > 1, Signal::STOP);
            let mut clients = Vec::with_capacity(now);
            for address in next.by_ref().take(now) {
                // Another rule each time, far from the last one.
                at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                clients.push(rules.client((at >> 8) % number, *address).await?);
            }
            router.signal(burst > 1, Signal::CONT);
            for mut client in clients {
                // The worker has closed its own: the end of file is the router's close.
                let end = tokio::time::timeout(PATIENCE, client.read(&mut [0; 1])).await;
                match end.map_err(|_| InstructionError::Stuck)? {
                    // What it had said was not read.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                    end => drop(end?),
                }
            }
        }
        let cpu = sys::cpu_time(Pid::from_child(&router.0));
        listening.abort();
        control.shutdown();
        let status = router.0.wait().map_err(InstructionError::Start)?;
        if !status.success() {
            return Err(InstructionError::Ended(status));
        }
        let Meter::Callgrind(file) = meter else { return Ok(cpu?.as_nanos() as u64) };
        let report = fs::read_to_string(file)?;
        let line = report.lines().rev().find_map(|line| line.strip_prefix("totals: "));
        line.and_then(|count| count.trim().parse().ok()).ok_or(InstructionError::NoCount)
    })
}

/// The router; it ends with this value.
struct Router(Child);

impl Router {
    fn signal(&self, wanted: bool, signal: Signal) {
        if wanted {
            // It is our child and not reaped.
            let _ = kill_process(Pid::from_child(&self.0), signal);
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this executable's role `counted-router`, under valgrind if that counts; its control channel is its standard input.
fn start(control: OwnedFd, meter: Meter<'_>) -> Result<Child, InstructionError> {
    let own = env::current_exe().map_err(InstructionError::Start)?;
    let mut command = match meter {
        Meter::Clock => Command::new(own),
        Meter::Callgrind(file) => {
            let mut output = std::ffi::OsString::from("--callgrind-out-file=");
            output.push(file);
            let valgrind = find_program("valgrind").ok_or(InstructionError::NoValgrind)?;
            let mut command = Command::new(valgrind);
            command.args(["--tool=callgrind", "--quiet"]).arg(output).arg(own);
            command
        }
    };
    command
        .args(["serve", "--parent", &getpid().to_string(), "counted-router"])
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .spawn()
        .map_err(InstructionError::Start)
}

fn setup(shape: Shape) -> Setup {
    let slot = |number| SlotSetup { name: format!("app-{number}"), mode: SlotMode::Wanted };
    let listener = |number| ListenerSetup {
        id: number,
        name: format!("web-{number}"),
        ..ListenerSetup::default()
    };
    let settings = PoolSettings {
        balance: Balance::LeastConnections,
        otherwise: Otherwise::LeastConnections,
        when_full: WhenFull::Wait,
        window: 64,
        max_attempts: 3,
        queue_max: 1024,
        queue_timeout: Duration::from_secs(5),
        stuck_timeout: PATIENCE,
        drain_timeout: Duration::from_secs(1),
        max_connections: u32::MAX,
        restart_on_error: false,
        hand_back_to: Vec::new(),
    };
    Setup {
        epoch: 1,
        parent: getpid().as_raw_nonzero().get().unsigned_abs(),
        pools: vec![PoolSetup {
            id: 0,
            counters: 0,
            name: "app".into(),
            settings,
            leaving: false,
            slots: (1..=shape.workers).map(slot).collect(),
        }],
        listeners: (0..shape.listeners).map(listener).collect(),
        rules: (0..shape.rules.count()).map(|at| shape.rules.setup(at)).collect(),
        ..Setup::default()
    }
}

fn counters() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("counters", flags)?;
    rustix::fs::ftruncate(&memory, COUNTERS)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memory)
}

async fn send(
    socket: &PacketSocket,
    message: &ToRouter,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), InstructionError> {
    let body = Data::encode(Codec::Bincode, message)?;
    let mut header = Header { codec: Codec::Bincode, ..Header::new(kind::SUPERVISION, 0) };
    // A pool of a thousand does not fit a packet.
    let memory = (body.len() > 4096)
        .then(|| vestibule_protocol::sys::sealed_memory(body.as_bytes()))
        .transpose()?;
    header.large = memory.is_some();
    let descriptors: Vec<_> = memory.iter().map(AsFd::as_fd).chain(descriptor).collect();
    header.descriptors = descriptors.len() as u8;
    let body = if header.large { &[] } else { body.as_bytes() };
    put(socket, header, body, &descriptors).await
}

async fn put(
    socket: &PacketSocket,
    header: Header,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), InstructionError> {
    let head = header.encode();
    let parts = [io::IoSlice::new(&head), io::IoSlice::new(body)];
    loop {
        match socket.try_send(&parts, descriptors)? {
            Sent::Whole => return Ok(()),
            Sent::Blocked => socket.writable().await?,
            Sent::Later => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

async fn ignore(control: Arc<PacketSocket>) {
    let mut buffer = PacketBuffer::default();
    while control.receive(&mut buffer).await.is_ok() {}
}

/// A worker's side of its port: says that it is ready, closes what it is offered, and says that it has it.
async fn answer(
    port: PacketSocket,
    ready: Arc<tokio::sync::Semaphore>,
) -> Result<(), InstructionError> {
    let mut buffer = PacketBuffer::default();
    loop {
        let packet = match port.receive(&mut buffer).await {
            Ok(packet) => packet,
            Err(ReceiveError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let header = packet.header;
        packet.descriptors.clear();
        let mut body = Vec::new();
        let kind = match header.kind {
            kind::ATTACH => {
                Hello::default().encode(&mut body);
                ready.add_permits(1);
                kind::HELLO
            }
            kind::OFFER => {
                let last = header.sequence + transferred(&header) as u64 - 1;
                put_acknowledge(&mut body, last, 0);
                kind::ACKNOWLEDGE
            }
            _ => continue,
        };
        put(&port, Header::new(kind, header.epoch), &body, &[]).await?;
    }
}
