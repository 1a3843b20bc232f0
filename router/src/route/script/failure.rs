//! What went wrong in a script, and where; and how often it is said.

use std::collections::HashMap;
use std::fmt;

use rquickjs::{Coerced, Ctx, Exception, Value};

use super::Limits;
use super::engine::UNKNOWN;
use super::text::Text;

/// Most distinct failures that are told apart: a script has that many places at most which fail in
/// turn; more are counted together.
const MOST_KINDS: usize = 64;

/// Longest message that is kept, in bytes: a script may throw a text of any length.
const LONGEST: usize = 512;

/// A failure of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// How the script is called.
    pub script: String,
    /// Line and column, in characters, from 1, if they are known.
    pub place: Option<(u32, u32)>,
    /// In words.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The text is no JavaScript.
    Syntax,
    /// It set no handler.
    NoHandler,
    /// It threw.
    Threw,
    /// It took too long.
    Time,
    /// It used too much memory.
    Memory,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.script)?;
        if let Some((line, column)) = self.place {
            write!(out, ":{line}:{column}")?;
        }
        write!(out, ": {}", self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub(super) fn new(kind: FailureKind, script: &str, message: impl Into<String>) -> Self {
        Self { kind, script: script.to_owned(), place: None, message: message.into() }
    }

    pub(super) fn time(script: &str, limits: &Limits) -> Self {
        let message = format!("the script ran for more than {:?}", limits.time);
        Self::new(FailureKind::Time, script, message)
    }

    /// Time is over; where, if that is known.
    pub(super) fn late(ctx: &Ctx<'_>, script: &Text, limits: &Limits) -> Self {
        let thrown = ctx.catch();
        let place = match thrown.is_object() {
            true => Self::thrown(ctx, &thrown, script).place,
            false => None,
        };
        Self { place, ..Self::time(script.name(), limits) }
    }

    /// What was thrown. Reading it may run code of the script's; its time still counts.
    pub(super) fn thrown<'js>(ctx: &Ctx<'js>, thrown: &Value<'js>, script: &Text) -> Self {
        if thrown.is_null() {
            // There was no memory left even for an error. A script may throw it too; nothing is lost
            // by believing the worst.
            let message = "out of memory (or `throw null`)";
            return Self::new(FailureKind::Memory, script.name(), message);
        }
        let Some(error) = thrown.as_object() else {
            let text = thrown.get::<Coerced<String>>().map(|text| text.0);
            // A symbol has no text, and says so by throwing.
            let text = text.unwrap_or_else(|_| {
                ctx.catch();
                "a value without a text".to_owned()
            });
            let message = shortened(format!("threw {text}"));
            return Self::new(FailureKind::Threw, script.name(), message);
        };
        let name = text(ctx, error, "name").unwrap_or_default();
        let message = text(ctx, error, "message").unwrap_or_default();
        let stack = text(ctx, error, "stack").unwrap_or_default();
        let kind = match (name.as_str(), message.as_str()) {
            ("InternalError", "out of memory") => FailureKind::Memory,
            ("SyntaxError", _) if Exception::from_object(error.clone()).is_some() => {
                FailureKind::Syntax
            }
            _ => FailureKind::Threw,
        };
        let place = script.place(&stack);
        let message = match (name.is_empty(), message.is_empty()) {
            (false, false) => format!("{name}: {message}"),
            (false, true) => name,
            (true, false) => message,
            (true, true) => "threw an object without a message".to_owned(),
        };
        let message = helpful(message, kind, place, script);
        Self { kind, script: script.name().to_owned(), place, message: shortened(message) }
    }

    /// Whether the script was told that something cannot be known, and has not caught that.
    pub(super) fn is_of_what_is_unknown(&self) -> bool {
        self.message.starts_with(UNKNOWN)
    }

    /// What a microtask threw, or a promise's own job for which there was no memory. Reading it is as with
    /// [`thrown`](Self::thrown).
    pub(super) fn in_a_job<'js>(ctx: &Ctx<'js>, thrown: &Value<'js>, script: &Text) -> Self {
        let mut failure = Self::thrown(ctx, thrown, script);
        failure.message.push_str(" (in a microtask)");
        failure
    }

    /// What a promise was rejected with that nobody awaits. Reading it is as with [`thrown`](Self::thrown).
    pub(super) fn unawaited<'js>(ctx: &Ctx<'js>, reason: &Value<'js>, script: &Text) -> Self {
        let mut failure = Self::thrown(ctx, reason, script);
        failure.message.push_str(" (in a promise that nobody awaits)");
        failure
    }
}

/// What QuickJS says, for whoever took a script for something else.
fn helpful(message: String, kind: FailureKind, place: Option<(u32, u32)>, script: &Text) -> String {
    const NO_MODULES: &str = "a script has no modules: nothing can be imported";
    if kind == FailureKind::Syntax && place.is_some_and(|place| script.means_modules(place)) {
        return format!("SyntaxError: {NO_MODULES}");
    }
    if message.starts_with("ReferenceError: could not load module")
        || message == "ReferenceError: require is not defined"
    {
        return format!("{message} ({NO_MODULES})");
    }
    let undefined =
        message.starts_with("TypeError: cannot read property") && message.ends_with("of undefined");
    match place.filter(|_| undefined).and_then(|place| script.pools_instead(place)) {
        Some(pools) => format!("{message} (pools: {pools})"),
        None => message,
    }
}

fn text<'js>(ctx: &Ctx<'js>, error: &rquickjs::Object<'js>, key: &str) -> Option<String> {
    match error.get::<_, Option<Coerced<String>>>(key) {
        Ok(text) => text.map(|text| text.0),
        // A getter that throws, or no memory for the text.
        Err(_) => {
            ctx.catch();
            None
        }
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > LONGEST {
        let mut end = LONGEST;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message.replace(char::is_control, " ")
}

/// Counts failures and says each kind once, then with its count at every tenfold.
#[derive(Debug, Default)]
pub(super) struct Failures {
    counts: HashMap<(FailureKind, Option<(u32, u32)>), u64>,
    others: u64,
}

impl Failures {
    /// Counts a failure; the count, if it is to be said now.
    pub(super) fn note(&mut self, failure: &Failure) -> Option<u64> {
        let key = (failure.kind, failure.place);
        let full = self.counts.len() >= MOST_KINDS && !self.counts.contains_key(&key);
        let count = if full { &mut self.others } else { self.counts.entry(key).or_default() };
        *count += 1;
        is_power_of_ten(*count).then_some(*count)
    }
}

fn is_power_of_ten(mut number: u64) -> bool {
    while number > 1 && number.is_multiple_of(10) {
        number /= 10;
    }
    number == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_and_then_with_its_count_at_every_tenfold() {
        let mut failures = Failures::default();
        let mut failure = Failure::new(FailureKind::Threw, "route.js", "x");
        failure.place = Some((3, 1));
        let said: Vec<u64> = (0..1000).filter_map(|_| failures.note(&failure)).collect();
        assert_eq!(said, [1, 10, 100, 1000]);
        failure.place = Some((4, 1));
        assert_eq!(failures.note(&failure), Some(1));
    }

    #[test]
    fn what_fails_in_ever_new_places_is_bounded() {
        let mut failures = Failures::default();
        for line in 0..10_000 {
            let mut failure = Failure::new(FailureKind::Threw, "route.js", "x");
            failure.place = Some((line, 1));
            failures.note(&failure);
        }
        assert_eq!(failures.counts.len(), MOST_KINDS);
        assert_eq!(failures.others, 10_000 - MOST_KINDS as u64);
    }
}
