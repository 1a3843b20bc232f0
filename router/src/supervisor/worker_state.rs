//! The state machine of one worker's process: what is asked of it, what happens to it, and what is
//! done about that. Pure: no process, no clock of its own; [`life`](super::life) is the driver.

use std::time::Duration;

use super::deadlines::{Deadline, Deadlines, Step};
use super::unburied::PATIENCE;

/// How long a worker may live after its port ended. A program that ends closes its port a moment
/// before it is gone; killing it at once would hide its exit code.
const AFTER_PORT: Duration = Duration::from_secs(1);

/// How long each part of an end may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timings {
    /// To be ready.
    pub(super) start: Duration,
    /// To finish what it has.
    pub(super) drain: Duration,
    /// To end after it was told to in a message.
    pub(super) close: Duration,
    /// To end after the stop signal.
    pub(super) stop: Duration,
}

/// Something happened to a process, or is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It is ready.
    Ready,
    /// It drains; another takes its place.
    Draining,
    /// It drains, and nobody takes its place.
    Finishing,
    /// It was told to end in a message.
    End,
    /// It is to be told by a signal.
    Term,
    /// Its port ended.
    PortEnded,
    /// It must go now.
    Kill,
    /// Nobody is left who could ask for anything.
    Orphaned,
    /// The time came that [`WorkerState::next`] named.
    Due,
    /// The kill was not possible.
    KillFailed,
    /// It has ended.
    Exited,
}

/// What is to be done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Say that it was not ready in time; the kill is due at once.
    TooLate,
    /// Send the stop signal.
    Stop,
    /// Kill it and whoever it forked.
    Kill,
    /// Kill whoever it forked, reap it, and say once that it is gone.
    Bury,
    /// Say once that it is gone: it was killed, and cannot end.
    Leave,
}

/// One process, from its start to its burial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerState {
    timings: Timings,
    deadlines: Deadlines,
    /// It was ready once.
    pub(super) ready: bool,
    /// Nobody takes its place.
    pub(super) last: bool,
    /// It was killed: nothing can be added to that.
    killed: bool,
    /// It has ended, or is left: nothing changes any more.
    over: bool,
}

impl WorkerState {
    /// A process that was started now.
    pub(super) fn new(timings: Timings, now: Deadline) -> Self {
        let ready = Some(at(now, timings.start));
        Self {
            timings,
            deadlines: Deadlines { ready, ..Deadlines::default() },
            ready: false,
            last: false,
            killed: false,
            over: false,
        }
    }

    /// Other times, for what is asked from now on.
    #[cfg(feature = "cli")]
    pub(super) fn set_timings(&mut self, timings: Timings) {
        self.timings = timings;
    }

    /// When [`Event::Due`] is due.
    pub(super) fn next(&self) -> Option<Deadline> {
        self.deadlines.next()
    }

    /// What an event makes of a state, and what is to be done.
    pub(super) fn on(mut self, event: Event, now: Deadline) -> (Self, Option<Action>) {
        if self.over {
            return (self, None);
        }
        let Timings { drain, close, .. } = self.timings;
        let mut action = None;
        match event {
            Event::Ready => {
                self.ready = true;
                self.deadlines.ready = None;
            }
            // Its own drain timeout holds; the pool's, and then signals, if that is not enough.
            Event::Draining => self.stop_by(at(now, drain)),
            Event::Finishing => {
                self.last = true;
                self.stop_by(at(now, drain));
            }
            Event::End => {
                self.last = true;
                self.stop_by(at(now, close));
            }
            Event::Term => {
                self.last = true;
                self.stop_by(now);
            }
            Event::PortEnded => {
                if !self.deadlines.is_ending() {
                    self.kill_by(at(now, AFTER_PORT));
                }
            }
            Event::Kill => self.kill_by(now),
            Event::Orphaned => {
                self.last = true;
                self.kill_by(now);
            }
            Event::Due => action = self.due(now),
            // Whoever asks again has it tried again.
            Event::KillFailed => {
                self.killed = false;
                self.deadlines.end = None;
            }
            Event::Exited => {
                self.over = true;
                self.deadlines = Deadlines::default();
                action = Some(Action::Bury);
            }
        }
        (self, action)
    }

    fn due(&mut self, now: Deadline) -> Option<Action> {
        match self.deadlines.take_due(now)? {
            Step::TooLate => {
                self.kill_by(now);
                Some(Action::TooLate)
            }
            Step::Term => {
                self.deadlines.termed = true;
                self.kill_by(at(now, self.timings.stop));
                Some(Action::Stop)
            }
            Step::Kill => {
                self.killed = true;
                let end = Some(at(now, PATIENCE));
                self.deadlines =
                    Deadlines { termed: self.deadlines.termed, end, ..Deadlines::default() };
                Some(Action::Kill)
            }
            Step::Leave => {
                self.over = true;
                self.deadlines = Deadlines::default();
                Some(Action::Leave)
            }
        }
    }

    fn stop_by(&mut self, deadline: Deadline) {
        if !self.killed {
            self.deadlines.term_by(deadline);
        }
    }

    fn kill_by(&mut self, deadline: Deadline) {
        if !self.killed {
            self.deadlines.kill_by(deadline);
        }
    }
}

/// So long after a time; beyond what the clock can name: never, nearly.
fn at(now: Deadline, duration: Duration) -> Deadline {
    const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    now + duration.min(NEVER)
}

#[cfg(test)]
mod tests;
