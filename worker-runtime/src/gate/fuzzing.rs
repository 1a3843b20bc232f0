//! The gate under hyper as the fuzz target `gate` drives it; nothing of a worker needs it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use http::{Method, Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, DuplexStream};
use vestibule_protocol::scope::Scope;

use super::{Gate, target};

/// A request that a service got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// As it was sent.
    pub method: String,
    /// As it was sent.
    pub target: String,
    /// Its fields, names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// What came of its body.
    pub body: Vec<u8>,
    /// Whether the body ended as its head said.
    pub whole: bool,
}

/// What became of a connection.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The requests that were served here, in order.
    pub served: Vec<Seen>,
    /// The request that is another worker's, and what that worker reads.
    pub left: Option<(Seen, Vec<u8>)>,
}

/// Serves a connection until it ends or leaves. `later`: the service is called some time after hyper
/// has read a head, and not at once.
pub async fn converse(stream: DuplexStream, scope: &Scope, later: bool) -> Outcome {
    let gate = Gate::new(stream);
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let asked = Rc::new(Cell::new(false));
    let service = service_fn(|request: Request<Incoming>| {
        let (gate, outcome, asked) = (gate.clone(), Rc::clone(&outcome), Rc::clone(&asked));
        // As `serve` does it.
        let look = move |request: &Request<Incoming>| {
            let given = gate.inner().given.clone();
            let seen = seen(request, target(&given).unwrap_or_default());
            if asked.replace(true) && !gate.holds(scope, request) {
                gate.leaves();
                return (seen, None);
            }
            let whole = request.method() != Method::CONNECT;
            let length = request.body().size_hint().exact().filter(|_| whole);
            (seen, Some(!gate.serves(length)))
        };
        let at_once = (!later).then(|| look(&request));
        async move {
            let (mut seen, here) = match at_once {
                Some(looked) => looked,
                None => {
                    tokio::task::yield_now().await;
                    look(&request)
                }
            };
            let Some(last) = here else {
                outcome.borrow_mut().left = Some((seen, Vec::new()));
                // Held, as a body that is dropped would be read to its end.
                let _request = request;
                return std::future::pending().await;
            };
            (seen.body, seen.whole) = read(request.into_body()).await;
            outcome.borrow_mut().served.push(seen);
            let mut response = Response::new(String::from("ok"));
            if last {
                let close = http::HeaderValue::from_static("close");
                response.headers_mut().insert(http::header::CONNECTION, close);
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let http = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(gate.clone()), service);
    {
        let mut http = pin!(http);
        poll_fn(|cx| {
            let polled = http.as_mut().poll(cx).map(drop);
            if gate.has_left() { std::task::Poll::Ready(()) } else { polled }
        })
        .await;
    }
    let parts = gate.parts();
    let mut outcome = outcome.take();
    match (parts, &mut outcome.left) {
        (Some((_, _, false)), left) => *left = None,
        (Some((mut stream, mut read, true)), Some((_, left))) => {
            // A broken pipe cannot be: it is memory.
            let _ = stream.read_to_end(&mut read).await;
            *left = read;
        }
        // Its client's end came first.
        (_, left) => *left = None,
    }
    outcome
}

fn seen(request: &Request<Incoming>, target: &str) -> Seen {
    let fields = request.headers().iter();
    Seen {
        method: request.method().to_string(),
        target: target.to_owned(),
        fields: fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect(),
        ..Seen::default()
    }
}

async fn read(body: Incoming) -> (Vec<u8>, bool) {
    let mut body = pin!(body);
    let mut read = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => read.extend_from_slice(&data),
            // Trailers.
            Ok(Err(_)) => {}
            Err(_) => return (read, false),
        }
    }
    (read, true)
}
