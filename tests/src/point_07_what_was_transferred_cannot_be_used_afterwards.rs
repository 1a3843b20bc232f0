//! Point 7, as far as the type system says it. That a duplicate made before stays usable is a test
//! in `tests/`.
//!
//! Using a connection that was posted, which compiles as long as nothing uses it:
//! ```
//! # use vestibule_router::{Connection, Worker};
//! fn posted(worker: &Worker, connection: Connection) {
//!     let _ = worker.post_message(&1, [connection]);
//! }
//! ```
//! ```compile_fail,E0382
//! # use vestibule_router::{Connection, Worker};
//! fn posted(worker: &Worker, connection: Connection) {
//!     let _ = worker.post_message(&1, [connection]);
//!     println!("{:?}", connection.peer_addr());
//! }
//! ```
//!
//! Using a port that was posted:
//! ```compile_fail,E0382
//! # use vestibule_router::{MessagePort, Transferable, Worker};
//! fn posted(worker: &Worker, port: MessagePort) {
//!     let _ = worker.post_message(&1, [Transferable::from(port)]);
//!     port.close();
//! }
//! ```
//!
//! Reading from a connection, before or after:
//! ```compile_fail,E0277
//! # use vestibule_router::Connection;
//! # use std::io::Read;
//! fn read(mut connection: Connection) {
//!     let _ = std::io::copy(&mut connection, &mut std::io::sink());
//! }
//! ```
