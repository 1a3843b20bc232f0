//! What a case and the well-behaved worker say to each other, as bincode.

use serde::{Deserialize, Serialize};

/// What the worker is to do, in the order of its port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Say it back, with what was transferred with it.
    Echo(String),
    /// Say this many bytes back, each `n % 251`.
    Bytes(usize),
    /// Say who it is.
    Name,
    /// Post without end.
    Flood,
    /// Panic with this text, in a task of its own.
    Panic(String),
    /// Call `close()`.
    Close,
    /// Call `drain()`.
    Drain,
    /// End with this code, without a word.
    Exit(i32),
    /// Never do anything again, the processor busy.
    Loop,
    /// Allow itself only so many descriptors beyond those that it has.
    Descriptors(u64),
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// What it was told, and how many things came with it.
    Echo(String, usize),
    /// Its `VESTIBULE_WORKER` and `VESTIBULE_POOL`.
    Name(String, String),
    /// One of the flood.
    Flood(u64),
    /// It had a `message_error` event.
    MessageError(String),
    /// A port that was transferred to it closed, after so many messages.
    PortClosed(usize),
    /// Done.
    Done,
}
