//! What can be learned about a connection without consuming it.
//!
//! [`facts`] is what rules ask about; [`request`] and [`label`] are two facts with parts, and
//! [`normal`] gives names and paths the one spelling in which they are compared. All of these are
//! pure, but for [`Label::of_peer`], which asks the kernel. [`paused`] owns the descriptor.

pub mod facts;
pub mod label;
pub mod normal;
pub mod paused;
pub mod request;

pub use facts::{Cause, ClientHello, Credentials, Depth, Fact, Facts, Speech};
pub use label::Label;
pub use paused::{PausedConnection, Touched};
pub use request::HttpHead;
