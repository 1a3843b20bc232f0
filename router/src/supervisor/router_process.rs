//! The router as the supervisor sees it: a process and a channel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;
use vestibule_protocol::supervision::{Exit, FromRouter, ToRouter};
use vestibule_protocol::sys::seqpacket_pair;

use super::unburied::{self, Unburied, ended};
use crate::control::{ControlPort, Parcel};
use crate::sys::process::{self, Started};
use crate::sys::reactor;

/// How long a router may take to end when everything else has. What this process may not kill dies
/// with it (its parent-death signal).
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How many questions a router may leave unanswered, a second each: its turns are milliseconds.
const PATIENCE: u32 = 5;

/// What a router does.
#[derive(Debug)]
pub(crate) enum RouterEvent {
    /// It said this.
    Said(FromRouter),
    /// Its channel ended, or what came cannot be understood.
    Silent,
    /// Its process ended.
    Ended,
}

/// A running router.
#[derive(Debug)]
pub(crate) struct RouterProcess {
    process: Started,
    exited: io::Result<AsyncFd<OwnedFd>>,
    control: ControlPort<ToRouter, FromRouter>,
    sender: mpsc::UnboundedSender<Parcel<ToRouter>>,
    /// It said that it accepts.
    pub(crate) accepting: bool,
    pub(crate) started: Instant,
    /// Questions in a row that it has not answered. Counted, not timed: when everything here stands still
    /// for a while, it does not answer, and is not asked either.
    unanswered: u32,
    /// Nothing more is heard from it: it is to end, or was killed.
    pub(crate) given_up: bool,
    kill: Kill,
    pings: u64,
}

/// Whether it was killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    No,
    /// Then.
    Sent(Instant),
    /// This process may not; once is enough to know.
    Failed,
}

impl RouterProcess {
    /// Starts the program with its end of a new channel.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let (ours, its) = seqpacket_pair()?;
        command.env("VESTIBULE_FD", its.as_raw_fd().to_string());
        let process = process::spawn(command, its.as_fd())?;
        let exited = Ok(reactor::readable_duplicate(process.pidfd.as_fd())?);
        let control = ControlPort::new(ours).map_err(io::Error::other)?;
        let sender = control.sender();
        Ok(Self {
            process,
            exited,
            control,
            sender,
            accepting: false,
            started: Instant::now(),
            unanswered: 0,
            given_up: false,
            kill: Kill::No,
            pings: 0,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Says something. A router that is gone hears nothing; its end is noticed by itself.
    pub(crate) fn tell(&self, message: ToRouter, descriptor: Option<OwnedFd>) {
        let _ = self.sender.send((message, descriptor));
    }

    /// Asks whether it lives: once a second.
    pub(crate) fn ping(&mut self) {
        self.pings += 1;
        self.unanswered += 1;
        self.tell(ToRouter::Ping { number: self.pings }, None);
    }

    /// It has answered; or it is asked for something else from now on.
    pub(crate) fn answered(&mut self) {
        self.unanswered = 0;
    }

    /// Whether it has left so many questions unanswered that it is taken for dead; or one, and the
    /// thread that would answer has ended.
    pub(crate) fn is_silent(&self) -> bool {
        self.unanswered >= PATIENCE
            || (self.unanswered > 0 && process::main_thread_has_ended(&self.process))
    }

    /// Whether it was killed so long ago that nobody waits for it any longer, though it is still there.
    pub(crate) fn is_overdue(&self) -> bool {
        matches!(self.kill, Kill::Sent(then) if then.elapsed() >= unburied::PATIENCE)
    }

    /// Whether nobody has tried to kill it.
    pub(crate) fn is_spared(&self) -> bool {
        matches!(self.kill, Kill::No)
    }

    /// What it says next, or its end. Descriptors are not taken from it.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> RouterEvent {
        let Self { control, exited, given_up, .. } = self;
        tokio::select! {
            biased;
            message = control.recv_bare(), if !*given_up => match message {
                Ok(Some(message)) => RouterEvent::Said(message),
                Ok(None) => RouterEvent::Silent,
                Err(error) => {
                    tracing::error!(%error, "the router cannot be understood");
                    RouterEvent::Silent
                }
            },
            () = ended(exited) => RouterEvent::Ended,
        }
    }

    /// Nothing more is said or heard.
    pub(crate) fn close(&self) {
        self.control.shutdown();
    }

    pub(crate) fn kill(&mut self) {
        self.given_up = true;
        match process::kill_group(&self.process) {
            Ok(()) if self.is_spared() => self.kill = Kill::Sent(Instant::now()),
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the router cannot be killed");
                self.kill = Kill::Failed;
            }
        }
    }

    /// Takes the exit status of a process that has ended, or [was killed](Self::is_overdue) and will.
    pub(crate) fn bury(self, unburied: &Unburied) -> Exit {
        match process::reap(&self.process) {
            Ok(Some(exit)) => exit,
            _ => unburied.leave("router", self.process),
        }
    }

    /// Waits for the end of one that is about to end; so long, then it is killed.
    pub(crate) async fn end_within(self, patience: Duration, unburied: Unburied) {
        if tokio::time::timeout(patience, ended(&self.exited)).await.is_ok() {
            self.bury(&unburied);
        } else {
            self.end(unburied).await;
        }
    }

    /// Ends it and waits for it.
    pub(crate) async fn end(mut self, unburied: Unburied) {
        // It ends with its channel, even where this process has no right to signal it.
        self.control.shutdown();
        self.kill();
        let _ = tokio::time::timeout(LAST_PATIENCE, ended(&self.exited)).await;
        self.bury(&unburied);
    }
}
