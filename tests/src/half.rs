//! Clients that have said a part of something, of every kind that a router looks at.

use std::net::{IpAddr, SocketAddr};

use crate::client::Client;

/// Of each kind; more of them by hand, with `TEST_EACH`.
fn each() -> usize {
    std::env::var("TEST_EACH").map_or(20, |text| text.parse().unwrap())
}

fn raise_descriptors() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A hello of TLS 1.2 with this name, or without one, and so much padding (RFC 7685) behind it: the handshake
/// message.
pub fn handshake(name: Option<&str>, padding: usize) -> Vec<u8> {
    let entry = |name: &str| [&[0][..], &sized(name.as_bytes())].concat();
    let named = |name: &str| [&[0, 0][..], &sized(&sized(&entry(name)))].concat();
    let mut extensions = name.map_or(Vec::new(), named);
    if padding > 0 {
        extensions.extend([&[0, 21][..], &sized(&vec![0; padding])].concat());
    }
    let suites = sized(&[0x13, 0x01]);
    let body = [&[3, 3][..], &[7; 32], &[0], &suites, &[1, 0], &sized(&extensions)].concat();
    [&[1, 0][..], &sized(&body)].concat()
}

/// A part of a handshake message in a record of its own.
pub fn record(part: &[u8]) -> Vec<u8> {
    [&[0x16, 3, 1][..], &sized(part)].concat()
}

/// A hello of TLS 1.2, with this name or without one, and nothing else that matters.
pub fn client_hello(name: Option<&str>) -> Vec<u8> {
    record(&handshake(name, 0))
}

/// A hello with this name, and what makes the test's worker send all of it back.
pub fn hello(name: &str) -> Vec<u8> {
    [&client_hello(Some(name))[..], b" /bytes \r\n\r\n"].concat()
}

/// The head of a request that makes the test's worker send all of it back.
pub fn head(host: &str) -> Vec<u8> {
    format!("POST /bytes HTTP/1.1\r\nhost: {host}\r\nx-more: {}\r\n\r\n", "m".repeat(300)).into()
}

/// What a proxy says first of a client that asked it for this name by TLS.
pub fn header_of_tls(name: &str) -> Vec<u8> {
    let more = [&[2][..], &sized(name.as_bytes())].concat();
    let addresses = [192, 0, 2, 7, 192, 0, 2, 1, 0, 1, 0, 2];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &sized(&[&addresses[..], &more].concat())].concat()
}

/// A client that has said a part.
#[derive(Debug)]
pub struct Half {
    /// Its connection.
    pub client: Client,
    /// What it has not said yet.
    pub rest: Vec<u8>,
    /// What its worker is to read.
    pub reads: Vec<u8>,
}

impl Half {
    /// One from this address, that sends `header` and `said` up to `cut` bytes of both.
    pub fn of(to: SocketAddr, source: &str, header: &[u8], said: &[u8], cut: usize) -> Self {
        let mut client = Client::connect_from(source.parse::<IpAddr>().unwrap(), to);
        let all = [header, said].concat();
        client.send(&all[..cut]);
        Self { client, rest: all[cut..].to_vec(), reads: said.to_vec() }
    }

    /// It says the rest, and gets back from its worker all that was for it.
    pub fn assert_served(mut self) {
        self.client.send(&self.rest);
        self.client.finish();
        let answer = self.client.answer();
        assert_eq!(answer.status, 200, "{:?} {:?}", answer.headers, answer.text());
        assert!(answer.body == self.reads, "a byte was lost or made up");
    }

    /// It says the rest, if it is still heard: the status of the answer, if there is one.
    pub fn outcome(mut self) -> Option<u16> {
        self.client.try_send(&self.rest);
        self.client.try_finish();
        self.client.try_answer().ok().map(|answer| answer.status)
    }
}

/// Clients that have said half of something, of every kind: of `a.example`, or what a proxy announced as
/// `announced.example`. 127.0.0.2 is to be a proxy.
pub fn crowd(to: SocketAddr) -> Vec<Half> {
    const TEXT: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n";
    let announced = header_of_tls("announced.example");
    let (head, hello) = (head("a.example"), hello("a.example"));
    let mut all = Vec::new();
    raise_descriptors();
    for number in 0..each() {
        let number = number % 20;
        all.extend([
            Half::of(to, "127.0.0.1", b"", &head, 0),
            Half::of(to, "127.0.0.1", b"", &head, 30 + number * 10),
            Half::of(to, "127.0.0.1", b"", &hello, 20 + number),
            Half::of(to, "127.0.0.2", TEXT, &head, TEXT.len() / 2),
            Half::of(to, "127.0.0.2", TEXT, &head, TEXT.len() + number),
            Half::of(to, "127.0.0.2", TEXT, &hello, TEXT.len() + 20 + number),
            Half::of(to, "127.0.0.2", &announced, &head, 10),
            Half::of(to, "127.0.0.2", &announced, &head, announced.len() + number),
        ]);
    }
    all
}
