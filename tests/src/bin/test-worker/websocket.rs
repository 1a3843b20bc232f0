//! Websockets of the `serve` worker: every message comes back; at the last call they are closed with 1001.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use vestibule_worker::WorkerScope;

pub(crate) fn upgrade(scope: WorkerScope, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).unwrap();
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        // A client that is gone needs no echo.
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            let io = TokioIo::new(upgraded);
            converse(WebSocketStream::from_raw_socket(io, Role::Server, None).await, scope).await;
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .body(Full::default())
        .unwrap()
}

async fn converse(
    mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    scope: WorkerScope,
) {
    let mut last_call = std::pin::pin!(scope.last_call());
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            () = &mut last_call => break,
        }
    }
    let away = CloseFrame { code: CloseCode::Away, reason: "this worker ends".into() };
    if socket.close(Some(away)).await.is_ok() {
        // Until the client has answered the close; the drain timeout ends a client that does not.
        while let Some(Ok(_)) = socket.next().await {}
    }
}
