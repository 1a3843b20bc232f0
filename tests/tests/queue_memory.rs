//! What a connection that waits costs the router: counted at the allocator, in a process of its own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::time::{Duration, Instant};

use vestibule_router::{Listener, WorkerOptions, WorkerPool};
use vestibule_tests::DEADLINE;
use vestibule_tests::memory::{Counting, Crowd, allocated, raise_descriptor_limit};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CLIENTS: usize = 10_000;
const DESCRIPTORS: u64 = CLIENTS as u64 + 1_000;
const MOST: isize = 512;

#[tokio::test]
async fn a_connection_that_waits_costs_at_most_512_bytes() {
    raise_descriptor_limit(DESCRIPTORS);
    let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Never says that it is ready.
    let options = WorkerOptions::new("sleep")
        .arg("600")
        .queue(CLIENTS, Duration::from_secs(600))
        .stop_timeouts(Duration::ZERO, Duration::ZERO);
    let pool = WorkerPool::start(1, &options).unwrap();
    while pool.iter().any(|worker| worker.pid().is_none()) {
        tokio::task::yield_now().await;
    }
    let before = allocated();
    let mut clients = Crowd::new(address.port(), CLIENTS);
    clients.connect();
    let begin = Instant::now();
    tokio::select! {
        result = vestibule_router::serve(&mut listener, &pool) => panic!("{result:?}"),
        () = async {
            while pool.queued() < CLIENTS {
                assert!(begin.elapsed() < DEADLINE, "{} wait", pool.queued());
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let each = (allocated() - before) / CLIENTS as isize;
    println!("{each} bytes a connection that waits");
    assert!((1..=MOST).contains(&each), "{each} bytes a connection");
    drop(clients);
    while pool.queued() > 0 {
        tokio::task::yield_now().await;
    }
    pool[0].kill();
    while pool[0].pid().is_some() {
        tokio::task::yield_now().await;
    }
}
