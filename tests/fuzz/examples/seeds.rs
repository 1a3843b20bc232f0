//! Writes the checked-in corpus: one input for each kind of packet and each type of message, from
//! the project's own encoders. Run again when the format grows:
//!
//! ```text
//! cargo run --manifest-path tests/fuzz/Cargo.toml --example seeds
//! ```

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use vestibule_fuzz::{How, Job};
use vestibule_protocol::codec::Data;
use vestibule_protocol::connection_info::{ConnectionInfo, PeerCredentials, Ticket};
use vestibule_protocol::handshake::{Acks, Attach, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{
    ErrorReport, HandBack, ItemKind, Refusal, RefusalReason, kind, put_acknowledge,
    put_acknowledge_each, put_entry, put_error, put_item, put_message, put_prefix, put_refusal,
    put_timeout,
};
use vestibule_protocol::scope::{self, Scope, Texts};
use vestibule_protocol::supervision::{FromRouter, ToRouter, WorkerId};
use vestibule_protocol::{Codec, tlv};

fn main() -> io::Result<()> {
    for (name, bytes) in headers() {
        write("header", name, &bytes)?;
    }
    for (name, bytes) in packets() {
        write("tlv", name, &bytes)?;
    }
    for (target, extension) in [("client_hello", "hello"), ("http_head", "head")] {
        for (name, bytes) in recorded(extension)? {
            write(target, &name, &bytes)?;
        }
    }
    for (name, bytes) in proxy_headers() {
        write("proxy_header", name, &bytes)?;
    }
    for (name, bytes) in conversations() {
        write("gate", name, &bytes)?;
    }
    for (name, head) in heads() {
        write("http_head", name, head.as_bytes())?;
    }
    for (name, bytes) in scopes() {
        write("scope", name, &bytes)?;
    }
    for (name, bytes) in messages() {
        write("codec", &name, &bytes)?;
    }
    for (name, bytes) in changes() {
        write("passed", name, &bytes)?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

/// Heads with parameters and cookies as clients write them, and as they do not.
fn heads() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "query",
            "GET /x?a=1&a=%32&b=x+y%2B&&=c&d&e=%C3%A4%ff%zz%1 HTTP/1.1\r\nhost: a.example\r\n\r\n",
        ),
        ("query-odd", "GET http://a.example?x=?y=&%61=%26%3D HTTP/1.1\r\n\r\n"),
        (
            "cookies",
            "GET / HTTP/1.1\r\ncookie: a=1; b=\"2; 3\";a = 4 ;=5; c;; d==6\r\nCookie: b=7\r\n\r\n",
        ),
    ]
}

/// Empty rules, or values, that together take the most memory for each of their bytes: one more than a
/// list that grows had room for.
const MANY: usize = 513;

/// Scopes as they travel, and rules with a head: see `targets/scope.rs`.
fn scopes() -> Vec<(&'static str, Vec<u8>)> {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let (hosts, paths) = (texts(&["a.example", "*.b.example"]), texts(&["/api/*", "/x"]));
    let named = vec![("v".to_owned(), texts(&["1", "2*"]))];
    let rule = Texts::default();
    let all = Texts { query: &named, headers: &named, cookies: &named, ..rule };
    let by_host = Texts { hosts: Some(&hosts), paths: Some(&paths), ..rule };
    let many = vec![String::new(); MANY];
    let judged = |rules: &str, head: &str| format!("{rules}\n\n{head}\r\n\r\n").into_bytes();
    vec![
        ("nothing", Vec::new()),
        ("by-host", scope::encode([by_host])),
        ("every-kind", scope::encode([all, by_host, rule])),
        ("many-rules", scope::encode([rule; MANY])),
        ("too-long", scope::encode([rule; 205]).repeat(5)),
        ("many-values", scope::encode([Texts { query: &[("".to_owned(), many)], ..rule }])),
        (
            "table",
            judged(
                "p/admin/*\nha.example p/api/*\nha.example\n-",
                "GET /api/../admin HTTP/1.1\r\nhost: A.example:80",
            ),
        ),
        (
            "table-named",
            judged(
                "qv=1 qv=2* fx-a=b*\nctier=gold\nh*.example qv\n-",
                "GET /?v=%32 HTTP/1.1\r\nhost: a.example\r\nX-A: c\r\ncookie: a=b; tier=gold",
            ),
        ),
        (
            "table-unknown",
            judged("hb.example\nha.example\np/x", "GET /x HTTP/1.1\r\nhost: a\r\nhost: b"),
        ),
        ("table-no-match", judged("ha.example p/x\np/y*", "OPTIONS * HTTP/1.1\r\nhost: a.example")),
    ]
}

