//! Workers and pools of them, as a library's user holds them.

use std::ops::Index;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Notify, mpsc};
use vestibule_protocol::codec::{Data, EncodeError};
use vestibule_protocol::limits::{MAX_DESCRIPTORS, MAX_MESSAGE};
use vestibule_protocol::port::SocketError;
use vestibule_protocol::sys::seqpacket_pair;

use crate::connection::Connection;
use crate::control::ControlPort;
use crate::event::{WorkerError, WorkerEvent};
use crate::handoff::Entry;
use crate::link::packet_descriptors;
use crate::options::WorkerOptions;
use crate::pool::core::{Counters, Refused};
use crate::pool::slot::State;
use crate::pool::{Shared, ports};
use crate::supervisor;
use crate::supervisor::identity::{Identity, IdentityError};
use crate::ticket::Tickets;
use crate::transfer::Transfer;

/// One worker: a process with a port. Several handles may name it; when the last one of a pool is
/// dropped, its workers are terminated.
#[derive(Clone, Debug)]
pub struct Worker {
    handle: Arc<Handle>,
    slot: u32,
    name: Arc<str>,
}

/// Workers that run the same program. What one does not take, another gets.
#[derive(Debug)]
pub struct WorkerPool {
    handle: Arc<Handle>,
    workers: Vec<Worker>,
}

/// Tells the tasks when the last user is gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    closing: Arc<Notify>,
    options: WorkerOptions,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.closing.notify_one();
    }
}

/// Why there are no workers.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A pool needs a worker.
    #[error("a pool needs at least one worker")]
    Empty,
    /// The channel to the supervising task could not be made.
    #[error("cannot set up the supervision of workers")]
    Channel(#[from] SocketError),
    /// Its workers cannot be who they should be.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A worker did not become ready; all others were ended.
    #[error("{name}: {error}")]
    Worker {
        /// Which.
        name: Arc<str>,
        /// Why.
        error: WorkerError,
    },
    /// A worker ended while it was waited for.
    #[error("{0} ended before it was ready")]
    Ended(Arc<str>),
}

/// Why a message was not posted. Everything is handed back.
#[derive(Debug, thiserror::Error)]
#[error("message was not posted")]
pub struct PostMessageError<T> {
    /// Why.
    #[source]
    pub reason: PostError,
    /// The message, if it could be written.
    pub message: Data,
    /// The transfer list, as it was given.
    pub transfer: T,
}

impl PostMessageError<[Connection; 1]> {
    /// The connection, to be posted elsewhere or rejected.
    pub fn into_connection(self) -> Connection {
        let [connection] = self.transfer;
        connection
    }
}

impl PostMessageError<Connection> {
    /// The connection, to be posted elsewhere or rejected.
    pub fn into_connection(self) -> Connection {
        self.transfer
    }
}

/// Why a message was not posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The worker, or the pool.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The message cannot be written (the web's `DataCloneError`).
    #[error("the message cannot be cloned")]
    DataClone(#[from] EncodeError),
    /// More than a packet carries.
    #[error("{0} things in the transfer list, at most {MAX_DESCRIPTORS} fit")]
    TooManyTransferred(usize),
    /// A port in the transfer list still has messages that its receiver has no room for.
    #[error("a transferred port still has messages waiting to be sent")]
    PortBusy,
}

impl Worker {
    /// Starts one worker and returns at once; it is ready later ([`ready`](Self::ready)). What is
    /// posted before is queued.
    ///
    /// # Errors
    /// The system has no descriptors left, or there is no tokio runtime. A program that does not
    /// start is an [`Error`](WorkerEvent::Error) event.
    pub fn spawn(options: &WorkerOptions) -> Result<Self, SpawnError> {
        let pool = WorkerPool::start(1, options)?;
        pool.workers.into_iter().next().ok_or(SpawnError::Empty)
    }

    /// `POOL-N`, counted from 1; inside the worker: `VESTIBULE_WORKER`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process; `None` before it started and after it ended.
    pub fn pid(&self) -> Option<u32> {
        self.shared().core().slot(self.slot).and_then(|slot| slot.pid)
    }

    /// Whether it takes connections now.
    pub fn is_ready(&self) -> bool {
        self.shared().core().slot(self.slot).is_some_and(|slot| slot.state == State::Ready)
    }

    /// Connections that it holds by its last report, and those on their way to it.
    pub fn connections(&self) -> u32 {
        self.shared().core().slot(self.slot).map_or(0, |slot| slot.handoff.load())
    }

