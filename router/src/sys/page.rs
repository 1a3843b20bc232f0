//! Memory that two processes share: counters that outlive the one that counts.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Length in bytes: one page of every architecture's smallest page size.
const LENGTH: usize = 4096;

/// How many numbers a page holds.
pub(crate) const NUMBERS: usize = LENGTH / size_of::<u64>();

/// A shared page of numbers. All are zero at first.
#[derive(Debug)]
pub(crate) struct Page {
    start: NonNull<[AtomicU64; NUMBERS]>,
}

// SAFETY: the page is shared memory of atomic numbers, which any thread may use, and it stays mapped
// until the value is dropped.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// A new page, and the descriptor that another process maps it by. Its size is sealed, so that
    /// nobody can make an access fault by shrinking it.
    pub(crate) fn new() -> Result<(Self, OwnedFd), Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("vestibule-counters", flags)?;
        rustix::fs::ftruncate(&memory, LENGTH as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals)?;
        Ok((Self::map(&memory)?, memory))
    }

    /// The page behind a descriptor of [`new`](Self::new).
    pub(crate) fn map(memory: impl AsFd) -> Result<Self, Errno> {
        let seals = rustix::fs::fcntl_get_seals(&memory)?;
        let size = rustix::fs::fstat(&memory)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || size != LENGTH as i64 {
            return Err(Errno::INVAL);
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), LENGTH, protection, flags, memory, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::INVAL)?;
        Ok(Self { start })
    }

    /// The numbers.
    pub(crate) fn numbers(&self) -> &[AtomicU64; NUMBERS] {
        // SAFETY: the mapping is page-aligned, LENGTH bytes long, cannot shrink, and lives as long as
        // `self`; every bit pattern is a number, and all access is atomic.
        unsafe { self.start.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it any more.
        let result = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), LENGTH) };
        debug_assert!(result.is_ok(), "an own mapping can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_one_mapping_counts_the_other_reads() {
        let (one, memory) = Page::new().unwrap();
        let two = Page::map(&memory).unwrap();
        one.numbers()[7].fetch_add(3, Ordering::Relaxed);
        drop(one);
        assert_eq!(two.numbers()[7].load(Ordering::Relaxed), 3);
    }

    #[test]
    fn memory_that_could_shrink_is_no_page() {
        let memory = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memory, LENGTH as u64).unwrap();
        assert_eq!(Page::map(&memory).unwrap_err(), Errno::INVAL);
    }
}
