//! Which connections are open, and how a worker ends: nothing new, everything told to finish, a
//! deadline, the rest closed.
//!
//! `stream` enters and leaves connections, `link` begins the end, `serve` and `scope` wait for it.
//! [`heads`] holds the clients to their time in the same table.

mod heads;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use slab::Slab;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use vestibule_protocol::message::RefusalReason;

use crate::sys;

/// How long the owners of connections that were closed at the deadline may take to notice: they are
/// woken at once, but a handler may be in the middle of a computation.
const NOTICE: Duration = Duration::from_secs(1);

/// How long before the drain timeout whoever is still there is told that it is over: long enough for a
/// websocket's close to be answered, short against the timeouts that are common.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a worker that leaves by itself still refuses what the router sent before it knew. The
/// router answers by closing the port, usually within a millisecond.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Where a connection stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(usize);

/// Whether the worker takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Ending(Ending),
}

/// Why the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// It finishes what it has, while others take what comes: the router or the program said so.
    Drain,
    /// It finishes what it has, and nobody takes over: everything ends, or the port is over.
    Finish,
    /// It ends: the program's `close()`, or the router's.
    Close,
}

/// How the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    /// When whoever is idle is closed and programs are told that it is over: shortly before the
    /// deadline, or at once where nobody takes over.
    pub(crate) last_call: Instant,
    /// When open connections are closed.
    pub(crate) deadline: Instant,
    /// Until when the port is read, to refuse what arrives.
    pub(crate) linger: Instant,
}

impl Ending {
    /// An end that begins now.
    pub(crate) fn new(cause: Cause, now: Instant, timeout: Duration, linger: Duration) -> Self {
        let deadline = now + timeout;
        let last_call = match cause {
            // A quarter of a short time.
            Cause::Drain => deadline - LAST_CALL.min(timeout / 4),
            Cause::Finish | Cause::Close => now,
        };
        Self { cause, last_call, deadline, linger: now + linger }
    }

    /// Both hold: the stronger cause, the earlier end.
    fn merge(self, other: Self) -> Self {
        Self {
            cause: self.cause.max(other.cause),
            last_call: self.last_call.min(other.last_call),
            deadline: self.deadline.min(other.deadline),
            linger: self.linger.min(other.linger),
        }
    }

    /// Why connections are refused from now on.
    pub(crate) fn refusal(self) -> RefusalReason {
        match self.cause {
            Cause::Drain | Cause::Finish => RefusalReason::Draining,
            Cause::Close => RefusalReason::Closing,
        }
    }
}

/// The open connections of a worker.
#[derive(Debug)]
pub(crate) struct Connections {
    open: AtomicU32,
    /// Set before the wakers are called: a look at it is all that a running worker pays.
    ending: AtomicBool,
    table: Mutex<Table>,
    /// A client's time ends before the next look at the clients' times.
    earlier: Notify,
    phase: watch::Sender<Phase>,
    empty: Notify,
}

#[derive(Debug, Default)]
struct Table {
    held: Slab<Held>,
    /// When the task that holds clients to their time looks next; `None`: there is no such task.
    next_look: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    socket: sys::Watched,
    /// The task that serves it, if it wants to be told of the end.
    task: Option<Waker>,
    /// Until when its client may take for the head of a request. It may have come since.
    head_due: Option<Instant>,
}

