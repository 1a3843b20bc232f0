//! Point 22, and whatever else a peer can send.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};
use vestibule_protocol::header::{HeaderError, LARGE};
use vestibule_protocol::message::{self, ItemKind, MessageError};
use vestibule_protocol::port::{MessagePort, PortMessageError, SocketError};
use vestibule_protocol::socket::ReceiveError;
use vestibule_protocol::sys::{self, MemoryError};

use crate::support::{Canary, assert_end, channel, header, hostile, message_error, number, send};

const GIBIBYTE: u64 = 1 << 30;

#[tokio::test]
async fn point_22_descriptors_that_were_not_announced_are_closed_and_the_port_with_them() {
    let (port, peer) = hostile();
    let mut packet = header(0).encode().to_vec();
    message::put_message(&mut packet, b"");
    let (canary, writer) = Canary::new();
    send(&peer, &packet, &[&writer]);
    drop(writer);
    let expected = ReceiveError::Unannounced { received: 1, announced: 0 };
    assert_eq!(message_error(&port).await, PortMessageError::Receive(expected));
    assert_eq!(canary.wait(), "");
    assert_end(&port).await;
}

#[tokio::test]
async fn point_22_more_descriptors_than_any_packet_carries_are_closed() {
    let (port, peer) = hostile();
    let mut packet = header(64).encode().to_vec();
    message::put_message(&mut packet, b"");
    let (canary, writer) = Canary::new();
    send(&peer, &packet, &[&writer; 65]);
    drop(writer);
    let expected = ReceiveError::Unannounced { received: 65, announced: 64 };
    assert_eq!(message_error(&port).await, PortMessageError::Receive(expected));
    assert_eq!(canary.wait(), "");
    assert_end(&port).await;
}

#[tokio::test]
async fn point_22_descriptors_that_the_transfer_list_does_not_name_are_closed() {
    let (port, peer) = hostile();
    let mut packet = header(2).encode().to_vec();
    message::put_item(&mut packet, &ItemKind::Port).unwrap();
    message::put_message(&mut packet, b"");
    let (canary, writer) = Canary::new();
    send(&peer, &packet, &[&writer, &writer]);
    drop(writer);
    let expected = MessageError::Descriptors { described: 1, announced: 2 };
    assert_eq!(message_error(&port).await, PortMessageError::Malformed(expected));
    assert_eq!(canary.wait(), "");
    assert_end(&port).await;
}

#[tokio::test]
async fn point_22_descriptors_of_a_kind_that_carries_none_are_closed() {
    let (port, peer) = hostile();
    let mut packet = header(1).encode().to_vec();
    packet[4] = message::kind::ACKNOWLEDGE;
    let (canary, writer) = Canary::new();
    send(&peer, &packet, &[&writer]);
    drop(writer);
    let expected = MessageError::Unasked { kind: message::kind::ACKNOWLEDGE, announced: 1 };
    assert_eq!(message_error(&port).await, PortMessageError::Malformed(expected));
    assert_eq!(canary.wait(), "");
    assert_end(&port).await;
}

#[tokio::test]
async fn garbage_is_a_message_error_and_the_end_never_a_panic() {
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"x", &[0; 4096], &[0xff; 32_768]] {
        let (port, peer) = hostile();
        send(&peer, garbage, &[]);
        let error = message_error(&port).await;
        assert!(
            matches!(
                error,
                PortMessageError::Receive(ReceiveError::Header(
                    HeaderError::Magic(_) | HeaderError::Short(1)
                ))
            ),
            "{error:?}"
        );
        assert_end(&port).await;
        assert!(port.post_message(&1, ()).is_err(), "closed for both directions");
    }
}

#[tokio::test]
async fn an_empty_packet_is_the_end_and_its_descriptors_are_closed() {
    let (port, peer) = hostile();
    let (canary, writer) = Canary::new();
    send(&peer, &[], &[&writer]);
    drop(writer);
    assert_end(&port).await;
    assert_eq!(canary.wait(), "");
    assert!(port.post_message(&1, ()).is_err());
}

fn memory(length: u64, seals: SealFlags) -> OwnedFd {
    let memory = rustix::fs::memfd_create("hostile", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, length).unwrap();
    rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
    memory
}

