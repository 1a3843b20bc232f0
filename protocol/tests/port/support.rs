//! What the tests share: descriptors whose end can be seen, and what a port must bring next.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vestibule_protocol::codec::Data;
use vestibule_protocol::envelope::Transferable;
use vestibule_protocol::header::Header;
use vestibule_protocol::message::kind;
use vestibule_protocol::port::{MessageChannel, MessagePort, PortEvent, PortMessageError};
use vestibule_protocol::socket::{PacketSocket, Sent};
use vestibule_protocol::sys;

/// The reading end of a pipe whose writing end is passed around: it tells when the last copy of that
/// is closed, in whatever process.
pub(crate) struct Canary(PipeReader);

impl Canary {
    pub(crate) fn new() -> (Self, OwnedFd) {
        let (reader, writer) = std::io::pipe().unwrap();
        (Self(reader), writer.into())
    }

    /// Waits until every copy of the writing end is closed, and returns what was written.
    ///
    /// # Panics
    /// A copy stays open for longer than anything takes on a loaded machine.
    pub(crate) fn wait(mut self) -> String {
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        let mut written = Vec::new();
        loop {
            let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)).unwrap();
            assert_ne!(ready, 0, "a copy of the descriptor stays open");
            let mut part = [0; 64];
            match self.0.read(&mut part).unwrap() {
                0 => return String::from_utf8(written).unwrap(),
                length => written.extend_from_slice(&part[..length]),
            }
        }
    }
}

/// Writes into a passed writing end and closes it.
pub(crate) fn write_to(item: Transferable, text: &str) {
    PipeWriter::from(descriptor(item)).write_all(text.as_bytes()).unwrap();
}

pub(crate) fn descriptor(item: Transferable) -> OwnedFd {
    match item {
        Transferable::Descriptor(descriptor) => descriptor,
        other => panic!("{other:?} is no plain descriptor"),
    }
}

pub(crate) fn channel() -> (MessagePort, MessagePort) {
    let MessageChannel { port1, port2 } = MessageChannel::new().unwrap();
    (port1, port2)
}

/// A port, and the other end in the hands of somebody who keeps to nothing.
pub(crate) fn hostile() -> (MessagePort, PacketSocket) {
    let (ours, theirs) = sys::seqpacket_pair().unwrap();
    (MessagePort::new(ours).unwrap(), PacketSocket::new(theirs).unwrap())
}

/// Sends a packet as it is.
pub(crate) fn send(socket: &PacketSocket, bytes: &[u8], descriptors: &[&OwnedFd]) {
    use std::os::fd::AsFd;
    let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let sent = socket.try_send(&[std::io::IoSlice::new(bytes)], &descriptors).unwrap();
    assert_eq!(sent, Sent::Whole);
}

/// A header for a port that announces this many descriptors.
pub(crate) fn header(descriptors: u8) -> Header {
    Header { descriptors, sequence: 1, ..Header::new(kind::PORT_MESSAGE, 0) }
}

pub(crate) async fn message(port: &MessagePort) -> (Data, Vec<Transferable>) {
    match port.recv().await {
        Some(PortEvent::Message { data, transfer }) => (data, transfer),
        other => panic!("no message: {other:?}"),
    }
}

pub(crate) async fn number(port: &MessagePort) -> u32 {
    message(port).await.0.decode().unwrap()
}

pub(crate) async fn message_error(port: &MessagePort) -> PortMessageError {
    match port.recv().await {
        Some(PortEvent::MessageError(error)) => error,
        other => panic!("no message error: {other:?}"),
    }
}

pub(crate) async fn assert_end(port: &MessagePort) {
    let event = port.recv().await;
    assert!(event.is_none(), "the port brought {event:?}");
}
