//! The worker's end of its port, without any rule.

use std::borrow::Cow;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vestibule_protocol::ConnectionInfo;
use vestibule_protocol::codec::Codec;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::handshake::{Abilities, Hello};
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{
    self, HandBack, MessageBody, Refusal, RefusalReason, ToWorker, kind, transferred,
};
use vestibule_protocol::socket::{PacketBuffer, PacketSocket, SendError, Sent};

/// The port.
pub(crate) struct Port {
    pub(crate) socket: PacketSocket,
    buffer: PacketBuffer,
    names: Names,
    /// Of the last router that attached, unless something else is to be said.
    pub(crate) epoch: u16,
}

/// What came next.
pub(crate) enum Came {
    /// Connections, each with its number.
    Connections(Vec<(u64, OwnedFd)>),
    /// A message with its number.
    Message(u64),
    /// Messages of this worker that the router did not take.
    Refused(Vec<Refusal>),
    /// Attach, drain or close.
    Other,
}

impl Port {
    /// The port that the environment names.
    pub(crate) fn inherited() -> Self {
        let number = std::env::var("VESTIBULE_FD").unwrap().parse().unwrap();
        let socket = PacketSocket::new(crate::system::take(number)).unwrap();
        Self { socket, buffer: PacketBuffer::default(), names: Names::default(), epoch: 0 }
    }

    /// Waits for the router's first word.
    pub(crate) async fn attached(&mut self) {
        while self.epoch == 0 {
            self.next().await;
        }
    }

    /// Says that it is ready.
    pub(crate) fn greet(&self) {
        self.greet_with(0);
    }

    /// Says that it is ready, and has received everything up to this.
    pub(crate) fn greet_with(&self, received: u64) {
        let mut body = Vec::new();
        let abilities = match std::env::var_os("TEST_WITHOUT_ABILITIES") {
            Some(_) => Abilities::default(),
            None => Abilities::HAND_BACK.and(Abilities::PREFIX),
        };
        Hello { abilities, received, ..Hello::default() }.encode(&mut body);
        self.send(&Header::new(kind::HELLO, self.epoch), &body, &[]);
    }

    /// Waits for the router, and says that it is ready.
    pub(crate) async fn ready(mut self) -> Self {
        self.attached().await;
        self.greet();
        self
    }

    /// What comes next. At its end it stays as it is: somebody has to end it.
    pub(crate) async fn next(&mut self) -> Came {
        let Ok(packet) = self.socket.receive(&mut self.buffer).await else {
            return std::future::pending().await;
        };
        let header = packet.header;
        let count = transferred(&header);
        match ToWorker::decode(&header, packet.body, &mut self.names).unwrap() {
            ToWorker::Attach(_) => {
                self.epoch = header.epoch;
                Came::Other
            }
            ToWorker::Offer(_) => {
                assert_eq!(packet.descriptors.len(), count);
                Came::Connections((header.sequence..).zip(packet.descriptors.drain(..)).collect())
            }
            ToWorker::Message(MessageBody { .. }) => Came::Message(header.sequence),
            ToWorker::Refused(refusals) => Came::Refused(refusals),
            ToWorker::Drain { .. } | ToWorker::Close => Came::Other,
        }
    }

    /// The next connections, with what is said of them.
    pub(crate) async fn offered(&mut self) -> Vec<(u64, ConnectionInfo, OwnedFd)> {
        loop {
            let Ok(packet) = self.socket.receive(&mut self.buffer).await else {
                return std::future::pending().await;
            };
            let header = packet.header;
            let said = ToWorker::decode(&header, packet.body, &mut self.names).unwrap();
            let ToWorker::Offer(mut entries) = said else { continue };
            return (header.sequence..)
                .zip(packet.descriptors.drain(..))
                .map(|(sequence, descriptor)| {
                    let entry = entries.next_entry(&mut self.names).unwrap().unwrap();
                    (sequence, entry.info, descriptor)
                })
                .collect();
        }
    }

    /// Hands a descriptor back as what these facts are about.
    pub(crate) fn hand_back(&self, sequence: u64, info: &ConnectionInfo, descriptor: &OwnedFd) {
        let mut body = Vec::new();
        HandBack { info: info.clone(), prefix: Cow::Borrowed(b"GET /"), to: "", message: b"" }
            .encode(&mut body)
            .unwrap();
        let header = Header { sequence, descriptors: 1, ..self.header(kind::HAND_BACK) };
        // After the first that the router does not know there is nobody to hear of the next.
        let _ = self.try_send(&header, &body, &[descriptor]);
    }

    /// The next connections.
    pub(crate) async fn connections(&mut self) -> Vec<(u64, OwnedFd)> {
        loop {
            if let Came::Connections(connections) = self.next().await {
                return connections;
            }
        }
    }

    /// The number of the first connection or message that comes, with its descriptors.
    pub(crate) async fn first(&mut self) -> (u64, Vec<OwnedFd>) {
        loop {
            match self.next().await {
                Came::Connections(connections) => {
                    let (numbers, descriptors): (Vec<_>, _) = connections.into_iter().unzip();
                    return (numbers[0], descriptors);
                }
                Came::Message(number) => return (number, Vec::new()),
                Came::Refused(_) | Came::Other => {}
            }
        }
    }

    /// Reads on and does nothing.
    pub(crate) async fn wait_for_the_end(mut self) {
        loop {
            self.next().await;
        }
    }

    /// A header in the router's epoch.
    pub(crate) fn header(&self, kind: u8) -> Header {
        Header::new(kind, self.epoch)
    }

    pub(crate) fn acknowledge(&self, up_to: u64, open: u32) {
        let mut body = Vec::new();
        message::put_acknowledge(&mut body, up_to, open);
        self.send(&self.header(kind::ACKNOWLEDGE), &body, &[]);
    }

    pub(crate) fn refuse(&self, sequence: u64, reason: RefusalReason) {
        let mut body = Vec::new();
        message::put_refusal(&mut body, Refusal { sequence, reason });
        self.send(&self.header(kind::REFUSE), &body, &[]);
    }

    /// Posts a message of this worker, as JSON.
    pub(crate) fn post(&self, sequence: u64, text: &str) {
        let header = Header { codec: Codec::Json, sequence, ..self.header(kind::WORKER_MESSAGE) };
        self.send(&header, format!("{text:?}").as_bytes(), &[]);
    }

    pub(crate) fn send(&self, header: &Header, body: &[u8], descriptors: &[&OwnedFd]) {
        self.try_send(header, body, descriptors).unwrap();
    }

    /// Sends, unless the kernel refuses.
    pub(crate) fn try_send(
        &self,
        header: &Header,
        body: &[u8],
        descriptors: &[&OwnedFd],
    ) -> Result<(), SendError> {
        let head = header.encode();
        let descriptors: Vec<BorrowedFd<'_>> =
            descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        let parts = [IoSlice::new(&head), IoSlice::new(body)];
        match self.socket.try_send(&parts, &descriptors)? {
            Sent::Whole => Ok(()),
            other => panic!("not sent: {other:?}"),
        }
    }
}