const ALL_SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

#[tokio::test]
async fn unusable_large_bodies_are_message_errors_and_the_port_goes_on() {
    let (port, peer) = hostile();
    let bound =
        vestibule_protocol::limits::MAX_MESSAGE + vestibule_protocol::limits::MAX_TRANSFER_LIST;
    let (canary, pipe) = Canary::new();
    for (body, expected) in [
        (memory(4 * GIBIBYTE, ALL_SEALS), MemoryError::TooLarge { length: 4 * GIBIBYTE, bound }),
        (memory(100, SealFlags::WRITE.union(SealFlags::SEAL)), MemoryError::Unsealed),
        (memory(100, SealFlags::SHRINK), MemoryError::Unsealed),
        (std::fs::File::open("/dev/zero").unwrap().into(), MemoryError::Unsealed),
        (std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(), MemoryError::Unsealed),
        (pipe, MemoryError::Unsealed),
    ] {
        let mut packet = header(1).encode();
        packet[4] |= LARGE;
        send(&peer, &packet, &[&body]);
        drop(body);
        let expected = ReceiveError::Body { sequence: 1, reason: Some(expected) };
        assert_eq!(message_error(&port).await, PortMessageError::Receive(expected));
    }
    assert_eq!(canary.wait(), "", "what was no memory is closed");

    let mut packet = header(0).encode();
    packet[4] |= LARGE;
    send(&peer, &packet, &[]);
    let expected = ReceiveError::Body { sequence: 1, reason: None };
    assert_eq!(message_error(&port).await, PortMessageError::Receive(expected));

    let mut last = header(0);
    last.codec = vestibule_protocol::Codec::Bincode;
    let mut packet = last.encode().to_vec();
    message::put_message(&mut packet, &[7]);
    send(&peer, &packet, &[]);
    assert_eq!(number(&port).await, 7);
}

#[tokio::test]
async fn a_large_body_over_the_ports_bound_is_a_message_error() {
    let (port, other) = channel();
    other.set_max_message(40_000);
    port.post(vestibule_protocol::Data::bytes(vec![1; 40_001]), Vec::new()).unwrap();
    port.post(vestibule_protocol::Data::bytes(vec![1; 40_000]), Vec::new()).unwrap();
    let reason = Some(MemoryError::TooLarge { length: 40_001, bound: 40_000 });
    let expected = ReceiveError::Body { sequence: 1, reason };
    assert_eq!(message_error(&other).await, PortMessageError::Receive(expected));
    assert_eq!(crate::support::message(&other).await.0.len(), 40_000);
}

#[tokio::test]
async fn only_connected_seqpacket_sockets_become_ports() {
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(MessagePort::new(stream.into()), Err(SocketError::NotSeqpacket)));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(MessagePort::new(file.into()), Err(SocketError::NotSeqpacket)));
    let alone = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        None,
    );
    assert!(matches!(MessagePort::new(alone.unwrap()), Err(SocketError::NotConnected)));
}

#[test]
fn a_port_outside_a_runtime_is_an_error_not_a_panic() {
    let (one, _two) = sys::seqpacket_pair().unwrap();
    assert!(matches!(MessagePort::new(one), Err(SocketError::NoRuntime(_))));
}

/// Linux 6.16 and newer refuse in the sender's face; older kernels leave it to the receiver.
#[tokio::test]
async fn a_receiver_that_takes_no_descriptors_costs_the_sender_that_message_alone() {
    use std::os::fd::AsFd;
    let (ours, theirs) = sys::seqpacket_pair().unwrap();
    let refused_in_kernel = sys::refuse_descriptors(ours.as_fd());
    let (port, other) = (MessagePort::new(ours).unwrap(), MessagePort::new(theirs).unwrap());
    let (_canary, writer) = Canary::new();
    let posted = other.post_message(&1u32, writer);
    assert_eq!(posted.is_err(), refused_in_kernel);
    if let Err(refused) = posted {
        assert_eq!(refused.transfer.len(), 1, "handed back");
        other.post_message(&1u32, ()).unwrap();
    }
    assert_eq!(number(&port).await, 1);
}
