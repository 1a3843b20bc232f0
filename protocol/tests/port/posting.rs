//! Points 4, 5, 8 and 9: posting never blocks, keeps order, loses nothing, and carries what is large.

use serde::{Serialize, Serializer};
use vestibule_protocol::codec::{Codec, Data, EncodeError};
use vestibule_protocol::connection_info::ConnectionInfo;
use vestibule_protocol::envelope::{PassedConnection, Transferable};
use vestibule_protocol::limits::{MAX_DESCRIPTORS, MAX_MESSAGE, QUEUE_BYTES, QUEUE_MESSAGES};
use vestibule_protocol::port::{PostError, PostMessageError};

use crate::support::{Canary, assert_end, channel, message, number, write_to};

#[tokio::test]
async fn point_04_post_message_never_blocks_and_a_full_queue_hands_everything_back() {
    let (port, other) = channel();
    let mut posted = 0u32;
    let refused = loop {
        match port.post_message(&posted, ()) {
            Ok(()) => posted += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused.reason, PostError::QueueFull));
    assert!(posted as usize > QUEUE_MESSAGES, "the kernel's queue comes on top: {posted}");

    let (canary, writer) = Canary::new();
    let refused = port.post_message(&"text", writer).unwrap_err();
    assert!(matches!(refused.reason, PostError::QueueFull));
    assert_eq!(refused.message.decode::<String>().unwrap(), "text");
    let [item] = <[_; 1]>::try_from(refused.transfer).unwrap();
    write_to(item, "still mine");
    assert_eq!(canary.wait(), "still mine");

    for expected in 0..posted {
        assert_eq!(number(&other).await, expected, "nothing is lost and order is kept");
    }
    port.post_message(&posted, ()).expect("there is room again");
    assert_eq!(number(&other).await, posted);
}

#[tokio::test]
async fn point_04_the_queue_is_bounded_in_bytes_too() {
    let (port, _other) = channel();
    let text = Data::bytes(vec![b'x'; 20_000]);
    let mut posted = 0;
    let refused = loop {
        match port.post(text.clone(), Vec::new()) {
            Ok(()) => posted += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused.reason, PostError::QueueFull));
    assert_eq!(refused.message, text);
    assert!(posted > QUEUE_BYTES / 20_016, "a mebibyte waits here, more in the kernel: {posted}");
    assert!(posted < 2 * QUEUE_BYTES / 20_000, "more than a mebibyte waits: {posted}");
}

#[tokio::test]
async fn point_04_what_waits_is_delivered_with_its_descriptors_after_the_port_is_dropped() {
    let (port, other) = channel();
    let text = Data::bytes(vec![b'x'; 20_000]);
    let mut canaries = Vec::new();
    loop {
        let (canary, writer) = Canary::new();
        if port.post(text.clone(), vec![writer.into()]).is_err() {
            break;
        }
        canaries.push(canary);
    }
    drop(port);
    for (place, canary) in canaries.into_iter().enumerate() {
        let (data, transfer) = message(&other).await;
        assert_eq!(data, text);
        let [item] = <[_; 1]>::try_from(transfer).unwrap();
        write_to(item, &place.to_string());
        assert_eq!(canary.wait(), place.to_string(), "no copy is left on either side");
    }
    assert_end(&other).await;
}

#[tokio::test]
async fn point_04_a_thread_outside_the_runtime_may_post_to_a_slow_receiver() {
    let (port, other) = channel();
    let posted = std::thread::spawn(move || {
        let mut posted = 0u32;
        while port.post_message(&posted, ()).is_ok() {
            posted += 1;
        }
        posted
    })
    .join()
    .unwrap();
    for expected in 0..posted {
        assert_eq!(number(&other).await, expected);
    }
    assert_end(&other).await;
}

struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("cannot be cloned"))
    }
}

#[tokio::test]
async fn point_05_a_message_that_cannot_be_written_is_not_sent_and_its_descriptors_stay() {
    let (port, other) = channel();
    for codec in [Codec::Bincode, Codec::Json] {
        let (canary, writer) = Canary::new();
        let refused = port.post_as(codec, &Unwritable, writer).unwrap_err();
        assert!(matches!(refused.reason, PostError::DataClone(_)), "{refused:?}");
        let [item] = <[_; 1]>::try_from(refused.transfer).unwrap();
        write_to(item, "mine");
        assert_eq!(canary.wait(), "mine");
    }
    port.post_message(&7u32, ()).unwrap();
    assert_eq!(number(&other).await, 7, "nothing was sent before");
}

#[tokio::test]
async fn point_08_order_is_kept_and_descriptors_come_with_their_message() {
    let (port, other) = channel();
    let mut canaries = Vec::new();
    for count in 0..20u32 {
        let (canary, writer) = Canary::new();
        let transfer = if count % 2 == 0 { vec![writer.into()] } else { Vec::new() };
        port.post(Data::bincode(&count).unwrap(), transfer).unwrap();
        canaries.push(canary);
    }
    for (count, canary) in canaries.into_iter().enumerate() {
        let (data, transfer) = message(&other).await;
        assert_eq!(data.decode::<usize>().unwrap(), count);
        assert_eq!(transfer.len(), 1 - count % 2);
        for item in transfer {
            write_to(item, &count.to_string());
        }
        let expected = if count % 2 == 0 { count.to_string() } else { String::new() };
        assert_eq!(canary.wait(), expected);
    }
}

