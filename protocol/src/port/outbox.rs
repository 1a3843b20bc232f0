//! What was posted and is not with the receiver yet: the queue, and the task that empties it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::{PostError, Shared};
use crate::codec::{Data, EncodeError};
use crate::envelope::{self, Transferable};
use crate::header::{HEADER_LEN, Header};
use crate::limits::{INLINE_MESSAGE, MAX_DESCRIPTORS, MAX_PACKET, QUEUE_BYTES, QUEUE_MESSAGES};
use crate::message::kind;
use crate::socket::{PacketSocket, SendError, Sent};
use crate::sys;

/// How long to wait before a send that failed for want of something no event announces: the other
/// side needs about this long to take descriptors out of its queue.
const RETRY: Duration = Duration::from_millis(2);

/// How long a closed port may still send what was posted before: as long as a worker drains.
const LINGER: Duration = Duration::from_secs(60);

/// Messages before a slow receiver. While nothing flushes, nothing waits.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Packed>,
    bytes: usize,
    sequence: u64,
    /// A task waits for room and will send what waits.
    flushing: bool,
    /// `close()` was called here: nothing is posted or delivered any more.
    closed: bool,
    /// Nothing can be sent: the other side is gone, or this one has sent its last.
    ended: bool,
}

/// A packet that is ready to go, with everything it carries.
#[derive(Debug)]
pub(super) struct Packed {
    header: Header,
    body: Vec<u8>,
    memory: Option<OwnedFd>,
    transfer: Vec<Transferable>,
    weight: usize,
}

/// Why a message was not posted, and what it was to carry.
pub(super) type NotPosted = (PostError, Vec<Transferable>);

impl Outbox {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn has_room(&self, weight: usize) -> bool {
        self.waiting.is_empty()
            || (self.waiting.len() < QUEUE_MESSAGES && self.bytes + weight <= QUEUE_BYTES)
    }

    fn push(&mut self, packed: Packed) {
        self.bytes += packed.weight;
        self.waiting.push_back(packed);
    }

    /// Sends what waits, until the receiver is slow.
    fn send(&mut self, socket: &PacketSocket) -> Result<Sent, SendError> {
        while let Some(packed) = self.waiting.front() {
            let sequence = self.sequence + 1;
            match packed.send(socket, sequence)? {
                Sent::Whole => {
                    self.sequence = sequence;
                    self.bytes -= packed.weight;
                    self.waiting.pop_front();
                }
                other => return Ok(other),
            }
        }
        Ok(Sent::Whole)
    }

