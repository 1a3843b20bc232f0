//! What safe Rust has no word for: another process's CPU clock, tokio's registration of a descriptor, an allocator that counts.
//!
//! Called by [`crate::processes`], [`crate::server`] and [`crate::counting`], in this order.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// CPU time, user and system together, that all threads of a process have used, those that ended included.
///
/// `/proc/PID/stat` counts in ticks of 10 ms, too coarse for a round of a second; this clock
/// (`clock_getcpuclockid(3)`) is the scheduler's own sum in nanoseconds.
///
/// # Errors
/// `ESRCH` or `EINVAL` when there is no such process (any more).
pub(crate) fn cpu_time(pid: Pid) -> io::Result<Duration> {
    let mut clock = MaybeUninit::<libc::clockid_t>::uninit();
    // SAFETY: `clock` is valid for a write of one clockid_t; the call keeps no pointer.
    let status =
        unsafe { libc::clock_getcpuclockid(pid.as_raw_nonzero().get(), clock.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::from_raw_os_error(status));
    }
    // SAFETY: the call above succeeded, and then it has written the clock's number.
    let clock = unsafe { clock.assume_init() };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for a write of one timespec; a clock that does not exist is an error, not undefined.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanoseconds = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, nanoseconds))
}

/// Registers a descriptor with the running runtime, for reading only: readiness to write, which each receive at the other end
/// announces, would wake a worker that never waits for it.
///
/// # Errors
/// When epoll refuses it.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and its number stays the same, until it is dropped, which AsyncFd does after deregistering it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Whether [`CountingAllocator`] counts. Off costs one predictable branch an allocation, the same for every server of this program.
pub(crate) static COUNTING: AtomicBool = AtomicBool::new(false);
/// Calls that asked for memory (`alloc`, `alloc_zeroed`, `realloc`) while [`COUNTING`] was set.
pub(crate) static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes that those calls asked for.
pub(crate) static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

/// The system's allocator with a count in front of it.
pub(crate) struct CountingAllocator;

fn count(bytes: usize) {
    if COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every method forwards to `System` with the arguments it was given; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller upholds `alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` through this allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller upholds `alloc_zeroed`'s contract, which is `System`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the pointer came from `System` through this allocator, with this layout.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
