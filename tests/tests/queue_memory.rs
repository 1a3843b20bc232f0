//! What a connection that waits costs the router: counted at the allocator, in a process of its own.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
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

const CLIENTS: usize = 10_000;
const DESCRIPTORS: u64 = CLIENTS as u64 + 1_000;
const MOST: isize = 512;

#[tokio::test]
async fn a_connection_that_waits_costs_at_most_512_bytes() {
    raise_descriptor_limit();
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
    let before = ALLOCATED.load(Ordering::Relaxed);
    let clients = Clients::connect(address.port(), CLIENTS);
    tokio::select! {
        result = vestibule_router::serve(&mut listener, &pool) => panic!("{result:?}"),
        () = async {
            while pool.queued() < CLIENTS {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let each = (ALLOCATED.load(Ordering::Relaxed) - before) / CLIENTS as isize;
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

/// Clients in a process of their own (descriptors are limited per process): they connect, and stay until this is dropped.
struct Clients(std::process::Child);

impl Clients {
    fn connect(port: u16, count: usize) -> Self {
        const PROGRAM: &str = "
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
address = ('127.0.0.1', int(sys.argv[1]))
clients = [socket.create_connection(address) for _ in range(int(sys.argv[2]))]
sys.stdin.read()
";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", PROGRAM, &port.to_string(), &count.to_string()]);
        Self(command.stdin(std::process::Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        assert!(ended.is_ok_and(|status| status.success()), "all clients connected");
    }
}

/// # Panics
/// The hard limit is lower.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let enough = limit.maximum.is_none_or(|maximum| maximum >= DESCRIPTORS);
    assert!(enough, "{DESCRIPTORS} open files are needed (ulimit -Hn)");
}
