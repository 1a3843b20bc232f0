//! The tasks of a pool: one a worker's port, one for the queue's deadlines. They wait; [`Core`](super::Core) decides.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFdReadyGuard;
use tokio::time::sleep_until;
use vestibule_protocol::limits::{MAX_MESSAGE, MAX_TRANSFER_LIST};
use vestibule_protocol::message::FromWorker;
use vestibule_protocol::socket::{PacketBuffer, Readiness, ReceiveError};
use vestibule_protocol::supervision::WorkerId;

use super::slot::Obstruction;
use super::{Core, Shared};
use crate::link::Link;
use crate::queue::watch::{self, Watch};

/// Packets read from one worker before others get their turn.
const TURN: usize = 32;

/// How long to leave a port alone for which the system had no buffers or descriptors in flight.
const RETRY: Duration = Duration::from_millis(2);

/// A deadline that is noticed later than this was missed because this process stood still, and the answer
/// may be there, or the worker stood still, too: so long it may still be heard. A router that has more to
/// do than it can is later by a small part of this.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// How long a port may stay open after its worker's process group was killed and reaped: the time
/// that the kernel needs to close descriptors. Then somebody else holds it.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) async fn give_up_later(shared: Arc<Shared>, worker: WorkerId) {
    tokio::time::sleep(LAST_WORDS).await;
    shared.step(|core| {
        core.give_up_on(worker);
        core.flush();
    });
}

/// Gives back what waited too long in the pool's queue, and closes what nobody waits for any more.
pub(super) async fn keep_queue(shared: Arc<Shared>) {
    let mut watch: Option<Arc<Watch>> = None;
    loop {
        let now = tokio::time::Instant::now().into_std();
        if shared.core().is_forgotten() {
            return;
        }
        if shared.step(|core| core.wants_watch(now)) {
            match Watch::new() {
                Ok(new) => {
                    let new = Arc::new(new);
                    shared.step(|core| core.watch_with(Arc::clone(&new)));
                    watch = Some(new);
                }
                // Tried again for the next that waits for long; deadlines end the waiting of these.
                Err(error) => tracing::warn!(%error, "clients that wait are not watched"),
            }
        }
        let next = shared.step(|core| core.sweep(now).into_iter().chain(core.watch(now)).min());
        tokio::select! {
            () = shared.queued.notified() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            ready = signs_of(watch.as_deref()), if watch.is_some() => {
                let (Ok(mut ready), Some(watch)) = (ready, &watch) else { return };
                if !shared.step(|core| take_signs(core, watch)) {
                    ready.clear_ready();
                }
            }
        }
    }
}

async fn signs_of(watch: Option<&Watch>) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    match watch {
        Some(watch) => watch.readable().await,
        None => std::future::pending().await,
    }
}

/// Takes one turn's signs of clients that wait. Returns whether there may be more.
fn take_signs(core: &mut Core, clients: &Watch) -> bool {
    match clients.take_signs(|sign| core.client_sign(sign)) {
        Ok(count) => count == watch::TURN,
        Err(error) => {
            tracing::error!(%error, "clients that wait cannot be looked at");
            false
        }
    }
}

/// Reads one worker's port to its end, and writes to it when others could not.
pub(super) async fn drive(shared: Arc<Shared>, worker: WorkerId, link: Arc<Link>) {
    let Some(wake) = shared.core().slot(worker.slot).map(|slot| Arc::clone(&slot.wake)) else {
        return;
    };
    // A worker's message has no transfer list, for which a large body has room besides.
    let mut buffer = PacketBuffer::new(MAX_MESSAGE - MAX_TRANSFER_LIST);
    let mut stuck = pin!(sleep_until(Instant::now().into()));
    let mut watching = false;
    let mut retry = pin!(sleep_until(Instant::now().into()));
    let mut retrying = false;
    let mut crowded = false;
    loop {
        let (obstruction, due) = {
            let mut core = shared.core();
            let Some(slot) = core.slot(worker.slot).filter(|slot| slot.id == worker) else {
                return;
            };
            let obstruction = slot.obstruction;
            if core.is_deaf() {
                // What it is still to answer, another router hears.
                return;
            }
            (obstruction, core.watch_offers(worker))
        };
        if let Some(due) = due {
            stuck.as_mut().reset(due.into());
            watching = true;
        }
        // Looked at here, too: a worker that always has more to say keeps the timer's arm below from
        // ever being reached.
        let late = tokio::time::Instant::now().checked_duration_since(stuck.deadline());
        if watching && late.is_some_and(|late| late > STOOD_STILL) {
            stuck.as_mut().reset(tokio::time::Instant::now() + STOOD_STILL);
        } else if watching && late.is_some() {
            match shared.step(|core| core.stuck(worker, Instant::now())) {
                Some(due) => stuck.as_mut().reset(due.into()),
                None => watching = false,
            }
        }
        if obstruction == Obstruction::Later && !retrying {
            retry.as_mut().reset((Instant::now() + RETRY).into());
            retrying = true;
        }
        tokio::select! {
            biased;
            ready = link.socket.readable(), if !crowded => {
                if shared.core().is_deaf() {
                    return;
                }
                let turn = match ready {
                    Ok(mut ready) => read(&shared, worker, &link, &mut buffer, &mut ready),
                    Err(_) => Turn::Closed,
                };
                match turn {
                    Turn::Done => {}
                    Turn::More => crowded = true,
                    Turn::Closed => break,
                    Turn::Fault(reason) => {
                        fault(&shared, worker, &link, &reason);
                        drain(&link, &mut buffer).await;
                        break;
                    }
                }
            }
            () = wake.notified() => shared.flush(),
            // An error is the port's end, which the reader finds.
            _ = link.socket.writable(), if obstruction == Obstruction::Blocked => {
                shared.step(|core| core.unblock(worker.slot));
            }
            () = &mut retry, if retrying => {
                retrying = false;
                shared.step(|core| core.unblock(worker.slot));
            }
            // It is due: see above.
            () = &mut stuck, if watching => {}
            // A worker that always has more to say: its own bounds were looked at just now, and all
            // others have their turn before the next packet.
            () = tokio::task::yield_now(), if crowded => crowded = false,
        }
    }
    shared.step(|core| {
        core.ended(worker);
        core.flush();
    });
}

