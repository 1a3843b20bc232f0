//! What is said on the admin socket: one line of JSON each way. `docs/status.md` describes it for
//! programs other than this one.

use serde::{Deserialize, Serialize};

use super::status::Status;
use vestibule_protocol::supervision::TraceEntry;

/// Longest question, in bytes, its newline included.
pub const MAX_QUESTION: usize = 4096;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// How it goes.
    Status {},
    /// What was decided about the last connections.
    Trace {
        /// The last rejections; else what is decided from now on, noted while somebody asks.
        #[serde(default)]
        rejected: bool,
        /// Only what came after the entry of this number.
        #[serde(default)]
        since: u64,
        /// Only peers of this network.
        #[serde(default)]
        peer: Option<String>,
    },
    /// Drain and end, as on SIGTERM.
    Stop {},
    /// Nothing new to a worker.
    Drain {
        /// Its name.
        worker: String,
        /// It stays, and takes nothing until `ready`; else it ends and is replaced.
        #[serde(default)]
        hold: bool,
    },
    /// A held worker takes connections again.
    Ready {
        /// Its name.
        worker: String,
    },
    /// Another number of workers.
    Scale {
        /// The pool's name.
        pool: String,
        /// How many.
        workers: u32,
    },
    /// Every worker of a pool is replaced, one at a time.
    Restart {
        /// The pool's name.
        pool: String,
    },
    /// Read the configuration again, and become it.
    Reload {},
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done, or has begun.
    Done {
        /// What happens now, for a person.
        text: String,
    },
    /// How it goes.
    Status {
        /// All of it.
        status: Box<Status>,
    },
    /// What was decided.
    Trace {
        /// Oldest first.
        entries: Vec<TraceEntry>,
    },
    /// Nothing was done.
    Refused {
        /// Why, for a program.
        reason: Refusal,
        /// Why and what to do instead, for a person.
        text: String,
    },
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The question cannot be read, or is too long, or came too late.
    NotUnderstood,
    /// The peer is neither root nor the supervisor's user.
    NotAllowed,
    /// There is no worker of that name.
    UnknownWorker,
    /// There is no pool of that name.
    UnknownPool,
    /// The number of workers is none that a pool can have.
    Number,
    /// What is asked makes no sense in the worker's state.
    State,
    /// The supervisor is stopping.
    Stopping,
    /// The configuration has mistakes: nothing has changed.
    Configuration,
}

impl Answer {
    pub(crate) fn done(text: impl Into<String>) -> Self {
        Self::Done { text: text.into() }
    }

    pub(crate) fn refused(reason: Refusal, text: impl Into<String>) -> Self {
        Self::Refused { reason, text: text.into() }
    }
}

/// Reads a question.
///
/// # Errors
/// What is wrong with it, as the answer.
pub(crate) fn parse(line: &[u8]) -> Result<Question, Answer> {
    serde_json::from_slice(line).map_err(|error| {
        Answer::refused(Refusal::NotUnderstood, format!("the question cannot be read: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_strictly() {
        let drain = Question::Drain { worker: "app-1".into(), hold: false };
        assert_eq!(parse(br#"{"command":"drain","worker":"app-1"}"#), Ok(drain));
        assert_eq!(parse(br#"{"command":"status"}"#), Ok(Question::Status {}));
        for wrong in [
            &b""[..],
            b"status",
            b"{}",
            br#"{"command":"sing"}"#,
            br#"{"command":"status","verbose":true}"#,
            br#"{"command":"scale","pool":"app","workers":-1}"#,
            br#"{"command":"scale","pool":"app","workers":1.5}"#,
            b"{\"command\":\"ready\",\"worker\":\"\xff\"}",
            br#"{"command":"stop"} {"command":"stop"}"#,
        ] {
            let Err(Answer::Refused { reason, .. }) = parse(wrong) else {
                panic!("{} was read", wrong.escape_ascii());
            };
            assert_eq!(reason, Refusal::NotUnderstood);
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        assert!(parse(&vec![b'['; MAX_QUESTION]).is_err());
    }
}
