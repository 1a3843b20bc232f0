use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

#[test]
fn hyper_gets_nothing_behind_an_empty_line_however_it_comes() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let all = [head.as_slice(), b"GET /next HTTP/1.1\r\n\r\n"].concat();
    for split in 0..all.len() {
        let mut line = Line::Empty;
        let (first, second) = all.split_at(split);
        let (mut got, mut ends) = to_empty_line(&mut line, first);
        if !ends {
            let (more, ends_there) = to_empty_line(&mut line, second);
            (got, ends) = (got + more, ends_there);
        }
        assert_eq!((got, ends), (head.len(), true), "split after {split}");
    }
    assert_eq!(to_empty_line(&mut Line::Empty, b"\r\nGET"), (2, true));
    assert_eq!(to_empty_line(&mut Line::Text, b"a\nb\n\nc"), (5, true));
    assert_eq!(to_empty_line(&mut Line::Empty, b"GET / HTTP/1.1\r\n"), (16, false));
    assert_eq!(to_empty_line(&mut Line::Empty, b"\r\r\n \r\n"), (6, false));
}

#[test]
fn the_target_is_as_it_was_sent() {
    assert_eq!(target(b"\r\nGET /a%2fb?c HTTP/1.1\r\n\r\n"), Some("/a%2fb?c"));
    assert_eq!(target(b"GET http://A HTTP/1.1\n\n"), Some("http://A"));
    assert_eq!(target(b"\r\n"), None);
    assert_eq!(target(b"GET \xff HTTP/1.1\r\n\r\n"), None);
}

/// A request as a client may write it.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop::sample::select(vec!["", "\r\n", "\n"]);
    let end = prop::sample::select(vec!["\r\n", "\n"]);
    let path = "[a-z]{0,12}";
    let length =
        prop_oneof![Just(None), (0usize..40).prop_map(Some), (0usize..20_000).prop_map(Some)];
    // Bodies that look like the end of a head.
    let filling = prop::sample::select(vec!["x", "\r\n\r\n", "\n\n", "GET / HTTP/1.1\r\n\r\n"]);
    (lines, end, path, "[a-z0-9]{0,200}", length, filling).prop_map(
        |(lines, end, path, header, length, filling)| {
            let method = if length.is_some() { "POST" } else { "GET" };
            let mut text =
                format!("{lines}{method} /{path} HTTP/1.1{end}host: a{end}x: {header}{end}");
            if let Some(length) = length {
                text += &format!("content-length: {length}{end}{end}");
                text.extend(filling.chars().cycle().take(length));
            } else {
                text += end;
            }
            text.into_bytes()
        },
    )
}

/// When the service is called after hyper has read a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    /// At once, as hyper's own services are.
    AtOnce,
    /// When its answer is asked for, as tower's services are behind hyper-util's adapter.
    Later,
}

/// Serves until request number `leaves`, which is another worker's. Returns how many were answered, and
/// what the next worker reads: what was put back, then the rest of the stream.
async fn serve(stream: DuplexStream, leaves: usize, called: Called) -> (usize, Option<Vec<u8>>) {
    let gate = Gate::new(stream);
    let served = Rc::new(Cell::new(0));
    let service = service_fn(|request: Request<Incoming>| {
        let (gate, served) = (gate.clone(), Rc::clone(&served));
        let here = move |request: &Request<Incoming>, served: usize| {
            let here = served < leaves;
            if here {
                gate.serves(request.body().size_hint().exact());
            } else {
                gate.leaves();
            }
            here
        };
        let at_once = (called == Called::AtOnce).then(|| here(&request, served.get()));
        async move {
            let here = match at_once {
                Some(here) => here,
                None => {
                    // What hyper does meanwhile must not matter.
                    tokio::task::yield_now().await;
                    here(&request, served.get())
                }
            };
            if !here {
                // Held, as a body that is dropped would be read to its end.
                let _request = request;
                return std::future::pending().await;
            }
            request.into_body().collect().await.unwrap();
            served.set(served.get() + 1);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    // The client has said all it wants while it reads: not gone.
    let http = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(gate.clone()), service);
    {
        let mut http = pin!(http);
        poll_fn(|cx| {
            let polled = http.as_mut().poll(cx);
            if gate.has_left() { Poll::Ready(()) } else { polled.map(|end| end.unwrap()) }
        })
        .await;
    }
    let Some((mut stream, mut read, whole)) = gate.parts() else { return (served.get(), None) };
    assert!(whole);
    stream.read_to_end(&mut read).await.unwrap();
    (served.get(), Some(read))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// However the requests come, the next worker reads exactly what follows the last request that
    /// was answered here.
    #[test]
    fn what_leaves_is_whole_and_nothing_before_it(
        requests in prop::collection::vec(request(), 1..6),
        leaves in 0usize..6,
        called in prop::sample::select(vec![Called::AtOnce, Called::Later]),
        room in 1usize..30_000,
        pieces in prop::collection::vec(1usize..9_000, 1..40),
    ) {
        let all = requests.concat();
        let before: usize = requests.iter().take(leaves).map(Vec::len).sum();
        let (client, server) = duplex(room);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (served, left) = runtime.block_on(async {
            let (mut reader, mut writer) = tokio::io::split(client);
            let write = async {
                let mut rest = all.as_slice();
                let mut pieces = pieces.iter().cycle();
                while !rest.is_empty() {
                    let (piece, later) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
                    writer.write_all(piece).await.unwrap();
                    rest = later;
                    tokio::task::yield_now().await;
                }
                writer.shutdown().await.unwrap();
            };
            let read = async {
                let mut answers = Vec::new();
                reader.read_to_end(&mut answers).await.unwrap();
                answers
            };
            let ((), answers, served) = tokio::join!(write, read, serve(server, leaves, called));
            let text = String::from_utf8(answers).unwrap();
            assert_eq!(text.matches("HTTP/1.1 200 OK").count(), served.0);
            served
        });
        prop_assert_eq!(served, leaves.min(requests.len()));
        match left {
            Some(left) => prop_assert_eq!(left, &all[before..]),
            None => prop_assert!(leaves >= requests.len()),
        }
    }
}