/// What clients say on one connection: when the service is called and which scope, four sizes of
/// pieces, and then the bytes.
fn conversations() -> Vec<(&'static str, Vec<u8>)> {
    const WHOLE: [u8; 4] = [0; 4];
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nhost: a.example\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let chunked = "POST /api HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let upgrade = "GET /api HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x01\n\n";
    let cookie = "GET /?v=ab HTTP/1.1\r\ncookie: tier=a\r\n\r\n";
    let [api, admin, home] = ["/api/x", "/admin", "/"].map(get);
    let said = |how: u8, sizes: [u8; 4], parts: &[&str]| {
        [&[how][..], &sizes, parts.concat().as_bytes()].concat()
    };
    vec![
        ("three", said(2, WHOLE, &[&home, &api, &admin])),
        ("three-later", said(3, [1; 4], &[&home, &api, &admin])),
        ("by-host", said(4, [7, 3, 90, 1], &[&api, &post("/api/y", &admin), &home, &api])),
        ("by-cookie", said(6, [0, 9, 0, 0], &[cookie, cookie, &home])),
        ("no-scope", said(1, WHOLE, &[&home, &home])),
        ("chunked", said(2, WHOLE, &[&home, chunked, &admin])),
        ("upgrade", said(2, WHOLE, &[&home, upgrade, &admin])),
        ("tunnel", said(2, WHOLE, &["CONNECT a.example:443 HTTP/1.1\r\n\r\n", &admin])),
        ("lines", said(3, [2; 4], &["\r\n\n", &home, "\n\r\n", "GET /admin HTTP/1.0\n\n", &api])),
        ("cut-body", said(2, WHOLE, &[&home, &post("/", "12345")[..60]])),
        ("http2", said(2, WHOLE, &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\x04\0\0\0\0\0"])),
        ("long-head", said(2, WHOLE, &[&home, &get(&format!("/admin/{}", "x".repeat(3000)))])),
        (
            "expects",
            said(
                2,
                WHOLE,
                &[
                    &home,
                    "POST /admin HTTP/1.1\r\nexpect: 100-continue\r\n\
                                            content-length: 1\r\n\r\nx",
                ],
            ),
        ),
    ]
}

/// What real clients said first.
fn recorded(extension: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../router/tests/recorded");
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && path.extension().is_some_and(|found| found == extension)
        {
            all.push((name.to_owned(), fs::read(&path)?));
        }
    }
    Ok(all)
}

/// One of each version, family and field.
fn proxy_headers() -> Vec<(&'static str, Vec<u8>)> {
    let binary = |command: u8, family: u8, rest: &[u8]| {
        let length = u16::try_from(rest.len()).expect("a short header").to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &length, rest].concat()
    };
    let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0xc8, 0, 0, 80];
    let fields = b"\x01\0\x02h2\x02\0\x01a\x05\0\x02id\x04\0\x01\0\x20\0\x05\x01\0\0\0\0";
    vec![
        ("text-4", b"PROXY TCP4 192.0.2.7 10.0.0.1 51200 80\r\nGET /".to_vec()),
        ("text-6", b"PROXY TCP6 2001:db8::7 ::1 51200 443\r\n".to_vec()),
        ("text-unknown", b"PROXY UNKNOWN\r\n".to_vec()),
        ("binary-4", binary(1, 0x11, &v4)),
        ("binary-6", binary(1, 0x21, &[7; 36])),
        ("binary-unix", binary(1, 0x31, &[b'x'; 216])),
        ("binary-local", binary(0, 0, &[])),
        ("binary-fields", binary(1, 0x11, &[&v4[..], fields].concat())),
        ("binary-checksum", binary(1, 0x11, &[&v4[..], &[3, 0, 4, 0, 0, 0, 0]].concat())),
    ]
}

