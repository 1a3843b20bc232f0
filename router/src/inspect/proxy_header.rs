//! The PROXY protocol's header, versions 1 and 2
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>): what a proxy in front says about
//! its client. The only bytes the router ever consumes, and exactly these. Pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use vestibule_protocol::connection_info::{Proxied, canonical};

use super::facts::{Cause, ClientHello, Fact};
use super::normal;
use super::parsed::Parsed;

/// Longest header of version 1, with its end of line.
const LONGEST_V1: usize = 107;
/// Longest header of version 2. Proxies send some hundred bytes; with a client's whole certificate a few
/// thousand. The field could say 64 KiB.
pub const LONGEST: usize = 16 * 1024;
/// First bytes of version 1.
const TEXT: &[u8] = b"PROXY ";
/// First bytes of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED: usize = 16;
/// Longest name of a protocol.
const LONGEST_ALPN: usize = 255;
/// Longest unique id (`PP2_TYPE_UNIQUE_ID`).
const LONGEST_ID: usize = 128;

/// A header that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its length: so many bytes are to be read, and no more.
    pub length: usize,
    /// Who connected to the proxy.
    pub sender: Sender,
    /// What else the proxy says.
    pub announced: Announced,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The proxy's own (`LOCAL`, a health check), or one that it cannot tell (`UNKNOWN`, `UNSPEC`): the
    /// socket's addresses count.
    Itself,
    /// A client with Internet addresses.
    Client {
        /// The client's.
        source: SocketAddr,
        /// Where it wanted to go.
        destination: SocketAddr,
    },
    /// A client on a Unix-domain socket, which has no address that rules could match.
    Unix,
}

/// What a proxy saw of its client's TLS, and how it calls the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The name and the protocol of the TLS that the proxy ended, if it did.
    pub tls: Option<ClientHello>,
    /// The proxy's name for the connection (`PP2_TYPE_UNIQUE_ID`): opaque bytes.
    pub unique_id: Option<Box<[u8]>>,
}

impl Announced {
    /// Nothing.
    pub const NOTHING: Self = Self { tls: None, unique_id: None };

    /// Bytes of all that was said. Of a name that is not known there is none.
    pub fn length(&self) -> usize {
        let tls = self.tls.as_ref().map_or(0, |hello| {
            let name = hello.server_name.as_ref().known().map_or(0, |name| name.len());
            let protocols = hello.alpn.as_ref().known();
            // Each has its place, too, however short it is.
            let place = size_of::<Box<[u8]>>();
            let all = protocols.into_iter().flatten().map(|protocol| place + protocol.len());
            name + all.sum::<usize>()
        });
        tls + self.unique_id.as_ref().map_or(0, |id| id.len())
    }

    /// As it travels with the connection, to its worker and back.
    pub fn to_proxied(&self) -> Option<Box<Proxied>> {
        if *self == Self::NOTHING {
            return None;
        }
        let name = self.tls.as_ref().map(|hello| &hello.server_name);
        let alpn = self.tls.as_ref().map(|hello| &hello.alpn);
        Some(Box::new(Proxied {
            tls: self.tls.is_some(),
            server_name: match name {
                Some(Fact::Known(name)) => Some(name.clone()),
                Some(Fact::Unknown(_)) => Some("".into()),
                Some(Fact::Absent | Fact::Unasked) | None => None,
            },
            alpn: match alpn {
                Some(Fact::Known(protocols)) => protocols.first().cloned(),
                _ => None,
            },
            unique_id: self.unique_id.clone(),
        }))
    }

    /// What came back with a connection: its ticket shows that it is what was given.
    pub fn from_proxied(proxied: &Proxied) -> Self {
        let tls = proxied.tls.then(|| ClientHello {
            server_name: match proxied.server_name.as_deref() {
                Some("") => Fact::Unknown(Cause::NotHttp),
                name => name.map(Into::into).into(),
            },
            alpn: proxied.alpn.clone().map(|protocol| vec![protocol]).into(),
        });
        Self { tls, unique_id: proxied.unique_id.clone() }
    }
}

/// Reads a header from the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Parsed<ProxyHeader> {
    let length = match length(bytes) {
        Parsed::Done(length) => length,
        Parsed::More(missing) => return Parsed::More(missing),
        Parsed::Not(cause) => return Parsed::Not(cause),
    };
    let header = bytes.get(..length).unwrap_or_default();
    let read = if header.starts_with(SIGNATURE) { version_2(header) } else { version_1(header) };
    match read {
        Some((sender, announced)) => Parsed::Done(ProxyHeader { length, sender, announced }),
        None => Parsed::Not(Cause::NotHttp),
    }
}

