//! How many rejected clients are waited for at once. In a process of its own: the bound is one for
//! all listeners and pools of a router.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use vestibule_router::Listener;
use vestibule_router::reject::{Reason, Rejection};

const AT_ONCE: usize = 256;
/// Nothing here takes that long; a client that waits in vain fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a client was told.
enum Told {
    /// An answer.
    No,
    /// Nothing: its connection was reset.
    Reset,
}

fn ask(address: SocketAddr) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect(address)?;
    client.set_read_timeout(Some(DEADLINE))?;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    Ok(client)
}

fn answer(mut client: TcpStream) -> io::Result<TcpStream> {
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nvestibule-reason: queue-full\r\n"), "{answer}");
    Ok(client)
}

/// The reset is reported once, to whichever call comes next.
fn told(result: io::Result<TcpStream>) -> Told {
    match result {
        Ok(_) => Told::No,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Told::Reset,
        Err(error) => panic!("the client waited in vain: {error}"),
    }
}

/// The clients stay after their answer: each is waited for, on a clock that stands still as long as
/// they run.
fn clients(address: SocketAddr) {
    let asked: Vec<TcpStream> = (0..AT_ONCE).map(|_| ask(address).unwrap()).collect();
    let mut lingering: Vec<TcpStream> =
        asked.into_iter().map(|client| answer(client).unwrap()).collect();
    let one_more = told(ask(address).and_then(answer));
    assert!(matches!(one_more, Told::Reset), "nobody waits for one more");
    // When one of them ends there is room again; the router sees it a little later.
    drop(lingering.pop());
    let begin = Instant::now();
    while let Told::Reset = told(ask(address).and_then(answer)) {
        assert!(begin.elapsed() < DEADLINE, "a client that has left is still waited for");
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_are_waited_for_at_once_and_the_next_is_reset() {
    let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // While it runs, the stopped clock does not move.
    let mut done = tokio::task::spawn_blocking(move || clients(address));
    loop {
        tokio::select! {
            connection = listener.accept() => {
                connection.unwrap().reject_with(Rejection::because(Reason::QueueFull));
            }
            result = &mut done => return result.unwrap(),
        }
    }
}