fn headers() -> Vec<(&'static str, Vec<u8>)> {
    let offer = Header { codec: Codec::Json, descriptors: 64, sequence: 1, ..header(kind::OFFER) };
    let large = Header { codec: Codec::Bytes, large: true, descriptors: 1, ..offer };
    let mut wrong_magic = offer.encode();
    wrong_magic.swap(0, 1);
    vec![
        ("offer", offer.encode().to_vec()),
        ("large", large.encode().to_vec()),
        ("with-body", [&offer.encode()[..], b"body"].concat()),
        ("wrong-magic", wrong_magic.to_vec()),
    ]
}

fn header(kind: u8) -> Header {
    Header::new(kind, 1)
}

fn packet(header: Header, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = header.encode().to_vec();
    write(&mut out);
    out
}

fn info(peer: Option<&str>) -> ConnectionInfo {
    ConnectionInfo {
        id: 2,
        peer: peer.map(|peer| peer.parse().expect("an address")),
        peer_credentials: Some(PeerCredentials { pid: 4321, uid: 1000, gid: 100 }),
        destination: Some("[fe80::1%3]:443".parse().expect("an address")),
        listener: "web".into(),
        route: "default".into(),
        peer_context: Some("system_u:system_r:app_t:s0-s0:c0.c5".into()),
        accepted: 12_345_678,
        ..ConnectionInfo::default()
    }
}

fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let refusals = |out: &mut Vec<u8>| {
        for (sequence, reason) in [(7, RefusalReason::Draining), (9, RefusalReason::Full)] {
            put_refusal(out, Refusal { sequence, reason });
        }
    };
    let transfer = |out: &mut Vec<u8>| {
        for item in [
            ItemKind::Connection(info(Some("10.1.2.3:4"))),
            ItemKind::Port,
            ItemKind::Listener,
            ItemKind::Descriptor,
        ] {
            put_item(out, &item).expect("a short item");
        }
        put_message(out, br#"{"reqno":2}"#);
    };
    let four = Header { codec: Codec::Json, descriptors: 4, sequence: 3, ..header(kind::MESSAGE) };
    let two = Header { codec: Codec::Bincode, descriptors: 2, sequence: 5, ..header(kind::OFFER) };
    vec![
        ("attach", packet(header(kind::ATTACH), |out| Attach::default().encode(out))),
        (
            "offer",
            packet(two, |out| {
                put_entry(out, &info(Some("127.0.0.1:51234")), &[2]).expect("a short entry");
                put_entry(out, &info(None), &[]).expect("a short entry");
            }),
        ),
        ("message", packet(four, transfer)),
        (
            "message-large",
            packet(Header { large: true, descriptors: 1, ..four }, |out| put_message(out, b"[1]")),
        ),
        ("port-message", packet(Header { kind: kind::PORT_MESSAGE, ..four }, transfer)),
        (
            "hand-back",
            packet(Header { kind: kind::HAND_BACK, descriptors: 1, ..four }, |out| {
                let ticket = Some(Ticket::from(*b"ticket of 4 web."));
                let info = ConnectionInfo { ticket, ..info(Some("10.1.2.3:4")) };
                let (prefix, message) = (Cow::Borrowed(&b"GET /admin"[..]), &b"{}"[..]);
                HandBack { info, prefix, to: "customers", message }.encode(out).expect("short");
            }),
        ),
        (
            "message-prefix",
            packet(Header { descriptors: 1, ..four }, |out| {
                let handed_back_by = Some(Box::new("login-1".into()));
                let paths = ["/api/*".to_owned()];
                let texts = Texts { paths: Some(&paths), ..Texts::default() };
                let scope = Scope::decode(&scope::encode([texts])).expect("a scope");
                let scope = Some(scope.into());
                let info = ConnectionInfo { handed_back_by, scope, ..info(Some("10.1.2.3:4")) };
                put_item(out, &ItemKind::Connection(info)).expect("a short item");
                put_prefix(out, b"GET /admin");
                put_message(out, b"{}");
            }),
        ),
        (
            "hand-back-many-rules",
            packet(Header { descriptors: 1, ..header(kind::HAND_BACK) }, |out| {
                let scope = Scope::decode(&scope::encode([Texts::default(); MANY]));
                let scope = Some(scope.expect("a scope").into());
                let info = ConnectionInfo { scope, ..info(None) };
                let (prefix, message) = (Cow::Borrowed(&b""[..]), &b""[..]);
                HandBack { info, prefix, to: "", message }.encode(out).expect("short");
            }),
        ),
        ("refused", packet(header(kind::REFUSED), refusals)),
        ("drain", packet(header(kind::DRAIN), |out| put_timeout(out, Duration::from_millis(1500)))),
        ("close", packet(header(kind::CLOSE), |_| {})),
        (
            "hello",
            packet(header(kind::HELLO), |out| {
                Hello { acks: Acks::Each, open: 7, received: 1 << 40, ..Hello::default() }
                    .encode(out);
            }),
        ),
        ("acknowledge", packet(header(kind::ACKNOWLEDGE), |out| put_acknowledge(out, 64, 12))),
        (
            "acknowledge-each",
            packet(header(kind::ACKNOWLEDGE), |out| put_acknowledge_each(out, &[3, 1, 2], 12)),
        ),
        ("refuse", packet(header(kind::REFUSE), refusals)),
        (
            "worker-message",
            packet(Header { codec: Codec::Bytes, ..header(kind::WORKER_MESSAGE) }, |out| {
                out.extend_from_slice(b"text");
            }),
        ),
        (
            "error",
            packet(header(kind::ERROR), |out| {
                let report = ErrorReport {
                    message: "index out of bounds".into(),
                    file: "src/main.rs".into(),
                    line: 10,
                    column: 5,
                };
                put_error(out, &report);
            }),
        ),
        (
            "unknown-field",
            packet(header(kind::DRAIN), |out| {
                tlv::put(out, 0x7fff, b"from the future").expect("a short field");
                put_timeout(out, Duration::from_secs(1));
            }),
        ),
        ("facts", packet_less(|out| info(Some("[2001:db8::1]:80")).encode(out))),
    ]
}

