//! One rule: which connections it is about, and where they go.

use std::sync::Arc;

use super::networks::Networks;
use crate::reject::{Reason, Rejection};

/// A rule; every condition must hold.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name, which travels with the connection.
    pub name: Arc<str>,
    /// Indices of listeners. None: any.
    pub listeners: Option<Vec<usize>>,
    /// Networks of the client. None: any client, one without an Internet address included.
    pub peers: Option<Networks>,
    /// Where its connections go.
    pub target: Target,
}

impl Rule {
    /// Whether it is about connections of this listener at all.
    pub fn covers(&self, listener: usize) -> bool {
        self.listeners.as_ref().is_none_or(|listeners| listeners.contains(&listener))
    }
}

/// Where connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a pool, by its index.
    Pool(usize),
    /// Nowhere.
    Reject(Refusal),
}

/// How a rule turns connections away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An HTTP status from 400 to 599.
    Status(u16),
    /// A TCP reset.
    Reset,
    /// A close without a word.
    Close,
}

impl Refusal {
    /// The answer, with the reason `rejected`.
    pub const fn rejection(self) -> Rejection {
        const REASON: Reason = Reason::Rejected;
        match self {
            Self::Status(status) => Rejection::status(status, REASON),
            Self::Reset => Rejection::reset(REASON),
            Self::Close => Rejection::close(REASON),
        }
    }
}
