//! What a Rust worker of vestibule links.
//!
//! A worker does not listen. The router accepts each connection, chooses a worker and hands the
//! descriptor over through the worker's message port; this crate takes it and lets hyper or axum
//! serve it.
//!
//! ```text
//!  port ─▶ link ─▶ adopt ─▶ scope.recv()          the program's own loop
//!           │        │ ├──▶ scope.serve(router)    hyper http1, one task a connection
//!           │        │ └──▶ scope.listener()       axum::serve
//!           │        ├ gate ─ guard                later requests that are another worker's
//!           │        └ stream ─ drain              what is open, and how it ends
//!           └ outbox ─▶ port                       Hello, acknowledgements, refusals, messages
//! ```
//!
//! A connection is acknowledged before its first byte is read: until then the router can still give
//! it to another worker.
//!
//! # Example
//! ```no_run
//! # #[cfg(feature = "axum")]
//! # mod example {
//! use axum::{Router, routing::get};
//! use vestibule_worker::{ConnectInfo, ConnectionInfo, Extension, Message, WorkerScope, privileges};
//!
//! async fn hello(
//!     ConnectInfo(info): ConnectInfo<ConnectionInfo>,
//!     Extension(Message(reqno)): Extension<Message<u64>>,
//! ) -> String {
//!     format!("process={}; reqno={reqno}; route={}\n", std::process::id(), info.route)
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let scope = WorkerScope::from_env()?; // before any thread
//!     privileges::become_user("nobody")?;
//!     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!     runtime.block_on(scope.serve(Router::new().route("/", get(hello))))?;
//!     Ok(())
//! }
//! # }
//! ```
//!
//! # Differences from the web's worker scope
//! - `post_message` takes no transfer list: a worker hands no descriptors to its router, except a
//!   connection that it was given (`hand_back`).
//! - A full queue towards the router is an error that hands the message back.
//! - What the program cannot take is refused to the sender, never dropped.

mod adopt;
mod connection_info;
mod drain;
mod event;
#[cfg(feature = "axum")]
mod extract;
mod gate;
mod guard;
mod hand_back;
mod head_wait;
mod inbox;
mod link;
#[cfg(feature = "axum")]
mod listener;
mod message;
mod outbox;
mod polled;
pub mod privileges;
mod report;
mod scope;
mod serve;
mod settings;
mod stream;
mod sys;

#[cfg(feature = "axum")]
pub use axum::extract::ConnectInfo;
pub use vestibule_protocol::codec::{Codec, DecodeError, EncodeError};
pub use vestibule_protocol::message::{ErrorReport, RefusalReason};
pub use vestibule_protocol::port::{PostError, PostMessageError};
pub use vestibule_protocol::{Data, MessagePort};

pub use connection_info::{ConnectionInfo, Posted};
pub use event::{Connection, Event, MessageError, Transferred};
#[cfg(feature = "axum")]
pub use extract::{Extension, MessageRejection};
#[cfg(fuzzing)]
pub use gate::fuzzing;
pub use guard::{Answered, Guarded, GuardedStream};
pub use hand_back::{HandBackError, NotHandedBack};
pub use inbox::Fault;
#[cfg(feature = "axum")]
pub use listener::{FirstRequest, Guard, PortListener};
pub use message::Message;
pub use scope::{ScopeError, WorkerScope};
pub use serve::ServeError;
pub use stream::{Socket, Stream};
