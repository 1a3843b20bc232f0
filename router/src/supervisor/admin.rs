//! The admin socket: what `vestibule status`, `stop`, `drain` and the other commands talk
//! to.
//!
//! One line of JSON asks and one answers. The supervisor has one thread, so nothing here blocks, and
//! whatever a peer does costs a bounded amount of memory for a bounded time:
//!
//! - it is root or the supervisor's own user, which the kernel says (`SO_PEERCRED`, unix(7)) and
//!   which is looked at before anything is read;
//! - its question is one line of at most 4 KiB, whole within 5 s; it takes the answer within 5 s;
//! - there are at most 32 conversations; further ones wait in the kernel's queue.
//!
//! [`wire`] is what is said, [`status`] the long answer, [`socket`] the path, `conversation` the
//! talking. The commands themselves are the supervisor's (`master::administer`).

pub(crate) mod conversation;
pub mod socket;
pub mod status;
pub mod wire;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::socket::AdminSocket;
use self::status::Status;
use self::wire::{Answer, Question};

/// What the supervisor answers at once.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The answer.
    Now(Answer),
    /// A status that lacks only what the router knows.
    WithLoads(Box<Status>, oneshot::Receiver<Loads>),
    /// What the router says of its last decisions.
    WithTrace(oneshot::Receiver<Vec<vestibule_protocol::supervision::TraceEntry>>),
}

/// What the router says of its workers and queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loads {
    /// What each worker has.
    pub(crate) workers: Vec<vestibule_protocol::supervision::WorkerLoad>,
    /// Waiting connections, by pool.
    pub(crate) queued: Vec<(u32, u32)>,
}

/// A question that somebody who may ask has asked.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) question: Question,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// The open admin socket.
#[derive(Debug)]
pub(crate) struct Admin {
    requests: mpsc::Receiver<Request>,
    /// Accepts and talks, with every conversation in it.
    task: JoinHandle<()>,
    /// Its path is removed with it.
    _socket: AdminSocket,
}

impl Admin {
    /// Starts to answer.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime.
    pub(crate) fn start(socket: AdminSocket) -> std::io::Result<Self> {
        let listener = socket.listener()?;
        let (ask, requests) = mpsc::channel(1);
        let task = tokio::spawn(conversation::accept(listener, ask));
        Ok(Self { requests, task, _socket: socket })
    }

    /// The next question.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // The accepting task never ends by itself.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}
