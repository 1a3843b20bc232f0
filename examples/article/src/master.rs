//! The article's master.js: listens, pauses each connection, and posts it to one of five workers.
//!
//! `article-master [ADDRESS] [WORKER]`; without arguments port 80 and the `article-worker` beside it.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;

use vestibule_router::{Listener, WorkerEvent, WorkerOptions, WorkerPool};

// var NUM_WORKERS = 5;
const NUM_WORKERS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "0.0.0.0:80".to_owned());
    let worker = match arguments.next() {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("article-worker"),
    };

    // net.createServer(…).listen(80);
    let mut listener = Listener::bind(&address).await?;
    // workers[i] = new Worker(path.join(__dirname, 'worker.js'));
    let workers = WorkerPool::spawn(NUM_WORKERS, &WorkerOptions::new(worker)).await?;
    println!("http://{}", listener.local_addr()?);

    // var numReqs = 0;
    let mut num_reqs = 0u64;
    loop {
        // s.pause(): there is no way to read from a paused connection.
        let connection = tokio::select! {
            accepted = listener.accept() => accepted?,
            // What no worker took comes back: its client is told.
            Some((_, event)) = workers.recv() => {
                if let WorkerEvent::Undelivered(undelivered) = event {
                    undelivered.reject();
                }
                continue;
            }
        };
        let wid = affinity(connection.peer_addr()) % workers.len();
        num_reqs += 1;
        // workers[wid].postMessage(++numReqs, s.fd);
        if let Err(refused) = workers[wid].post_message(&num_reqs, [connection]) {
            eprintln!("{}: {}", workers[wid].name(), refused.reason);
            refused.into_connection().reject(503);
        }
    }
}

/// `s.remoteAddress.split('.').forEach(function(v) { hv += parseInt(v); });`
fn affinity(peer: Option<SocketAddr>) -> usize {
    match peer.map(|peer| peer.ip()) {
        Some(std::net::IpAddr::V4(address)) => {
            address.octets().iter().copied().map(usize::from).sum()
        }
        Some(std::net::IpAddr::V6(address)) => {
            address.octets().iter().copied().map(usize::from).sum()
        }
        None => 0,
    }
}
