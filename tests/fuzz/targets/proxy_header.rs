//! A PROXY header: whatever a sender begins with, exactly the header is measured, and what it says is
//! what a second reading by offsets finds.
#![no_main]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use vestibule_fuzz::{prefixes, within};
use vestibule_router::inspect::parsed::Parsed;
use vestibule_router::inspect::proxy_header::{Announced, LONGEST, ProxyHeader, Sender, parse};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let whole = within(4 * bytes.len() + 4096, || parse(bytes));
    if let Parsed::Done(header) = &whole {
        match bytes.starts_with(SIGNATURE) {
            true => is_binary(&bytes[..header.length], header),
            false => is_text(&bytes[..header.length], header),
        }
    }
    for length in prefixes(bytes.len()) {
        match parse(&bytes[..length]) {
            Parsed::More(missing) => {
                assert!(missing > 0);
                if let Parsed::Done(header) = &whole {
                    assert!(length + missing <= header.length);
                }
            }
            told => assert_eq!(told, whole, "{length}"),
        }
    }
});

/// Version 1: one line, whose words say it.
fn is_text(line: &[u8], header: &ProxyHeader) {
    let line =
        std::str::from_utf8(line).expect("text").strip_suffix("\r\n").expect("an end of line");
    assert!(!line.contains(['\r', '\n']) && line.len() <= 105);
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[0], "PROXY");
    assert_eq!(header.announced, Announced::NOTHING);
    match (words[1], header.sender) {
        ("UNKNOWN", Sender::Itself) => {}
        ("TCP4" | "TCP6", Sender::Client { source, destination }) => {
            assert_eq!(words.len(), 6);
            let address = |address: &str, port: &str| {
                assert!(port.bytes().all(|byte| byte.is_ascii_digit()));
                let ip: IpAddr = address.parse().expect("an address");
                assert_eq!(ip.is_ipv4(), words[1] == "TCP4");
                SocketAddr::new(ip.to_canonical(), port.parse().expect("a port"))
            };
            assert_eq!(
                (source, destination),
                (address(words[2], words[4]), address(words[3], words[5]))
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Version 2: fixed places.
fn is_binary(bytes: &[u8], header: &ProxyHeader) {
    assert_eq!(usize::from(u16::from_be_bytes([bytes[14], bytes[15]])) + 16, bytes.len());
    assert_eq!(bytes[12] >> 4, 2);
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let v4 = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let v6 = |at: usize| {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()))
            .to_canonical()
    };
    let (command, family) = (bytes[12] & 15, bytes[13]);
    let (expected, fields) = match (command, family) {
        (1, 0x11) => (Some((v4(16), port(24), v4(20), port(26))), 28),
        (1, 0x21) => (Some((v6(16), port(48), v6(32), port(50))), 52),
        (1, 0x31) => (None, 232),
        (0 | 1, _) => {
            assert_eq!((header.sender, &header.announced), (Sender::Itself, &Announced::NOTHING));
            return;
        }
        other => panic!("{other:?}"),
    };
    match (expected, header.sender) {
        (None, Sender::Unix) => {}
        (Some((from, from_port, to, to_port)), Sender::Client { source, destination }) => {
            assert_eq!(source, SocketAddr::new(from, from_port));
            assert_eq!(destination, SocketAddr::new(to, to_port));
        }
        other => panic!("{other:?}"),
    }
    let mut at = fields;
    let mut id = None;
    while at < bytes.len() {
        let end = at + 3 + usize::from(u16::from_be_bytes([bytes[at + 1], bytes[at + 2]]));
        if bytes[at] == 5 {
            id = Some(&bytes[at + 3..end]);
        }
        at = end;
    }
    assert_eq!(at, bytes.len(), "the fields fill the header");
    assert_eq!(header.announced.unique_id.as_deref(), id);
}
