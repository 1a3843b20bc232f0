//! Point 6, as far as Rust goes: what is `DataCloneError` on the web does not compile here.
//!
//! This compiles, so that it is the marked lines below that do not:
//! ```
//! # use vestibule_router::{Connection, MessagePort, Transferable, Worker};
//! fn once(worker: &Worker, connection: Connection, port: MessagePort) {
//!     let _ = worker.post_message(&1, [connection]);
//!     let _ = worker.post_message(&1, [Transferable::from(port)]);
//! }
//! ```
//!
//! The same connection twice:
//! ```compile_fail,E0382
//! # use vestibule_router::{Connection, Transferable, Worker};
//! fn twice(worker: &Worker, connection: Connection) {
//!     let list = vec![Transferable::from(connection), Transferable::from(connection)];
//!     let _ = worker.post_message(&1, list);
//! }
//! ```
//!
//! A port in its own list:
//! ```compile_fail,E0505
//! # use vestibule_router::{MessagePort, Transferable};
//! fn itself(port: MessagePort) {
//!     let _ = port.post_message(&1, [Transferable::from(port)]);
//! }
//! ```