/// How long the header is, once all of it is there.
fn length(bytes: &[u8]) -> Parsed<usize> {
    if bytes.starts_with(SIGNATURE) {
        let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
            return Parsed::More(FIXED.saturating_sub(bytes.len()).max(1));
        };
        let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
        return if length > LONGEST {
            Parsed::Not(Cause::TooLarge)
        } else if bytes.len() < length {
            Parsed::More(length - bytes.len())
        } else {
            Parsed::Done(length)
        };
    }
    // `PROXY UNKNOWN` and its end of line is the shortest of all.
    const SHORTEST: usize = b"PROXY UNKNOWN\r\n".len();
    if bytes.is_empty() {
        return Parsed::More(SHORTEST);
    }
    if SIGNATURE.starts_with(bytes) {
        return Parsed::More(FIXED - bytes.len());
    }
    if bytes.starts_with(TEXT) {
        let line = bytes.get(..LONGEST_V1).unwrap_or(bytes);
        return match line.iter().position(|byte| *byte == b'\n') {
            Some(at) => Parsed::Done(at + 1),
            None if line.len() == LONGEST_V1 => Parsed::Not(Cause::TooLarge),
            None => Parsed::More(1),
        };
    }
    if TEXT.starts_with(bytes) {
        return Parsed::More(SHORTEST - bytes.len());
    }
    Parsed::Not(Cause::NotHttp)
}

fn version_1(line: &[u8]) -> Option<(Sender, Announced)> {
    use ppp::v1::{Addresses, Header};
    // The end is a carriage return and a line feed, of which there are no others.
    if line.strip_suffix(b"\r\n")?.contains(&b'\r') {
        return None;
    }
    let read = Header::try_from(line).ok()?;
    // A port is digits alone, and the line that was measured is the one that was read.
    let is_plain = !line.contains(&b'+') || read.addresses == Addresses::Unknown;
    if !is_plain || read.header.len() != line.len() {
        return None;
    }
    let sender = match read.addresses {
        Addresses::Unknown => Sender::Itself,
        Addresses::Tcp4(all) => client(
            (all.source_address, all.source_port).into(),
            (all.destination_address, all.destination_port).into(),
        ),
        Addresses::Tcp6(all) => client(
            (all.source_address, all.source_port).into(),
            (all.destination_address, all.destination_port).into(),
        ),
    };
    Some((sender, Announced::NOTHING))
}

fn version_2(header: &[u8]) -> Option<(Sender, Announced)> {
    use ppp::v2::{Addresses, Command, Header, Protocol};
    let read = Header::try_from(header).ok()?;
    if read.command == Command::Local {
        // What follows is to be skipped, whatever it is.
        return Some((Sender::Itself, Announced::NOTHING));
    }
    let sender = match (read.addresses, read.protocol) {
        (Addresses::IPv4(all), Protocol::Stream) => client(
            (all.source_address, all.source_port).into(),
            (all.destination_address, all.destination_port).into(),
        ),
        (Addresses::IPv6(all), Protocol::Stream) => client(
            (all.source_address, all.source_port).into(),
            (all.destination_address, all.destination_port).into(),
        ),
        (Addresses::Unix(_), Protocol::Stream) => Sender::Unix,
        // No connection is a datagram, and what has no family has no addresses.
        _ => return Some((Sender::Itself, Announced::NOTHING)),
    };
    let fields = header.len().checked_sub(read.tlv_bytes().len())?;
    Some((sender, announced(header, fields)?))
}

fn client(source: SocketAddr, destination: SocketAddr) -> Sender {
    Sender::Client { source: canonical(source), destination: canonical(destination) }
}

/// The fields of a header from this place on. `None` if one is cut, a length is out of bounds, or the
/// checksum is wrong.
fn announced(header: &[u8], mut at: usize) -> Option<Announced> {
    const ALPN: u8 = 0x01;
    const AUTHORITY: u8 = 0x02;
    const CRC32C: u8 = 0x03;
    const UNIQUE_ID: u8 = 0x05;
    const SSL: u8 = 0x20;
    let (mut name, mut alpn, mut unique_id) = (Fact::Absent, Fact::Absent, None);
    let mut tls = false;
    while at < header.len() {
        let &[kind, high, low] = header.get(at..)?.first_chunk::<3>()?;
        let begin = at + 3;
        at = begin + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(begin..at)?;
        match kind {
            // What a protocol may be called (RFC 7301 3.1).
            ALPN if value.len() > LONGEST_ALPN => return None,
            ALPN => {
                tls = true;
                alpn = Fact::Known(vec![value.into()]);
            }
            AUTHORITY => {
                tls = true;
                let text =
                    std::str::from_utf8(value).ok().filter(|text| !text.contains([':', '[']));
                name =
                    text.and_then(normal::host).map_or(Fact::Unknown(Cause::NotHttp), Fact::Known);
            }
            CRC32C => {
                let sum = u32::from_be_bytes(value.try_into().ok()?);
                if checksum(header, begin) != sum {
                    return None;
                }
            }
            UNIQUE_ID if value.len() > LONGEST_ID => return None,
            UNIQUE_ID => unique_id = Some(value.into()),
            // Bit 0 of the first byte: the client connected over TLS.
            SSL => tls |= value.first().is_some_and(|flags| flags & 1 == 1),
            _ => {}
        }
    }
    let tls = tls.then_some(ClientHello { server_name: name, alpn });
    Some(Announced { tls, unique_id })
}