    /// Nothing is sent from here on. What waited is to be dropped without the lock.
    #[must_use]
    fn end(&mut self) -> VecDeque<Packed> {
        self.ended = true;
        self.flushing = false;
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

impl Shared {
    /// Posts a packet: sends it, or puts it into the queue if the receiver is slow.
    pub(super) fn post(self: &Arc<Self>, packed: Packed) -> Result<(), NotPosted> {
        let mut outbox = self.outbox();
        if outbox.closed || outbox.ended {
            return Err((PostError::Closed, packed.transfer));
        }
        if !outbox.has_room(packed.weight) {
            return Err((PostError::QueueFull, packed.transfer));
        }
        if outbox.flushing {
            outbox.push(packed);
            return Ok(());
        }
        let sequence = outbox.sequence + 1;
        match packed.send(&self.socket, sequence) {
            Ok(Sent::Whole) => {
                outbox.sequence = sequence;
                drop(outbox);
                // This side's copies of what was transferred are closed here, without the lock.
                drop(packed);
                Ok(())
            }
            Ok(Sent::Blocked | Sent::Later) => {
                outbox.push(packed);
                outbox.flushing = true;
                drop(outbox);
                let flush = Flush { shared: Arc::clone(self), done: false };
                self.runtime.spawn(flush.run());
                Ok(())
            }
            Err(SendError::Closed) => {
                outbox.ended = true;
                Err((PostError::Closed, packed.transfer))
            }
            // This packet alone is refused: the receiver takes no descriptors, say.
            Err(error @ SendError::System(_)) => Err((error.into(), packed.transfer)),
        }
    }

    /// Closes from this side: what was posted is still sent, nothing is delivered here any more.
    pub(super) fn close(&self) {
        let mut outbox = self.outbox();
        if outbox.closed {
            return;
        }
        outbox.closed = true;
        if outbox.waiting.is_empty() {
            outbox.ended = true;
            self.socket.shutdown();
        } else {
            self.socket.shutdown_receive();
            self.closing.notify_one();
        }
    }

    /// Closes at once; what waits is dropped.
    pub(super) fn abort(&self) {
        let dropped = self.outbox().end();
        self.socket.shutdown();
        drop(dropped);
    }

    /// Sends what waits. After [`Sent::Whole`] nothing is left to do, and nothing flushes.
    fn flush(&self) -> Result<Sent, SendError> {
        let mut outbox = self.outbox();
        let sent = outbox.send(&self.socket)?;
        if sent == Sent::Whole {
            outbox.flushing = false;
            if outbox.closed {
                outbox.ended = true;
                self.socket.shutdown();
            }
        }
        Ok(sent)
    }
}

/// The task that sends what waits. It ends with the queue, with the other side, or [`LINGER`] after
/// this side was closed. If its runtime ends first, so does the port.
struct Flush {
    shared: Arc<Shared>,
    /// Another task may already flush what was posted after this one had sent all.
    done: bool,
}

impl Flush {
    async fn run(mut self) {
        let result = tokio::select! {
            result = self.send_all() => result,
            () = self.linger() => Err(SendError::Closed),
        };
        if let Err(error) = result {
            if matches!(error, SendError::System(_)) {
                tracing::warn!(%error, "posted message cannot be sent; its port is closed");
            }
            self.shared.abort();
        }
        self.done = true;
    }

    async fn send_all(&self) -> Result<(), SendError> {
        loop {
            self.shared.socket.writable().await?;
            match self.shared.flush()? {
                Sent::Whole => return Ok(()),
                Sent::Blocked => {}
                Sent::Later => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn linger(&self) {
        self.shared.closing.notified().await;
        tokio::time::sleep(LINGER).await;
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if !self.done {
            self.shared.abort();
        }
    }
}

impl Packed {
    fn send(&self, socket: &PacketSocket, sequence: u64) -> Result<Sent, SendError> {
        let head = Header { sequence, ..self.header }.encode();
        let mut descriptors = Vec::with_capacity(self.transfer.len() + 1);
        descriptors.extend(self.memory.as_ref().map(AsFd::as_fd));
        descriptors.extend(self.transfer.iter().map(AsFd::as_fd));
        socket.try_send(&[IoSlice::new(&head), IoSlice::new(&self.body)], &descriptors)
    }
}

/// Makes a packet of a message of at most `max_message` bytes.
pub(super) fn pack(
    data: &Data,
    transfer: Vec<Transferable>,
    max_message: usize,
) -> Result<Packed, NotPosted> {
    if data.len() > max_message {
        let error = EncodeError::TooLarge { length: data.len(), bound: max_message };
        return Err((error.into(), transfer));
    }
    if transfer.iter().any(|item| matches!(item, Transferable::Port(port) if !port.is_idle())) {
        return Err((PostError::PortBusy, transfer));
    }
    let mut body = Vec::with_capacity(data.len() + 8 * transfer.len() + 8);
    if let Err(too_long) = envelope::encode(&mut body, &transfer, data.as_bytes()) {
        let error = EncodeError::TooLarge { length: too_long.0, bound: usize::from(u16::MAX) };
        return Err((error.into(), transfer));
    }
    let weight = HEADER_LEN + body.len();
    let large = data.len() > INLINE_MESSAGE || weight > MAX_PACKET;
    let count = transfer.len() + usize::from(large);
    let descriptors = match u8::try_from(count) {
        Ok(descriptors) if count <= MAX_DESCRIPTORS => descriptors,
        _ => return Err((PostError::TooManyTransferred(transfer.len()), transfer)),
    };
    let mut memory = None;
    if large {
        match sys::sealed_memory(&body) {
            Ok(sealed) => memory = Some(sealed),
            Err(error) => return Err((SendError::System(error).into(), transfer)),
        }
        body = Vec::new();
    }
    let header =
        Header { codec: data.codec(), large, descriptors, ..Header::new(kind::PORT_MESSAGE, 0) };
    Ok(Packed { header, body, memory, transfer, weight })
}
