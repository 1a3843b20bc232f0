//! Clients that never stop, across reloads, rolling restarts, planned router changes and everything else
//! that an administrator does: nobody fails.
//!
//! Short connections, kept-alive ones (busy and nearly idle), websockets, slow uploads, and heads in two
//! pieces: everybody is looked at, as the first route asks for the host. No failures, but
//! counted: a kept-alive client's one retry on a new connection, when its connection ended before a byte of
//! the answer (RFC 9112 9.3.1), and a websocket that was closed with 1001 (RFC 6455 7.4.1).
//!
//! `TEST_REQUESTS=1000000 TEST_CHANGES=100 cargo test --release -p vestibule-tests --test
//! change_without_loss -- --nocapture` is the long run; CI does a hundredth.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{DEADLINE, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// What became of everything that clients asked.
#[derive(Default)]
struct Tally {
    over: AtomicBool,
    short: AtomicU64,
    kept: AtomicU64,
    uploads: AtomicU64,
    pieces: AtomicU64,
    echoes: AtomicU64,
    retries: AtomicU64,
    closed_with_1001: AtomicU64,
    said_close: AtomicU64,
    failures: AtomicU64,
}

impl Tally {
    /// Without what websockets said.
    fn requests(&self) -> u64 {
        [&self.short, &self.kept, &self.uploads, &self.pieces]
            .map(|count| count.load(Ordering::Relaxed))
            .iter()
            .sum()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn fail(&self, who: &str, why: &str) {
        // The first ones say what happened; their number is what counts.
        if self.failures.fetch_add(1, Ordering::Relaxed) < 20 {
            eprintln!("a client failed: {who}: {why}");
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How a request ended.
enum Answer {
    /// As it should; the connection goes on.
    Goes(Vec<u8>),
    /// As it should, and says that the connection closes.
    Closes(Vec<u8>),
    /// The connection ended before a byte of an answer.
    Nothing,
    /// Otherwise.
    Broken(String),
}

async fn ask(stream: &mut TcpStream, request: &[u8]) -> Answer {
    if stream.write_all(request).await.is_err() {
        return Answer::Nothing;
    }
    answer(stream).await
}

async fn answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::with_capacity(512);
    loop {
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) if bytes.is_empty() => return Answer::Nothing,
            Ok(0) => return Answer::Broken(format!("half an answer: {bytes:?}")),
            Err(error) => return Answer::Broken(error.to_string()),
            Ok(_) => {}
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.expect("a length").trim().parse().unwrap();
        if bytes.len() < end + 4 + length {
            continue;
        }
        if !head.starts_with("http/1.1 200") {
            return Answer::Broken(head);
        }
        let body = bytes.split_off(end + 4);
        return match head.contains("connection: close") {
            true => Answer::Closes(body),
            false => Answer::Goes(body),
        };
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

async fn connect(to: SocketAddr, tally: &Tally, who: &str) -> Option<TcpStream> {
    match TcpStream::connect(to).await {
        Ok(stream) => {
            stream.set_nodelay(true).unwrap();
            Some(stream)
        }
        Err(error) => {
            tally.fail(who, &format!("cannot connect: {error}"));
            None
        }
    }
}

/// A new connection each time.
async fn short(to: SocketAddr, tally: Arc<Tally>) {
    while !tally.is_over() {
        let Some(mut stream) = connect(to, &tally, "short").await else { continue };
        match ask(&mut stream, GET).await {
            Answer::Goes(_) | Answer::Closes(_) => count(&tally.short),
            Answer::Nothing => tally.fail("short", "no answer"),
            Answer::Broken(why) => tally.fail("short", &why),
        }
    }
}

/// A new connection each time, whose head comes in two pieces, with time in between.
async fn in_pieces(to: SocketAddr, tally: Arc<Tally>) {
    while !tally.is_over() {
        let Some(mut stream) = connect(to, &tally, "in pieces").await else { continue };
        let (first, rest) = GET.split_at(GET.len() / 2);
        if let Err(error) = stream.write_all(first).await {
            tally.fail("in pieces", &error.to_string());
            continue;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        match ask(&mut stream, rest).await {
            Answer::Goes(_) | Answer::Closes(_) => count(&tally.pieces),
            Answer::Nothing => tally.fail("in pieces", "no answer"),
            Answer::Broken(why) => tally.fail("in pieces", &why),
        }
    }
}

/// One connection for as long as it lasts, with pauses in between.
async fn kept(to: SocketAddr, tally: Arc<Tally>, pause: Duration) {
    let mut open: Option<TcpStream> = None;
    while !tally.is_over() {
        let used = open.is_some();
        let mut stream = match open.take() {
            Some(stream) => stream,
            None => match connect(to, &tally, "kept").await {
                Some(stream) => stream,
                None => continue,
            },
        };
        let mut answer = ask(&mut stream, GET).await;
        if used && matches!(answer, Answer::Nothing) {
            count(&tally.retries);
            let Some(again) = connect(to, &tally, "kept, again").await else { continue };
            stream = again;
            answer = ask(&mut stream, GET).await;
        }
        match answer {
            Answer::Goes(_) => {
                count(&tally.kept);
                open = Some(stream);
            }
            Answer::Closes(_) => {
                count(&tally.kept);
                count(&tally.said_close);
            }
            Answer::Nothing => tally.fail("kept", "no answer on a new connection"),
            Answer::Broken(why) => tally.fail("kept", &why),
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// A body that takes its time, and comes back.
async fn upload(to: SocketAddr, tally: Arc<Tally>) {
    const PIECES: usize = 20;
    let piece = [b'u'; 500];
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n",
        PIECES * piece.len()
    );
    while !tally.is_over() {
        let Some(mut stream) = connect(to, &tally, "upload").await else { continue };
        let send = async {
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..PIECES {
                stream.write_all(&piece).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok::<(), std::io::Error>(())
        };
        if let Err(error) = send.await {
            tally.fail("upload", &error.to_string());
            continue;
        }
        match answer(&mut stream).await {
            Answer::Goes(body) | Answer::Closes(body) if body == piece.repeat(PIECES) => {
                count(&tally.uploads);
            }
            Answer::Goes(_) | Answer::Closes(_) => tally.fail("upload", "another body"),
            Answer::Nothing => tally.fail("upload", "no answer"),
            Answer::Broken(why) => tally.fail("upload", &why),
        }
    }
}

/// A websocket whose every message comes back, until it is closed with 1001.
async fn websocket(to: SocketAddr, tally: Arc<Tally>, pause: Duration) {
    'connections: while !tally.is_over() {
        let Some(stream) = connect(to, &tally, "websocket").await else { continue };
        let (mut socket, _) =
            match tokio_tungstenite::client_async(format!("ws://{to}/ws"), stream).await {
                Ok(open) => open,
                Err(error) => {
                    tally.fail("websocket", &format!("not opened: {error}"));
                    continue;
                }
            };
        let mut number = 0u64;
        while !tally.is_over() {
            number += 1;
            let text = number.to_string();
            // What cannot be sent any more has an answer to be read all the same.
            let sent = socket.send(Message::text(text.clone())).await;
            match socket.next().await {
                Some(Ok(Message::Text(echo))) if echo.as_str() == text => count(&tally.echoes),
                Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Away => {
                    count(&tally.closed_with_1001);
                    // The library answers the close while it is polled to the end.
                    while socket.next().await.is_some() {}
                    continue 'connections;
                }
                other => {
                    tally.fail("websocket", &format!("{other:?} after {number}; sent: {sent:?}"));
                    continue 'connections;
                }
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        let _ = socket.close(None).await;
    }
}

/// Who changes things.
struct Administrator<'p> {
    place: &'p Place,
    /// What the file says now.
    version: u64,
    balance: bool,
    extra: bool,
    uid: Option<u32>,
    workers: u64,
    /// Routers that there should have been.
    routers: u64,
}

impl Administrator<'_> {
    fn order(&self, question: Value) {
        self.place.order(&question);
    }

    fn status(&self) -> Value {
        self.place.status()
    }

    /// Everybody is there, and nobody is under way any more.
    fn settled(&self) {
        let workers = self.workers;
        let begin = Instant::now();
        loop {
            let status = self.status();
            let pool = &status["pools"][0];
            if status["health"] == "healthy"
                && status["router"]["epoch"] == self.routers
                && pool["roll"].is_null()
                && pool["workers"].as_array().unwrap().len() as u64 == workers
            {
                return;
            }
            assert!(begin.elapsed() < 2 * DEADLINE, "it does not settle: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write(&self) -> std::path::PathBuf {
        let user = if rustix::process::geteuid().is_root() { "user = 'root'" } else { "" };
        let router = self.uid.map_or(String::new(), |uid| format!("[router]\nuser = '{uid}'\n"));
        let balance = if self.balance { "round-robin" } else { "least-connections" };
        let (name, more) = match self.extra {
            true => (
                "front",
                "[[pool]]\nname = 'next'\ncommand = 'demo'\nworkers = 1\n\
                     [[route]]\nname = 'other'\npeer = ['127.9.0.0/16']\npool = 'next'\n\
                     [[route]]\nname = 'all'\npool = 'app'\n",
            ),
            false => ("web", "[[route]]\nname = 'all'\npool = 'app'\n"),
        };
        self.place.config(&format!(
            "{router}[[listener]]\nname = '{name}'\naddress = '127.0.0.1:0'\n\
             [[pool]]\nname = 'app'\ncommand = [{WORKER:?}, 'serve']\nworkers = 2\n\
             balance = '{balance}'\ndrain-timeout = '2s'\n{user}\n\
             env = {{ CHANGE = '{}' }}\n\
             [[route]]\nname = 'nobody'\nhost = 'nobody.example'\nreject = 418\n{more}",
            self.version
        ))
    }

    fn reload(&self) {
        self.write();
        self.order(json!({"command": "reload"}));
    }

    fn another_router(&mut self) -> bool {
        let Some(uid) = &mut self.uid else { return false };
        *uid = 61_300 + (*uid - 61_299) % 100;
        self.routers += 1;
        true
    }

    fn change(&mut self, number: u64) -> &'static str {
        match number % 8 {
            0 => {
                self.balance = !self.balance;
                self.reload();
                "reload in place"
            }
            1 => {
                self.order(json!({"command": "restart", "pool": "app"}));
                "restart"
            }
            2 => {
                if !self.another_router() {
                    // An ordinary user's router is always that user.
                    self.version += 1;
                }
                self.reload();
                "router change"
            }
            3 => {
                for workers in [4, 3, 2] {
                    self.order(json!({"command": "scale", "pool": "app", "workers": workers}));
                }
                "scale"
            }
            4 => {
                self.version += 1;
                self.reload();
                "reload that rolls"
            }
            5 => {
                self.order(json!({"command": "drain", "worker": "app-1", "hold": true}));
                self.order(json!({"command": "ready", "worker": "app-1"}));
                "drain --hold and ready"
            }
            6 => {
                self.extra = !self.extra;
                self.reload();
                "reload of listeners, pools and routes"
            }
            _ => {
                self.another_router();
                self.balance = !self.balance;
                self.reload();
                self.settled();
                self.order(json!({"command": "drain", "worker": "app-2"}));
                "router change and drain"
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nobody_fails_while_everything_changes() {
    let (requests, changes) = (number("TEST_REQUESTS", 10_000), number("TEST_CHANGES", 8));
    let place = Place::new();
    let root = rustix::process::geteuid().is_root();
    let mut administrator = Administrator {
        place: &place,
        version: 0,
        balance: false,
        extra: false,
        uid: root.then_some(61_300),
        workers: 2,
        routers: 1,
    };
    let file = administrator.write();
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    let mut master = Master::launch(command);
    administrator.settled();
    let tally = Arc::new(Tally::default());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let to = master.address();
    let none = Duration::ZERO;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        clients.spawn_on(short(to, Arc::clone(&tally)), runtime.handle());
        clients.spawn_on(kept(to, Arc::clone(&tally), none), runtime.handle());
        let now_and_then = Duration::from_millis(300);
        clients.spawn_on(kept(to, Arc::clone(&tally), now_and_then), runtime.handle());
        clients.spawn_on(upload(to, Arc::clone(&tally)), runtime.handle());
        clients.spawn_on(in_pieces(to, Arc::clone(&tally)), runtime.handle());
        let often = Duration::from_millis(5);
        clients.spawn_on(websocket(to, Arc::clone(&tally), often), runtime.handle());
    }
    let mut made = std::collections::BTreeMap::<&str, u64>::new();
    let begin = Instant::now();
    for change in 0.. {
        let before = tally.requests();
        if change >= changes && before >= requests {
            break;
        }
        // At least some of the load meets each change.
        until("clients are served", || tally.requests() > before + 50);
        *made.entry(administrator.change(change)).or_default() += 1;
        administrator.settled();
    }
    tally.over.store(true, Ordering::Relaxed);
    runtime.block_on(async { while clients.join_next().await.is_some() {} });
    let status = administrator.status();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} requests in {:.0} s: {} short, {} kept alive, {} slow uploads, {} heads in two pieces; \
         {} websocket messages; \
         changes: {made:?}; routers: {}; answers that said `close`: {}; retries by RFC 9112 9.3.1: \
         {}; websockets closed with 1001: {}; failures: {}",
        tally.requests(),
        begin.elapsed().as_secs_f64(),
        get(&tally.short),
        get(&tally.kept),
        get(&tally.uploads),
        get(&tally.pieces),
        get(&tally.echoes),
        status["router"]["epoch"],
        get(&tally.said_close),
        get(&tally.retries),
        get(&tally.closed_with_1001),
        get(&tally.failures),
    );
    assert_eq!(get(&tally.failures), 0, "{}", tail(&place.said()));
    assert!(get(&tally.said_close) > 0, "no answer of a draining worker said that it is the last");
    assert!(get(&tally.closed_with_1001) > 0, "no websocket saw a worker end");
    if root {
        assert!(status["router"]["epoch"].as_u64() > Some(1), "no router took over");
    }
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
    assert!(process::status(master.router()).is_some());
    master.stop();
}

/// The end of a log.
fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    text.get(start..).unwrap_or(text)
}
