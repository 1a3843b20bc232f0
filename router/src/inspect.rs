//! What can be learned about a connection without consuming it.
//!
//! [`facts`] is what rules ask about; [`request`] and [`label`] are two facts with parts, and
//! [`normal`] gives names and paths the one spelling in which they are compared. All of these are
//! pure, but for [`Label::of_peer`], which asks the kernel. [`paused`] owns the descriptor.
//!
//! The parsers read the first bytes of a connection and say what they are, or that more are needed, or
//! that no more will help ([`parsed`]): [`client_hello`], `http_head`, and `proxy_header`; `speech` asks
//! the first two which it is.

pub mod client_hello;
pub mod facts;
#[cfg(feature = "peek")]
pub mod http_head;
pub mod label;
pub use vestibule_protocol::http::normal;
pub mod parsed;
pub mod paused;
#[cfg(feature = "cli")]
pub(crate) mod peek;
#[cfg(feature = "peek")]
pub mod proxy_header;
pub mod request;
#[cfg(feature = "peek")]
pub mod speech;
#[cfg(feature = "cli")]
pub(crate) mod waiting;
#[cfg(feature = "cli")]
pub(crate) mod watch;

pub use facts::{Cause, ClientHello, Credentials, Depth, Fact, Facts, Speech};
pub use label::Label;
pub use paused::{PausedConnection, Touched};
pub use request::HttpHead;
