//! Connections that wait, paused, for a free worker: first in, first out, with a bound and a
//! deadline.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::handoff::Entry;

#[derive(Debug)]
pub(crate) struct Queue {
    waiting: VecDeque<(Entry, Instant)>,
    max: usize,
    timeout: Duration,
}

impl Queue {
    pub(crate) fn new(max: usize, timeout: Duration) -> Self {
        Self { waiting: VecDeque::new(), max, timeout }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts an entry at the end; its deadline begins now. Returns whether it is the first.
    ///
    /// # Errors
    /// The queue is full; the entry comes back.
    pub(crate) fn push(&mut self, entry: Entry, now: Instant) -> Result<bool, Entry> {
        if self.waiting.len() >= self.max {
            return Err(entry);
        }
        let first = self.waiting.is_empty();
        self.waiting.push_back((entry, now + self.timeout));
        Ok(first)
    }

    pub(crate) fn pop(&mut self) -> Option<(Entry, Instant)> {
        self.waiting.pop_front()
    }

    /// The entry that was popped has to go on waiting, where it stood.
    pub(crate) fn put_back(&mut self, entry: Entry, deadline: Instant) {
        self.waiting.push_front((entry, deadline));
    }

    pub(crate) fn take_expired(&mut self, now: Instant) -> Option<Entry> {
        let (_, deadline) = self.waiting.front()?;
        if *deadline > now {
            return None;
        }
        self.waiting.pop_front().map(|(entry, _)| entry)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|(_, deadline)| *deadline)
    }

    pub(crate) fn take_all(&mut self) -> VecDeque<(Entry, Instant)> {
        std::mem::take(&mut self.waiting)
    }
}
