//! Doing what a case orders.

use std::io::{PipeWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vestibule_protocol::port::PortEvent;
use vestibule_tests::{Order, Said};
use vestibule_worker::{Codec, Data, Event, MessagePort, RefusalReason, Transferred, WorkerScope};

/// How many of this worker's messages came back.
pub(crate) static LOST: AtomicUsize = AtomicUsize::new(0);

/// What a worker does with an event that is no connection.
pub(crate) fn obey(scope: &WorkerScope, event: Event) {
    match event {
        Event::Message { data, transfer } => message(scope, data, transfer),
        Event::MessageError(error) => say(scope, &Said::MessageError(error.to_string())),
        // Not said: that would come back as well.
        Event::Undelivered { reason, .. } => {
            assert_eq!(reason, RefusalReason::Full);
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Event::Draining { .. } => {}
        other => panic!("not for here: {other:?}"),
    }
}

/// What a client can order besides its answer, by the path that it asks for.
pub(crate) fn obey_path(scope: &WorkerScope, path: &str) {
    if path == "/drain" {
        scope.drain();
    } else if let Some(mebibytes) = path.strip_prefix("/grow/") {
        let bytes = mebibytes.parse::<usize>().unwrap() << 20;
        // Written to, so that it is in memory, and kept.
        std::mem::forget(vec![1u8; bytes]);
    }
}

pub(crate) fn say(scope: &WorkerScope, said: &Said) {
    // A worker that ends has nobody to say it to.
    let _ = scope.post_message(said);
}

fn message(scope: &WorkerScope, data: Data, transfer: Vec<Transferred>) {
    let count = transfer.len();
    transfer.into_iter().enumerate().for_each(|(index, item)| use_item(scope, index, item));
    if data.codec() != Codec::Bincode {
        // Another language's message: it goes back as it came.
        scope.post(data).unwrap();
        return;
    }
    match data.decode().unwrap() {
        Order::Echo(text) => say(scope, &Said::Echo(text, count)),
        Order::Bytes(length) => {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            if let Err(error) = scope.post(Data::bytes(bytes)) {
                say(scope, &Said::Echo(error.reason.to_string(), error.message.len()));
            }
        }
        Order::Name => say(scope, &Said::Name(scope.name().to_owned(), scope.pool().to_owned())),
        Order::Flood => drop(tokio::spawn(flood(scope.clone()))),
        Order::Panic(text) => drop(tokio::spawn(async move { panic!("{text}") })),
        Order::Close => scope.close(),
        Order::Drain => scope.drain(),
        Order::Exit(code) => std::process::exit(code),
        Order::Loop => {
            say(scope, &Said::Done);
            loop {
                std::hint::spin_loop();
            }
        }
        Order::Descriptors(more) => {
            limit_descriptors(more);
            say(scope, &Said::Done);
        }
    }
}

/// Allows this process so many descriptors beyond those that it has.
pub(crate) fn limit_descriptors(more: u64) {
    let used = vestibule_tests::census::descriptors().len() as u64;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + more), maximum }).unwrap();
}

/// Shows that a transferred thing arrived and is what it was: a pipe gets its place in the list, a
/// port answers everything, a listener answers one client.
fn use_item(scope: &WorkerScope, index: usize, item: Transferred) {
    match item {
        Transferred::Descriptor(descriptor) => {
            PipeWriter::from(descriptor).write_all(index.to_string().as_bytes()).unwrap();
        }
        Transferred::Port(port) => drop(tokio::spawn(echo(scope.clone(), port))),
        Transferred::Listener(listener) => {
            let listener = std::net::TcpListener::from(listener);
            listener.set_nonblocking(false).unwrap();
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(b"from the listener").unwrap();
        }
        Transferred::Connection(connection) => drop(tokio::spawn(async move {
            let mut connection = connection;
            let text = index.to_string();
            tokio::io::AsyncWriteExt::write_all(&mut connection.stream, text.as_bytes())
                .await
                .unwrap();
        })),
        other => panic!("cannot use {other:?}"),
    }
}

/// Sends everything back that comes through a port, until its end; then says so.
async fn echo(scope: WorkerScope, port: MessagePort) {
    let mut count = 0;
    while let Some(event) = port.recv().await {
        let PortEvent::Message { data, transfer } = event else { panic!("{event:?}") };
        // The other side may be closed by now.
        let _ = port.post(data, transfer);
        count += 1;
    }
    say(&scope, &Said::PortClosed(count));
}

async fn flood(scope: WorkerScope) {
    let mut number = 0;
    loop {
        if scope.post_message(&Said::Flood(number)).is_ok() {
            number += 1;
        }
        tokio::task::yield_now().await;
    }
}
