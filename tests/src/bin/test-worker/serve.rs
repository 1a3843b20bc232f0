//! A worker that lets hyper serve: `scope.serve_service`.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use vestibule_worker::{ConnectionInfo, WorkerScope};

pub(crate) async fn run(scope: WorkerScope) {
    let obeying = scope.clone();
    let scope = scope.on_event(move |event| crate::obey::obey(&obeying, event));
    let mine = scope.clone();
    scope.serve_service(service_fn(move |request| answer(mine.clone(), request))).await.unwrap();
}

pub(crate) async fn answer(
    scope: WorkerScope,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/ws" {
        return Ok(crate::websocket::upgrade(scope, request));
    }
    let info = request.extensions().get::<ConnectionInfo>().unwrap().clone();
    let body = match request.uri().path() {
        "/panic" => panic!("asked for by a client"),
        "/exit" => std::process::exit(9),
        "/echo" => match request.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => Bytes::new(),
        },
        // What was posted with the connection, as it came.
        "/message" => {
            let message = info.message();
            let codec = format!("{:?} ", message.codec());
            Bytes::from([codec.as_bytes(), message.as_bytes()].concat())
        }
        _ => {
            let reqno = info.message().decode::<u64>();
            // hyper closes a connection whose body nobody has read and that is not there whole.
            let _ = request.into_body().collect().await;
            Bytes::from(format!(
                "worker={} pid={} reqno={} id={}\n",
                std::env::var("VESTIBULE_WORKER").unwrap(),
                std::process::id(),
                reqno.map_or("none".to_owned(), |reqno| reqno.to_string()),
                info.id,
            ))
        }
    };
    Ok(Response::new(Full::new(body)))
}
