//! What a worker can do to be forgotten, or to be listened to for ever.

use std::io::IoSlice;

use vestibule_protocol::handshake::Hello;
use vestibule_protocol::header::Header;
use vestibule_protocol::message::kind;

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
