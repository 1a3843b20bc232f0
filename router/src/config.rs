//! The configuration file: read strictly, once, into types that cannot be wrong.
//!
//! ```text
//! files ─▶ read ─▶ cross ─▶ surroundings ─▶ Config
//!  TOML    values    names     this system     whole and valid, or every mistake with its place
//! ```
//!
//! Every value remembers who said it, see [`Sourced`]. What is wrong is collected, not thrown: one
//! run shows all of it, in the order of the file.

pub mod mistake;
pub mod problem;
pub mod source;
pub mod types;

pub use self::mistake::{Mistake, Warning};
pub use self::source::{Origin, Place, Source, Sourced};
pub use self::types::{
    Account, Address, Admin, Command, Config, Listener, OnError, Pool, Protocol, Queue, Restart,
    Route, Router, Test, Workers,
};
