//! Adopted connections through hyper and axum.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router as App;
use axum::routing::get as on_get;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vestibule_protocol::message::ItemKind;
use vestibule_worker::{
    ConnectInfo, ConnectionInfo, Data, Extension, Message, Posted, RefusalReason, WorkerScope,
};

use crate::support::{PATIENCE, Router, Said, ask, connection, get, paused_to_end, to_end, until};

const DRAIN: Duration = Duration::from_secs(60);

async fn hello(
    ConnectInfo(info): ConnectInfo<ConnectionInfo>,
    Extension(Message(reqno)): Extension<Message<u64>>,
) -> String {
    format!("id={}; route={}; reqno={reqno}\n", info.id, info.route)
}

async fn typed(
    axum::Extension(Message(reqno)): axum::Extension<Message<u64>>,
    info: axum::Extension<ConnectionInfo>,
) -> String {
    format!("reqno={reqno}; id={}\n", info.id)
}

fn app() -> App {
    App::new().route("/", on_get(hello)).route("/typed", on_get(typed))
}

#[tokio::test]
async fn an_axum_handler_gets_the_facts_and_the_posted_message() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::bincode(&42u64).unwrap())]);
    drop(server);
    let answer = get(&mut client, "/").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nid=1; route=default; reqno=42\n"), "{answer}");
    worker.abort();
}

#[tokio::test]
async fn axums_own_extension_has_the_message_in_the_typed_mode() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.message::<u64>();
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::json(&7).unwrap())]);
    drop(server);
    assert!(get(&mut client, "/typed").await.ends_with("\r\n\r\nreqno=7; id=1\n"));
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::json(&8).unwrap())]);
    drop(server);
    assert!(get(&mut client, "/").await.ends_with("reqno=8\n"));
    worker.abort();
}

#[tokio::test]
async fn a_message_of_another_type_is_an_internal_error_for_the_handler_that_asks() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::json("no number").unwrap())]);
    drop(server);
    assert!(get(&mut client, "/").await.starts_with("HTTP/1.1 500 "));
    worker.abort();
}

/// What a plain hyper service sees in the extensions of its request.
async fn plain(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let info = request.extensions().get::<ConnectionInfo>().unwrap();
    let number = request.extensions().get::<Posted>().map(|posted| posted.decode::<u64>().unwrap());
    Ok(Response::new(Full::new(format!("{} {number:?}\n", info.id).into())))
}

#[tokio::test]
async fn a_plain_hyper_service_gets_them_as_extensions_on_every_request() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(plain)).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::bincode(&5u64).unwrap())]);
    for _ in 0..3 {
        ask(&mut client, "/", "").await;
        assert!(until(&mut client, "\n1 Some(5)\n").await.starts_with("HTTP/1.1 200 OK"));
    }
    let (mut client, second) = connection().await;
    router.offer(&[(&second, &Data::NONE)]);
    ask(&mut client, "/", "").await;
    until(&mut client, "\n2 None\n").await;
    worker.abort();
}

#[tokio::test]
async fn connections_that_share_a_message_are_all_served_with_it() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(plain)).await });
    router.attached(DRAIN).await;
    let (mut one, first) = connection().await;
    let (mut two, second) = connection().await;
    let items = [router.facts(one.local_addr().ok()), router.facts(two.local_addr().ok())];
    let [a, b] = items.map(ItemKind::Connection);
    let (first, second) = (&first, &second);
    router.post(
        &Data::json(&9).unwrap(),
        &[(a, std::os::fd::AsFd::as_fd(first)), (b, std::os::fd::AsFd::as_fd(second))],
    );
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 2 });
    ask(&mut one, "/", "").await;
    until(&mut one, "\n1 Some(9)\n").await;
    ask(&mut two, "/", "").await;
    until(&mut two, "\n2 Some(9)\n").await;
    worker.abort();
}

#[tokio::test]
async fn a_message_that_nobody_handles_goes_back_while_connections_are_served() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attached(DRAIN).await;
    router.post(&Data::json("for nobody").unwrap(), &[]);
    assert_eq!(router.hears().await, Said::Refused(vec![(1, RefusalReason::Unsupported)]));
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 0 });
    worker.abort();
}

