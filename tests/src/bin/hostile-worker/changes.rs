//! What can be said to a router about connections that another one has sent.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use vestibule_protocol::message::RefusalReason;

use crate::connections::read_one;
use crate::port::{Came, Port};
use crate::system;

/// What it was sent by a router that is gone, and has not answered.
struct Held {
    port: Port,
    /// That router's.
    before: u16,
    connections: Vec<(u64, OwnedFd)>,
}

impl Held {
    fn last(&self) -> u64 {
        self.connections.last().unwrap().0
    }

    /// Says something as to the router before.
    fn tell_the_one_before(&mut self, say: impl FnOnce(&Port)) {
        let present = std::mem::replace(&mut self.port.epoch, self.before);
        say(&self.port);
        self.port.epoch = present;
    }
}

/// Answers nothing, until another router attaches.
async fn hold(port: Port) -> Held {
    hold_with(port, |_| ()).await
}

/// As [`hold`], with something done to each connection at once.
async fn hold_with(port: Port, deed: fn(&OwnedFd)) -> Held {
    let mut port = port.ready().await;
    let mut before = port.epoch;
    let mut connections = Vec::new();
    loop {
        if let Came::Connections(more) = port.next().await {
            more.iter().for_each(|(_, connection)| deed(connection));
            connections.extend(more);
        }
        if port.epoch != before {
            if !connections.is_empty() {
                return Held { port, before, connections };
            }
            before = port.epoch;
            port.greet();
        }
    }
}

/// Refuses everything, and then takes and refuses it again and again.
pub(crate) async fn settles_again(port: Port) {
    let mut held = hold(port).await;
    let last = held.last();
    let numbers: Vec<u64> = held.connections.drain(..).map(|(number, _)| number).collect();
    let refuse = |port: &Port| {
        numbers.iter().for_each(|number| port.refuse(*number, RefusalReason::Full));
    };
    let take = |port: &Port| (0..3).for_each(|_| port.acknowledge(last, 0));
    held.tell_the_one_before(refuse);
    held.tell_the_one_before(take);
    held.port.greet_with(last);
    held.tell_the_one_before(take);
    held.tell_the_one_before(refuse);
    held.port.wait_for_the_end().await;
}

/// Refuses what its hello has taken.
pub(crate) async fn refuses_what_it_took(port: Port) {
    let mut held = hold(port).await;
    held.port.greet_with(held.last());
    let connections = std::mem::take(&mut held.connections);
    held.tell_the_one_before(|port| {
        for (number, connection) in connections {
            drop(connection);
            port.refuse(number, RefusalReason::Full);
        }
    });
    held.port.wait_for_the_end().await;
}

/// Says that it has received something else.
pub(crate) async fn claims(port: Port, received: impl FnOnce(u64) -> u64) {
    let held = hold(port).await;
    held.port.greet_with(received(held.last()));
    held.port.wait_for_the_end().await;
}

/// Takes everything, as if this router had sent it.
pub(crate) async fn takes_as_another(port: Port) {
    let held = hold(port).await;
    held.port.acknowledge(held.last(), 0);
    held.port.wait_for_the_end().await;
}

/// Closes its port, and lives on with the connections.
pub(crate) async fn hangs_up(port: Port) {
    let Held { port, connections: _held, .. } = hold(port).await;
    drop(port);
    std::future::pending().await
}

/// Leaves somebody behind who holds the port too, and is gone.
pub(crate) async fn leaves_a_child(port: Port) {
    let held = hold(port).await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    system::spawn_apart(command.arg("child"), held.port.socket.as_fd());
    std::process::exit(0);
}

/// Reads what the router before sent, and refuses it to the next.
pub(crate) async fn reads_and_refuses(port: Port) {
    let mut held = hold_with(port, read_a_byte).await;
    let last = held.last();
    let connections = std::mem::take(&mut held.connections);
    held.tell_the_one_before(|port| {
        for (number, connection) in connections {
            drop(connection);
            port.refuse(number, RefusalReason::Full);
        }
    });
    held.port.greet_with(last);
    held.port.wait_for_the_end().await;
}

/// Reads what the router before sent, and dies of the next.
pub(crate) async fn reads_and_dies(port: Port) {
    hold_with(port, read_a_byte).await;
    std::process::abort();
}

fn read_a_byte(connection: &OwnedFd) {
    read_one(connection.try_clone().unwrap());
}
