//! `MessagePort` against the message semantics, point by point: the number in a test's name is the
//! point's. Real descriptors, in one process and between processes (the test binary starts itself
//! again, see `process`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod closing;
mod hostile;
mod posting;
mod process;
mod support;
mod transferring;
mod unreadable;
