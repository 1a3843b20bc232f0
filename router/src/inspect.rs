//! What can be learned about a connection without consuming it.

pub mod paused;

pub use paused::{PausedConnection, Touched};