/// CRC-32C (RFC 4960 B) of the header, the four bytes of the sum itself taken as zero.
fn checksum(header: &[u8], sum: usize) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = !0;
    for (at, byte) in header.iter().enumerate() {
        let byte = if (sum..sum + 4).contains(&at) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IPV4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xc8, 0, 0, 80];

    fn version_2(command: u8, family: u8, rest: &[&[u8]]) -> Vec<u8> {
        let rest = rest.concat();
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &length, &rest].concat()
    }

    fn field(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind][..], &length, value].concat()
    }

    fn client(source: &str, destination: &str) -> Sender {
        Sender::Client {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    /// The sender of a header that is whole, with a request behind it.
    fn sender(header: &[u8]) -> Sender {
        let bytes = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        match parse(&bytes) {
            Parsed::Done(read) => {
                assert_eq!(read.length, header.len());
                read.sender
            }
            other => panic!("{other:?}: {header:?}"),
        }
    }

    #[test]
    fn both_versions_say_who_connected() {
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 51200 80\r\n".to_vec(),
                client("192.0.2.7:51200", "10.0.0.1:80"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 51200 443\r\n".to_vec(),
                client("[2001:db8::7]:51200", "[::1]:443"),
            ),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n".to_vec(), client("192.0.2.7:1", "[::1]:2")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Sender::Itself),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), Sender::Itself),
            (version_2(1, 0x11, &[&IPV4]), client("192.0.2.7:51200", "10.0.0.1:80")),
            (
                version_2(1, 0x21, &[&[0x20; 36]]),
                client(
                    "[2020:2020:2020:2020:2020:2020:2020:2020]:8224",
                    "[2020:2020:2020:2020:2020:2020:2020:2020]:8224",
                ),
            ),
            (version_2(1, 0x31, &[&[b'x'; 216]]), Sender::Unix),
            (version_2(0, 0x00, &[]), Sender::Itself),
            (version_2(0, 0x11, &[&IPV4, &field(4, b"pad")]), Sender::Itself),
            (version_2(1, 0x00, &[&[1, 2, 3]]), Sender::Itself),
            (version_2(1, 0x12, &[&IPV4]), Sender::Itself),
        ] {
            assert_eq!(sender(&header), expected, "{header:?}");
        }
    }

    #[test]
    fn fields_say_name_protocol_and_id() {
        let fields =
            [field(1, b"h2"), field(2, b"App.Example.org"), field(5, b"id-1"), field(0xee, b"?")];
        let header = version_2(1, 0x11, &[&IPV4, &fields.concat()]);
        let Parsed::Done(ProxyHeader { announced, .. }) = parse(&header) else { panic!() };
        assert_eq!(announced.unique_id.as_deref(), Some(&b"id-1"[..]));
        let tls = announced.tls.unwrap();
        assert_eq!(tls.server_name, Fact::Known("app.example.org".into()));
        assert_eq!(tls.alpn, Fact::Known(vec![b"h2"[..].into()]));
    }

    #[test]
    fn what_is_announced_travels_to_the_worker_and_back() {
        let authority = |name: &[u8]| field(2, name);
        let tls = field(0x20, &[1, 0, 0, 0, 0]);
        for fields in [
            [field(1, b"h2"), authority(b"App.Example.org"), field(5, b"id-1")].concat(),
            authority(b"no name"),
            field(5, b""),
            tls,
            field(0xee, b"?"),
        ] {
            let header = version_2(1, 0x11, &[&IPV4, &fields]);
            let Parsed::Done(ProxyHeader { announced, .. }) = parse(&header) else { panic!() };
            let proxied = announced.to_proxied();
            let back = proxied.as_deref().map_or(Announced::NOTHING, Announced::from_proxied);
            assert_eq!(back, announced, "{proxied:?}");
        }
        let long = version_2(1, 0x11, &[&IPV4, &field(1, &[b'x'; 256])]);
        assert_eq!(parse(&long), Parsed::Not(Cause::NotHttp));
    }

    #[test]
    fn a_client_of_the_proxy_over_tls_without_a_name_has_none() {
        let header = version_2(1, 0x11, &[&IPV4, &field(0x20, &[1, 0, 0, 0, 0])]);
        let Parsed::Done(ProxyHeader { announced, .. }) = parse(&header) else { panic!() };
        let hello = ClientHello { server_name: Fact::Absent, alpn: Fact::Absent };
        assert_eq!(announced.tls, Some(hello));
        let header = version_2(1, 0x11, &[&IPV4, &field(0x20, &[0, 0, 0, 0, 0])]);
        let Parsed::Done(ProxyHeader { announced, .. }) = parse(&header) else { panic!() };
        assert_eq!(announced, Announced::NOTHING);
    }

    #[test]
    fn a_checksum_has_to_be_right() {
        // The check value of the algorithm: of `123456789`.
        assert_eq!(checksum(b"123456789", usize::MAX - 4), 0xe306_9283);
        let mut header = version_2(1, 0x11, &[&IPV4, &field(3, &[0; 4])]);
        let at = header.len() - 4;
        let sum = checksum(&header, at).to_be_bytes();
        header.splice(at.., sum);
        assert_eq!(sender(&header), client("192.0.2.7:51200", "10.0.0.1:80"));
        header[20] ^= 1;
        assert_eq!(parse(&header), Parsed::Not(Cause::NotHttp));
    }

    #[test]
    fn what_is_wrong_is_no_header() {
        let long_id = field(5, &[0; 129]);
        for header in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +1 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n".to_vec(),
            b"PROXY UNKNOWN \rX\n".to_vec(),
            b"PROXY UNKNOWN 1 2 3 4 \n".to_vec(),
            b"PROXY udp4 192.0.2.7 10.0.0.1 1 2\r\n".to_vec(),
            version_2(2, 0x11, &[&IPV4]),
            version_2(1, 0x41, &[&IPV4]),
            version_2(1, 0x11, &[&IPV4[..11]]),
            version_2(1, 0x11, &[&IPV4, &[5, 0]]),
            version_2(1, 0x11, &[&IPV4, &[5, 0, 2, 1]]),
            version_2(1, 0x11, &[&IPV4, &long_id]),
            version_2(1, 0x11, &[&IPV4, &field(3, b"sum")]),
        ] {
            assert_eq!(parse(&header), Parsed::Not(Cause::NotHttp), "{header:?}");
        }
        assert_eq!(parse(&[b'P'; 1]), Parsed::More(14));
        let endless = [TEXT, &[b'x'; 107]].concat();
        assert_eq!(parse(&endless), Parsed::Not(Cause::TooLarge));
        let large = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(parse(&large), Parsed::Not(Cause::TooLarge));
    }

    fn any_header() -> impl Strategy<Value = Vec<u8>> {
        let unknown = Just(b"PROXY UNKNOWN\r\n".to_vec());
        let text = (any::<std::net::SocketAddrV4>(), any::<std::net::SocketAddrV4>()).prop_map(
            |(a, b)| {
                format!("PROXY TCP4 {} {} {} {}\r\n", a.ip(), b.ip(), a.port(), b.port())
                    .into_bytes()
            },
        );
        let fields = proptest::collection::vec(
            (6..=255u8, proptest::collection::vec(any::<u8>(), 0..40)),
            0..4,
        );
        let binary = (0..2u8, fields).prop_map(|(command, fields)| {
            let fields: Vec<u8> = fields
                .iter()
                .filter(|(kind, _)| *kind != 0x20)
                .flat_map(|(kind, value)| field(*kind, value))
                .collect();
            version_2(command, 0x11, &[&IPV4, &fields])
        });
        prop_oneof![unknown, text, binary]
    }

    proptest! {
        #[test]
        fn every_prefix_is_incomplete_and_exactly_the_header_is_consumed(
            header in any_header(),
            behind in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            for length in 0..header.len() {
                match parse(&header[..length]) {
                    Parsed::More(missing) => {
                        prop_assert!(missing > 0 && length + missing <= header.len());
                    }
                    other => prop_assert!(false, "{length}: {other:?}"),
                }
            }
            let Parsed::Done(read) = parse(&[&header[..], &behind].concat()) else { panic!() };
            prop_assert_eq!(read.length, header.len());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), begin in 0..3usize) {
            let begin = [&b""[..], TEXT, SIGNATURE][begin];
            let _ = parse(&[begin, &bytes].concat());
        }
    }
}
