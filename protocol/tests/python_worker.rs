//! The document suffices: a worker in Python that was written from it (`tests/python/worker.py`, the
//! standard library only) against a router that is played here, over a real port.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::ConnectionInfo;
use vestibule_protocol::handshake::{Attach, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{
    self, FromWorker, ItemKind, Refusal, RefusalReason, kind, put_entry, put_item, put_message,
};
use vestibule_protocol::socket::{PacketBuffer, PacketSocket, ReceiveError, Sent};
use vestibule_protocol::sys;

/// Longer than any step takes on a loaded machine: a worker that hangs fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

/// The router's part.
struct Router {
    socket: PacketSocket,
    buffer: PacketBuffer,
    worker: Child,
    listener: TcpListener,
    epoch: u16,
}

/// What a worker said, as far as these tests look.
#[derive(Debug, PartialEq)]
enum Said {
    Hello(Hello),
    Acknowledged { up_to: u64, open: u32 },
    Refused(Vec<Refusal>),
    Message { sequence: u64, text: String },
}

impl Router {
    /// Starts a worker and attaches to it.
    async fn start() -> Self {
        let (ours, theirs) = sys::seqpacket_pair().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/worker.py");
        let worker = Command::new("python3")
            .arg(script)
            .env("VESTIBULE_FD", "0")
            .stdin(Stdio::from(theirs))
            .spawn()
            .expect("python3 runs the worker that was written from the document");
        let mut router = Self {
            socket: PacketSocket::new(ours).unwrap(),
            buffer: PacketBuffer::default(),
            worker,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            epoch: 0,
        };
        let hello = router.attach(7).await;
        assert_eq!(hello, Hello { received: 0, ..Hello::default() });
        router
    }

    async fn attach(&mut self, epoch: u16) -> Hello {
        self.epoch = epoch;
        let mut body = Vec::new();
        Attach::default().encode(&mut body);
        self.send(Header::new(kind::ATTACH, epoch), &body, &[]);
        match self.next().await {
            Said::Hello(hello) => hello,
            other => panic!("no hello: {other:?}"),
        }
    }

    fn send(&self, header: Header, body: &[u8], descriptors: &[&OwnedFd]) {
        let head = header.encode();
        let descriptors: Vec<_> = descriptors.iter().map(|item| item.as_fd()).collect();
        let parts = [IoSlice::new(&head), IoSlice::new(body)];
        assert_eq!(self.socket.try_send(&parts, &descriptors).unwrap(), Sent::Whole);
    }

    /// A client, and its connection as it was accepted.
    fn connect(&self) -> (TcpStream, OwnedFd) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = self.listener.accept().unwrap();
        (client, accepted.into())
    }

    /// Offers connections with `ID`s from their sequence on, the first of which get their descriptor.
    fn offer(&self, sequence: u64, messages: &[&str], descriptors: &[&OwnedFd]) {
        let mut body = Vec::new();
        for (id, message) in (sequence..).zip(messages) {
            put_entry(&mut body, &info(id), message.as_bytes()).unwrap();
        }
        let header = Header {
            codec: Codec::Json,
            descriptors: messages.len() as u8,
            sequence,
            ..Header::new(kind::OFFER, self.epoch)
        };
        self.send(header, &body, descriptors);
    }

    async fn receive(&mut self) -> Result<Said, ReceiveError> {
        let received = tokio::time::timeout(PATIENCE, self.socket.receive(&mut self.buffer));
        let packet = received.await.expect("the worker says something")?;
        assert_eq!((packet.header.epoch, packet.missing), (self.epoch, 0));
        let header = packet.header;
        assert_eq!(header.sequence != 0, header.kind == kind::WORKER_MESSAGE);
        Ok(match FromWorker::decode(&header, packet.body).unwrap() {
            FromWorker::Hello(hello) => Said::Hello(hello),
            FromWorker::Acknowledge(taken) => {
                Said::Acknowledged { up_to: taken.up_to, open: taken.open }
            }
            FromWorker::Refuse(refusals) => Said::Refused(refusals),
            FromWorker::Message(text) => {
                assert_eq!(header.codec, Codec::Json);
                let text = String::from_utf8(text.to_vec()).unwrap();
                Said::Message { sequence: header.sequence, text }
            }
            other => panic!("unexpected: {other:?}"),
        })
    }

    async fn next(&mut self) -> Said {
        self.receive().await.unwrap()
    }

    /// Reads load reports until this many connections are open.
    async fn load(&mut self, expected: u32) {
        loop {
            let Said::Acknowledged { up_to: 0, open } = self.next().await else {
                panic!("something else than the load")
            };
            if open == expected {
                return;
            }
        }
    }

    async fn end(mut self) -> ExitStatus {
        self.socket.shutdown();
        tokio::task::spawn_blocking(move || self.worker.wait().unwrap()).await.unwrap()
    }
}

