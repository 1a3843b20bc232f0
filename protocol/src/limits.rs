//! Every bound of the protocol, each with its reason.

/// Largest packet on any link, in bytes, header included.
///
/// A seqpacket receiver must offer a buffer for the largest packet or lose its tail. 32 KiB holds a
/// full batch of connections with all facts, and stays far below the default socket buffer
/// (212,992 bytes), so that one packet can never be refused for its size alone.
pub const MAX_PACKET: usize = 32 * 1024;

/// Most descriptors in one packet.
///
/// The kernel's own bound is 253 (`SCM_MAX_FD`). 64 is what one accept burst yields, and keeps the
/// number of descriptors in flight, which counts against the sender's `RLIMIT_NOFILE`, small.
pub const MAX_DESCRIPTORS: usize = 64;

/// Largest user message by default, in bytes. Above one packet it travels in a sealed memfd.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Largest user message by what decoding may allocate: the same bound, as bincode's limit.
pub const DECODE_LIMIT: usize = MAX_MESSAGE;

/// Messages that may wait in user space before a slow receiver.
pub const QUEUE_MESSAGES: usize = 1024;

/// Bytes that may wait in user space before a slow receiver. A single message larger than this is
/// taken when nothing waits before it.
pub const QUEUE_BYTES: usize = 1024 * 1024;

/// A message longer than this leaves its packet for a memfd: what is left of the packet is for the
/// header and the transfer list.
pub const INLINE_MESSAGE: usize = MAX_PACKET - 8 * 1024;

/// Longest text (error message, file name, refusal detail) that one side may send to the other.
/// It ends in logs and events, never in a decision.
pub const MAX_TEXT: usize = 4096;
