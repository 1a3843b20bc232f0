//! Routing scripts: JavaScript that chooses a worker for each connection.
//!
//! An [`Engine`] holds one script in one QuickJS context. It decides; it does nothing: what the script
//! asks for comes out as an [`Outcome`], and whoever called does it. So the same engine serves
//! connections and answers `explain` and `check`. Only the unprivileged router runs a script for
//! connections; the supervisor never does.
//!
//! A script that loops, throws or eats memory costs its own decision and no more (one whose steps are
//! long may cost the router, see `clock`): `clock` and the memory limit end it, `switch` leaves it alone for a while when it does nothing else, and the
//! `[[route]]`s decide meanwhile.
//!
//! What scripts see: `connection`, `request`, `pools`, `globals`; `message` is what they
//! post. `book` knows which connections are undecided, `waiting` what they wait for, `rejections` what went wrong
//! and nobody has asked for; `layouts` and `native` make decisions fast.

mod book;
mod clock;
mod connection;
mod engine;
mod failure;
mod globals;
mod jobs;
mod layouts;
mod message;
mod native;
mod pools;
mod rejections;
mod request;
mod start;
mod switch;
#[cfg(test)]
mod tests;
mod text;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use vestibule_protocol::Data;

pub use self::book::Ticket;
pub use self::engine::{Engine, Verdict};
pub use self::failure::{Failure, FailureKind};
use super::Refusal;
use crate::inspect::{Cause, ClientHello, Fact, Label};

/// Longest script, in bytes: a map of some ten thousand names fits several times.
pub const MOST: usize = 1 << 20;

/// What `script-timeout` is unless written. It is looked at every ten thousand steps (`clock`).
pub const TIMEOUT: Duration = Duration::from_millis(5);

/// What `script-memory` is unless written, in bytes.
pub const MEMORY: usize = 16 << 20;

/// Name that a route has which a script chose.
pub const ROUTE: &str = super::table::SCRIPT;

/// A script's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How it is called in messages: the file's name.
    pub name: String,
    /// The text.
    pub text: String,
}

/// What a script may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for one decision, without the time that is waited for a client's bytes. It is looked at
    /// every ten thousand steps, whatever these do.
    pub time: Duration,
    /// Memory of all its values together, in bytes.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: TIMEOUT, memory: MEMORY }
    }
}

/// A connection that a script is asked about. What takes a system call is asked when the script asks.
pub trait Subject: Send + 'static {
    /// The client's address; none for a client without an Internet address.
    fn peer(&self) -> Option<SocketAddr>;
    /// The address that the client connected to; the unspecified one if only its port is known.
    fn local(&self) -> Option<SocketAddr>;
    /// Name of the listener.
    fn listener(&self) -> Arc<str>;
    /// The peer's security context.
    fn context(&mut self) -> Fact<Label>;
    /// The user at the other end of a Unix-domain socket: a name, or a number without one.
    fn user(&self) -> Fact<String>;
    /// What a proxy in front has announced of the TLS that it has ended.
    fn announced(&self) -> Option<ClientHello>;
}

/// The pools and their workers, as scripts see them.
pub trait Pools: Send + Sync {
    /// Their names, in the order of their indices.
    fn names(&self) -> Vec<Arc<str>>;
    /// The slots of a pool that are in use: number and worker's name.
    fn slots(&self, pool: usize) -> Vec<(u32, Arc<str>)>;
    /// Whether a worker takes connections now.
    fn ready(&self, pool: usize, slot: u32) -> bool;
    /// Connections that a worker holds, and those on their way.
    fn connections(&self, pool: usize, slot: u32) -> u32;
    /// The slot that a key leads to, by the pool's rendezvous hash.
    fn worker_for(&self, pool: usize, key: &[u8]) -> Option<u32>;
}

/// What a script made of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes to a worker.
    Post {
        /// Index of the pool.
        pool: usize,
        /// Which of its workers.
        to: To,
        /// What is posted with it.
        message: Data,
    },
    /// It is turned away.
    Reject(Refusal),
    /// The handler ended and has neither posted nor rejected.
    Undecided,
    /// The handler needed what the client did not show: no fault of the script's.
    Unknown(Cause),
    /// The handler threw or ran out of time or memory, or the script is switched off.
    Failed,
}

/// Which worker of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Whom the pool's balance chooses.
    Balance,
    /// The worker of this slot, now or when it is ready.
    Slot(u32),
}
