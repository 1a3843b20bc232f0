//! What rules compare of a request, and how: one implementation for the router, which looks at the
//! first request of a connection, and for workers, which look at those after it.
//!
//! [`normal`] gives names and paths the one spelling in which they are compared, [`pattern`] is what
//! they are compared with, and [`request`] finds them in a head that somebody has parsed.

pub mod normal;
pub mod pattern;
pub mod request;
