//! Point 12: ports through ports.

use vestibule_protocol::codec::Data;
use vestibule_protocol::envelope::Transferable;
use vestibule_protocol::port::{MessagePort, PostError};

use crate::support::{Canary, assert_end, channel, message, number, write_to};

fn port(item: Transferable) -> MessagePort {
    match item {
        Transferable::Port(port) => port.into_port().unwrap(),
        other => panic!("{other:?} is no port"),
    }
}

#[tokio::test]
async fn point_12_a_port_travels_through_a_port_with_what_is_queued_in_it() {
    let (outer, outer_far) = channel();
    let (near, far) = channel();
    let (canary, writer) = Canary::new();
    near.post_message(&1u32, ()).unwrap();
    near.post_message(&2u32, writer).unwrap();
    outer.post_message(&"take this", far).unwrap();
    near.post_message(&3u32, ()).unwrap();

    let (_, transfer) = message(&outer_far).await;
    let [item] = <[_; 1]>::try_from(transfer).unwrap();
    let far = port(item);
    assert_eq!(number(&far).await, 1);
    let (data, transfer) = message(&far).await;
    assert_eq!(data.decode::<u32>().unwrap(), 2);
    let [item] = <[_; 1]>::try_from(transfer).unwrap();
    write_to(item, "through two ports");
    assert_eq!(canary.wait(), "through two ports");
    assert_eq!(number(&far).await, 3);
    far.post_message(&4u32, ()).unwrap();
    assert_eq!(number(&near).await, 4, "both ways");
    drop(far);
    assert_end(&near).await;
}

#[tokio::test]
async fn point_12_each_transferred_thing_arrives_as_what_it_is() {
    let (port, other) = channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let transfer = vec![
        Transferable::Listener(listener.into()),
        Transferable::from(channel().0),
        Transferable::from(Canary::new().1),
    ];
    port.post_message(&"kinds", transfer).unwrap();
    let (_, transfer) = message(&other).await;
    let [listener, passed, plain] = <[_; 3]>::try_from(transfer).unwrap();
    let Transferable::Listener(listener) = listener else { panic!("no listener: {listener:?}") };
    assert_eq!(std::net::TcpListener::from(listener).local_addr().unwrap(), address);
    assert!(matches!(passed, Transferable::Port(_)));
    assert!(matches!(plain, Transferable::Descriptor(_)));
}

#[tokio::test]
async fn point_12_a_port_with_messages_that_wait_here_is_handed_back() {
    let (outer, _outer_far) = channel();
    let (near, far) = channel();
    let mut posted = 0u32;
    while near.post_message(&posted, ()).is_ok() {
        posted += 1;
    }
    let refused = outer.post_message(&"busy", near).unwrap_err();
    assert!(matches!(refused.reason, PostError::PortBusy));
    let [item] = <[_; 1]>::try_from(refused.transfer).unwrap();
    let near = port(item);
    for expected in 0..posted {
        assert_eq!(number(&far).await, expected);
    }
    outer.post_message(&"idle now", near).unwrap();
}

#[tokio::test]
async fn point_12_a_side_that_refuses_transfers_closes_them_and_the_port() {
    let (port, other) = channel();
    other.refuse_transfers();
    port.post(Data::bytes(vec![1; 100_000]), Vec::new()).unwrap();
    assert_eq!(message(&other).await.0.len(), 100_000, "a large message is no transfer");
    let (canary, writer) = Canary::new();
    port.post_message(&"not wanted", writer).unwrap();
    crate::support::message_error(&other).await;
    assert_eq!(canary.wait(), "");
    assert_end(&other).await;
    assert_end(&port).await;
}
