//! A descriptor-passing connection router with a Web-Worker-style message API.
//!
//! ```text
//! listener ─▶ inspect ─▶ route ─▶ pool ─▶ handoff ═(SCM_RIGHTS)═▶ the worker's process
//!  accept4     facts      decision  worker   offer, acknowledgement
//! ```
//!
//! The file tree is the data path, in the order in which a connection meets it:
//!
//! - `accept`: the loop that carries connections from a listener to a pool;
//! - [`listener`]: accepts up to 64 connections a turn and reads none of them;
//! - [`inspect`]: a [`PausedConnection`](inspect::PausedConnection) has no read method;
//! - [`connection`]: a paused connection with what is known about it; [`reject`] says no to it;
//! - [`route`]: which pool it goes to; `config`, behind a feature, reads it from a file;
//! - `pool`: who can take it (`pool/pick`), who gets it, where it goes if that one does not
//!   (`pool/core`), and the tasks around it (`pool/drive`); `queue`: who waits;
//! - `handoff`: what was offered to one worker and is not settled; `link`: how that is written;
//! - [`moderation`]: whether the thread rests before it waits, so that one look finds more;
//! - `supervisor`: starts processes and ends them; it meets the data path in messages (`control`).
//!
//! As a library: [`Listener`], [`Worker`] and [`WorkerPool`] are `net.createServer`, `new Worker` and
//! an array of them in the article that this program comes from. The other side is the crate
//! `vestibule-worker`.

mod accept;
#[cfg(feature = "config")]
pub mod config;
pub mod connection;
mod control;
#[cfg(feature = "cli")]
mod dispatch;
pub mod event;
mod handoff;
pub mod inspect;
#[cfg(feature = "cli")]
mod limits;
mod link;
pub mod listener;
#[cfg(feature = "cli")]
pub mod metrics;
pub mod moderation;
pub mod options;
mod pool;
mod queue;
pub mod reject;
#[cfg(feature = "cli")]
pub mod role;
pub mod route;
#[cfg(feature = "cli")]
pub mod supervisor;
#[cfg(not(feature = "cli"))]
mod supervisor;
mod sys;
mod ticket;
mod trace;
pub mod transfer;
pub mod worker;

pub use accept::{accept_dry, serve};
pub use connection::Connection;
pub use event::{Exit, HandedBack, Undelivered, UndeliveredReason, WorkerError, WorkerEvent};
pub use listener::{ListenError, Listener};
pub use options::{Output, Restart, WorkerOptions};
pub use pool::core::{Counters, Refused};
pub use pool::{Balance, Otherwise, WhenFull};
pub use supervisor::identity::IdentityError;
pub use transfer::Transfer;
pub use vestibule_protocol::{
    Codec, ConnectionInfo, Data, MessageChannel, MessagePort, Transferable,
};
pub use worker::{PostError, PostMessageError, SpawnError, Worker, WorkerPool};
