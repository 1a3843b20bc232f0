//! What connections cost the router once workers have them: nothing. Counted at the allocator, in a process of its own.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vestibule_router::{Listener, WorkerPool};
use vestibule_tests::{DEADLINE, worker};

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
    raise_descriptor_limit();
    let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = WorkerPool::spawn(2, &worker!("serve")).await.unwrap();
    tokio::select! {
        result = vestibule_router::serve(&mut listener, &pool) => panic!("{result:?}"),
        () = async {
            drop(hand_over(address, &pool, CONNECTIONS).await);
            let before = ALLOCATED.load(Ordering::Relaxed);
            let _clients = hand_over(address, &pool, CONNECTIONS).await;
            let grown = ALLOCATED.load(Ordering::Relaxed) - before;
            println!("{grown} bytes for {CONNECTIONS} connections that workers hold");
            assert!(grown <= SLACK, "{grown} bytes");
        } => {}
    }
}

/// Connects so many clients, which stay, and waits until workers have acknowledged them.
async fn hand_over(address: SocketAddr, pool: &WorkerPool, count: usize) -> Clients {
    let mut clients = Clients::new(address.port());
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

/// Clients in a process of their own (descriptors are limited per process): [`BURST`] connect at each word, and stay until
/// this is dropped.
struct Clients(Child);

impl Clients {
    fn new(port: u16) -> Self {
        const PROGRAM: &str = "
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
address = ('127.0.0.1', int(sys.argv[1]))
clients = []
for word in sys.stdin:
    clients += [socket.create_connection(address) for _ in range(int(sys.argv[2]))]
";
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM, &port.to_string(), &BURST.to_string()]);
        Self(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    fn connect(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
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
