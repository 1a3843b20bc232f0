//! The worker's end of its port, shared by everything that uses it: what goes out, and the load.
//!
//! Reading is `inbox`'s; whoever holds its lock reads. Sending never waits: what the socket does not
//! take stays in the outbox, and a task sends it when there is room.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use vestibule_protocol::Data;
use vestibule_protocol::codec::EncodeError;
use vestibule_protocol::handshake::{Abilities, Attach, Hello};
use vestibule_protocol::limits::MAX_MESSAGE;
use vestibule_protocol::message::{ErrorReport, Refusal};
use vestibule_protocol::port::{PostError, PostMessageError, SocketError};
use vestibule_protocol::socket::{PacketSocket, SendError, Sent};

use crate::drain::{Cause, Connections, Ending, Key, LINGER, Phase};
use crate::inbox::{Chain, Inbox};
use crate::outbox::{Letter, Outbox};
use crate::settings::Settings;

/// How long to wait before a send that failed for want of something no event announces.
const RETRY: Duration = Duration::from_millis(2);

/// The router hears of connections that ended at most this often, unless a packet that goes anyway
/// carries the number, or the worker was full: often enough for its choice, too seldom to cost anything.
const LOAD_INTERVAL: Duration = Duration::from_millis(10);

/// How long the last words may take when the worker ends: the router reads at once, or is stuck.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The worker's end of its port.
#[derive(Debug)]
pub(crate) struct Link {
    inherited: Mutex<Option<OwnedFd>>,
    bound: OnceLock<Bound>,
    outbox: Mutex<Outbox>,
    /// Everything was sent, or nothing more can be.
    sent: Notify,
    load_due: AtomicBool,
    inbox: tokio::sync::Mutex<Inbox>,
    connections: Connections,
    settings: RwLock<Arc<Settings>>,
    /// From the last `Attach`.
    drain_timeout: Mutex<Duration>,
    /// How many connections the router gives at most, by its bound and by what was said in `Hello`.
    most: AtomicU32,
    /// Whether the router takes connections back.
    takes_back: AtomicBool,
    /// Whether a listener reads the port now.
    listening: AtomicBool,
    /// A listener stopped reading.
    stopped_listening: Notify,
}

