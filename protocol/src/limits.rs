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

/// Most bytes that a transfer list takes in a large body, beside the message: 64 connections with
/// four texts of [`MAX_TEXT`] each stay below it.
pub const MAX_TRANSFER_LIST: usize = 1024 * 1024;

/// Most bytes that a worker has read of a connection that it hands back: room for a whole head with
/// much behind it, and little enough that a thousand waiting ones are no burden.
pub const MAX_PREFIX: usize = 64 * 1024;

/// How often a connection is handed back before its client has got anything. A login in front, a
/// service behind it and a detour are three; more is a circle.
pub const MAX_HOPS: u8 = 8;

/// Most bytes that the scope of a decision takes beside a connection's facts: some hundred
/// conditions. It travels with every connection of its rule, so longer ones do not.
pub const MAX_SCOPE: usize = 4096;

/// bincode's limit for the largest messages.
///
/// bincode counts a value by its size in memory, and one byte on the wire can be a `u128`: with a
/// limit of [`MAX_MESSAGE`] a message of 2 MiB of small `u64`s would not be readable.
pub const DECODE_LIMIT: usize = 16 * MAX_MESSAGE;

/// bincode's limit for messages that fit a packet, so that a few bytes from a peer cannot make the
/// receiver allocate what only a large message may.
pub const DECODE_LIMIT_PACKET: usize = 16 * MAX_PACKET;

/// Messages that may wait in user space before a slow receiver.
pub const QUEUE_MESSAGES: usize = 1024;

/// Bytes that may wait in user space before a slow receiver. A single message larger than this is
/// taken when nothing waits before it.
pub const QUEUE_BYTES: usize = 1024 * 1024;

/// A message longer than this leaves its packet for a memfd: what is left of the packet is for the
/// header and the transfer list. A shorter one leaves it too if its transfer list needs more room.
pub const INLINE_MESSAGE: usize = MAX_PACKET - 8 * 1024;

/// Longest text (error message, file name, refusal detail) that one side may send to the other.
/// It ends in logs and events, never in a decision.
pub const MAX_TEXT: usize = 4096;