fn info(id: u64) -> ConnectionInfo {
    ConnectionInfo {
        id,
        peer: Some("192.0.2.9:4711".parse().unwrap()),
        peer_credentials: None,
        destination: None,
        listener: "web".into(),
        route: "default".into(),
        peer_context: None,
        accepted: 1,
        ..ConnectionInfo::default()
    }
}

fn ask(client: &mut TcpStream) {
    client.write_all(b"GET / HTTP/1.1\r\nhost: example.org\r\n\r\n").unwrap();
}

/// The body of the answer, which ends with the connection.
async fn answer(mut client: TcpStream) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = read.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body.to_owned()
}

#[tokio::test]
async fn two_connections_of_one_packet_are_acknowledged_and_served() {
    let mut router = Router::start().await;
    let ((mut one, first), (mut two, second)) = (router.connect(), router.connect());
    ask(&mut one);
    router.offer(1, &[r#"{"reqno":1}"#, r#"{"reqno":2}"#], &[&first, &second]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 2, open: 2 });
    drop((first, second));
    let facts = "listener=web; peer=192.0.2.9:4711; route=default";
    assert_eq!(answer(one).await, format!("id=1; {facts}; message={{\"reqno\":1}}\n"));
    router.load(1).await;
    ask(&mut two);
    assert_eq!(answer(two).await, format!("id=2; {facts}; message={{\"reqno\":2}}\n"));
    router.load(0).await;
    assert!(router.end().await.success());
}

#[tokio::test]
async fn an_adopted_connection_ends_for_the_client_while_the_router_still_holds_its_copy() {
    let mut router = Router::start().await;
    let (mut client, connection) = router.connect();
    ask(&mut client);
    router.offer(1, &["1"], &[&connection]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 1, open: 1 });
    assert!(answer(client).await.ends_with("message=1\n"));
    drop(connection);
    router.load(0).await;
    assert!(router.end().await.success());
}

#[tokio::test]
async fn a_missing_descriptor_is_refused_before_the_acknowledgement_and_its_copy_lives() {
    let mut router = Router::start().await;
    let (mut one, first) = router.connect();
    let (mut two, second) = router.connect();
    let (mut three, third) = router.connect();
    router.offer(1, &["1", "2", "3"], &[&first]);
    let lost = [
        Refusal { sequence: 2, reason: RefusalReason::MissingDescriptor },
        Refusal { sequence: 3, reason: RefusalReason::BehindMissing },
    ];
    assert_eq!(router.next().await, Said::Refused(lost.to_vec()));
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 3, open: 1 });
    // The refused ones move: here to the same worker, each with its next number.
    router.offer(4, &["2", "3"], &[&second, &third]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 5, open: 3 });
    drop((first, second, third));
    [&mut one, &mut two, &mut three].into_iter().for_each(ask);
    for (client, message) in [(one, 1), (two, 2), (three, 3)] {
        assert!(answer(client).await.ends_with(&format!("message={message}\n")));
    }
    router.load(0).await;
    assert!(router.end().await.success());
}

#[tokio::test]
async fn messages_small_and_large_arrive_with_their_descriptors() {
    let mut router = Router::start().await;
    for (sequence, length) in [(1, 10), (2, 1_000_000)] {
        let text = "x".repeat(length);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (descriptor, mut body) = (OwnedFd::from(writer), Vec::new());
        put_item(&mut body, &ItemKind::Descriptor).unwrap();
        put_message(&mut body, format!("\"{text}\"").as_bytes());
        let header = Header {
            codec: Codec::Json,
            sequence,
            descriptors: 1,
            ..Header::new(kind::MESSAGE, router.epoch)
        };
        let written = tokio::task::spawn_blocking(move || {
            let mut written = String::new();
            reader.read_to_string(&mut written).unwrap();
            written
        });
        if length > 30_000 {
            let memory = sys::sealed_memory(&body).unwrap();
            let header = Header { large: true, descriptors: 2, ..header };
            router.send(header, &[], &[&memory, &descriptor]);
        } else {
            router.send(header, &body, &[&descriptor]);
        }
        drop(descriptor);
        let echo = Said::Message { sequence, text: format!("{{\"echo\": {length}}}") };
        assert_eq!(router.next().await, echo);
        assert_eq!(router.next().await, Said::Acknowledged { up_to: sequence, open: 0 });
        assert!(written.await.unwrap() == text, "the worker closed it after writing");
    }
    assert!(router.end().await.success());
}

