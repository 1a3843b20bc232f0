//! The harness of the end-to-end tests: what the cases in `tests/` share.
//!
//! A case is a function given to [`run`]: it starts pools of real processes (the two programs in
//! `bin/`) over the real router library, speaks to them as a client over loopback, and waits for
//! states, never for a time. After it, every descriptor, process and task must be gone.
//!
//! - [`world`]: the runtime a case runs in, waiting, and the count before and after;
//! - [`client`]: an HTTP client that can say where it comes from, and what it was sent to the byte;
//! - [`half`]: clients that have said a part;
//! - [`orders`]: what a case and a well-behaved worker say to each other;
//! - [`process`]: freezing, killing and looking at processes; [`census`]: counting them;
//! - [`files`]: programs and folders that every user may enter; [`ledger`]: who served what;
//! - [`master`]: the program itself, with its router and its workers; [`place`]: its files;
//! - [`scene`]: the program with a pool that fails and one that has nothing to do with it;
//!   [`load`]: clients that come again and again; [`family`]: what all its processes have;
//! - [`balancing`]: the program with four workers, and clients with the key of its balance;
//! - [`scripting`]: the program with a routing script;
//! - [`stalled`]: the program with a worker that does not answer, while routers change;
//! - [`memory`]: an allocator that counts, and a crowd of clients;
//! - [`refuse`]: a system that forbids something;
//! - [`user`]: running a case again as an ordinary user.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness makes its test fail by panicking"
)]

pub mod balancing;
pub mod census;
pub mod client;
pub mod family;
pub mod files;
pub mod fuse;
pub mod half;
pub mod ledger;
pub mod load;
pub mod master;
pub mod memory;
pub mod orders;
pub mod place;
pub mod point_06_a_thing_cannot_be_written_twice_into_a_transfer_list;
pub mod point_07_what_was_transferred_cannot_be_used_afterwards;
pub mod process;
pub mod refuse;
pub mod scene;
pub mod scripting;
pub mod sockets;
pub mod stalled;
pub mod user;
pub mod world;

pub use client::{Client, Ended, Response};
pub use files::Gate;
pub use orders::{Order, Said};
pub use world::{DEADLINE, World, run};

/// A sum of bytes in which each one's place counts (Fletcher's): to say of long ones that they are the
/// same, on both sides of a connection.
pub fn sum(bytes: &[u8]) -> u64 {
    let (low, high) = bytes.iter().fold((0u64, 0u64), |(low, high), byte| {
        let low = (low + u64::from(*byte)) % 0xffff_ffff;
        (low, (high + low) % 0xffff_ffff)
    });
    high << 32 | low
}

/// The program of well-behaved workers, `bin/test-worker`: its path is known only to the cases.
#[macro_export]
macro_rules! worker {
    ($($argument:expr),*) => {
        $crate::world::options(env!("CARGO_BIN_EXE_test-worker"))$(.arg($argument))*
    };
}

/// The program of workers that break the rules, `bin/hostile-worker`, with what it is to do.
///
/// With a number in `TEST_HOSTILE` only so many of a pool's workers do, the first ones; the others
/// are well-behaved.
#[macro_export]
macro_rules! hostile {
    ($($argument:expr),*) => {
        $crate::world::options(env!("CARGO_BIN_EXE_hostile-worker"))
            .env("TEST_GOOD_WORKER", env!("CARGO_BIN_EXE_test-worker"))
            // It does not listen: the close message is a waste of time.
            .stop_timeouts(std::time::Duration::ZERO, $crate::DEADLINE)
            $(.arg($argument))*
    };
}