    /// Posts a value with a transfer list, in the format of the options. Never waits.
    ///
    /// `worker.post_message(&n, [connection])`; without a transfer list: `post_message(&n, ())`.
    /// The list is moved:
    ///
    /// ```compile_fail,E0382
    /// # use vestibule_router::{Connection, Worker};
    /// fn twice(worker: &Worker, connection: Connection) {
    ///     let _ = worker.post_message(&1, [connection, connection]);
    /// }
    /// ```
    ///
    /// # Errors
    /// See [`PostError`]; message and transfer list come back.
    pub fn post_message<M: Serialize + ?Sized, T: Transfer>(
        &self,
        message: &M,
        transfer: T,
    ) -> Result<(), PostMessageError<T>> {
        match Data::encode(self.handle.options.codec, message) {
            Ok(data) => self.post(data, transfer),
            Err(error) => {
                Err(PostMessageError { reason: error.into(), message: Data::NONE, transfer })
            }
        }
    }

    /// Posts a message that is already written.
    ///
    /// # Errors
    /// See [`PostError`]; message and transfer list come back.
    pub fn post<T: Transfer>(&self, data: Data, transfer: T) -> Result<(), PostMessageError<T>> {
        let slot = self.slot;
        post(self.shared(), data, transfer, |core, entry| core.post(slot, entry))
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ended or could not be started. The event stays to be received.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ready(&self) -> Result<(), SpawnError> {
        self.ready_or(|_| false).await
    }

    /// As [`ready`](Self::ready); gives up, too, at an error of a process after which another is
    /// tried.
    async fn ready_or(&self, gives_up: fn(&WorkerError) -> bool) -> Result<(), SpawnError> {
        loop {
            let changed = self.shared().changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.readiness(gives_up) {
                Some(result) => return result,
                None => changed.await,
            }
        }
    }

    fn readiness(&self, gives_up: fn(&WorkerError) -> bool) -> Option<Result<(), SpawnError>> {
        let core = self.shared().core();
        let slot = core.slot(self.slot)?;
        let State::Vacant { last } = slot.state else {
            return (slot.state == State::Ready).then_some(Ok(()));
        };
        let error = core.error_of(self.slot);
        if !last && !error.is_some_and(gives_up) {
            return None;
        }
        let name = Arc::clone(&self.name);
        Some(Err(match error.cloned() {
            Some(error) => SpawnError::Worker { name, error },
            None => SpawnError::Ended(name),
        }))
    }

    /// The next event of this worker; `None` after the last one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn recv(&self) -> Option<WorkerEvent> {
        next_event(self.shared(), Some(self.slot)).await.map(|(_, event)| event)
    }

    /// Lets it finish what it has; nothing new is offered to it. With a restart policy another
    /// process takes its place then.
    pub fn drain(&self) {
        let slot = self.slot;
        self.shared().step(|core| core.drain(slot, false));
    }

    /// Lets it finish what it has; nobody takes its place.
    pub fn finish(&self) {
        let slot = self.slot;
        self.shared().step(|core| core.drain(slot, true));
    }

    /// Kills its process group now; nobody takes its place.
    pub fn kill(&self) {
        let slot = self.slot;
        self.shared().step(|core| core.kill(slot));
    }

    /// Ends it: a close message, SIGTERM and SIGKILL after the times of the options. After this
    /// returns nothing more is delivered from it but what comes back undelivered, and its exit. Any
    /// number of times, in any state.
    pub fn terminate(&self) {
        let slot = self.slot;
        self.shared().step(|core| core.terminate(slot));
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl WorkerPool {
    /// Starts workers and waits until all are ready.
    ///
    /// # Errors
    /// One did not become ready; the others are terminated. A program that cannot be started at all
    /// is an error at once, whatever the restart policy says.
    pub async fn spawn(count: usize, options: &WorkerOptions) -> Result<Self, SpawnError> {
        let pool = Self::start(count, options)?;
        for worker in &pool.workers {
            worker.ready_or(|error| matches!(error, WorkerError::NotStarted(_))).await?;
        }
        Ok(pool)
    }

    /// Starts workers and returns at once.
    ///
    /// # Errors
    /// As [`Worker::spawn`].
    pub fn start(count: usize, options: &WorkerOptions) -> Result<Self, SpawnError> {
        if count == 0 {
            return Err(SpawnError::Empty);
        }
        Identity::resolve(&options.identity)?;
        let key = crate::ticket::new_key().map_err(|error| SocketError::System(error.into()))?;
        let (one, two) = seqpacket_pair().map_err(|error| SocketError::System(error.into()))?;
        let (supervisor_end, router_end) = (ControlPort::new(one)?, ControlPort::new(two)?);
        let names: Vec<Arc<str>> =
            (1..=count).map(|n| format!("{}-{n}", options.pool).into()).collect();
        let (tell, told) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(0, options.settings(), names.clone(), tell));
        let closing = Arc::new(Notify::new());
        tokio::spawn(supervisor::run(supervisor_end, Arc::new(options.clone()), names.clone()));
        let tickets = Tickets::new(key);
        let ended = Arc::clone(&closing);
        tokio::spawn(ports::run(Arc::clone(&shared), router_end, told, ended, tickets));
        let handle = Arc::new(Handle { shared, closing, options: options.clone() });
        let workers = (0u32..)
            .zip(names)
            .map(|(slot, name)| Worker { handle: Arc::clone(&handle), slot, name })
            .collect();
        Ok(Self { handle, workers })
    }

    /// How many workers it has.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Never: a pool has at least one worker.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// The workers, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter()
    }

