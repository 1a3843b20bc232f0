//! What goes over the bare program's ports, SOCK_SEQPACKET pairs: to the worker, packets of one count and as many
//! connections; back, packets of one count, that of the connections which are thereby acknowledged, in the order in which they came.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, send, sendmsg,
};

/// Connections a packet at most.
pub(super) const BATCH: usize = 64;
/// The bytes of a count.
const COUNT: usize = size_of::<u32>();

/// Sends up to [`BATCH`] connections in one packet, without waiting.
pub(super) fn send_batch(port: impl AsFd, batch: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(batch)) {
        return Err(Errno::TOOBIG);
    }
    let count = (batch.len() as u32).to_ne_bytes();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(port, &[IoSlice::new(&count)], &mut control, flags).map(drop)
}

/// What one look at a port brought.
pub(super) enum Received {
    /// Connections; they are in the vector.
    Batch,
    /// The other end is closed.
    End,
    /// Not what was agreed: a truncated packet, or a count that is not that of its connections.
    Faulty,
}

/// Receives one packet without waiting and appends its connections to `connections`.
pub(super) fn receive_batch(port: impl AsFd, connections: &mut Vec<OwnedFd>) -> Result<Received> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut count = [0; COUNT];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(port, &mut [IoSliceMut::new(&mut count)], &mut control, flags)?;
    let before = connections.len();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            connections.extend(descriptors);
        }
    }
    let count = u32::from_ne_bytes(count);
    Ok(match message.bytes {
        0 => Received::End,
        COUNT
            if !message.flags.contains(ReturnFlags::CTRUNC)
                && connections.len() - before == count as usize =>
        {
            Received::Batch
        }
        _ => Received::Faulty,
    })
}

/// Acknowledges the next `count` connections, without waiting.
pub(super) fn acknowledge(port: impl AsFd, count: u32) -> Result<()> {
    send(port, &count.to_ne_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
}

/// Receives one acknowledgement without waiting; `None` when the other end is closed or sent something else.
pub(super) fn receive_acknowledgement(port: impl AsFd) -> Result<Option<u32>> {
    let mut count = [0; COUNT];
    let (length, _) = recv(port, &mut count, RecvFlags::DONTWAIT)?;
    Ok((length == COUNT).then(|| u32::from_ne_bytes(count)))
}
