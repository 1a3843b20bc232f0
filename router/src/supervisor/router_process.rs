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
    exited: AsyncFd<OwnedFd>,
    control: ControlPort<ToRouter, FromRouter>,
    sender: mpsc::UnboundedSender<Parcel<ToRouter>>,
    /// It said that it accepts.
    pub(crate) accepting: bool,
    pub(crate) started: Instant,
    /// Questions in a row that it has not answered. Counted, not timed: when everything here stands still
    /// for a while, it does not answer, and is not asked either.
    unanswered: u32,
    pub(crate) killed: bool,
    pings: u64,
}

impl RouterProcess {
    /// Starts the program with its end of a new channel.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let (ours, its) = seqpacket_pair()?;
        command.env("VESTIBULE_FD", its.as_raw_fd().to_string());
        let process = process::spawn(command, its.as_fd())?;
        let exited = reactor::readable_duplicate(process.pidfd.as_fd())?;
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
            killed: false,
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

    /// Whether it has left so many questions unanswered that it is taken for dead.
    pub(crate) fn is_silent(&self) -> bool {
        self.unanswered >= PATIENCE
    }

    /// What it says next, or its end. Descriptors are not taken from it.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> RouterEvent {
        let Self { control, exited, killed, .. } = self;
        tokio::select! {
            biased;
            message = control.recv_bare(), if !*killed => match message {
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

    pub(crate) fn kill(&self) {
        if let Err(error) = process::kill_group(&self.process) {
            tracing::error!(%error, "the router cannot be killed");
        }
    }

    /// Takes the exit status of the ended process.
    pub(crate) fn reap(&self) -> Option<Exit> {
        process::reap(&self.process).ok().flatten()
    }

    /// Waits for the end of one that is about to end; so long, then it is killed.
    pub(crate) async fn end_within(self, patience: Duration) {
        if tokio::time::timeout(patience, ended(&self.exited)).await.is_ok() {
            self.reap();
        } else {
            self.end().await;
        }
    }

    /// Ends it and waits for it.
    pub(crate) async fn end(self) {
        // It ends with its channel, even where this process has no right to signal it.
        self.control.shutdown();
        self.kill();
        if tokio::time::timeout(LAST_PATIENCE, ended(&self.exited)).await.is_ok() {
            self.reap();
        }
    }
}

/// Waits until a process has ended: its descriptor becomes readable (`pidfd_open(2)`).
async fn ended(process: &AsyncFd<OwnedFd>) {
    match process.readable().await {
        Ok(mut guard) => guard.retain_ready(),
        Err(_) => std::future::pending().await,
    }
}
