//! Closing what strangers sent, where a slow close hurts nobody.
//!
//! `close` of the last copy of a socket blocks while unsent data lingers, if its sender set
//! `SO_LINGER`; other kinds of file can block too. A descriptor that came from a peer is therefore
//! never closed on the thread that received it, but here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// The way to the thread that closes, which is started with the first thing to close.
///
/// The queue has no bound of its own: what waits in it are open descriptors of this process, so
/// `RLIMIT_NOFILE` bounds it, and a peer that sends what it must not loses its port.
static CLOSER: Mutex<Option<Sender<Vec<OwnedFd>>>> = Mutex::new(None);

/// Closes descriptors on a thread that does nothing else. Returns at once.
pub fn discard(descriptors: Vec<OwnedFd>) {
    if descriptors.is_empty() {
        return;
    }
    let mut closer = CLOSER.lock().unwrap_or_else(PoisonError::into_inner);
    if closer.is_none() {
        *closer = start();
    }
    let rest = match &*closer {
        Some(sender) => sender.send(descriptors).err().map(|lost| lost.0),
        None => Some(descriptors),
    };
    drop(closer);
    // Without a thread (the process is at its limit) closing here is better than keeping them.
    close(rest.unwrap_or_default());
}

fn start() -> Option<Sender<Vec<OwnedFd>>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("closer".into())
        .spawn(move || run(&receiver))
        .is_ok()
        .then_some(sender)
}

fn run(receiver: &Receiver<Vec<OwnedFd>>) {
    while let Ok(descriptors) = receiver.recv() {
        close(descriptors);
    }
}

/// Clears `SO_LINGER` first: the peer may set it again at once, but then only this thread waits.
fn close(descriptors: Vec<OwnedFd>) {
    for descriptor in descriptors {
        // Fails on what is no socket, which has no linger time either.
        let _ = rustix::net::sockopt::set_socket_linger(descriptor.as_fd(), None);
    }
}
