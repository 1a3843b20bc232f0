//! What both ends of every vestibule link agree on.
//!
//! ```text
//!  message / connection_info      what is said            (pure)
//!        │ codec, tlv             how it is written       (pure, bounded, fuzzed)
//!  envelope = header + body + transfer
//!        │
//!  socket (one packet)  ──▶  port (MessageChannel, MessagePort)
//! ```
//!
//! The router and the worker runtimes both see this crate and never each other. The format is
//! described in `docs/wire-protocol.md`, which alone suffices to write a worker in another language.
//!
//! Everything that parses takes a byte slice and returns a value or a reason: no I/O, no clock.

pub mod codec;
pub mod connection_info;
pub mod discard;
pub mod envelope;
pub mod handshake;
pub mod header;
pub mod http;
pub mod limits;
pub mod message;
pub mod port;
pub mod scope;
pub mod socket;
pub mod supervision;
pub mod sys;
pub mod tlv;

pub use codec::{Codec, Data};
pub use connection_info::ConnectionInfo;
pub use envelope::{PassedConnection, Transfer, Transferable};
pub use port::{MessageChannel, MessagePort};
