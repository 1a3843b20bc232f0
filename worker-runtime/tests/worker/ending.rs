//! How a worker ends: told to drain, closed by its program or its router, left alone.

use std::time::Duration;

use axum::Router as App;
use axum::routing::get as on_get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vestibule_protocol::message::kind;
use vestibule_worker::{Data, Event, PostError, RefusalReason, ServeError, WorkerScope};

use crate::support::{PATIENCE, Router, Said, ask, connection, get, paused_to_end, to_end, until};

const DRAIN: Duration = Duration::from_secs(60);

type Serving = tokio::task::JoinHandle<Result<(), ServeError>>;

fn serving(scope: &WorkerScope) -> Serving {
    let scope = scope.clone();
    let app = App::new().route("/", on_get(|| async { "served\n" })).route(
        "/slow",
        on_get(|| async {
            std::future::pending::<()>().await;
        }),
    );
    tokio::spawn(async move { scope.serve(app).await })
}

async fn ended(serving: Serving) -> Result<(), ServeError> {
    tokio::time::timeout(PATIENCE, serving).await.expect("serve does not return").unwrap()
}

#[tokio::test]
async fn a_draining_worker_refuses_finishes_and_returns() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut kept, first) = connection().await;
    let (mut fresh, second) = connection().await;
    router.offer(&[(&first, &Data::NONE), (&second, &Data::NONE)]);
    drop((first, second));
    ask(&mut kept, "/", "").await;
    until(&mut kept, "served\n").await;
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 2, open: 2 });
    router.drain(DRAIN);
    let (_late, third) = connection().await;
    router.offer(&[(&third, &Data::NONE)]);
    let refused = Said::Refused(vec![(3, RefusalReason::Draining)]);
    assert_eq!(router.hears_but_load(2).await, refused);
    // Idle and kept alive: it stays open, and its next answer says that it closes.
    ask(&mut kept, "/", "").await;
    assert!(to_end(&mut kept).await.contains("connection: close"));
    // Acknowledged and not asked yet: it is owed one answer.
    let answer = get(&mut fresh, "/").await;
    assert!(answer.ends_with("served\n"), "{answer}");
    ended(serving).await.unwrap();
}

#[tokio::test]
async fn an_answer_under_way_says_that_the_connection_closes() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    router.drain(DRAIN);
    ask(&mut client, "/", "").await;
    assert!(to_end(&mut client).await.contains("connection: close"));
    ended(serving).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_open_at_the_deadline_is_closed() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    ask(&mut client, "/slow", "").await;
    assert!(matches!(router.hears_some_time().await, Said::Acknowledged { up_to: 1, open: 1 }));
    let before = tokio::time::Instant::now();
    router.drain(Duration::from_secs(30));
    assert!(paused_to_end(&mut client).await.is_empty());
    serving.await.unwrap().unwrap();
    let waited = before.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(32), "{waited:?}");
}

/// How long an idle connection lives when its worker is told to drain within 30 s.
async fn idle_for(drain: impl FnOnce(&mut Router)) -> Duration {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    ask(&mut client, "/", "").await;
    assert!(matches!(router.hears_some_time().await, Said::Acknowledged { up_to: 1, open: 1 }));
    let before = tokio::time::Instant::now();
    drain(&mut router);
    let said = String::from_utf8(paused_to_end(&mut client).await).unwrap();
    assert!(!said.contains("connection: close"), "it was idle: {said}");
    let waited = before.elapsed();
    serving.await.unwrap().unwrap();
    waited
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_shortly_before_the_deadline_or_at_once_if_everything_ends() {
    let waited = idle_for(|router| router.drain(Duration::from_secs(30))).await;
    assert!(waited >= Duration::from_secs(29) && waited < Duration::from_secs(30), "{waited:?}");
    let waited = idle_for(|router| router.drain_all(Duration::from_secs(30))).await;
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[tokio::test]
async fn a_worker_whose_port_is_over_finishes_what_it_has() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    drop(router);
    assert!(get(&mut client, "/").await.ends_with("served\n"));
    ended(serving).await.unwrap();
    let error = scope.post_message(&1).unwrap_err();
    assert!(matches!(error.reason, PostError::Closed));
}

#[tokio::test]
async fn a_worker_that_drains_by_itself_says_so_and_refuses() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    scope.drain();
    assert_eq!(router.hears().await, Said::Draining);
    let (_client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    assert_eq!(router.hears().await, Said::Refused(vec![(1, RefusalReason::Draining)]));
    drop(router);
    ended(serving).await.unwrap();
}

#[tokio::test]
async fn a_closed_scope_refuses_what_is_queued_and_then_ends() {
    let (mut router, scope) = Router::and_worker();
    let handling = scope.clone();
    let (first_came, came) = tokio::sync::oneshot::channel();
    let (go, told) = tokio::sync::oneshot::channel::<()>();
    let program = tokio::spawn(async move {
        let first = handling.recv().await;
        assert!(matches!(first, Some(Event::Message { .. })));
        first_came.send(()).unwrap();
        told.await.unwrap();
        handling.close();
        // The handler that called close() goes on to its end.
        handling.recv().await
    });
    router.attached(DRAIN).await;
    router.post(&Data::json("first").unwrap(), &[]);
    came.await.unwrap();
    let (mut client, server) = connection().await;
    router.post(&Data::json("second").unwrap(), &[]);
    router.offer(&[(&server, &Data::NONE)]);
    go.send(()).unwrap();
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 0 });
    assert_eq!(router.hears().await, Said::Closing);
    let refused = vec![(2, RefusalReason::Closing), (3, RefusalReason::Closing)];
    assert_eq!(router.hears_but_load(1).await, Said::Refused(refused));
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 3, open: 0 });
    // Posted before the router knew, closed after it: the port ends, the connection lives.
    drop(router);
    assert!(program.await.unwrap().is_none());
    assert!(matches!(scope.post_message(&1).unwrap_err().reason, PostError::Closed));
    let mut other = tokio::net::TcpStream::from_std(server.into()).unwrap();
    other.write_all(b"elsewhere").await.unwrap();
    let mut answer = [0; 9];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"elsewhere");
}