#[tokio::test]
async fn a_handler_gets_messages_while_connections_are_served() {
    let (mut router, scope) = Router::and_worker();
    let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
    let scope = scope.on_event(move |event| give.send(event).unwrap());
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attached(DRAIN).await;
    router.post(&Data::json("for the handler").unwrap(), &[]);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 0 });
    let Some(vestibule_worker::Event::Message { data, transfer }) = take.recv().await else {
        panic!("no message")
    };
    assert_eq!(data.decode::<String>().unwrap(), "for the handler");
    assert!(transfer.is_empty());
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_says_anything_is_dropped_after_the_first_request_timeout() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.first_request_timeout(Duration::from_secs(5));
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (mut client, server) = connection().await;
    let before = tokio::time::Instant::now();
    router.offer(&[(&server, &Data::NONE)]);
    assert!(paused_to_end(&mut client).await.is_empty());
    let waited = before.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(6), "{waited:?}");
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dribbles_its_first_head_is_dropped_as_well() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.first_request_timeout(Duration::from_secs(5));
    let worker = tokio::spawn(async move { scope.serve(app()).await });
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (client, server) = connection().await;
    let before = tokio::time::Instant::now();
    router.offer(&[(&server, &Data::NONE)]);
    let (mut reading, mut writing) = client.into_split();
    let dribbling = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        for byte in b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" {
            every.tick().await;
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    });
    let mut answer = Vec::new();
    let end = reading.read_to_end(&mut answer);
    // A reset is as good an end.
    let _ = tokio::time::timeout(Duration::from_secs(3600), end).await.expect("no end");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    assert!(before.elapsed() < Duration::from_secs(7), "{:?}", before.elapsed());
    dribbling.abort();
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_kept_alive_client_may_be_idle_longer_than_the_first_request_takes() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope
        .first_request_timeout(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(75));
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(plain)).await });
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    ask(&mut client, "/", "").await;
    until(&mut client, "\n1 None\n").await;
    let before = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    ask(&mut client, "/", "").await;
    until(&mut client, "\n1 None\n").await;
    let idle = tokio::time::Instant::now();
    assert!(paused_to_end(&mut client).await.is_empty());
    let waited = idle.elapsed();
    assert!(waited >= Duration::from_secs(75) && waited < Duration::from_secs(76), "{waited:?}");
    assert!(before.elapsed() > Duration::from_secs(130));
    worker.abort();
}

/// Answers with more than any socket's buffers take.
async fn much(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(vec![b'x'; 64 << 20])))
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_answer_slowly_is_not_taken_for_idle() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.keep_alive_timeout(Duration::from_secs(75));
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(much)).await });
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    ask(&mut client, "/", "").await;
    client.readable().await.unwrap();
    // The body is hyper's long before the client takes it.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let mut taken = 0;
    let mut part = vec![0; 1 << 20];
    while taken < 64 << 20 {
        let count = client.read(&mut part).await.unwrap();
        assert!(count > 0, "cut off after {taken} bytes");
        taken += count;
    }
    let before = tokio::time::Instant::now();
    paused_to_end(&mut client).await;
    let waited = before.elapsed();
    assert!(waited >= Duration::from_secs(75) && waited < Duration::from_secs(76), "{waited:?}");
    worker.abort();
}

/// Time that passes at once, but for which the clock goes on: what comes over a socket meanwhile is seen
/// before more of it passes.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_body_may_come_after_the_answer_and_then_the_next_head_has_its_time() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.keep_alive_timeout(Duration::from_secs(75));
    let (came, mut comes) = tokio::sync::mpsc::unbounded_channel();
    // Answers at once, and takes what the client sends afterwards.
    let answer_first = move |request: Request<Incoming>| {
        let (came, mut body) = (came.clone(), request.into_body());
        tokio::spawn(async move {
            while let Some(frame) = body.frame().await {
                came.send(frame.unwrap().into_data().unwrap()).unwrap();
            }
        });
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("early\n"))) }
    };
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(answer_first)).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    ask(&mut client, "/", "Content-Length: 8\r\n").await;
    until(&mut client, "early\n").await;
    for part in ["12", "34", "56", "78"] {
        pass(Duration::from_secs(50)).await;
        client.write_all(part.as_bytes()).await.unwrap();
        let came = tokio::time::timeout(PATIENCE, comes.recv()).await.expect("it is not read");
        assert_eq!(came.unwrap(), part);
    }
    pass(Duration::from_secs(50)).await;
    ask(&mut client, "/", "").await;
    until(&mut client, "early\n").await;
    // Of a head that is begun the rest is waited for no longer than for all of it.
    let before = tokio::time::Instant::now();
    client.write_all(b"GET / ").await.unwrap();
    tokio::time::pause();
    assert!(paused_to_end(&mut client).await.is_empty());
    let waited = before.elapsed();
    assert!(waited >= Duration::from_secs(74) && waited < Duration::from_secs(76), "{waited:?}");
    worker.abort();
}

