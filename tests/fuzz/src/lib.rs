//! What the fuzz targets share: packets of any kind and a second reading of them, a bound on memory,
//! which beginnings of an input to try, and a type as users post them.
//!
//! A target states what must hold for *every* input. What a peer can cause besides a panic is a
//! large allocation from a few bytes, so each target also says how much memory its input may cost.

pub mod model;
pub mod said;
mod sys;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A message with every shape that serde knows, but floats, whose equality says nothing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields mean nothing")]
pub struct Job {
    pub id: u64,
    pub delta: i32,
    pub name: String,
    pub tags: Vec<String>,
    pub body: Vec<u8>,
    pub parent: Option<(u16, char)>,
    pub how: How,
    pub limits: BTreeMap<u32, bool>,
}

/// An enum with every shape of variant.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants mean nothing")]
pub enum How {
    Now,
    Later(u32),
    Between { from: i64, to: i64 },
}

/// Runs `work` and asserts that its allocations never exceeded `bound` bytes at one time.
///
/// # Panics
/// They did: the finding.
pub fn within<T>(bound: usize, work: impl FnOnce() -> T) -> T {
    let (value, peak) = sys::peak_of(work);
    assert!(peak <= bound, "{peak} bytes allocated at one time, {bound} allowed");
    value
}

/// Lengths of the proper prefixes of an input of `length` bytes that are worth trying: all of a
/// short one; of a long one those at its beginning and its end, so that an input costs no square
/// of its length.
pub fn prefixes(length: usize) -> impl Iterator<Item = usize> {
    const EDGE: usize = 96;
    (0..length).filter(move |&at| at < EDGE || length - at <= EDGE)
}