/// The port within a runtime.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: PacketSocket,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Link {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self {
            inherited: Mutex::new(Some(descriptor)),
            bound: OnceLock::new(),
            outbox: Mutex::default(),
            sent: Notify::new(),
            load_due: AtomicBool::new(false),
            inbox: tokio::sync::Mutex::new(Inbox::default()),
            connections: Connections::new(),
            settings: RwLock::default(),
            drain_timeout: Mutex::new(Attach::default().drain_timeout),
            most: AtomicU32::new(u32::MAX),
            takes_back: AtomicBool::new(false),
            listening: AtomicBool::new(false),
            stopped_listening: Notify::new(),
        }
    }

    /// The port, registered with the runtime at the first call.
    ///
    /// # Errors
    /// There is no tokio runtime with I/O.
    pub(crate) fn bind(&self) -> Result<&Bound, SocketError> {
        let mut inherited = lock(&self.inherited);
        if let Some(bound) = self.bound.get() {
            return Ok(bound);
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(SocketError::NoRuntime)?;
        let Some(descriptor) = inherited.take() else { return Err(SocketError::NotSeqpacket) };
        let socket = PacketSocket::new(descriptor)?;
        Ok(self.bound.get_or_init(|| Bound { socket, runtime }))
    }

    /// The port, if it is registered with a runtime.
    pub(crate) fn bound(&self) -> Option<&Bound> {
        self.bound.get()
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    pub(crate) fn inbox(&self) -> &tokio::sync::Mutex<Inbox> {
        &self.inbox
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut settings));
    }

    /// A listener reads the port from now on.
    #[cfg(feature = "axum")]
    pub(crate) fn listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// The listener has taken what it will take: while the worker ends, a task reads on in its place
    /// and refuses what still comes.
    #[cfg(feature = "axum")]
    pub(crate) fn stopped_listening(self: &Arc<Self>) {
        if !self.listening.swap(false, Ordering::AcqRel) || !self.connections.is_ending() {
            return;
        }
        if let Some(bound) = self.bound.get() {
            let link = Arc::clone(self);
            bound.runtime.spawn(async move { crate::inbox::run_down(&link).await });
        }
        self.stopped_listening.notify_waiters();
    }

    /// Waits until the worker begins to end, and a listener has taken what was acknowledged before.
    pub(crate) async fn draining(&self) {
        self.connections.ending().await;
        loop {
            let stopped = self.stopped_listening.notified();
            if !self.listening.load(Ordering::Acquire) {
                return;
            }
            stopped.await;
        }
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        *lock(&self.drain_timeout)
    }

    /// A router began: answers with `Hello`.
    pub(crate) fn attached(self: &Arc<Self>, epoch: u16, attach: Attach, received: u64) {
        *lock(&self.drain_timeout) = attach.drain_timeout;
        let settings = self.settings();
        let able = Abilities::HAND_BACK.and(Abilities::PREFIX);
        let hello = Hello {
            ready: self.connections.phase() == Phase::Running,
            max_connections: settings.max_connections,
            received,
            abilities: if settings.keeps_scope { able.and(Abilities::SCOPE) } else { able },
            ..Hello::default()
        };
        let bounds = [hello.max_connections, attach.max_connections];
        let most = bounds.into_iter().filter(|bound| *bound > 0).min().unwrap_or(u32::MAX);
        self.most.store(most, Ordering::Relaxed);
        let takes_back = attach.abilities.has(Abilities::HAND_BACK);
        self.takes_back.store(takes_back, Ordering::Relaxed);
        let mut outbox = lock(&self.outbox);
        outbox.attached(epoch, attach.max_packet, hello);
        self.flush(outbox, 0);
    }

    /// Settles a packet: what is refused, then everything up to its last number.
    pub(crate) fn settle(self: &Arc<Self>, up_to: u64, refusals: &mut Vec<Refusal>) {
        let mut outbox = lock(&self.outbox);
        outbox.settle(up_to, refusals.drain(..));
        self.flush(outbox, 0);
    }

    /// A connection ended: the router hears of it soon, and at once if this worker was full, since then
    /// somebody may wait for the place.
    pub(crate) fn load_changed(self: &Arc<Self>) {
        let open = self.connections.open();
        if open.saturating_add(1) >= self.most.load(Ordering::Relaxed) {
            let mut outbox = lock(&self.outbox);
            outbox.load(open);
            self.flush(outbox, 0);
            return;
        }
        if self.load_due.load(Ordering::Relaxed) || self.load_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(bound) = self.bound.get() else { return };
        let link = Arc::clone(self);
        bound.runtime.spawn(async move {
            tokio::time::sleep(LOAD_INTERVAL).await;
            // Before the look: what ends after it is due anew.
            link.load_due.store(false, Ordering::Release);
            let mut outbox = lock(&link.outbox);
            outbox.load(link.connections.open());
            link.flush(outbox, 0);
        });
    }

    /// The client of this connection has until `due` for the head of a request; then its task is
    /// woken.
    pub(crate) fn expect_head(self: &Arc<Self>, key: Key, due: Instant) {
        if self.connections.expect_head(key, due)
            && let Some(bound) = self.bound.get()
        {
            let link = Arc::clone(self);
            bound.runtime.spawn(async move { link.connections.watch_heads().await });
        }
    }

    /// Posts a message and returns its number.
    ///
    /// # Errors
    /// See [`PostError`]; the message comes back.
    pub(crate) fn post(self: &Arc<Self>, data: Data) -> Result<u64, PostMessageError> {
        let back =
            |reason, message| Err(PostMessageError { reason, message, transfer: Vec::new() });
        if data.len() > MAX_MESSAGE {
            let error = EncodeError::TooLarge { length: data.len(), bound: MAX_MESSAGE };
            return back(error.into(), data);
        }
        let mut outbox = lock(&self.outbox);
        if outbox.is_closed() || self.is_closing() {
            return back(PostError::Closed, data);
        }
        if outbox.is_full(&data) {
            return back(PostError::QueueFull, data);
        }
        let letter = match Letter::message(data) {
            Ok(letter) => letter,
            Err((error, data)) => return back(error.into(), data),
        };
        let sequence = outbox.push_message(letter);
        match self.flush(outbox, sequence) {
            None => Ok(sequence),
            Some((SendError::Closed, data)) => back(PostError::Closed, data),
            Some((error, data)) => back(error.into(), data),
        }
    }

    /// Hands a connection back with what says so, and returns the number.
    ///
    /// # Errors
    /// It is not sent, and `connection`, a copy, is closed.
    pub(crate) fn hand_back(
        self: &Arc<Self>,
        body: Data,
        connection: OwnedFd,
    ) -> Result<u64, PostError> {
        let mut outbox = lock(&self.outbox);
        if outbox.is_closed() {
            return Err(PostError::Closed);
        }
        if outbox.is_full(&body) {
            return Err(PostError::QueueFull);
        }
        let letter = Letter::hand_back(body, connection)?;
        let sequence = outbox.push_message(letter);
        // From here on it is on its way: what cannot be sent for good is closed, and logged.
        self.flush(outbox, 0);
        Ok(sequence)
    }

    /// Whether the router takes connections back.
    pub(crate) fn takes_back(&self) -> bool {
        self.takes_back.load(Ordering::Relaxed)
    }

    /// Reports an error in the program.
    pub(crate) fn report(self: &Arc<Self>, report: &ErrorReport) {
        self.say(Letter::error(report));
    }

    fn say(self: &Arc<Self>, letter: Letter) {
        let mut outbox = lock(&self.outbox);
        if outbox.is_closed() {
            return;
        }
        outbox.push(letter);
        self.flush(outbox, 0);
    }

    fn is_closing(&self) -> bool {
        matches!(self.connections.phase(), Phase::Ending(Ending { cause: Cause::Close, .. }))
    }

    /// Sends what waits, and leaves what the socket does not take to a task. If the message of this
    /// number could not be sent, it comes back with the reason.
    fn flush(
        self: &Arc<Self>,
        mut outbox: MutexGuard<'_, Outbox>,
        posted: u64,
    ) -> Option<(SendError, Data)> {
        let bound = self.bound.get()?;
        if outbox.flushing {
            return None;
        }
        match self.send(bound, &mut outbox) {
            Ok(Sent::Whole) => {}
            Ok(Sent::Blocked | Sent::Later) => {
                outbox.flushing = true;
                let link = Arc::clone(self);
                bound.runtime.spawn(async move { link.flush_all().await });
            }
            Err(error) => {
                // The reader finds the port's end; whoever waits for the last words need not.
                tracing::debug!(%error, "the port takes nothing more");
                outbox.close();
                self.sent.notify_waiters();
            }
        }
        self.refused(&mut outbox, posted)
    }

    /// What could not be sent: the message of this number comes back, others are logged.
    fn refused(&self, outbox: &mut Outbox, posted: u64) -> Option<(SendError, Data)> {
        let mut back = None;
        while let Some((letter, error)) = outbox.take_refused() {
            if posted > 0 && letter.sequence() == posted {
                back = Some((error, letter.into_data()));
            } else {
                let sequence = letter.sequence();
                tracing::warn!(sequence, error = %Chain(&error), "a message cannot be sent");
            }
        }
        back
    }

    fn send(&self, bound: &Bound, outbox: &mut Outbox) -> Result<Sent, SendError> {
        outbox.flush(|| self.connections.open(), &mut |header, body, descriptors| {
            let head = header.encode();
            let parts = [IoSlice::new(&head), IoSlice::new(body)];
            bound.socket.try_send(&parts, descriptors)
        })
    }

    async fn flush_all(&self) {
        let Some(bound) = self.bound.get() else { return };
        loop {
            let ready = bound.socket.writable().await;
            let sent = {
                let mut outbox = lock(&self.outbox);
                let sent = match ready {
                    Ok(()) => self.send(bound, &mut outbox),
                    Err(error) => Err(error),
                };
                match sent {
                    Ok(Sent::Whole) => outbox.flushing = false,
                    Ok(Sent::Blocked | Sent::Later) => {}
                    Err(_) => {
                        outbox.flushing = false;
                        outbox.close();
                    }
                }
                self.refused(&mut outbox, 0);
                sent
            };
            match (sent, ready) {
                (Ok(Sent::Blocked), Ok(())) => {}
                (Ok(Sent::Later), _) => tokio::time::sleep(RETRY).await,
                _ => return self.sent.notify_waiters(),
            }
        }
    }

    /// Waits until everything was sent, for a bounded time: before the worker ends.
    pub(crate) async fn last_words(&self) {
        let sent = async {
            loop {
                let notified = self.sent.notified();
                {
                    let outbox = lock(&self.outbox);
                    if outbox.is_closed() || outbox.is_empty() || !outbox.flushing {
                        return;
                    }
                }
                notified.await;
            }
        };
        // A router that does not read in this time gets nothing: the worker's end tells it enough.
        let _ = tokio::time::timeout(LAST_WORDS, sent).await;
    }

    /// The program drains by itself.
    pub(crate) fn drain(self: &Arc<Self>) {
        if self.connections.is_ending() {
            return;
        }
        self.say(Letter::draining());
        self.end(Cause::Drain, self.drain_timeout(), LINGER);
    }

    /// The program closes its scope.
    pub(crate) fn close(self: &Arc<Self>) {
        if self.is_closing() {
            return;
        }
        self.say(Letter::closing());
        self.end(Cause::Close, self.drain_timeout(), LINGER);
    }

    /// Begins the end of the worker, or hastens it.
    pub(crate) fn end(self: &Arc<Self>, cause: Cause, timeout: Duration, linger: Duration) {
        let now = Instant::now();
        let ending = Ending::new(cause, now, timeout, linger);
        let first = self.connections.begin(ending);
        let Some(bound) = self.bound.get() else { return };
        if !first {
            return;
        }
        let link = Arc::clone(self);
        bound.runtime.spawn(async move { link.connections.enforce().await });
    }

    /// The port is over: nothing more is sent or received.
    pub(crate) fn over(self: &Arc<Self>) {
        lock(&self.outbox).close();
        self.sent.notify_waiters();
        self.end(Cause::Finish, self.drain_timeout(), Duration::ZERO);
        self.connections.port_over();
    }

    /// Closes the port for every holder of this end.
    pub(crate) fn shut(&self) {
        lock(&self.outbox).close();
        self.sent.notify_waiters();
        if let Some(bound) = self.bound.get() {
            bound.socket.shutdown();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every step; a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
