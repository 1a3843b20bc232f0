//! An allocator that knows the most that was allocated at one time: stable Rust has no sanitizer
//! whose hooks libFuzzer could use for its own limit.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static METER: Meter = Meter;

struct Meter;

/// Runs `work`; returns its value and the bytes it had allocated at one time, at most. A target has
/// one thread, so what others allocate does not disturb.
pub(crate) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let value = work();
    (value, PEAK.load(Relaxed).saturating_sub(before))
}

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments, and what it
// returns goes back unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller upholds the contract of `alloc` for this layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller upholds the contract of `alloc_zeroed` for this layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new exist together while the content is copied.
        grown(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller upholds the contract of `realloc`: `pointer` is of this allocator,
        // that is the system's, and `layout` is its layout.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller upholds the contract of `dealloc`: `pointer` is of this allocator,
        // that is the system's, and `layout` is its layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_lived_at_one_time() {
        let (_, twice) = peak_of(|| {
            drop(vec![1u8; 100_000]);
            drop(vec![1u8; 100_000]);
        });
        let (_, both) = peak_of(|| (vec![1u8; 100_000], vec![1u8; 100_000]));
        assert!((100_000..150_000).contains(&twice), "{twice}");
        assert!((200_000..250_000).contains(&both), "{both}");
    }
}