impl Connections {
    pub(crate) fn new() -> Self {
        Self {
            open: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            table: Mutex::default(),
            earlier: Notify::new(),
            phase: watch::Sender::new(Phase::Running),
            empty: Notify::new(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every step on the table leaves it whole, so a panic elsewhere spoils nothing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are open.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }

    /// A connection was taken. Its owner calls `closed` before it closes the socket.
    pub(crate) fn opened(&self, socket: sys::Watched) -> Key {
        self.open.fetch_add(1, Ordering::SeqCst);
        Key(self.table().held.insert(Held { socket, task: None, head_due: None }))
    }

    /// A connection is about to be closed.
    pub(crate) fn closed(&self, key: Key) {
        let held = self.table().held.try_remove(key.0);
        drop(held);
        // Sequentially consistent with `begin`: either this sees the end, or its waiters see zero.
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_ending() {
            self.empty.notify_waiters();
        }
    }

    /// Whether the worker ends.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// The task of this connection is woken when the end begins. Returns whether it already has.
    pub(crate) fn wake_at_end(&self, key: Key, task: &Waker) -> bool {
        if let Some(held) = self.table().held.get_mut(key.0) {
            held.task = Some(task.clone());
        }
        // After the entry: `begin` sets the flag before it looks at the entries.
        self.is_ending()
    }

    /// What the worker is at.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Begins the end, or hastens it. Returns whether it is a new one.
    pub(crate) fn begin(&self, ending: Ending) -> bool {
        let first = !self.ending.swap(true, Ordering::SeqCst);
        self.phase.send_modify(|phase| {
            *phase = Phase::Ending(match *phase {
                Phase::Running => ending,
                Phase::Ending(earlier) => earlier.merge(ending),
            });
        });
        self.wake_all();
        first
    }

    fn wake_all(&self) {
        // Woken outside the lock: a waker may run anything.
        let tasks: Vec<Waker> =
            self.table().held.iter().filter_map(|(_, held)| held.task.clone()).collect();
        tasks.into_iter().for_each(Waker::wake);
    }

    /// The port is over: nothing more can arrive that would have to be refused.
    pub(crate) fn port_over(&self) {
        let now = Instant::now();
        self.phase.send_if_modified(|phase| match phase {
            Phase::Ending(ending) if ending.linger > now => {
                ending.linger = now;
                true
            }
            _ => false,
        });
    }

    /// Ends every connection. Their owners see end of file.
    fn cut(&self) {
        self.table().held.iter().for_each(|(_, held)| held.socket.shutdown());
    }

    /// Whether whoever is idle is closed by now.
    pub(crate) fn is_last_call(&self) -> bool {
        self.is_ending()
            && matches!(self.phase(), Phase::Ending(ending) if ending.last_call <= Instant::now())
    }

    /// Waits until shortly before what is open is closed.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn last_call(&self) {
        let mut phase = self.phase.subscribe();
        loop {
            let Phase::Ending(ending) = *phase.borrow_and_update() else {
                // The sender lives as long as `self`.
                let _ = phase.changed().await;
                continue;
            };
            if ending.last_call <= Instant::now() {
                return;
            }
            tokio::select! {
                _ = phase.changed() => {}
                () = tokio::time::sleep_until(ending.last_call) => {}
            }
        }
    }

    /// Waits until the worker begins to end.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn ending(&self) -> Ending {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Ending(ending) = *phase.borrow_and_update() {
                return ending;
            }
            // The sender lives as long as `self`.
            let _ = phase.changed().await;
        }
    }

    /// Waits until the worker has ended: no connection is open, or the deadline is past, and what
    /// was on its way has been refused.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn finished(&self) {
        self.wait(true).await;
    }

    /// As [`finished`](Self::finished), but a worker that was told to close does not wait for its
    /// connections: the program's own loop owns them.
    pub(crate) async fn finished_or_closed(&self) {
        self.wait(false).await;
    }

    async fn wait(&self, for_closing: bool) {
        self.ending().await;
        let mut phase = self.phase.subscribe();
        loop {
            let empty = self.empty.notified();
            let Phase::Ending(ending) = *phase.borrow_and_update() else { return };
            let now = Instant::now();
            let waits = for_closing || ending.cause != Cause::Close;
            let over = ending.deadline + NOTICE;
            let next = if waits && self.open() > 0 && now < over {
                over
            } else if now < ending.linger {
                ending.linger
            } else {
                return;
            };
            tokio::select! {
                () = empty => {}
                _ = phase.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Holds the deadline: tells who is idle shortly before it, and closes what is open then. Ends
    /// with the last connection.
    pub(crate) async fn enforce(&self) {
        let mut phase = self.phase.subscribe();
        let mut called = false;
        loop {
            let empty = self.empty.notified();
            let Phase::Ending(ending) = *phase.borrow_and_update() else { return };
            if self.open() == 0 {
                return;
            }
            let now = Instant::now();
            if now >= ending.deadline {
                return self.cut();
            }
            if now >= ending.last_call && !std::mem::replace(&mut called, true) {
                self.wake_all();
            }
            let next = if called { ending.deadline } else { ending.last_call };
            tokio::select! {
                () = empty => {}
                _ = phase.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(cause: Cause, deadline: u64) -> Ending {
        Ending::new(cause, Instant::now(), Duration::from_secs(deadline), Duration::ZERO)
    }

    fn socket() -> (std::os::unix::net::UnixStream, std::os::unix::net::UnixStream) {
        std::os::unix::net::UnixStream::pair().unwrap()
    }

    fn watched(socket: &std::os::unix::net::UnixStream) -> sys::Watched {
        sys::Watched::new(std::os::fd::AsFd::as_fd(socket))
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_the_last_connection() {
        let connections = Connections::new();
        let (here, _there) = socket();
        let key = connections.opened(watched(&here));
        connections.begin(ending(Cause::Drain, 60));
        let finished = connections.finished();
        tokio::pin!(finished);
        assert!(futures_poll(finished.as_mut()).await.is_none());
        connections.closed(key);
        let before = Instant::now();
        finished.await;
        assert_eq!(Instant::now(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_at_the_deadline_is_closed() {
        use std::io::Read as _;
        let connections = Connections::new();
        let (here, mut there) = socket();
        connections.opened(watched(&here));
        let before = Instant::now();
        connections.begin(ending(Cause::Drain, 60));
        connections.enforce().await;
        assert_eq!(Instant::now() - before, Duration::from_secs(60));
        assert_eq!(there.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_hastened_and_never_put_off() {
        let connections = Connections::new();
        assert!(connections.begin(ending(Cause::Drain, 10)));
        assert!(!connections.begin(ending(Cause::Close, 20)));
        let Phase::Ending(now) = connections.phase() else { panic!("still running") };
        assert_eq!(now.cause, Cause::Close);
        assert_eq!(now.deadline, Instant::now() + Duration::from_secs(10));
        assert_eq!(now.refusal(), RefusalReason::Closing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_woken_by_the_end_or_told_that_it_has_begun() {
        let connections = Connections::new();
        let (here, _there) = socket();
        let key = connections.opened(watched(&here));
        let woken = std::sync::Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        assert!(!connections.wake_at_end(key, &waker));
        connections.begin(ending(Cause::Drain, 10));
        assert!(woken.0.load(Ordering::Relaxed));
        assert!(connections.wake_at_end(key, &waker));
        connections.closed(key);
    }

    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// One look at a future.
    async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
