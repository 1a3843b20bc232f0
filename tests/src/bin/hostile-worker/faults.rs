//! What a worker can do to be forgotten, or to be listened to for ever.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use vestibule_protocol::handshake::Hello;
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{RefusalReason, kind};
use vestibule_protocol::sys;

use crate::port::Port;

/// Reads nothing more, and lives.
pub(crate) async fn deaf(mut port: Port) {
    port.attached().await;
    port.socket.shutdown_receive();
    port.greet();
    std::future::pending().await
}

/// Says at once that it drains, and never ends.
pub(crate) async fn greets_draining(mut port: Port) {
    port.attached().await;
    let mut body = Vec::new();
    Hello { ready: false, ..Hello::default() }.encode(&mut body);
    port.send(&port.header(kind::HELLO), &body, &[]);
    std::future::pending().await
}

/// Posts as fast as it can and answers nothing.
pub(crate) async fn floods(port: Port) {
    let port = port.ready().await;
    for sequence in 1.. {
        let head = Header { sequence, ..port.header(kind::WORKER_MESSAGE) }.encode();
        // What does not fit is not sent: the router's side is full all the time.
        if port.socket.try_send(&[IoSlice::new(&head)], &[]).is_err() {
            return;
        }
    }
}

/// Says the first half of its hello: cut inside a field.
pub(crate) async fn half_a_hello(mut port: Port) {
    port.attached().await;
    let mut body = Vec::new();
    Hello::default().encode(&mut body);
    body.truncate(body.len() - 1);
    port.send(&port.header(kind::HELLO), &body, &[]);
    port.wait_for_the_end().await;
}

/// At every connection: refuses it, and keeps as many descriptors under way for a while as its user
/// may have, in a channel that nobody reads.
pub(crate) async fn hoards_descriptors(port: Port) {
    let mut port = port.ready().await;
    loop {
        for (sequence, connection) in port.connections().await {
            drop(connection);
            port.refuse(sequence, RefusalReason::Full);
        }
        hoard();
    }
}

/// Returns when the kernel has refused one more for a while, and lets all go.
fn hoard() {
    const WHILE: std::time::Duration = std::time::Duration::from_millis(300);
    let mut channels = Vec::new();
    let (thing, _other) = sys::seqpacket_pair().unwrap();
    let copies = [thing.as_fd(); 250];
    let until = std::time::Instant::now() + WHILE;
    while std::time::Instant::now() < until {
        let (from, to) = UnixDatagram::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        // As many as fit into one channel, and as the user may still have; then single ones.
        while send(&from, &copies) {}
        while send(&from, &copies[..1]) {}
        channels.push((from, to));
        if channels.len() > 64 {
            // All that can be had, as far as this process's own descriptors go.
            std::thread::sleep(std::time::Duration::from_millis(5));
            channels.pop();
        }
    }
}

fn send(to: &UnixDatagram, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> bool {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(to, &[IoSlice::new(b"x")], &mut control, SendFlags::DONTWAIT).is_ok()
}
