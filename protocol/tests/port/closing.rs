//! Point 13: closing, and what is still delivered.

use vestibule_protocol::port::PostError;

use crate::support::{Canary, assert_end, channel, message, number, write_to};

#[tokio::test]
async fn point_13_close_delivers_what_was_in_flight_then_the_end() {
    let (port, other) = channel();
    let (canary, writer) = Canary::new();
    port.post_message(&1u32, ()).unwrap();
    port.post_message(&2u32, writer).unwrap();
    port.close();
    port.close();
    assert_eq!(number(&other).await, 1);
    let (_, transfer) = message(&other).await;
    let [item] = <[_; 1]>::try_from(transfer).unwrap();
    write_to(item, "in flight");
    assert_eq!(canary.wait(), "in flight");
    assert_end(&other).await;
    assert_end(&other).await;
}

#[tokio::test]
async fn point_13_close_delivers_what_waited_before_a_slow_receiver_too() {
    let (port, other) = channel();
    let mut posted = 0u32;
    while port.post_message(&posted, ()).is_ok() {
        posted += 1;
    }
    port.close();
    let refused = port.post_message(&posted, ()).unwrap_err();
    assert!(matches!(refused.reason, PostError::Closed), "nothing is posted after close");
    for expected in 0..posted {
        assert_eq!(number(&other).await, expected);
    }
    assert_end(&other).await;
}

#[tokio::test(start_paused = true)]
async fn point_13_a_receiver_that_never_reads_cannot_keep_a_closed_port() {
    let (port, other) = channel();
    let (canary, writer) = Canary::new();
    // The kernel holds some 280 small packets: the thousandth waits here.
    for place in 0..1000u32 {
        port.post_message(&place, ()).unwrap();
    }
    port.post_message(&1000u32, writer).unwrap();
    port.close();
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    assert_eq!(canary.wait(), "", "what waited was given up and closed");
    let mut received = 0;
    while other.recv().await.is_some() {
        received += 1;
    }
    assert!((1..1000).contains(&received), "the kernel's queue was delivered: {received}");
}

#[tokio::test]
async fn point_13_nothing_is_delivered_to_the_side_that_closed() {
    let (port, other) = channel();
    let (canary, writer) = Canary::new();
    other.post_message(&1u32, writer).unwrap();
    port.close();
    assert_end(&port).await;
    drop(port);
    assert_eq!(canary.wait(), "", "what had come is closed with the port");
    assert_end(&other).await;
}

#[tokio::test]
async fn point_13_a_receive_that_waits_ends_when_its_side_closes() {
    let (port, other) = channel();
    let port = std::sync::Arc::new(port);
    let waiting = tokio::spawn({
        let port = port.clone();
        async move { port.recv().await.is_none() }
    });
    tokio::task::yield_now().await;
    port.close();
    assert!(waiting.await.unwrap());
    assert_end(&other).await;
}

#[tokio::test]
async fn point_13_posting_to_a_closed_port_hands_everything_back() {
    let (port, other) = channel();
    drop(other);
    let (canary, writer) = Canary::new();
    let refused = port.post_message(&"late", writer).unwrap_err();
    assert!(matches!(refused.reason, PostError::Closed));
    assert_eq!(refused.message.decode::<String>().unwrap(), "late");
    let [item] = <[_; 1]>::try_from(refused.transfer).unwrap();
    write_to(item, "mine");
    assert_eq!(canary.wait(), "mine");
}

#[tokio::test]
async fn point_13_duplicates_do_not_keep_a_port_open_after_close() {
    let (port, other) = channel();
    let copy = port.try_clone().unwrap();
    port.post_message(&1u32, ()).unwrap();
    port.close();
    assert_eq!(number(&other).await, 1);
    assert_end(&other).await;
    assert_end(&copy).await;
    let refused = copy.post_message(&2u32, ()).unwrap_err();
    assert!(matches!(refused.reason, PostError::Closed));
}

#[tokio::test]
async fn point_13_a_side_that_left_unread_messages_behind_still_delivers_its_own() {
    let (port, other) = channel();
    other.post_message(&"never read: the kernel reports a reset first", ()).unwrap();
    port.post_message(&1u32, ()).unwrap();
    port.post_message(&2u32, ()).unwrap();
    drop(port);
    assert_eq!(number(&other).await, 1);
    assert_eq!(number(&other).await, 2);
    assert_end(&other).await;
}

#[tokio::test]
async fn a_cancelled_receive_takes_nothing() {
    let (port, other) = channel();
    for expected in 0..50u32 {
        tokio::select! {
            biased;
            event = other.recv() => panic!("nothing was posted: {event:?}"),
            () = tokio::task::yield_now() => {}
        }
        port.post_message(&expected, ()).unwrap();
        assert_eq!(number(&other).await, expected);
    }
}
