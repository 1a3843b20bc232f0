//! Which pool a connection goes to: a pure function of what is known about it.
//!
//! [`rule`] says what a rule is and [`pattern`] what its texts mean; [`compile()`] reads them, [`table`]
//! puts them together once, when they are loaded, and decides; `index` and [`networks`] are its
//! look-ups; [`affinity`] is what a pool chooses a worker by. Nothing of these waits, reads or knows
//! the time. `script`, behind a feature, asks a program of the user's instead, which may take some.

pub mod affinity;
mod brief;
pub mod compile;
pub mod imagine;
mod index;
pub mod networks;
pub mod pattern;
pub mod rule;
pub mod scope;
#[cfg(feature = "script")]
pub mod script;
pub mod table;

pub use self::affinity::{Affinity, KeySource};
pub use self::compile::{RuleError, compile};
pub use self::networks::Networks;
pub use self::rule::{Conditions, Refusal, Rule, Target, Verdict};
pub use self::table::{Decision, Outcome, Table, Unseen, Why};
pub use crate::inspect::Facts;
