//! A well-behaved worker over the Rust runtime. Its first argument says how it takes connections:
//! `recv` (its own loop), `typed` (the same, every message a `u64`), `careless` (the same, and it does not
//! say that it keeps to the scope of its connections), `bytes` (the same, and it says back all that comes,
//! whatever it is), `serve` (hyper) or `http2` (its own loop over hyper's HTTP/2).
//!
//! `TEST_GATE` names a FIFO to wait for before anything else; `TEST_STUBBORN` makes it ignore
//! SIGTERM; `TEST_DESCRIPTORS` limits what it may open beyond what it has, from its first connection on;
//! `TEST_LEDGER` is written as `ledger` says. What it is told is in `orders`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::exit,
    reason = "a test's worker fails by panicking, and ends when it is told to"
)]

mod bytes;
mod handing;
mod http2;
mod obey;
mod own;
mod serve;
mod system;
mod websocket;

use vestibule_worker::WorkerScope;

fn main() {
    let scope = WorkerScope::from_env().unwrap();
    if let Some(gate) = std::env::var_os("TEST_GATE") {
        // Returns when somebody opens the other end.
        std::fs::File::open(gate).unwrap();
    }
    if std::env::var_os("TEST_STUBBORN").is_some() {
        system::ignore_termination();
    }
    scope.install_panic_hook();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match std::env::args().nth(1).unwrap_or_default().as_str() {
        // Its clients ask for whatever a case wants to be asked.
        "recv" => runtime.block_on(own::run(scope.keeps_scope(true))),
        "bytes" => runtime.block_on(bytes::run(scope.keeps_scope(true))),
        "careless" => runtime.block_on(own::run(scope)),
        "typed" => runtime.block_on(own::run(scope.message::<u64>().keeps_scope(true))),
        "serve" => runtime.block_on(serve::run(scope)),
        "http2" => runtime.block_on(http2::run(scope.keeps_scope(true))),
        "exit" => std::process::exit(7),
        other => panic!("no way to take connections: {other:?}"),
    }
}
