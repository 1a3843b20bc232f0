//! Messages from the worker, and errors in its program.

use std::time::Duration;

use vestibule_protocol::limits::{INLINE_MESSAGE, QUEUE_MESSAGES};
use vestibule_protocol::message::{self, Refusal, kind};
use vestibule_worker::{Data, ErrorReport, Event, PostError, RefusalReason};

use crate::support::{Router, Said};

const DRAIN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_was_posted_before_the_router_came_follows_hello_in_order() {
    let (mut router, scope) = Router::and_worker();
    assert_eq!(scope.post_message(&1u8).unwrap(), 1);
    assert_eq!(scope.post_json("two").unwrap(), 2);
    let program = tokio::spawn(async move { scope.recv().await });
    router.attached(DRAIN).await;
    for (sequence, data) in [(1, Data::bincode(&1u8)), (2, Data::json("two"))] {
        assert_eq!(router.hears().await, Said::Message { sequence, data: data.unwrap() });
    }
    program.abort();
}

#[tokio::test]
async fn a_large_message_travels_whole() {
    let (mut router, scope) = Router::and_worker();
    let posting = scope.clone();
    let program = tokio::spawn(async move { scope.recv().await });
    router.attached(DRAIN).await;
    let data = Data::bytes(vec![b'x'; INLINE_MESSAGE + 1]);
    posting.post(data.clone()).unwrap();
    assert_eq!(router.hears().await, Said::Message { sequence: 1, data });
    program.abort();
}

#[tokio::test]
async fn a_router_that_takes_no_descriptors_gets_large_messages_refused_and_the_rest_delivered() {
    let (mut router, scope) = Router::and_worker();
    if !router.refuses_descriptors() {
        // A kernel before Linux 6.16 cannot refuse them.
        return;
    }
    let posting = scope.clone();
    let program = tokio::spawn(async move { scope.recv().await });
    router.attached(DRAIN).await;
    let data = Data::bytes(vec![b'x'; INLINE_MESSAGE + 1]);
    let error = posting.post(data.clone()).unwrap_err();
    assert!(matches!(error.reason, PostError::System(_)));
    assert_eq!(error.message, data);
    posting.post(Data::bytes("small")).unwrap();
    assert!(matches!(router.hears().await, Said::Message { data, .. } if data.len() == 5));
    program.abort();
}

#[tokio::test]
async fn a_full_queue_hands_the_message_back_and_never_waits() {
    let (mut router, scope) = Router::and_worker();
    let posting = scope.clone();
    let program = tokio::spawn(async move { scope.recv().await });
    router.attached(DRAIN).await;
    let mut posted = 0u32;
    let error = loop {
        match posting.post_message(&posted) {
            Ok(_) => posted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error.reason, PostError::QueueFull));
    assert_eq!(error.message.decode::<u32>().unwrap(), posted);
    assert!(posted as usize > QUEUE_MESSAGES);
    // All that were taken arrive, in order, as the router reads.
    for number in 0..posted {
        let Said::Message { sequence, data } = router.hears().await else { panic!("no message") };
        assert_eq!((sequence, data.decode::<u32>().unwrap()), (u64::from(number) + 1, number));
    }
    program.abort();
}

#[tokio::test]
async fn an_acknowledgement_passes_messages_that_wait() {
    let (mut router, scope) = Router::and_worker();
    let posting = scope.clone();
    let program = tokio::spawn(async move { while scope.recv().await.is_some() {} });
    router.attached(DRAIN).await;
    while posting.post_message(&0u8).is_ok() {}
    router.post(&Data::json("one").unwrap(), &[]);
    router.post(&Data::json("two").unwrap(), &[]);
    tokio::task::yield_now().await;
    let mut messages = 0;
    loop {
        match router.hears().await {
            Said::Message { .. } => messages += 1,
            Said::Acknowledged { up_to: 2, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    // Behind what the kernel held already, before what waited in the program.
    let mut rest = 0;
    while !posting_is_over(&mut router, &mut rest).await {}
    assert!(messages > 0 && rest >= QUEUE_MESSAGES - 1, "{messages} before, {rest} after");
    program.abort();
}

/// Whether the 1,024 that waited have all come.
async fn posting_is_over(router: &mut Router, rest: &mut usize) -> bool {
    match router.hears().await {
        Said::Message { .. } => *rest += 1,
        other => panic!("{other:?}"),
    }
    *rest >= QUEUE_MESSAGES - 1
}

#[tokio::test]
async fn a_message_that_the_router_did_not_take_is_told() {
    let (mut router, scope) = Router::and_worker();
    let sequence = scope.post_message("unwanted").unwrap();
    let program = tokio::spawn(async move { scope.recv().await });
    router.attached(DRAIN).await;
    assert!(matches!(router.hears().await, Said::Message { sequence: 1, .. }));
    let mut body = Vec::new();
    let reason = RefusalReason::Unsupported;
    message::put_refusal(&mut body, Refusal { sequence, reason });
    router.say(kind::REFUSED, &body);
    assert!(matches!(
        program.await.unwrap(),
        Some(Event::Undelivered { sequence: 1, reason: RefusalReason::Unsupported })
    ));
}

#[tokio::test]
async fn a_value_that_cannot_be_written_is_an_error_and_nothing_is_sent() {
    let (_router, scope) = Router::and_worker();
    let map = std::collections::BTreeMap::from([((1, 2), 3)]);
    let error = scope.post_json(&map).unwrap_err();
    assert!(matches!(error.reason, PostError::DataClone(_)));
    assert_eq!(scope.post_json("next").unwrap(), 1);
}

#[tokio::test]
async fn a_reported_error_carries_its_place() {
    let (mut router, scope) = Router::and_worker();
    let reporting = scope.clone();
    let program = tokio::spawn(async move { scope.recv().await });
    router.attached(DRAIN).await;
    let line = line!() + 1;
    reporting.report_error("the disk is full");
    let Said::Error(report) = router.hears().await else { panic!("no error") };
    let expected =
        ErrorReport { message: "the disk is full".into(), file: file!().into(), line, column: 15 };
    assert_eq!(report, expected);
    program.abort();
}