#[tokio::test]
async fn messages_that_cannot_be_read_are_refused_and_the_worker_goes_on() {
    let mut router = Router::start().await;
    let (_reader, writer) = std::io::pipe().unwrap();
    let no_memory = OwnedFd::from(writer);
    let mut body = Vec::new();
    put_message(&mut body, b"{ not JSON");
    let header =
        Header { codec: Codec::Json, sequence: 1, ..Header::new(kind::MESSAGE, router.epoch) };
    router.send(header, &body, &[]);
    router.send(Header { codec: Codec::Bincode, sequence: 2, ..header }, &body, &[]);
    let large = Header { large: true, descriptors: 1, ..header };
    router.send(Header { sequence: 3, ..large }, &[], &[&no_memory]);
    router.send(Header { sequence: 4, ..large }, &[], &[]);
    for (sequence, reason) in [
        (1, RefusalReason::Undecodable),
        (2, RefusalReason::Format),
        (3, RefusalReason::Undecodable),
        (4, RefusalReason::MissingDescriptor),
    ] {
        assert_eq!(router.next().await, Said::Refused(vec![Refusal { sequence, reason }]));
        assert_eq!(router.next().await, Said::Acknowledged { up_to: sequence, open: 0 });
    }
    assert!(router.end().await.success());
}

#[tokio::test]
async fn a_second_router_is_told_what_the_worker_holds_and_goes_on_counting() {
    let mut router = Router::start().await;
    let (mut client, connection) = router.connect();
    router.offer(1, &["1"], &[&connection]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 1, open: 1 });
    let hello = router.attach(8).await;
    assert_eq!(hello, Hello { open: 1, received: 1, ..Hello::default() });
    let (mut later, second) = router.connect();
    router.offer(2, &["2"], &[&second]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 2, open: 2 });
    drop((connection, second));
    ask(&mut client);
    assert!(answer(client).await.ends_with("message=1\n"));
    ask(&mut later);
    assert!(answer(later).await.ends_with("message=2\n"));
    router.load(0).await;
    assert!(router.end().await.success());
}

#[tokio::test]
async fn a_draining_worker_refuses_what_is_new_finishes_what_is_open_and_ends() {
    let mut router = Router::start().await;
    let (mut client, connection) = router.connect();
    router.offer(1, &["1"], &[&connection]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 1, open: 1 });
    drop(connection);
    let mut body = Vec::new();
    message::put_timeout(&mut body, PATIENCE);
    router.send(Header::new(kind::DRAIN, router.epoch), &body, &[]);
    let (mut late, connection) = router.connect();
    router.offer(2, &["2"], &[&connection]);
    let refusal = Refusal { sequence: 2, reason: RefusalReason::Draining };
    assert_eq!(router.next().await, Said::Refused(vec![refusal]));
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 2, open: 1 });
    // Not shut down by the worker: another may still serve it.
    late.write_all(b"x").unwrap();
    let mut unread = [0];
    std::fs::File::from(connection).read_exact(&mut unread).unwrap();
    assert_eq!(&unread, b"x");
    ask(&mut client);
    assert!(answer(client).await.ends_with("message=1\n"));
    router.load(0).await;
    assert_eq!(router.receive().await.unwrap_err(), ReceiveError::Closed);
    assert!(router.worker.wait().unwrap().success());
}

#[tokio::test]
async fn a_packet_that_breaks_the_protocol_closes_the_port_and_not_the_connections() {
    let mut router = Router::start().await;
    let (mut client, connection) = router.connect();
    router.offer(1, &["1"], &[&connection]);
    assert_eq!(router.next().await, Said::Acknowledged { up_to: 1, open: 1 });
    let unannounced = Header::new(kind::CLOSE, router.epoch);
    router.send(unannounced, &[], &[&connection]);
    drop(connection);
    assert_eq!(router.receive().await.unwrap_err(), ReceiveError::Closed);
    ask(&mut client);
    assert!(answer(client).await.ends_with("message=1\n"));
    assert!(router.worker.wait().unwrap().success());
}
