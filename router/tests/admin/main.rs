//! The admin socket of the real program: its commands under load, and peers that mean it ill.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "tests")]

mod changing;
mod commands;
#[path = "../shared/copies.rs"]
mod copies;
mod hostile;
mod running;
mod schema;
mod starting;
mod tracing;
