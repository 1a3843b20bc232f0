//! Things that nobody asked a worker for, each of which is hard to get rid of or to hold.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use vestibule_protocol::codec::Codec;
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{self, RefusalReason, kind};

use crate::port::Port;
use crate::system;

/// How many of a kind are sent, each in a packet of its own.
const MANY: usize = 8;

/// Longer than any test: whoever waits for that waits too long.
const LINGER: Duration = Duration::from_secs(600);

/// At the first connection: has the file that `TEST_FILE` names sent by a process of its own. Whoever
/// has that file open sleeps when it ends, and the worker is to be killed.
pub(crate) async fn sends_files(port: Port) {
    let mut port = port.ready().await;
    let (_, _held) = port.first().await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("child-with-files").env("TEST_EPOCH", port.header(0).epoch.to_string());
    system::spawn_apart(&mut command, port.socket.as_fd());
    port.wait_for_the_end().await;
}

/// At the first connection: breaks the protocol with that file open, so that its own end sleeps.
pub(crate) async fn holds_file(port: Port) {
    let path = std::env::var_os("TEST_FILE").unwrap();
    let _file = File::open(&path).unwrap();
    let mut port = port.ready().await;
    let (sequence, _held) = port.first().await;
    // It was sent less.
    port.acknowledge(sequence + 1_000, 0);
    port.wait_for_the_end().await;
}

/// That process: sends it, and ends, which it cannot as long as the file sleeps.
pub(crate) fn child_with_files(port: Port) {
    let path = std::env::var_os("TEST_FILE").unwrap();
    let epoch = std::env::var("TEST_EPOCH").unwrap().parse().unwrap();
    let file = OwnedFd::from(File::open(&path).unwrap());
    for _ in 0..MANY {
        if !unasked(&port, epoch, &file) {
            // The router has had enough.
            break;
        }
    }
    drop(port);
}

/// At the first connection: sends sockets whose last close waits for a peer that does not read.
pub(crate) async fn sends_lingering(port: Port) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // The peers stay here, and read nothing.
    let mut peers = Vec::new();
    sends(port, || {
        let (socket, peer) = lingering(&listener);
        peers.push(peer);
        socket
    })
    .await;
}

/// As soon as it is ready: leaves such sockets in its port, and is gone.
pub(crate) async fn leaves_lingering(port: Port) {
    let mut port = port.ready().await;
    port.first().await;
    // Somebody else's sockets: they outlive this process.
    let address: std::net::SocketAddr = std::env::var("TEST_PEER").unwrap().parse().unwrap();
    for _ in 0..MANY {
        let stream = fill(TcpStream::connect(address).unwrap());
        unasked(&port, port.header(0).epoch, &stream);
    }
    std::process::exit(0);
}

async fn sends(port: Port, mut thing: impl FnMut() -> OwnedFd) {
    let mut port = port.ready().await;
    port.first().await;
    for _ in 0..MANY {
        let thing = thing();
        if !unasked(&port, port.header(0).epoch, &thing) {
            // The router has had enough.
            break;
        }
    }
    port.wait_for_the_end().await;
}

/// An acknowledgement of nothing, with a descriptor.
fn unasked(port: &Port, epoch: u16, thing: &OwnedFd) -> bool {
    let mut body = Vec::new();
    message::put_acknowledge(&mut body, 0, 0);
    let header = Header { descriptors: 1, ..Header::new(kind::ACKNOWLEDGE, epoch) };
    port.try_send(&header, &body, &[thing]).is_ok()
}

fn lingering(listener: &TcpListener) -> (OwnedFd, TcpStream) {
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    (fill(stream), peer)
}

/// Fills a connection, and makes its last close wait.
fn fill(mut stream: TcpStream) -> OwnedFd {
    rustix::net::sockopt::set_socket_linger(&stream, Some(LINGER)).unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 64 * 1024]).is_ok() {}
    stream.into()
}

/// At every connection: refuses it, and sends a message of four gigabytes.
pub(crate) async fn four_gigabytes(port: Port) {
    let mut port = port.ready().await;
    let memory = rustix::fs::memfd_create("large", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, 4 << 30).unwrap();
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
    for number in 1.. {
        for (sequence, connection) in port.connections().await {
            drop(connection);
            port.refuse(sequence, RefusalReason::Full);
        }
        let header = Header {
            codec: Codec::Json,
            large: true,
            descriptors: 1,
            sequence: number,
            ..port.header(kind::WORKER_MESSAGE)
        };
        port.send(&header, &[], &[&memory]);
    }
}