    /// Posts to the worker that the pool's balance chooses. Without a free one a connection waits,
    /// within the bounds of the options.
    ///
    /// # Errors
    /// See [`PostError`]; message and transfer list come back.
    pub fn post_message<M: Serialize + ?Sized, T: Transfer>(
        &self,
        message: &M,
        transfer: T,
    ) -> Result<(), PostMessageError<T>> {
        match Data::encode(self.handle.options.codec, message) {
            Ok(data) => post(&self.handle.shared, data, transfer, |core, entry| core.offer(entry)),
            Err(error) => {
                Err(PostMessageError { reason: error.into(), message: Data::NONE, transfer })
            }
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// The next event of any worker, with its index; `None` after the last one. What comes back after
    /// it waited for any worker has the first one's index.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn recv(&self) -> Option<(usize, WorkerEvent)> {
        let (slot, event) = next_event(&self.handle.shared, None).await?;
        Some((slot as usize, event))
    }

    /// Ends all workers: see [`Worker::terminate`].
    pub fn terminate(&self) {
        for worker in &self.workers {
            worker.terminate();
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.handle.shared.core().counters()
    }

    /// Connections that wait for a free worker.
    pub fn queued(&self) -> usize {
        self.handle.shared.core().queued()
    }
}

impl Index<usize> for WorkerPool {
    type Output = Worker;

    /// # Panics
    /// There is no worker with this index, as for a slice.
    #[allow(clippy::indexing_slicing, reason = "the index is the caller's, as for a slice")]
    fn index(&self, index: usize) -> &Worker {
        &self.workers[index]
    }
}

fn post<T: Transfer>(
    shared: &Shared,
    data: Data,
    transfer: T,
    take: impl FnOnce(&mut crate::pool::Core, Entry) -> Result<(), (Refused, Entry)>,
) -> Result<(), PostMessageError<T>> {
    if data.len() > MAX_MESSAGE {
        let error = EncodeError::TooLarge { length: data.len(), bound: MAX_MESSAGE };
        return Err(PostMessageError { reason: error.into(), message: data, transfer });
    }
    let count = transfer.count();
    if packet_descriptors(&data, count) > MAX_DESCRIPTORS {
        let reason = PostError::TooManyTransferred(count);
        return Err(PostMessageError { reason, message: data, transfer });
    }
    if !transfer.is_ready() {
        return Err(PostMessageError { reason: PostError::PortBusy, message: data, transfer });
    }
    let entry = Entry::new(data, transfer.into_list().0);
    shared.step(|core| take(core, entry)).map_err(|(reason, entry)| {
        let Entry { data, cargo, .. } = entry;
        let transfer = T::from_list(crate::transfer::TransferList(cargo));
        PostMessageError { reason: reason.into(), message: data, transfer }
    })
}

pub(crate) async fn next_event(shared: &Shared, of: Option<u32>) -> Option<(u32, WorkerEvent)> {
    loop {
        let changed = shared.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        {
            let mut core = shared.core();
            if let Some(event) = core.next_event(of) {
                return Some(event);
            }
            let over = |slot: &crate::pool::slot::Slot| slot.is_over();
            let done = match of {
                Some(slot) => core.slot(slot).is_none_or(over),
                None => core.slots().iter().all(over),
            };
            if done {
                return None;
            }
        }
        changed.await;
    }
}
