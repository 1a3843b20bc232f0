//! Which pool a connection goes to: a pure function of what is known about it.
//!
//! [`rule`] says what a rule is; [`table`] compiles them once, when they are loaded, and decides;
//! [`networks`] is the look-up of an address. Nothing here waits, reads or knows the time.

pub mod networks;
pub mod rule;
pub mod table;

pub use self::networks::Networks;
pub use self::rule::{Refusal, Rule, Target};
pub use self::table::{Decision, Facts, Table, Why};