/// How a turn of listening to a worker went.
pub(super) enum Turn {
    /// All that has come is read.
    Done,
    /// There may be more.
    More,
    /// The port's end.
    Closed,
    /// What came breaks the protocol.
    Fault(String),
}

/// Reads what is there, at most a turn's worth, and answers.
pub(super) fn read(
    shared: &Shared,
    worker: WorkerId,
    link: &Link,
    buffer: &mut PacketBuffer,
    ready: &mut impl Readiness,
) -> Turn {
    let before = buffer.discarded();
    let mut turn = Turn::More;
    for _ in 0..TURN {
        match read_packet(shared, worker, link, buffer) {
            // Reading one takes as long as reading many others.
            Read::Large => break,
            Read::Packet => {}
            Read::Nothing => {
                ready.clear_ready();
                turn = Turn::Done;
                break;
            }
            Read::Over(over) => {
                turn = over;
                break;
            }
        }
    }
    let discarded = buffer.discarded() - before;
    shared.step(|core| {
        core.discarded(discarded);
        core.flush();
    });
    turn
}

/// What a look at a port brought.
enum Read {
    Packet,
    /// With a body in memory of its own.
    Large,
    Nothing,
    Over(Turn),
}

/// Reads one packet; the pool is locked only while what it says is taken in.
fn read_packet(shared: &Shared, worker: WorkerId, link: &Link, buffer: &mut PacketBuffer) -> Read {
    let packet = match link.socket.try_receive(buffer) {
        Ok(Some(packet)) => packet,
        Ok(None) => return Read::Nothing,
        Err(ReceiveError::Closed) => return Read::Over(Turn::Closed),
        Err(ReceiveError::Body { sequence, reason }) => {
            let why = reason.map_or_else(
                || "the memory of a large message did not arrive".to_owned(),
                |reason| reason.to_string(),
            );
            shared.core().unreadable(worker, sequence, why);
            return Read::Packet;
        }
        Err(ReceiveError::Format { sequence, format, .. }) => {
            shared.core().unreadable(worker, sequence, format!("unknown format {format}"));
            return Read::Packet;
        }
        Err(error) => return Read::Over(Turn::Fault(error.to_string())),
    };
    let header = packet.header;
    let result = match FromWorker::decode(&header, packet.body) {
        Ok(message) => shared
            .core()
            .packet(worker, &header, message, packet.descriptors)
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    // What was not taken counts now, whatever comes next.
    buffer.clear();
    match result {
        Ok(()) if header.large => Read::Large,
        Ok(()) => Read::Packet,
        Err(reason) => Read::Over(Turn::Fault(reason)),
    }
}

pub(super) fn fault(shared: &Shared, worker: WorkerId, link: &Link, reason: &str) {
    let name = shared.core().slot(worker.slot).map(|slot| Arc::clone(&slot.name));
    tracing::warn!(worker = name.as_deref(), reason, "worker broke the protocol and is killed");
    link.socket.shutdown();
    shared.step(|core| core.condemn(worker, reason, true));
}

/// Reads a faulty worker's port to its end without believing any of it. Our end is shut down, so
/// only what was under way is left.
async fn drain(link: &Link, buffer: &mut PacketBuffer) {
    loop {
        match link.socket.receive(buffer).await {
            Ok(_) => {}
            Err(error) if !error.is_fatal() => {}
            Err(ReceiveError::Closed | ReceiveError::System(_)) => return,
            Err(_) => {}
        }
    }
}
