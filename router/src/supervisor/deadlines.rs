//! When a process is to be ended: pure, whoever asks.

/// When a process is to be ended, and how. Whatever asks for an end can only hasten it: a drain that
/// was asked for later gives nobody more time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// To be ready; `None` once it is.
    pub(super) ready: Option<Deadline>,
    /// For the stop signal.
    pub(super) term: Option<Deadline>,
    /// For SIGKILL.
    pub(super) kill: Option<Deadline>,
    /// To end after that.
    pub(super) end: Option<Deadline>,
    /// The stop signal was sent: it is not sent again.
    pub(super) termed: bool,
}

/// A time at which something is done.
pub(super) type Deadline = tokio::time::Instant;

/// What is to be done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It was not ready in time.
    TooLate,
    /// It had its time to end by itself.
    Term,
    /// The signal was not enough, or there is no time.
    Kill,
    /// It was killed and cannot end.
    Leave,
}

impl Deadlines {
    /// When something is to be done next.
    pub(super) fn next(&self) -> Option<Deadline> {
        [self.ready, self.term, self.kill, self.end].into_iter().flatten().min()
    }

    /// Takes what is due; the strongest first, as it makes the others pointless.
    pub(super) fn take_due(&mut self, now: Deadline) -> Option<Step> {
        for (deadline, step) in [
            (&mut self.end, Step::Leave),
            (&mut self.kill, Step::Kill),
            (&mut self.term, Step::Term),
            (&mut self.ready, Step::TooLate),
        ] {
            if deadline.is_some_and(|deadline| deadline <= now) {
                *deadline = None;
                return Some(step);
            }
        }
        None
    }

    /// The stop signal is sent then at the latest.
    pub(super) fn term_by(&mut self, deadline: Deadline) {
        if !self.termed {
            hasten(&mut self.term, deadline);
        }
    }

    /// SIGKILL is sent then at the latest.
    pub(super) fn kill_by(&mut self, deadline: Deadline) {
        hasten(&mut self.kill, deadline);
    }

    /// Whether it was told to end, so that it has its time for that.
    pub(super) fn is_ending(&self) -> bool {
        self.termed || self.term.is_some() || self.kill.is_some()
    }
}

fn hasten(deadline: &mut Option<Deadline>, other: Deadline) {
    *deadline = Some(deadline.map_or(other, |deadline| deadline.min(other)));
}
