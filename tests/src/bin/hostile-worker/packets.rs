//! Packets that a worker must not send.

use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use vestibule_protocol::codec::Codec;
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::MAX_PACKET;
use vestibule_protocol::message::{self, RefusalReason, kind};
use vestibule_protocol::socket::Sent;
use vestibule_protocol::sys;

use crate::port::{Came, Port};

pub(crate) async fn acknowledges_before_hello(mut port: Port) {
    port.attached().await;
    port.acknowledge(0, 0);
    port.wait_for_the_end().await;
}

/// In an epoch that no router has.
pub(crate) async fn speaks_before_attach(mut port: Port) {
    port.send(&Header::new(kind::HELLO, 77), &[], &[]);
    port.attached().await;
    port.wait_for_the_end().await;
}

/// Acknowledges more than it was offered, whatever else is under way by now.
pub(crate) async fn acknowledges_more(port: Port) {
    let mut port = port.ready().await;
    let (first, descriptors) = port.first().await;
    port.acknowledge(first + descriptors.len() as u64 + 10_000, 0);
    port.wait_for_the_end().await;
}

pub(crate) async fn settles_twice(port: Port) {
    let mut port = port.ready().await;
    let (first, _descriptors) = port.first().await;
    port.acknowledge(first, 1);
    port.refuse(first, RefusalReason::Full);
    port.wait_for_the_end().await;
}

/// Sends bytes that are no packet.
pub(crate) async fn sends(port: Port, bytes: &[u8]) {
    let mut port = port.ready().await;
    port.first().await;
    let sent = port.socket.try_send(&[std::io::IoSlice::new(bytes)], &[]).unwrap();
    assert_eq!(sent, Sent::Whole);
    port.wait_for_the_end().await;
}

pub(crate) async fn oversized(port: Port) {
    let mut port = port.ready().await;
    port.first().await;
    let header = Header { codec: Codec::Bytes, ..port.header(kind::WORKER_MESSAGE) };
    port.send(&header, &vec![0; MAX_PACKET], &[]);
    port.wait_for_the_end().await;
}

pub(crate) async fn unknown_kind(port: Port) {
    let mut port = port.ready().await;
    port.first().await;
    port.send(&port.header(0x7f), &[], &[]);
    port.wait_for_the_end().await;
}

pub(crate) async fn greets_twice(port: Port) {
    let mut port = port.ready().await;
    port.first().await;
    port.greet();
    port.wait_for_the_end().await;
}

/// An acknowledgement that announces a descriptor and carries one.
pub(crate) async fn unasked_descriptor(port: Port) {
    let header = Header { descriptors: 1, ..port.header(kind::ACKNOWLEDGE) };
    with_descriptor(port, header).await;
}

/// An acknowledgement that carries a descriptor and does not say so.
pub(crate) async fn unannounced_descriptor(port: Port) {
    let header = port.header(kind::ACKNOWLEDGE);
    with_descriptor(port, header).await;
}

/// A message that carries one of its own ports.
pub(crate) async fn sends_a_port(port: Port) {
    let header = Header {
        descriptors: 1,
        sequence: 1,
        codec: Codec::Json,
        ..port.header(kind::WORKER_MESSAGE)
    };
    with_descriptor(port, header).await;
}

/// Sends an end of a channel, and ends with 0 when its last copy is closed: the other end is kept.
async fn with_descriptor(port: Port, header: Header) {
    let mut port = port.ready().await;
    port.first().await;
    let header = Header { epoch: port.header(0).epoch, ..header };
    let (sent, kept) = sys::seqpacket_pair().unwrap();
    let mut body = Vec::new();
    if header.kind == kind::ACKNOWLEDGE {
        message::put_acknowledge(&mut body, 0, 0);
    } else {
        body.extend_from_slice(b"null");
    }
    let outcome = port.try_send(&header, &body, &[&sent]);
    if outcome.is_err() {
        // The kernel knows better than to deliver it: so the router never sees it.
        port.post(1, "the kernel refused");
    }
    drop(sent);
    closed(&kept);
    port.wait_for_the_end().await;
}

/// Waits until the other end of a channel is closed everywhere.
fn closed(kept: &OwnedFd) {
    let mut poll = [rustix::event::PollFd::new(kept, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut poll, None).unwrap();
}

/// A large message in memory that could still change; says what became of it.
pub(crate) async fn unsealed_memory(port: Port) {
    let port = port.ready().await;
    let memory = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&memory, b"\"large\"").unwrap();
    large(port, Codec::Json, &[&memory]).await;
}

/// A large message without its memory.
pub(crate) async fn missing_memory(port: Port) {
    let port = port.ready().await;
    large(port, Codec::Json, &[]).await;
}

async fn large(port: Port, codec: Codec, descriptors: &[&OwnedFd]) {
    let header = Header {
        codec,
        large: true,
        descriptors: 1,
        sequence: 1,
        ..port.header(kind::WORKER_MESSAGE)
    };
    port.send(&header, &[], descriptors);
    report_refusal(port).await;
}

/// A message whose codec byte means nothing here.
pub(crate) async fn unknown_format(port: Port) {
    let port = port.ready().await;
    let mut head = Header { sequence: 1, ..port.header(kind::WORKER_MESSAGE) }.encode();
    head[3] = 200;
    let sent = port.socket.try_send(&[std::io::IoSlice::new(&head)], &[]).unwrap();
    assert_eq!(sent, Sent::Whole);
    report_refusal(port).await;
}

async fn report_refusal(mut port: Port) {
    loop {
        if let Came::Refused(refusals) = port.next().await {
            let refusal = refusals[0];
            port.post(2, &format!("{} {}", refusal.sequence, refusal.reason.as_str()));
            return port.wait_for_the_end().await;
        }
    }
}
