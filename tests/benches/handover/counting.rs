//! Counts allocations in this process and tells the benchmark, which asks over a stream socket, one byte a question.
//!
//! The router that is measured is the only thing that runs beside the answering thread: the load generator is another process.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;

use crate::sys::{ALLOCATED_BYTES, ALLOCATIONS, COUNTING};

/// What has been allocated since counting began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    /// Calls that asked for memory.
    pub(crate) allocations: u64,
    /// Bytes they asked for.
    pub(crate) bytes: u64,
}

impl Count {
    /// What came after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            allocations: self.allocations.saturating_sub(earlier.allocations),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

/// Begins to count, and answers questions on `control` in a thread of its own (which allocates nothing while it does) until
/// the other side closes it.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn answer_on(mut control: UnixStream) -> io::Result<()> {
    COUNTING.store(true, Ordering::Relaxed);
    thread::Builder::new().name("counting".into()).spawn(move || {
        let mut question = [0; 1];
        while control.read_exact(&mut question).is_ok() {
            let mut answer = [0; 16];
            let (allocations, bytes) = answer.split_at_mut(8);
            allocations.copy_from_slice(&ALLOCATIONS.load(Ordering::Relaxed).to_le_bytes());
            bytes.copy_from_slice(&ALLOCATED_BYTES.load(Ordering::Relaxed).to_le_bytes());
            if control.write_all(&answer).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Asks a process that [`answer_on`]s the other end.
///
/// # Errors
/// When that process is gone.
pub(crate) fn ask(control: &mut UnixStream) -> io::Result<Count> {
    control.write_all(&[0])?;
    let mut allocations = [0; 8];
    let mut bytes = [0; 8];
    control.read_exact(&mut allocations)?;
    control.read_exact(&mut bytes)?;
    Ok(Count { allocations: u64::from_le_bytes(allocations), bytes: u64::from_le_bytes(bytes) })
}