fn packet_less(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// The types as `targets/codec.rs` numbers them.
/// Planned changes of the router: what comes along with each message, its length, and the message. The
/// types are the router's own and nobody else's, so they are said here as bincode does: a variant's number,
/// and then its fields.
fn changes() -> Vec<(&'static str, Vec<u8>)> {
    fn known(by: Option<&str>, prefix: &[u8]) -> impl Serialize {
        let mut known = Vec::new();
        let by = by.map(|by| Box::new(by.into()));
        ConnectionInfo { handed_back_by: by, ..info(Some("192.0.2.7:50000")) }.encode(&mut known);
        (known, 1u8, b"{}".to_vec(), prefix.to_vec(), u8::from(!prefix.is_empty()), 0u64, 9u64)
    }
    fn decided(affinity: Option<(u32, &str)>) -> impl Serialize {
        (
            known(None, b""),
            1u32,
            vec![0u32, 2],
            false,
            affinity.map(|(kind, key)| (kind, key.to_owned())),
            Some(Vec::<u8>::new()),
        )
    }
    fn said(along: u8, message: &impl Serialize) -> Vec<u8> {
        let message = encode(Codec::Bincode, message).into_bytes();
        let [low, high] = u16::try_from(message.len()).expect("a short one").to_le_bytes();
        [&[along, low, high], &*message].concat()
    }
    let second = Duration::from_secs(1);
    let waiting = said(1, &(0u32, 1u32, decided(Some((0, "key")))));
    let worker = |slot: u32, next: u64| said(0, &(1u32, 1u32, slot, 0u32, true, false, next, 2u64));
    let offered = |sequence: u64, epoch: u16| {
        said(
            1,
            &(
                2u32,
                sequence,
                second,
                sequence.is_multiple_of(2),
                epoch,
                decided(Some((1, "app-1"))),
            ),
        )
    };
    let former = |number: u64| said(0, &(3u32, number));
    let announced = Some((None::<u8>, Some(b"id".to_vec())));
    let inspected = said(1, &(4u32, 2u32, known(Some("app-1"), b"GET /"), true, announced, second));
    let peers: Vec<(u32, std::net::IpAddr, Duration)> =
        vec![(1, [192, 0, 2, 7].into(), second), (1, std::net::Ipv6Addr::LOCALHOST.into(), second)];
    let used = said(0, &(5u32, peers));
    let all = said(0, &6u32);
    let offers =
        |numbers: &[u64]| numbers.iter().flat_map(|it| offered(*it, 1)).collect::<Vec<_>>();
    vec![
        ("waiting", [waiting.clone(), waiting.clone(), all.clone()].concat()),
        ("offered", [worker(0, 9), offers(&[3, 4, 7]), worker(1, 70), offers(&[60, 69])].concat()),
        (
            "far-apart",
            [worker(0, u64::MAX >> 2), offers(&[1]), worker(1, 101), offers(&[1, 2])].concat(),
        ),
        (
            "out-of-order",
            [offers(&[1]), worker(0, 5), offers(&[4, 2, 4, 5, 0]), offered(1, 7)].concat(),
        ),
        ("twice", [worker(0, 5), offers(&[1]), worker(0, 5), offers(&[2])].concat()),
        ("inspected", [used.clone(), inspected.clone(), former(3), used, inspected, all].concat()),
        ("former", (0..5).flat_map(former).collect()),
        (
            "without-a-socket",
            [vec![0], waiting[1..].to_vec(), vec![3], waiting[1..].to_vec()].concat(),
        ),
    ]
}

fn messages() -> Vec<(String, Vec<u8>)> {
    let job = Job {
        id: u64::MAX,
        delta: -5,
        name: "ä".into(),
        tags: vec![String::new(), "b".into()],
        body: vec![0, 255],
        parent: Some((300, 'x')),
        how: How::Between { from: i64::MIN, to: 0 },
        limits: [(1, true), (70_000, false)].into(),
    };
    let worker = WorkerId { pool: 0, slot: 3, generation: 1 };
    let any = serde_json::json!({ "a": [1, -2, 0.5, null, true], "b": { "c": "\u{1f600}\n" } });
    let mut out = Vec::new();
    for codec in [Codec::Json, Codec::Bincode] {
        let mut add = |shape: u8, name: &str, data: Data| {
            let bytes = [&[shape, codec as u8], data.as_bytes()].concat();
            out.push((format!("{name}-{codec:?}").to_lowercase(), bytes));
        };
        add(0, "number", encode(codec, &70_000u64));
        add(1, "text", encode(codec, "hello"));
        add(2, "bytes", encode(codec, &vec![1u8, 2, 200]));
        add(3, "lists", encode(codec, &vec![vec![-1i64, 1 << 40], vec![]]));
        add(4, "job", encode(codec, &job));
        add(5, "started", encode(codec, &ToRouter::Started { worker, pid: 4321 }));
        add(6, "ready", encode(codec, &FromRouter::Ready { worker }));
        let reason = "port ended".to_owned();
        add(6, "kill", encode(codec, &FromRouter::Kill { worker, reason }));
        if codec == Codec::Json {
            add(7, "any", encode(codec, &any));
        }
    }
    out
}

fn encode<T: Serialize + ?Sized>(codec: Codec, value: &T) -> Data {
    Data::encode(codec, value).expect("a value that every format can say")
}
