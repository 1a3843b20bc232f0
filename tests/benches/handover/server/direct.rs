//! The floor: a worker that accepts from a listener of its own, one of an SO_REUSEPORT group. The kernel routes.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use super::{ServeError, raise_descriptor_limit, runtime};
use crate::hello;

pub(super) fn run(listener: OwnedFd, timed: bool) -> Result<(), ServeError> {
    raise_descriptor_limit();
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(TcpListener::from(listener))
            .map_err(ServeError::Socket)?;
        loop {
            let (stream, _) = listener.accept().await.map_err(ServeError::Accept)?;
            if timed {
                tokio::spawn(hello::serve_timed(stream, hello::now()));
            } else {
                tokio::spawn(hello::serve(stream));
            }
        }
    })
}
