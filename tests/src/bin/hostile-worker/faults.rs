//! What a worker can do to be forgotten, or to be listened to for ever.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
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

/// Times that descriptors are hoarded, and how long each time: whoever is of the same user gets hardly
/// any further meanwhile.
const HOARDS: usize = 10;
const WHILE: Duration = Duration::from_millis(100);

/// At every connection: refuses it, and keeps as many descriptors under way for a while as its user
/// may have, in channels that nobody reads.
pub(crate) async fn hoards_descriptors(port: Port) {
    let mut port = port.ready().await;
    let mut left = HOARDS;
    loop {
        for (sequence, connection) in port.connections().await {
            drop(connection);
            port.refuse(sequence, RefusalReason::Full);
        }
        if left > 0 {
            left -= 1;
            hoard();
        }
    }
}

/// Takes whatever its user may have under way, and lets all go after a while.
fn hoard() {
    let (thing, _other) = sys::seqpacket_pair().unwrap();
    let copies = [thing.as_fd(); 250];
    let mut channels = Vec::new();
    let mut used_up = false;
    let until = Instant::now() + WHILE;
    while Instant::now() < until {
        let (from, to) = UnixDatagram::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        // As many as fit into one channel, and as the user may still have; then single ones.
        for few in [copies.as_slice(), &copies[..1]] {
            let refused = (0..).find_map(|_| send(&from, few).err());
            used_up |= refused == Some(Errno::TOOMANYREFS);
        }
        channels.push((from, to));
        if channels.len() > 64 {
            // All that can be had, as far as this process's own descriptors go.
            std::thread::sleep(Duration::from_millis(5));
            channels.pop();
        }
    }
    assert!(used_up, "there was always one more to be had");
}

fn send(to: &UnixDatagram, descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(to, &[IoSlice::new(b"x")], &mut control, SendFlags::DONTWAIT)
}
