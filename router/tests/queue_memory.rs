//! What a connection that waits costs the router: counted at the allocator, in a process of its own.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::TcpStream;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use vestibule_router::{Listener, WorkerOptions, WorkerPool};

static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CLIENTS: usize = 400;
const MOST: isize = 512;

#[tokio::test]
async fn a_connection_that_waits_costs_at_most_512_bytes() {
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
    let clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let before = ALLOCATED.load(Ordering::Relaxed);
    tokio::select! {
        result = vestibule_router::serve(&mut listener, &pool) => panic!("{result:?}"),
        () = async {
            while pool.queued() < CLIENTS {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let each = (ALLOCATED.load(Ordering::Relaxed) - before) / CLIENTS as isize;
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
