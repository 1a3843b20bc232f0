//! Plays the router over a real seqpacket pair, and clients over real TCP connections.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use vestibule_protocol::codec::Codec;
use vestibule_protocol::handshake::{Attach, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{self, ErrorReport, FromWorker, ItemKind, Refusal, kind};
use vestibule_protocol::socket::{PacketBuffer, PacketSocket, ReceiveError, Sent};
use vestibule_protocol::{ConnectionInfo, Data, sys};
use vestibule_worker::{RefusalReason, WorkerScope};

/// No test waits longer for anything: a generous bound, so that a failure is a failure and no hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The router's end of a worker's port.
pub struct Router {
    port: PacketSocket,
    buffer: PacketBuffer,
    epoch: u16,
    sequence: u64,
    connections: u64,
    /// Connections that the worker handed back.
    pub returned: Vec<OwnedFd>,
}

/// What the worker said, kept.
#[derive(Debug, PartialEq)]
pub enum Said {
    Hello(Hello),
    Acknowledged {
        up_to: u64,
        open: u32,
    },
    Refused(Vec<(u64, RefusalReason)>),
    Message {
        sequence: u64,
        data: Data,
    },
    Error(ErrorReport),
    Draining,
    Closing,
    /// The connection is among the router's `returned`.
    HandedBack {
        sequence: u64,
        info: Box<ConnectionInfo>,
        prefix: Vec<u8>,
        to: String,
        data: Data,
    },
    End,
}

impl Router {
    /// A router and the scope of its worker.
    pub fn and_worker() -> (Self, WorkerScope) {
        let (ours, theirs) = sys::seqpacket_pair().unwrap();
        (Self::over(ours), WorkerScope::from_descriptor(theirs).unwrap())
    }

    pub fn over(port: OwnedFd) -> Self {
        Self {
            port: PacketSocket::new(port).unwrap(),
            buffer: PacketBuffer::default(),
            epoch: 1,
            sequence: 0,
            connections: 0,
            returned: Vec::new(),
        }
    }

    /// Attaches with this drain timeout and waits for `Hello`.
    pub async fn attached(&mut self, drain_timeout: Duration) -> Hello {
        self.attach(Attach { drain_timeout, ..Attach::default() });
        match self.hears().await {
            Said::Hello(hello) => hello,
            other => panic!("{other:?} instead of Hello"),
        }
    }

    pub fn attach(&mut self, attach: Attach) {
        let mut body = Vec::new();
        attach.encode(&mut body);
        self.send(&Header::new(kind::ATTACH, self.epoch), &body, &[]);
    }

    /// Another router takes over.
    pub fn next_epoch(&mut self) {
        self.epoch += 1;
    }

    /// What is heard next was for the one before.
    pub fn last_epoch(&mut self) {
        self.epoch -= 1;
    }

    /// Asks the kernel to refuse descriptors from the worker, where it can.
    pub fn refuses_descriptors(&self) -> bool {
        sys::refuse_descriptors(self.port.as_fd())
    }

    pub fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    pub fn say(&mut self, kind: u8, body: &[u8]) {
        self.send(&Header::new(kind, self.epoch), body, &[]);
    }

    pub fn drain(&mut self, timeout: Duration) {
        let mut body = Vec::new();
        message::put_timeout(&mut body, timeout);
        self.say(kind::DRAIN, &body);
    }

    /// Tells the worker to finish, since everything ends.
    pub fn drain_all(&mut self, timeout: Duration) {
        let mut body = Vec::new();
        message::put_timeout(&mut body, timeout);
        message::put_last(&mut body);
        self.say(kind::DRAIN, &body);
    }

    /// The facts of the next connection.
    pub fn facts(&mut self, peer: Option<SocketAddr>) -> ConnectionInfo {
        self.connections += 1;
        ConnectionInfo {
            id: self.connections,
            peer,
            peer_credentials: None,
            destination: None,
            listener: "web".into(),
            route: "default".into(),
            peer_context: None,
            accepted: 0,
            ..ConnectionInfo::default()
        }
    }

    /// Offers connections in one packet, each with its message; the copies stay with the caller.
    pub fn offer(&mut self, connections: &[(&OwnedFd, &Data)]) -> u64 {
        let mut body = Vec::new();
        let codec = connections.first().map_or(Codec::None, |(_, data)| data.codec());
        for (connection, data) in connections {
            let peer = rustix::net::getpeername(connection).ok();
            let peer = peer.flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
            let facts = self.facts(peer);
            message::put_entry(&mut body, &facts, data.as_bytes()).unwrap();
        }
        let descriptors: Vec<_> = connections.iter().map(|(fd, _)| fd.as_fd()).collect();
        self.numbered(kind::OFFER, codec, &body, &descriptors, connections.len() as u64)
    }

    /// Posts a message with its transfer list.
    pub fn post(&mut self, data: &Data, items: &[(ItemKind, BorrowedFd<'_>)]) -> u64 {
        let mut body = Vec::new();
        for (item, _) in items {
            message::put_item(&mut body, item).unwrap();
        }
        message::put_message(&mut body, data.as_bytes());
        let descriptors: Vec<_> = items.iter().map(|(_, fd)| *fd).collect();
        self.numbered(kind::MESSAGE, data.codec(), &body, &descriptors, 1)
    }

    /// Sends a numbered packet that occupies `numbers` numbers and returns the last of them.
    pub fn numbered(
        &mut self,
        kind: u8,
        codec: Codec,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        numbers: u64,
    ) -> u64 {
        let header = Header {
            codec,
            descriptors: descriptors.len() as u8,
            sequence: self.sequence + 1,
            ..Header::new(kind, self.epoch)
        };
        self.sequence += numbers;
        self.send(&header, body, descriptors);
        self.sequence
    }

    pub fn send(&mut self, header: &Header, body: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let head = header.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(body)];
        assert_eq!(self.port.try_send(&parts, descriptors), Ok(Sent::Whole));
    }

    /// The next thing that the worker says.
    pub async fn hears(&mut self) -> Said {
        tokio::time::timeout(PATIENCE, self.hears_some_time()).await.expect("the worker is silent")
    }

    /// The same without a bound, for a paused clock.
    pub async fn hears_some_time(&mut self) -> Said {
        let packet = match self.port.receive(&mut self.buffer).await {
            Ok(packet) => packet,
            Err(ReceiveError::Closed) => return Said::End,
            Err(error) => panic!("{error}"),
        };
        let header = packet.header;
        assert_eq!(header.epoch, self.epoch);
        match FromWorker::decode(&header, packet.body).unwrap() {
            FromWorker::Hello(hello) => Said::Hello(hello),
            FromWorker::Acknowledge(it) => Said::Acknowledged { up_to: it.up_to, open: it.open },
            FromWorker::Refuse(refusals) => Said::Refused(
                refusals.iter().map(|Refusal { sequence, reason }| (*sequence, *reason)).collect(),
            ),
            FromWorker::Message(bytes) => Said::Message {
                sequence: header.sequence,
                data: Data::from_parts(header.codec, bytes.to_vec()),
            },
            FromWorker::Error(report) => Said::Error(report),
            FromWorker::Draining => Said::Draining,
            FromWorker::Closing => Said::Closing,
            FromWorker::HandBack(back) => {
                self.returned.append(packet.descriptors);
                Said::HandedBack {
                    sequence: header.sequence,
                    info: Box::new(back.info),
                    prefix: back.prefix.into_owned(),
                    to: back.to.to_owned(),
                    data: Data::from_parts(header.codec, back.message.to_vec()),
                }
            }
        }
    }

    /// Whether the worker has said nothing more so far.
    pub fn hears_nothing(&mut self) -> bool {
        matches!(self.port.try_receive(&mut self.buffer), Ok(None))
    }

    /// The next thing but news of the load alone.
    pub async fn hears_but_load(&mut self, up_to: u64) -> Said {
        loop {
            match self.hears().await {
                Said::Acknowledged { up_to: now, .. } if now == up_to => {}
                other => return other,
            }
        }
    }
}

/// A client and the server's end of its connection, non-blocking as the router accepts it.
pub async fn connection() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let server = accepted.unwrap().0.into_std().unwrap();
    (client.unwrap(), server.into())
}

/// Asks for a path and reads the answer to the end of the connection.
pub async fn get(client: &mut TcpStream, path: &str) -> String {
    ask(client, path, "Connection: close\r\n").await;
    to_end(client).await
}

pub async fn ask(client: &mut TcpStream, path: &str, headers: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
}

/// What the client reads until the end. A reset is an end, too, but one that tests must see.
pub async fn to_end(client: &mut TcpStream) -> String {
    let mut answer = String::new();
    let read = client.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.expect("no end").expect("reset");
    answer
}

/// The same where the clock is paused: this much of its time passes at once when nothing happens.
pub async fn paused_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(3600), read).await.expect("no end").expect("reset");
    answer
}

/// Reads until what came ends with `end`.
pub async fn until(client: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            let byte = client.read_u8().await.expect("the connection ended early");
            read.push(byte);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("no answer");
    String::from_utf8(read).unwrap()
}