#[tokio::test(start_paused = true)]
async fn a_closed_scope_ends_its_port_though_the_router_says_nothing() {
    let (mut router, scope) = Router::and_worker();
    let closing = scope.clone();
    let program = tokio::spawn(async move { closing.recv().await });
    router.attach(vestibule_protocol::handshake::Attach::default());
    assert!(matches!(router.hears_some_time().await, Said::Hello(_)));
    scope.close();
    assert_eq!(router.hears_some_time().await, Said::Closing);
    assert!(program.await.unwrap().is_none());
    assert_eq!(router.hears_some_time().await, Said::End);
}

#[tokio::test]
async fn a_closed_server_finishes_what_is_open_and_returns() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    scope.close();
    scope.close();
    assert_eq!(router.hears().await, Said::Closing);
    assert!(get(&mut client, "/").await.ends_with("served\n"));
    ended(serving).await.unwrap();
    assert_eq!(router.hears_but_load(1).await, Said::End);
}

#[tokio::test]
async fn the_routers_close_ends_a_worker_now() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    ask(&mut client, "/slow", "").await;
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    router.say(kind::CLOSE, &[]);
    assert_eq!(to_end(&mut client).await, "");
    ended(serving).await.unwrap();
    assert_eq!(router.hears_but_load(1).await, Said::End);
}

#[tokio::test]
async fn a_program_of_its_own_loop_is_told_to_drain_and_ends_with_its_last_connection() {
    let (mut router, scope) = Router::and_worker();
    let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
    let program = tokio::spawn(async move {
        while let Some(event) = scope.recv().await {
            give.send(event).unwrap();
        }
    });
    router.attached(DRAIN).await;
    let (_client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    let held = take.recv().await.unwrap();
    assert!(matches!(held, Event::Connection { .. }));
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    router.drain(DRAIN);
    let Some(Event::Draining { timeout }) = take.recv().await else { panic!("not told") };
    assert_eq!(timeout, DRAIN);
    // Messages are still for this program, connections are not.
    router.post(&Data::json("late").unwrap(), &[]);
    assert!(matches!(take.recv().await, Some(Event::Message { .. })));
    assert!(!program.is_finished());
    drop(held);
    assert!(take.recv().await.is_none());
    tokio::time::timeout(PATIENCE, program).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_that_comes_while_the_worker_drains_hears_that_it_is_not_ready() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    router.drain(DRAIN);
    router.next_epoch();
    let hello = router.attached(DRAIN).await;
    assert!(!hello.ready);
    assert_eq!((hello.open, hello.received), (1, 1));
    assert!(get(&mut client, "/").await.ends_with("served\n"));
    ended(serving).await.unwrap();
}

#[tokio::test]
async fn a_router_that_breaks_the_protocol_is_an_error_after_all_is_finished() {
    let (mut router, scope) = Router::and_worker();
    let serving = serving(&scope);
    router.attached(DRAIN).await;
    let (mut client, server) = connection().await;
    router.offer(&[(&server, &Data::NONE)]);
    drop(server);
    assert_eq!(router.hears().await, Said::Acknowledged { up_to: 1, open: 1 });
    router.say(0x3f, &[]);
    assert!(get(&mut client, "/").await.ends_with("served\n"));
    let error = ended(serving).await.unwrap_err();
    assert!(matches!(error, ServeError::Router(_)), "{error}");
}
