//! The worker reads every byte from the first, in whatever pieces they came and whatever the router
//! looked at: requests, what follows a PROXY header, hellos of TLS, and what another worker has read.
//!
//! `TEST_REQUESTS=20000 cargo test -p vestibule-tests --test inspect_pieces -- --nocapture` tries more.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vestibule_tests::half::{handshake, record};
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::{Client, Response};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// How many connections of a kind are tried.
fn connections(default: u32) -> u32 {
    std::env::var("TEST_REQUESTS").map_or(default, |text| text.parse().unwrap())
}

/// The program with these rules, and two pools whose workers say back every byte. 127.0.0.2 is a proxy.
fn hall(rules: &str) -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let place = Place::new();
    let pool = |name: &str, other: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"bytes\"]\nworkers = 2\n\
             hand-back-to = [\"{other}\"]\n{user}"
        )
    };
    let (one, two) = (pool("one", "two"), pool("two", "one"));
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\nproxy-protocol = \"127.0.0.2\"\n\
         {one}{two}{rules}"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

/// Rules that look at the request, behind one that does not.
const BY_HOST: &str = "[[route]]\nname = \"unseen\"\npeer = [\"198.51.100.0/24\", \"2001:db8::/32\"]\npool = \"two\"\n\
                       [[route]]\nname = \"none\"\nhost = \"none.example\"\nreject = 418\n\
                       [[route]]\nname = \"rest\"\npool = \"one\"\n";

/// A request, perhaps with another one behind it that no worker may get as its first.
fn request(path: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let lines = proptest::collection::vec(("[a-z]{1,12}", "[!-~]{0,60}"), 0..12);
    let body = proptest::collection::vec(any::<u8>(), 0..3000);
    (lines, body, any::<bool>()).prop_map(move |(lines, body, pipelined)| {
        let mut bytes = format!("POST {path} HTTP/1.1\r\nhost: a.example\r\n").into_bytes();
        for (name, value) in lines {
            bytes.extend(format!("x-{name}: {value}\r\n").bytes());
        }
        bytes.extend(b"\r\n");
        if pipelined {
            bytes.extend(b"GET /next HTTP/1.1\r\nhost: none.example\r\n\r\n");
        }
        bytes.extend(body);
        bytes
    })
}

fn head_end(bytes: &[u8]) -> usize {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4
}

/// Where a text is cut, and how long to wait before the next piece.
type Cuts = Vec<(Cut, u8)>;

/// Anywhere, or some bytes before or behind the place that matters.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Anywhere(prop::sample::Index),
    Near(isize),
}

fn cuts() -> impl Strategy<Value = Cuts> {
    let place = prop_oneof![
        any::<prop::sample::Index>().prop_map(Cut::Anywhere),
        (-4..5isize).prop_map(Cut::Near),
    ];
    proptest::collection::vec((place, 0..3u8), 0..6)
}

/// Sends all of it in pieces; `edge` is the place that matters. The answer, when it has said all.
fn send_in_pieces(client: &mut Client, bytes: &[u8], edge: usize, cuts: &Cuts) -> Response {
    let place = |place: Cut| match place {
        Cut::Anywhere(index) => index.index(bytes.len().max(1)),
        Cut::Near(by) => edge.saturating_add_signed(by).min(bytes.len()),
    };
    let mut cuts: Vec<_> = cuts.iter().map(|(at, pause)| (place(*at), *pause)).collect();
    cuts.sort_unstable();
    let mut sent = 0;
    for (at, pause) in cuts {
        client.send(&bytes[sent..at]);
        sent = at;
        match pause {
            0 => {}
            1 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(300)),
        }
    }
    client.send(&bytes[sent..]);
    client.finish();
    client.answer()
}

/// Tries a property of so many inputs.
fn for_all<S: Strategy>(
    cases: u32,
    what: &str,
    inputs: &S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config {
        cases,
        failure_persistence: None,
        // Each step may be a client that waits in vain.
        max_shrink_iters: 64,
        ..Config::default()
    };
    TestRunner::new(config).run(inputs, test).unwrap();
    println!("{cases} {what} in random pieces came whole");
}

#[test]
fn a_request_is_read_from_its_first_byte() {
    let (master, _place) = hall(BY_HOST);
    let inputs = (request("/bytes"), cuts());
    for_all(connections(2_000), "requests", &inputs, |(bytes, cuts)| {
        let mut client = master.client();
        let answer = send_in_pieces(&mut client, &bytes, head_end(&bytes), &cuts);
        prop_assert_eq!(answer.header("route"), Some("rest"));
        prop_assert!(answer.body == bytes);
        Ok(())
    });
    master.stop();
}

/// What a proxy says, and of whom.
#[derive(Clone, Debug)]
struct Header {
    bytes: Vec<u8>,
    of: Of,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    /// A client with this address.
    Client(SocketAddr),
    /// A client of the proxy on a Unix-domain socket, that has none.
    Unix,
    /// The proxy itself.
    Proxy,
}

fn binary(command: u8, family: u8, addresses: &[u8], fields: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut rest = addresses.to_vec();
    for (kind, value) in fields {
        rest.push(*kind);
        rest.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        rest.extend(value);
    }
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &length, &rest].concat()
}

