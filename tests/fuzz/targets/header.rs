//! Header: whatever sixteen bytes a peer sends, decoding gives the one header they mean or says
//! what is wrong, and allocates nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::within;
use vestibule_protocol::Codec;
use vestibule_protocol::header::{HEADER_LEN, Header, HeaderError, LARGE, MAGIC, VERSION};
use vestibule_protocol::limits::MAX_DESCRIPTORS;

fuzz_target!(|packet: &[u8]| {
    let decoded = within(0, || Header::decode(packet));
    assert_eq!(decoded.map(|_| ()), expected(packet));
    let Ok((header, body)) = decoded else { return };

    let (head, tail) = packet.split_at(HEADER_LEN);
    assert_eq!(header.encode(), head, "a header has one form");
    assert_eq!(body, tail, "the body is what follows");
    assert_eq!(header.kind & LARGE, 0, "the bit is not part of the kind");
    assert!(usize::from(header.descriptors) <= MAX_DESCRIPTORS);
    for length in 0..HEADER_LEN {
        assert_eq!(Header::decode(&head[..length]), Err(HeaderError::Short(length)));
    }
});

/// The documented table, read a second time from offsets.
fn expected(packet: &[u8]) -> Result<(), HeaderError> {
    if packet.len() < HEADER_LEN {
        return Err(HeaderError::Short(packet.len()));
    }
    let magic = u16::from(packet[0]) | u16::from(packet[1]) << 8;
    if magic != MAGIC {
        return Err(HeaderError::Magic(magic));
    }
    if packet[2] != VERSION {
        return Err(HeaderError::Version(packet[2]));
    }
    match Codec::from_byte(packet[3]) {
        Some(codec) => assert_eq!(codec as u8, packet[3]),
        None => return Err(HeaderError::Codec(packet[3])),
    }
    if usize::from(packet[5]) > MAX_DESCRIPTORS {
        return Err(HeaderError::Descriptors(packet[5]));
    }
    Ok(())
}