#[tokio::test]
async fn point_08_as_many_descriptors_as_a_packet_carries_keep_their_order() {
    let (port, other) = channel();
    let (canaries, writers): (Vec<_>, Vec<_>) = (0..MAX_DESCRIPTORS).map(|_| Canary::new()).unzip();
    let transfer: Vec<Transferable> = writers.into_iter().map(Into::into).collect();
    port.post_message(&"many", transfer).unwrap();
    let (_, transfer) = message(&other).await;
    assert_eq!(transfer.len(), MAX_DESCRIPTORS);
    for (place, (item, canary)) in transfer.into_iter().zip(canaries).enumerate() {
        write_to(item, &place.to_string());
        assert_eq!(canary.wait(), place.to_string());
    }
}

#[tokio::test]
async fn point_08_more_descriptors_than_a_packet_carries_are_handed_back() {
    let (port, _other) = channel();
    let many = || (0..=MAX_DESCRIPTORS).map(|_| Canary::new().1.into()).collect::<Vec<_>>();
    let refused = port.post_message(&"many", many()).unwrap_err();
    assert!(matches!(refused.reason, PostError::TooManyTransferred(65)));
    assert_eq!(refused.transfer.len(), 65);
    let mut one_less = many();
    one_less.truncate(MAX_DESCRIPTORS);
    let refused = port.post(Data::bytes(vec![0; 100_000]), one_less).unwrap_err();
    assert!(
        matches!(refused.reason, PostError::TooManyTransferred(64)),
        "the memory needs a place"
    );
    assert_eq!(refused.transfer.len(), 64);
}

#[tokio::test]
async fn point_09_a_message_larger_than_a_packet_travels_whole_with_its_descriptors() {
    let (port, other) = channel();
    for length in [24_576, 24_577, 32_748, 32_768, 1 << 20, MAX_MESSAGE] {
        let (canary, writer) = Canary::new();
        let sent: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
        port.post(Data::bytes(sent.clone()), vec![writer.into()]).unwrap();
        let (data, transfer) = message(&other).await;
        assert_eq!(data.codec(), Codec::Bytes);
        assert!(data.as_bytes() == sent, "{length} bytes came changed");
        let [item] = <[_; 1]>::try_from(transfer).unwrap();
        write_to(item, "arrived");
        assert_eq!(canary.wait(), "arrived");
    }
}

#[tokio::test]
async fn point_09_a_long_transfer_list_makes_a_message_large_not_too_long() {
    let (port, other) = channel();
    let info = ConnectionInfo {
        id: 1,
        peer: None,
        peer_credentials: None,
        destination: None,
        listener: "l".repeat(4096).into(),
        route: "r".repeat(4096).into(),
        peer_context: Some("c".repeat(4096).into()),
        accepted: 1,
        ..ConnectionInfo::default()
    };
    for length in [10, 20_000, MAX_MESSAGE] {
        let transfer: Vec<Transferable> = (0..MAX_DESCRIPTORS - 1)
            .map(|_| {
                let descriptor = Canary::new().1.into();
                PassedConnection { descriptor, info: info.clone(), prefix: Box::default() }.into()
            })
            .collect();
        port.post(Data::bytes(vec![7; length]), transfer).unwrap();
        let (data, transfer) = message(&other).await;
        assert_eq!(data.len(), length);
        assert_eq!(transfer.len(), MAX_DESCRIPTORS - 1);
        for item in transfer {
            let Transferable::Connection(connection) = item else { panic!("{item:?}") };
            assert_eq!(connection.info, info);
        }
    }
}

#[tokio::test]
async fn point_09_over_the_bound_is_an_error_at_the_sender_and_nothing_is_sent() {
    let (port, other) = channel();
    let too_large = |refused: PostMessageError, bound: usize| {
        let PostError::DataClone(EncodeError::TooLarge { length, bound: named }) = refused.reason
        else {
            panic!("{refused:?}")
        };
        assert_eq!((length, named), (bound + 1, bound));
        assert_eq!((refused.message.len(), refused.transfer.len()), (bound + 1, 1));
    };
    let list = || vec![Canary::new().1.into()];
    let over = Data::bytes(vec![0; MAX_MESSAGE + 1]);
    too_large(port.post(over, list()).unwrap_err(), MAX_MESSAGE);
    port.set_max_message(100);
    too_large(port.post(Data::bytes(vec![0; 101]), list()).unwrap_err(), 100);
    port.post(Data::bytes(vec![0; 100]), Vec::new()).unwrap();
    assert_eq!(message(&other).await.0.len(), 100, "nothing was sent before");
}
