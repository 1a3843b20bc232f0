//! The bare program's worker: receives connections, says how many, serves them as the direct worker does.

use std::net::TcpStream;
use std::os::fd::OwnedFd;

use super::port::{BATCH, Received, acknowledge, receive_batch};
use super::{ServeError, raise_descriptor_limit, runtime};
use crate::{hello, sys};

pub(super) fn run(port: OwnedFd) -> Result<(), ServeError> {
    raise_descriptor_limit();
    runtime()?.block_on(async {
        let port = sys::watch(port).map_err(ServeError::Runtime)?;
        // A last packet may come on top of almost a batch.
        let mut connections = Vec::with_capacity(2 * BATCH);
        loop {
            let mut ready = port.readable().await.map_err(ServeError::Runtime)?;
            let received = ready.try_io(|port| Ok(receive_batch(port, &mut connections)?));
            match received {
                Ok(Ok(Received::Batch)) if connections.len() < BATCH => continue,
                Ok(Ok(Received::Batch)) => {}
                // All is read, and nothing is to be served: wait.
                Err(_would_block) if connections.is_empty() => continue,
                Err(_would_block) => {}
                Ok(Err(source)) => return Err(ServeError::Socket(source)),
                // The router has ended, and so has the program.
                Ok(Ok(Received::End)) => return Ok(()),
                Ok(Ok(Received::Faulty)) => return Err(ServeError::Packet),
            }
            // All that was there at once, and before any of them is read: the router may then close its copies.
            acknowledge(&port, connections.len() as u32).map_err(ServeError::Port)?;
            for connection in connections.drain(..) {
                // O_NONBLOCK came with the open file, from the router's accept4.
                let stream = tokio::net::TcpStream::from_std(TcpStream::from(connection))
                    .map_err(ServeError::Socket)?;
                tokio::spawn(hello::serve(stream));
            }
        }
    })
}
