//! A router that dies or hangs under load, and a supervisor that is killed: semantics, point 21.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::process::Signal;
use vestibule_tests::ledger::{Ledger, VARIABLE};
use vestibule_tests::master::Master;
use vestibule_tests::world::until;
use vestibule_tests::{Client, DEADLINE, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");
const CRASHES: usize = 10;

/// Clients that come again and again, each for one request.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            std::thread::spawn(move || {
                let mut failed = 0;
                while !over.load(Ordering::Relaxed) {
                    match one_request(address) {
                        true => answered.fetch_add(1, Ordering::Relaxed),
                        false => {
                            failed += 1;
                            0
                        }
                    };
                }
                failed
            })
        };
        let clients = (0..4).map(client).collect();
        Self { over, answered, clients }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until clients are being served.
    fn flows(&self) {
        let before = self.answered();
        until("clients are served", || self.answered() > before + 20);
    }

    /// How many were answered, and how many were not.
    fn end(self) -> (u64, u64) {
        self.over.store(true, Ordering::Relaxed);
        let failed = self.clients.into_iter().map(|client| client.join().unwrap()).sum();
        (self.answered.load(Ordering::Relaxed), failed)
    }
}

/// Whether one request was answered. That it could connect is not left open.
fn one_request(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).expect("nobody is refused");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    let mut answer = [0; 12];
    match asked.and_then(|()| stream.read_exact(&mut answer)) {
        Ok(()) => {
            assert_eq!(&answer, b"HTTP/1.1 200");
            true
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("a client waited in vain")
        }
        Err(_) => false,
    }
}

/// Connections in the middle of something.
struct Busy {
    kept: Client,
    upload: Client,
    download: Client,
    sent: Vec<u8>,
}

impl Busy {
    fn start(master: &Master) -> Self {
        let mut kept = master.client();
        assert_eq!(kept.get("/").status, 200);
        let mut upload = master.client();
        upload.ask("/bytes");
        upload.send(&[b'u'; 1000]);
        // More than the sockets hold: its answer stays under way until it is read.
        let sent = vec![b'd'; 8 << 20];
        let mut download = master.client();
        download.ask("/bytes");
        download.send(&sent);
        download.finish();
        Self { kept, upload, download, sent }
    }

    fn goes_on(&mut self) {
        assert_eq!(self.kept.get("/").status, 200);
        self.upload.send(&[b'u'; 1000]);
    }

    fn ends_well(mut self, pieces: usize) {
        assert_eq!(self.kept.get("/").status, 200);
        self.upload.finish();
        let echoed = self.upload.answer().body;
        assert!(echoed.ends_with(&vec![b'u'; 1000 * (1 + pieces)]), "{} bytes", echoed.len());
        assert!(self.download.answer().body.ends_with(&self.sent));
    }
}

fn with_ledger(ledger: &Ledger) -> Master {
    let path = ledger.path();
    Master::start(WORKER, &["recv"], |command| {
        command.env(VARIABLE, path);
    })
}

#[test]
fn a_router_killed_ten_times_under_load_costs_only_what_it_had_not_handed_over() {
    let ledger = Ledger::new();
    let mut master = with_ledger(&ledger);
    let workers = master.workers();
    let mut busy = Busy::start(&master);
    let load = Load::start(master.address());
    for _ in 0..CRASHES {
        load.flows();
        master.kill_router();
        load.flows();
        busy.goes_on();
    }
    let (answered, failed) = load.end();
    busy.ends_well(CRASHES);
    assert_eq!(master.workers(), workers, "workers live on");
    ledger.assert_nothing_served_twice();
    // Three connections stay open beside the load's; each was acknowledged long ago.
    until("every acknowledgement is counted", || {
        let (accepted, acknowledged) = master.accepted_and_acknowledged();
        accepted >= answered + 3 && acknowledged <= accepted
    });
    let (accepted, acknowledged) = master.accepted_and_acknowledged();
    println!(
        "{answered} answered, {failed} failed in {CRASHES} crashes; {accepted} accepted, \
         {acknowledged} acknowledged"
    );
    assert!(failed <= accepted - acknowledged, "{failed} > {accepted} - {acknowledged}");
    master.stop();
}

#[test]
fn a_router_that_hangs_is_replaced_and_nobody_is_refused() {
    let ledger = Ledger::new();
    let mut master = with_ledger(&ledger);
    let mut busy = Busy::start(&master);
    let old = master.router();
    process::freeze(old);
    // It waits in the kernel's queue until there is a router that accepts it.
    assert_eq!(master.client().get("/").status, 200);
    assert_ne!(master.router(), old);
    assert!(process::is_gone(old));
    busy.goes_on();
    busy.ends_well(1);
    ledger.assert_nothing_served_twice();
    master.stop();
}

#[test]
fn a_supervisor_that_is_killed_takes_the_router_along_and_workers_finish_what_they_have() {
    let ledger = Ledger::new();
    let mut master = with_ledger(&ledger);
    let workers = master.workers();
    let router = master.router();
    let mut busy = Busy::start(&master);
    master.signal(Signal::KILL);
    master.wait();
    until("the router is gone", || {
        process::status(router).is_none_or(|status| status.state == 'Z')
    });
    busy.goes_on();
    assert!(workers.iter().all(|worker| process::status(*worker).is_some()));
    busy.ends_well(1);
    master.assert_all_gone();
}