/// Answers an upgrade with an echo.
async fn upgrade(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
        let mut bytes = [0; 4];
        while stream.read_exact(&mut bytes).await.is_ok() {
            stream.write_all(&bytes).await.unwrap();
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", "echo");
    Ok(response.body(Full::default()).unwrap())
}

async fn upgraded(client: &mut tokio::net::TcpStream) {
    ask(client, "/", "Connection: upgrade\r\nUpgrade: echo\r\n").await;
    assert!(until(client, "\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
    client.write_all(b"ping").await.unwrap();
    until(client, "ping").await;
}

#[tokio::test]
async fn an_upgraded_connection_goes_on_and_counts_as_open() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(upgrade)).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    upgraded(&mut client).await;
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    assert!(router.hears_nothing());
    client.shutdown().await.unwrap();
    assert_eq!(to_end(&mut client).await, "");
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 0 });
    worker.abort();
}

#[tokio::test]
async fn the_drain_timeout_closes_what_was_upgraded() {
    let (mut router, scope) = Router::and_worker();
    let worker = tokio::spawn(async move { scope.serve_service(service_fn(upgrade)).await });
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    upgraded(&mut client).await;
    router.drain(Duration::from_millis(20));
    assert_eq!(to_end(&mut client).await, "");
    tokio::time::timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_panic_in_a_handler_ends_that_connection_only() {
    let (mut router, scope) = Router::and_worker();
    let app = app().route("/panic", on_get(|| async { panic!("in a handler") as () }));
    let worker = tokio::spawn(async move { scope.serve(app).await });
    router.attached(DRAIN).await;
    let (mut unlucky, first) = connection().await;
    let (mut client, second) = connection().await;
    let data = Data::bincode(&1u64).unwrap();
    router.offer(&[(&first, &data), (&second, &data)]);
    assert_eq!(get(&mut unlucky, "/panic").await, "");
    assert!(get(&mut client, "/").await.ends_with("reqno=1\n"));
    worker.abort();
}

fn listening(scope: &WorkerScope, app: App) -> tokio::task::JoinHandle<std::io::Result<()>> {
    let draining = scope.draining();
    let app = app.into_make_service_with_connect_info::<ConnectionInfo>();
    let listener = scope.listener();
    tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(draining).await })
}

#[tokio::test]
async fn axum_serve_takes_the_port_for_a_listener() {
    let (mut router, scope) = Router::and_worker();
    let server = listening(&scope, app());
    router.attached(DRAIN).await;
    let (mut client, connection) = connection().await;
    router.offer(&[(&connection, &Data::bincode(&3u64).unwrap())]);
    drop(connection);
    assert!(get(&mut client, "/").await.ends_with("id=1; route=default; reqno=3\n"));
    router.drain(DRAIN);
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_listener_that_drains_still_refuses_what_comes() {
    let (mut router, scope) = Router::and_worker();
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let (go, told) = tokio::sync::watch::channel(false);
    let slow = move || {
        asked.send(()).unwrap();
        let mut told = told.clone();
        async move {
            told.wait_for(|told| *told).await.unwrap();
            "at last\n"
        }
    };
    let server = listening(&scope, App::new().route("/", on_get(slow)));
    router.attached(DRAIN).await;
    let (mut client, held) = connection().await;
    router.offer(&[(&held, &Data::NONE)]);
    drop(held);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    ask(&mut client, "/", "").await;
    was_asked.recv().await.unwrap();
    scope.drain();
    assert_eq!(router.hears().await, Said::Draining);
    let (_other, late) = connection().await;
    router.offer(&[(&late, &Data::NONE)]);
    let refused = Said::Refused(vec![(2, RefusalReason::Draining)]);
    assert_eq!(router.hears_but_load(1).await, refused);
    // What is under way is finished all the same.
    go.send(true).unwrap();
    assert!(to_end(&mut client).await.ends_with("at last\n"));
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_drain_timeout_holds_for_axum_serve_as_well() {
    let (mut router, scope) = Router::and_worker();
    let app = App::new().route("/", on_get(std::future::pending::<()>));
    let server = listening(&scope, app);
    router.attached(DRAIN).await;
    let (mut client, held) = connection().await;
    router.offer(&[(&held, &Data::NONE)]);
    drop(held);
    ask(&mut client, "/", "").await;
    router.drain(Duration::from_millis(20));
    assert_eq!(to_end(&mut client).await, "");
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_of_axum_serve_is_dropped_too() {
    let (mut router, scope) = Router::and_worker();
    let scope = scope.first_request_timeout(Duration::from_secs(5));
    let server = listening(&scope, app());
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (mut client, connection) = connection().await;
    let before = tokio::time::Instant::now();
    router.offer(&[(&connection, &Data::NONE)]);
    assert!(paused_to_end(&mut client).await.is_empty());
    assert!(before.elapsed() >= Duration::from_secs(5));
    server.abort();
}
