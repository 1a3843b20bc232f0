//! What connections cost the router once workers have them: nothing. Counted at the allocator, in a process of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::net::SocketAddr;
use std::time::Instant;

use vestibule_router::{Listener, WorkerPool};
use vestibule_tests::memory::{Counting, Crowd, allocated, raise_descriptor_limit};
use vestibule_tests::{DEADLINE, worker};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: usize = 10_000;

/// Clients that connect at once: fewer than two workers' windows, so that none has to wait.
const BURST: usize = 100;

/// What queues and buffers may still gain in capacity after as many connections before. An entry has some 300 bytes: 10,000
/// that stayed would be seen.
const SLACK: isize = 64 * CONNECTIONS as isize;

/// As many in the clients' process, or in a worker if it gets all.
const DESCRIPTORS: u64 = CONNECTIONS as u64 + 1_000;

#[tokio::test]
async fn ten_thousand_connections_handed_over_cost_the_router_nothing_that_grows() {
    raise_descriptor_limit(DESCRIPTORS);
    let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = WorkerPool::spawn(2, &worker!("serve")).await.unwrap();
    tokio::select! {
        result = vestibule_router::serve(&mut listener, &pool) => panic!("{result:?}"),
        () = async {
            drop(hand_over(address, &pool, CONNECTIONS).await);
            let before = allocated();
            let _clients = hand_over(address, &pool, CONNECTIONS).await;
            let grown = allocated() - before;
            println!("{grown} bytes for {CONNECTIONS} connections that workers hold");
            assert!(grown <= SLACK, "{grown} bytes");
        } => {}
    }
}

/// Connects so many clients, which stay, and waits until workers have acknowledged them.
async fn hand_over(address: SocketAddr, pool: &WorkerPool, count: usize) -> Crowd {
    let mut clients = Crowd::new(address.port(), BURST);
    for _ in 0..count / BURST {
        let delivered = pool.counters().delivered + BURST as u64;
        clients.connect();
        let begin = Instant::now();
        while pool.counters().delivered < delivered {
            assert!(begin.elapsed() < DEADLINE, "{:?} of {delivered}", pool.counters());
            tokio::task::yield_now().await;
        }
    }
    clients
}
