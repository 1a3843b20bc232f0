//! What is added to a sentence about what is wrong.

use std::fmt;

/// What to do instead; displays as the rest of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nobody knows.
    None,
    /// It looks like a slip.
    DidYouMean(String),
    /// It is our word for the same.
    Write(String),
    /// It is our word for the same, in another table.
    WriteIn(&'static str, &'static str),
    /// Our word for the same, and its table; it is not there yet.
    WillBe(&'static str, &'static str),
    /// It is a key of another table.
    BelongsTo(&'static str),
    /// These are all that there are.
    OneOf(String),
    /// A whole sentence.
    Say(&'static str),
}

impl fmt::Display for Advice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::DidYouMean(word) => write!(out, ": did you mean `{word}`?"),
            Self::Write(word) => write!(out, ": write `{word}`"),
            Self::WriteIn(word, table) => write!(out, ": write `{word}` in {table}"),
            Self::WillBe(word, table) => {
                write!(out, ": it will be `{word}` in {table}, which is not there yet")
            }
            Self::BelongsTo(table) => write!(out, ": it belongs to {table}"),
            Self::OneOf(words) => write!(out, "; there is {words}"),
            Self::Say(sentence) => write!(out, ": {sentence}"),
        }
    }
}

/// An addition to a sentence, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(pub String);

impl fmt::Display for Others {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(out, " ({})", self.0) }
    }
}
