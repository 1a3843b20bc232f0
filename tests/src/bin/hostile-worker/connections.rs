//! What can be done to connections by somebody who should not have been given them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::fs::OFlags;
use vestibule_protocol::message::RefusalReason;
use vestibule_protocol::socket::PacketBuffer;
use vestibule_tests::ledger::Pen;

use crate::port::Port;
use crate::system;

/// Keeps what it gets and says nothing, to its end.
pub(crate) async fn holds(port: Port) {
    let mut port = port.ready().await;
    let mut held = Vec::new();
    loop {
        held.append(&mut port.connections().await);
        note(&held.last().unwrap().1, "held");
    }
}

/// Dies of the first connection.
pub(crate) async fn dies(port: Port) {
    let mut port = port.ready().await;
    for (_, connection) in port.connections().await {
        note(&connection, "died");
    }
    std::process::abort();
}

pub(crate) async fn refuses(port: Port, reason: RefusalReason) {
    let mut port = port.ready().await;
    loop {
        for (sequence, connection) in port.connections().await {
            note(&connection, "refused");
            drop(connection);
            port.refuse(sequence, reason);
        }
    }
}

/// Makes the connection blocking, for everybody who has a copy, and refuses it.
pub(crate) async fn refuses_blocking(port: Port) {
    let mut port = port.ready().await;
    loop {
        for (sequence, connection) in port.connections().await {
            let flags = rustix::fs::fcntl_getfl(&connection).unwrap();
            rustix::fs::fcntl_setfl(&connection, flags - OFlags::NONBLOCK).unwrap();
            drop(connection);
            port.refuse(sequence, RefusalReason::Full);
        }
    }
}

pub(crate) async fn reads_and_refuses(port: Port) {
    let mut port = port.ready().await;
    loop {
        for (sequence, connection) in port.connections().await {
            read_one(connection);
            port.refuse(sequence, RefusalReason::Full);
        }
    }
}

/// Refuses everything untouched, keeps a copy, reads what comes to it afterwards, and ends it.
pub(crate) async fn refuses_and_reads_on(port: Port) {
    let mut port = port.ready().await;
    loop {
        for (sequence, connection) in port.connections().await {
            let copy = connection.try_clone().unwrap();
            drop(connection);
            port.refuse(sequence, RefusalReason::Full);
            std::thread::spawn(move || {
                let mut stream = TcpStream::from(copy);
                // Not blocking, as everybody else wants it: what is there by now.
                std::thread::yield_now();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    }
}

pub(crate) async fn reads_and_dies(port: Port) {
    let mut port = port.ready().await;
    for (_, connection) in port.connections().await {
        read_one(connection);
    }
    std::process::abort();
}

pub(crate) async fn writes_and_dies(port: Port) {
    let mut port = port.ready().await;
    for (_, connection) in port.connections().await {
        TcpStream::from(connection).write_all(b"x").unwrap();
    }
    std::process::abort();
}

/// Fills the connection, makes its last close wait for a client that does not read, and
/// acknowledges it: the close is the router's then.
pub(crate) async fn lingers(port: Port) {
    let mut port = port.ready().await;
    loop {
        for (sequence, connection) in port.connections().await {
            let time = Some(Duration::from_secs(60));
            rustix::net::sockopt::set_socket_linger(&connection, time).unwrap();
            let mut stream = TcpStream::from(connection);
            while stream.write(&[0; 64 * 1024]).is_ok() {}
            // Not the last copy, so this close does not wait.
            drop(stream);
            port.acknowledge(sequence, 0);
        }
    }
}

/// At the first connection: closes the port, and lives on with the connection.
pub(crate) async fn hangs_up(port: Port) {
    let mut port = port.ready().await;
    let _held = port.connections().await;
    drop(port);
    std::future::pending().await
}

/// At the first connection: leaves somebody behind who holds the port too, and is gone.
pub(crate) async fn leaves_a_child(port: Port) {
    let mut port = port.ready().await;
    let connections = port.connections().await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    system::spawn_apart(command.arg("child"), port.socket.as_fd());
    drop(connections);
    std::process::exit(0);
}

/// The one left behind: lives as long as the port.
pub(crate) async fn child(port: Port) {
    let mut buffer = PacketBuffer::default();
    while port.socket.receive(&mut buffer).await.is_ok() {}
}

pub(crate) fn read_one(connection: OwnedFd) {
    let mut stream = TcpStream::from(connection);
    stream.set_nonblocking(false).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream.set_nonblocking(true).unwrap();
}

fn note(connection: &OwnedFd, deed: &str) {
    Pen::from_env().note(connection, deed);
}
