//! What a pure parser answers about the first bytes of a connection.

use super::facts::Cause;

/// An answer about all bytes that are there so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// It is whole.
    Done(T),
    /// It may become whole: at least so many bytes are missing, never none.
    More(usize),
    /// It never will be, whatever follows.
    Not(Cause),
}

impl<T> Parsed<T> {
    /// Whether more bytes could change the answer.
    pub const fn is_incomplete(&self) -> bool {
        matches!(self, Self::More(_))
    }
}
