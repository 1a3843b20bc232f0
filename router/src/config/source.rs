//! Files that were read, and places in them.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A configuration file: its path as a person would write it, and its text.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
    /// Which file it is, in the order of reading: mistakes are sorted by it.
    number: usize,
    /// Where each line begins, in bytes: every value's origin is a line of its own.
    lines: Vec<usize>,
}

impl Source {
    pub(super) fn new(path: PathBuf, text: String, number: usize) -> Self {
        let ends = text.match_indices('\n').map(|(end, _)| end + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Self { path, text, number, lines }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The folder that paths in the file are relative to, as an absolute path.
    pub(super) fn folder(&self) -> PathBuf {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
    }
}

/// Some text of a file.
#[derive(Clone)]
pub struct Place {
    source: Arc<Source>,
    span: Range<usize>,
}

impl Place {
    /// `span` in bytes; what lies outside of the text or inside of a character is moved to where it
    /// can be shown.
    pub(super) fn new(source: &Arc<Source>, span: Range<usize>) -> Self {
        let text = source.text();
        let start = floor(text, span.start);
        let end = floor(text, span.end.max(start));
        Self { source: Arc::clone(source), span: start..end }
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Number of the line, from 1.
    pub fn line(&self) -> usize {
        self.source.lines.partition_point(|begin| *begin <= self.span.start)
    }

    /// Number of the character in its line, from 1.
    pub fn column(&self) -> usize {
        self.before_in_line().chars().count() + 1
    }

    /// `FILE:LINE`.
    pub fn short(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.line())
    }

    /// What places are sorted by.
    pub(super) fn order(&self) -> (usize, usize, usize) {
        (self.source.number, self.span.start, self.span.end)
    }

    pub(super) fn before_in_line(&self) -> &str {
        let begin = self.line().checked_sub(1).and_then(|line| self.source.lines.get(line));
        let begin = begin.copied().unwrap_or_default();
        self.source.text().get(begin..self.span.start).unwrap_or_default()
    }

    /// The text itself, as far as it is on its first line.
    pub(super) fn shown(&self) -> &str {
        let text = self.source.text().get(self.span.clone()).unwrap_or_default();
        text.lines().next().unwrap_or_default()
    }

    pub(super) fn after_in_line(&self) -> &str {
        let start = self.span.start + self.shown().len();
        let rest = self.source.text().get(start..).unwrap_or_default();
        rest.lines().next().unwrap_or_default()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.short(), self.column())
    }
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Where a value comes from; a later one wins: default, file, environment, command line.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Nobody wrote it.
    Default,
    /// It is written in a file.
    File(Place),
    /// This variable says it.
    Environment(&'static str),
    /// This option says it.
    CommandLine(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::File(place) => out.write_str(&place.short()),
            Self::Environment(name) | Self::CommandLine(name) => out.write_str(name),
        }
    }
}

/// A value and where it comes from. Two are equal if their values are: what is written elsewhere, or
/// written out instead of left to the default, changes nothing.
#[derive(Clone, Debug)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Who says so.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    /// A value that nobody wrote.
    pub fn default(value: T) -> Self {
        Self { value, origin: Origin::Default }
    }

    /// Where it is written, if it is written in a file.
    pub fn place(&self) -> Option<&Place> {
        match &self.origin {
            Origin::File(place) => Some(place),
            _ => None,
        }
    }

    /// Whether somebody wrote it.
    pub fn is_written(&self) -> bool {
        !matches!(self.origin, Origin::Default)
    }
}

impl<T> Deref for Sourced<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Sourced<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Sourced<T> {}
