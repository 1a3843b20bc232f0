//! What a worker's owner is told.

use vestibule_protocol::Data;
use vestibule_protocol::envelope::Transferable;
use vestibule_protocol::message::{ErrorReport, RefusalReason};
pub use vestibule_protocol::supervision::Exit;

use crate::connection::Connection;
use crate::reject::{Reason, Rejection};

/// An event of one worker.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The worker posted a message.
    Message(Data),
    /// The worker could not be started, or its program reported an error.
    Error(WorkerError),
    /// The worker posted something that cannot be read.
    MessageError(String),
    /// A message that the worker did not take, with everything that it carried.
    Undelivered(Undelivered),
    /// The worker hands a connection back, to be posted to another.
    HandedBack(Box<HandedBack>),
    /// The process ended. Exactly once a process, after everything else of it.
    Exit(Exit),
}

/// Why a worker raised an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// The process could not be started: no such program, no permission.
    #[error("worker was not started: {0}")]
    NotStarted(String),
    /// It ended before it was ready.
    #[error("worker ended before it was ready: {0}")]
    EndedBeforeReady(Exit),
    /// It was not ready in time and was killed.
    #[error("worker {0}")]
    NotReady(String),
    /// Its program reported an error (a panic, an uncaught exception) and goes on.
    #[error("{} ({}:{}:{})", .0.message, .0.file, .0.line, .0.column)]
    Reported(ErrorReport),
}

/// A message that comes back.
#[derive(Debug)]
pub struct Undelivered {
    /// The message.
    pub message: Data,
    /// What it carried. Empty if the connection was closed: see [`UndeliveredReason::Touched`] and
    /// [`UndeliveredReason::ClientGone`].
    pub transfer: Vec<Transferable>,
    /// Why.
    pub reason: UndeliveredReason,
}

impl Undelivered {
    /// The connection that the message carried, if it carried one.
    pub fn into_connection(self) -> Option<Connection> {
        self.transfer.into_iter().find_map(|item| match item {
            Transferable::Connection(connection) => Some(connection.into()),
            _ => None,
        })
    }

    /// Tells the client whose connection it carried, if it carried one, why it is not served.
    pub fn reject(self) {
        let rejection = self.reason.rejection();
        if let Some(connection) = self.into_connection() {
            connection.reject_with(rejection);
        }
    }
}

/// A connection that a worker was given, and hands back.
#[derive(Debug)]
pub struct HandedBack {
    /// The connection, with what was read of it and not answered
    /// ([`prefix`](Connection::prefix)): whoever gets it reads that first.
    pub connection: Connection,
    /// What the worker wants posted with it.
    pub message: Data,
    /// The pool or worker that it wants it to go to; `None`: whoever the rules say.
    pub to: Option<String>,
}

/// Why a message comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UndeliveredReason {
    /// There is no worker that could take it.
    NoWorker,
    /// It waited too long for a free worker.
    QueueTimeout,
    /// So many workers did not take it that no more are tried.
    MaxAttempts,
    /// The worker does not take such a message, or takes none any more: it drains or closes.
    Refused(RefusalReason),
    /// The worker is gone.
    WorkerGone,
    /// The worker is gone, and whether it had read from the connection cannot be excluded: it was
    /// closed.
    Touched,
    /// It can never be sent to this worker: the packet would be larger than it receives.
    TooLarge,
    /// The client went away while its connection waited for a free worker: it was closed.
    ClientGone,
    /// Every worker was told to end.
    ShuttingDown,
}

impl UndeliveredReason {
    /// The word for logs, metrics and the client's `vestibule-reason` header.
    pub const fn as_str(self) -> &'static str {
        self.reason().as_str()
    }

    /// How the client is told.
    pub const fn rejection(self) -> Rejection {
        Rejection::because(self.reason())
    }

    /// What the worker did, for logs.
    pub(crate) const fn cause(self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.as_str(),
            Self::WorkerGone => "worker-gone",
            other => other.as_str(),
        }
    }

    pub(crate) const fn reason(self) -> Reason {
        match self {
            // What a worker refuses for good, others of its program would refuse as well.
            Self::NoWorker | Self::WorkerGone | Self::TooLarge | Self::Refused(_) => {
                Reason::NoWorker
            }
            Self::QueueTimeout => Reason::QueueTimeout,
            Self::MaxAttempts => Reason::MaxAttempts,
            Self::Touched => Reason::Touched,
            Self::ClientGone => Reason::ClientGone,
            Self::ShuttingDown => Reason::ShuttingDown,
        }
    }
}
