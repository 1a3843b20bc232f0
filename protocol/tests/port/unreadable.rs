//! Points 10 and 11: what cannot be read is a message error, and nothing of it stays open.

use vestibule_protocol::codec::{Codec, Data};
use vestibule_protocol::header::{HEADER_LEN, HeaderError};
use vestibule_protocol::message::{self, ItemKind, MessageError};
use vestibule_protocol::port::PortMessageError;
use vestibule_protocol::socket::ReceiveError;
use vestibule_protocol::tlv::TlvError;

use crate::support::{
    Canary, assert_end, channel, header, hostile, message, message_error, number, send,
};

/// A packet for a port: this many descriptors, as the transfer list says, and the number 7.
fn packet(descriptors: u8, items: &[ItemKind]) -> Vec<u8> {
    let mut header = header(descriptors);
    header.codec = Codec::Bincode;
    let mut packet = header.encode().to_vec();
    items.iter().for_each(|item| message::put_item(&mut packet, item).unwrap());
    message::put_message(&mut packet, &[7]);
    packet
}

#[tokio::test]
async fn point_10_a_malformed_body_is_a_message_error_that_closes_its_descriptors() {
    let (port, peer) = hostile();
    let (canary, writer) = Canary::new();
    let mut malformed = header(1).encode().to_vec();
    malformed.extend_from_slice(&[1, 2, 3]);
    send(&peer, &malformed, &[&writer]);
    drop(writer);
    let error = message_error(&port).await;
    assert_eq!(error, PortMessageError::Malformed(MessageError::Field(TlvError::Head)));
    assert_eq!(canary.wait(), "", "closed before the next receive");
    send(&peer, &packet(0, &[]), &[]);
    assert_eq!(number(&port).await, 7, "the port goes on");
}

#[tokio::test]
async fn point_10_a_truncated_body_is_a_message_error_not_an_empty_message() {
    let whole = packet(1, &[ItemKind::Descriptor]);
    let message_field = whole.len() - 1;
    for length in HEADER_LEN..message_field {
        let (port, peer) = hostile();
        let (canary, writer) = Canary::new();
        send(&peer, &whole[..length], &[&writer]);
        drop(writer);
        let error = message_error(&port).await;
        assert!(matches!(error, PortMessageError::Malformed(_)), "cut at {length}: {error:?}");
        assert_eq!(canary.wait(), "");
    }
}

#[tokio::test]
async fn point_10_a_missing_descriptor_is_a_message_error_that_closes_the_others() {
    let (port, peer) = hostile();
    let (canary, writer) = Canary::new();
    send(&peer, &packet(2, &[ItemKind::Descriptor, ItemKind::Descriptor]), &[&writer]);
    drop(writer);
    assert_eq!(message_error(&port).await, PortMessageError::MissingDescriptors(1));
    assert_eq!(canary.wait(), "");
    send(&peer, &packet(0, &[]), &[]);
    assert_eq!(number(&port).await, 7, "the port goes on");
}

#[tokio::test]
async fn point_10_a_packet_longer_than_any_is_a_message_error_and_the_end() {
    let (port, peer) = hostile();
    let (canary, writer) = Canary::new();
    let mut long = packet(1, &[ItemKind::Descriptor]);
    long.resize(32 * 1024 + 1, 0);
    send(&peer, &long, &[&writer]);
    drop(writer);
    let error = message_error(&port).await;
    assert_eq!(error, PortMessageError::Receive(ReceiveError::Truncated));
    assert_eq!(canary.wait(), "");
    assert_end(&port).await;
}

#[tokio::test]
async fn point_10_a_kind_that_ports_do_not_have_is_a_message_error() {
    let (port, peer) = hostile();
    let mut packet_of_another_kind = packet(0, &[]);
    packet_of_another_kind[4] = 0x7f;
    send(&peer, &packet_of_another_kind, &[]);
    let error = message_error(&port).await;
    assert_eq!(error, PortMessageError::Malformed(MessageError::Kind(0x7f)));
    send(&peer, &packet(0, &[]), &[]);
    assert_eq!(number(&port).await, 7, "the port goes on");
}

#[tokio::test]
async fn point_11_the_envelope_names_the_format() {
    let (port, other) = channel();
    port.post_as(Codec::Json, "text", ()).unwrap();
    port.post_message("text", ()).unwrap();
    port.post(Data::bytes("text"), Vec::new()).unwrap();
    port.post(Data::NONE, Vec::new()).unwrap();
    for (codec, bytes) in [
        (Codec::Json, &b"\"text\""[..]),
        (Codec::Bincode, &b"\x04text"[..]),
        (Codec::Bytes, &b"text"[..]),
        (Codec::None, &b""[..]),
    ] {
        let (data, _) = message(&other).await;
        assert_eq!((data.codec(), data.as_bytes()), (codec, bytes));
    }
}

#[tokio::test]
async fn point_11_an_unknown_format_is_a_message_error_and_the_port_goes_on() {
    let (port, peer) = hostile();
    let (canary, writer) = Canary::new();
    let mut unknown = packet(1, &[ItemKind::Descriptor]);
    unknown[3] = 200;
    send(&peer, &unknown, &[&writer]);
    drop(writer);
    let expected = ReceiveError::Format { kind: 0x60, sequence: 1, announced: 1, format: 200 };
    assert_eq!(message_error(&port).await, PortMessageError::Receive(expected));
    assert_eq!(canary.wait(), "");
    send(&peer, &packet(0, &[]), &[]);
    assert_eq!(number(&port).await, 7, "the port goes on");
}

#[tokio::test]
async fn point_11_another_version_is_a_message_error_and_the_end() {
    let (port, peer) = hostile();
    let mut newer = packet(0, &[]);
    newer[2] = 2;
    send(&peer, &newer, &[]);
    let expected = ReceiveError::Header(HeaderError::Version(2));
    assert_eq!(message_error(&port).await, PortMessageError::Receive(expected));
    assert_end(&port).await;
}