/// Headers of both versions and all families, with fields that nobody knows, of clients by whose
/// address a rule decides and of others.
fn header() -> impl Strategy<Value = Header> {
    let source = prop_oneof![
        Just("198.51.100.9:40000"),
        Just("192.0.2.7:1"),
        Just("[2001:db8::7]:65535"),
        Just("[fd00::7]:2000"),
    ];
    let fields = proptest::collection::vec(
        (0xe0..0xf0u8, proptest::collection::vec(any::<u8>(), 0..200)),
        0..4,
    );
    (source, fields, 0..10u8).prop_map(|(source, fields, how)| {
        let client: SocketAddr = source.parse().unwrap();
        let port = client.port().to_be_bytes();
        let of = match how {
            0 | 1 => Of::Proxy,
            2 => Of::Unix,
            _ => Of::Client(client),
        };
        let bytes = match (how, client.ip()) {
            (0, _) => b"PROXY UNKNOWN and whatever follows\r\n".to_vec(),
            (1, _) => binary(0, 0, &[], &fields),
            (2, _) => binary(1, 0x31, &[b'x'; 216], &fields),
            (3..6, IpAddr::V4(ip)) => {
                format!("PROXY TCP4 {ip} 192.0.2.1 {} 80\r\n", client.port()).into()
            }
            (3..6, IpAddr::V6(ip)) => {
                format!("PROXY TCP6 {ip} fd00::1 {} 80\r\n", client.port()).into()
            }
            (_, IpAddr::V4(ip)) => {
                let addresses = [&ip.octets()[..], &[192, 0, 2, 1], &port, &[0, 80]].concat();
                binary(1, 0x11, &addresses, &fields)
            }
            (_, IpAddr::V6(ip)) => {
                let addresses = [&ip.octets()[..], &[0xfd; 16], &port, &[0, 80]].concat();
                binary(1, 0x21, &addresses, &fields)
            }
        };
        Header { bytes, of }
    })
}

#[test]
fn of_a_proxys_client_exactly_the_header_is_taken_off() {
    let (master, _place) = hall(BY_HOST);
    // What follows may look like another header, where nobody looks at it.
    let again = (any::<bool>(), request("/bytes"));
    let inputs = (header(), again, cuts());
    for_all(connections(500), "PROXY headers", &inputs, |(header, (again, request), cuts)| {
        let unseen = matches!(header.of, Of::Client(client) if is_unseen(client.ip()));
        let said = if again && unseen {
            [&header.bytes[..], b"\r\n\r\n", &request].concat()
        } else {
            request
        };
        let mut client = Client::connect_from([127, 0, 0, 2].into(), master.address());
        let whole = [&header.bytes[..], &said].concat();
        let answer = send_in_pieces(&mut client, &whole, header.bytes.len(), &cuts);
        prop_assert_eq!(answer.header("route"), Some(if unseen { "unseen" } else { "rest" }));
        let peer = match header.of {
            Of::Client(client) => client.to_string(),
            Of::Unix => "none".to_owned(),
            Of::Proxy => client.address().to_string(),
        };
        prop_assert_eq!(answer.header("peer"), Some(&*peer));
        prop_assert!(answer.body == said);
        Ok(())
    });
    master.stop();
}

fn is_unseen(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets().starts_with(&[198, 51, 100]),
        IpAddr::V6(ip) => ip.octets().starts_with(&[0x20, 0x01, 0x0d, 0xb8]),
    }
}

const BY_NAME: &str = "[[route]]\nname = \"a\"\nsni = \"a.example\"\npool = \"one\"\n\
                       [[route]]\nname = \"b\"\nsni = \".b.example\"\npool = \"two\"\n\
                       [[route]]\nname = \"rest\"\npool = \"one\"\n";

#[test]
fn a_hello_in_any_records_is_routed_by_its_name_and_read_from_its_first_byte() {
    let (master, _place) = hall(BY_NAME);
    let names = prop_oneof![
        Just(("a.example", "a")),
        Just(("x.b.example", "b")),
        Just(("c.example", "rest"))
    ];
    let lengths = proptest::collection::vec(1..300usize, 1..6);
    let behind = proptest::collection::vec(any::<u8>(), 0..2000);
    let hello = (names, 0..1500usize, lengths, behind);
    for_all(
        connections(500),
        "hellos",
        &(hello, cuts()),
        |(((name, route), padding, lengths, behind), cuts)| {
            let message = handshake(Some(name), padding);
            let (mut bytes, mut rest) = (Vec::new(), &message[..]);
            for length in lengths.iter().cycle() {
                let (part, later) = rest.split_at((*length).min(rest.len()));
                bytes.extend(record(part));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let hello = bytes.len();
            bytes.extend(behind);
            let answer = send_in_pieces(&mut master.client(), &bytes, hello, &cuts);
            prop_assert_eq!(answer.header("route"), Some(route));
            prop_assert!(answer.body == bytes);
            Ok(())
        },
    );
    master.stop();
}

/// What a worker read and hands back is read first by the next one, and then what still comes: here the
/// first one reads so many bytes, and the rest comes while the connection is on its way.
#[test]
fn what_a_worker_read_and_handed_back_is_read_again_before_what_follows() {
    let (master, _place) = hall(BY_HOST);
    let inputs = (request("/next/NUMBER"), any::<prop::sample::Index>(), any::<bool>(), cuts());
    let cases = connections(500);
    for_all(cases, "connections that were handed back", &inputs, |(bytes, after, named, cuts)| {
        let after = after.index(bytes.len() - head_end(&bytes) + 1) + head_end(&bytes);
        let path = if named { "/to/two".to_owned() } else { format!("/next/{after:06}") };
        let rest = &bytes[b"POST /next/NUMBER".len()..];
        let bytes = [b"POST ", path.as_bytes(), rest].concat();
        let edge = if named { head_end(&bytes) } else { after };
        let answer = send_in_pieces(&mut master.client(), &bytes, edge, &cuts);
        prop_assert!(answer.header("by").unwrap().starts_with("one-"));
        let pool = if named { "two-" } else { "one-" };
        prop_assert!(answer.header("worker").unwrap().starts_with(pool));
        prop_assert!(answer.body == bytes);
        Ok(())
    });
    assert_eq!(master.handed_back(0), u64::from(cases));
    master.stop();
}
