//! The connections that a script was asked about and has not settled.
//!
//! JavaScript objects outlive what they stand for: a script may keep a `connection` for ever. So they
//! hold a number, and what is not in the book any more can neither be posted nor asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::{Outcome, Subject};
use crate::inspect::{Cause, Fact, Facts, Label, Speech};

/// Names a connection that waits for its client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) key: usize,
    /// Keys are used again; numbers are not.
    pub(super) number: u64,
    pub(super) wants: Wants,
}

/// What a script awaits of a connection. Each may be known long before the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Wants {
    pub(super) hello: bool,
    pub(super) head: bool,
}

impl Ticket {
    /// Whether what is known of a connection is all that its script awaits.
    pub fn is_answered(&self, facts: &Facts<'_>) -> bool {
        (!self.wants.hello || facts.hello() != Fact::Unasked)
            && (!self.wants.head || facts.head() != Fact::Unasked)
    }
}

#[derive(Debug)]
struct Entry<S> {
    number: u64,
    /// `None` while the connection waits: its inspection has it.
    subject: Option<S>,
    speech: Option<Arc<Speech>>,
    outcome: Option<Outcome>,
    /// What the script was told that cannot be known.
    unknown: Option<Cause>,
}

#[derive(Debug)]
struct Pages<S> {
    entries: Slab<Entry<S>>,
    numbers: u64,
}

/// What is undecided.
#[derive(Debug)]
pub(super) struct Book<S> {
    pages: Mutex<Pages<S>>,
}

/// Why a connection could not be settled: it was before, or it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settled;

/// Why something cannot be asked: the connection is settled, or waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Away;

/// What a closed entry leaves.
#[derive(Debug)]
pub(super) struct Closed<S> {
    pub(super) subject: Option<S>,
    pub(super) outcome: Option<Outcome>,
    pub(super) unknown: Option<Cause>,
}

impl<S: Subject> Book<S> {
    pub(super) fn new() -> Self {
        Self { pages: Mutex::new(Pages { entries: Slab::new(), numbers: 0 }) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages<S>> {
        // Every change is one assignment, so it is whole even after a panic.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, subject: S) -> Ticket {
        let mut pages = self.pages();
        pages.numbers += 1;
        let number = pages.numbers;
        let entry =
            Entry { number, subject: Some(subject), speech: None, outcome: None, unknown: None };
        Ticket { key: pages.entries.insert(entry), number, wants: Wants::default() }
    }

    fn with<R>(&self, ticket: Ticket, look: impl FnOnce(&mut Entry<S>) -> R) -> Option<R> {
        let mut pages = self.pages();
        let entry = pages.entries.get_mut(ticket.key);
        entry.filter(|entry| entry.number == ticket.number).map(look)
    }

    /// Takes the connection out: it waits, unless it is settled. Its entry stays.
    pub(super) fn lend(&self, ticket: Ticket) -> Option<S> {
        self.with(ticket, |entry| match entry.outcome {
            Some(_) => None,
            None => entry.subject.take(),
        })
        .flatten()
    }

    /// Puts it back, with what its client said.
    ///
    /// # Errors
    /// The entry is gone; here is the connection.
    pub(super) fn give_back(
        &self,
        ticket: Ticket,
        subject: S,
        speech: Arc<Speech>,
    ) -> Result<(), S> {
        let mut pages = self.pages();
        match pages.entries.get_mut(ticket.key) {
            Some(entry) if entry.number == ticket.number => {
                entry.subject = Some(subject);
                entry.speech = Some(speech);
                Ok(())
            }
            _ => Err(subject),
        }
    }

    /// Whether the script was told of this connection that something cannot be known.
    pub(super) fn has_unknown(&self, ticket: Ticket) -> bool {
        self.with(ticket, |entry| entry.unknown.is_some()).unwrap_or_default()
    }

    pub(super) fn close(&self, ticket: Ticket) -> Option<Closed<S>> {
        let mut pages = self.pages();
        let entry = pages.entries.get(ticket.key)?;
        if entry.number != ticket.number {
            return None;
        }
        let Entry { subject, outcome, unknown, .. } = pages.entries.try_remove(ticket.key)?;
        Some(Closed { subject, outcome, unknown })
    }

    /// How many are open.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pages().entries.len()
    }
}

/// The book as JavaScript objects see it, whatever the connections are.
pub(super) trait Register: Send + Sync {
    fn settle(&self, ticket: Ticket, outcome: Outcome) -> Result<(), Settled>;
    fn local(&self, ticket: Ticket) -> Result<Option<SocketAddr>, Away>;
    fn listener(&self, ticket: Ticket) -> Result<Arc<str>, Away>;
    fn context(&self, ticket: Ticket) -> Result<Fact<Label>, Away>;
    fn user(&self, ticket: Ticket) -> Result<Fact<String>, Away>;
    /// What a proxy has announced, as if the client had said it. A connection that waits is asked when it
    /// is back.
    fn announced(&self, ticket: Ticket) -> Option<Arc<Speech>>;
    /// What the client of an unsettled connection said, if somebody has looked.
    fn speech(&self, ticket: Ticket) -> Result<Option<Arc<Speech>>, Away>;
    /// The script is told that something cannot be known.
    fn unknown(&self, ticket: Ticket, cause: Cause);
}

impl<S: Subject> Book<S> {
    fn ask<R>(&self, ticket: Ticket, question: impl FnOnce(&mut S) -> R) -> Result<R, Away> {
        let answer = self.with(ticket, |entry| entry.subject.as_mut().map(question));
        answer.flatten().ok_or(Away)
    }
}

impl<S: Subject> Register for Book<S> {
    fn settle(&self, ticket: Ticket, outcome: Outcome) -> Result<(), Settled> {
        let settled = self.with(ticket, |entry| match entry.outcome {
            Some(_) => Err(Settled),
            None => {
                entry.outcome = Some(outcome);
                Ok(())
            }
        });
        settled.unwrap_or(Err(Settled))
    }

    fn local(&self, ticket: Ticket) -> Result<Option<SocketAddr>, Away> {
        self.ask(ticket, |subject| subject.local())
    }

    fn listener(&self, ticket: Ticket) -> Result<Arc<str>, Away> {
        self.ask(ticket, |subject| subject.listener())
    }

    fn context(&self, ticket: Ticket) -> Result<Fact<Label>, Away> {
        self.ask(ticket, S::context)
    }

    fn user(&self, ticket: Ticket) -> Result<Fact<String>, Away> {
        self.ask(ticket, |subject| subject.user())
    }

    fn announced(&self, ticket: Ticket) -> Option<Arc<Speech>> {
        let announced = self.ask(ticket, |subject| subject.announced()).ok().flatten();
        announced.map(|hello| Arc::new(Speech::Tls(hello)))
    }

    fn speech(&self, ticket: Ticket) -> Result<Option<Arc<Speech>>, Away> {
        let speech = self.with(ticket, |entry| match entry.outcome {
            Some(_) => Err(Away),
            None => Ok(entry.speech.clone()),
        });
        speech.unwrap_or(Err(Away))
    }

    fn unknown(&self, ticket: Ticket, cause: Cause) {
        self.with(ticket, |entry| entry.unknown = Some(cause));
    }
}
