//! What connections cost in memory: an allocator that counts, and a crowd of clients in a process of its own.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicIsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator with a count: a test makes it its `#[global_allocator]`, alone in its process.
#[derive(Debug)]
pub struct Counting;

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

/// Bytes that are allocated now.
pub fn allocated() -> isize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// Clients in a process of their own, since descriptors are limited per process. They say nothing, and stay until this is
/// dropped.
#[derive(Debug)]
pub struct Crowd(Child);

impl Crowd {
    /// Nobody as yet; `burst` will come at each call of [`connect`](Self::connect).
    pub fn new(port: u16, burst: usize) -> Self {
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
        command.args(["-c", PROGRAM, &port.to_string(), &burst.to_string()]);
        Self(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    /// More of them connect; this does not wait for it.
    pub fn connect(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        let all_came = ended.is_ok_and(|status| status.success());
        assert!(all_came || std::thread::panicking(), "all clients connected");
    }
}

/// Lets this process and those that it starts have as many descriptors as they may.
///
/// # Panics
/// Those are fewer than `enough`.
pub fn raise_descriptor_limit(enough: u64) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let few = limit.maximum.is_some_and(|maximum| maximum < enough);
    assert!(!few, "{enough} open files are needed (ulimit -Hn)");
}
