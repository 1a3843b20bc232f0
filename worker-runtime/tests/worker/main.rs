//! The worker runtime against a played router: real ports, real connections, real HTTP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "tests fail by panicking"
)]

mod adopting;
mod ending;
mod messages;
mod processes;
mod serving;
mod support;
