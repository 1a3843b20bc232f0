//! Decisions, with ports whose other ends the tests hold.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use vestibule_protocol::codec::Data;
use vestibule_protocol::handshake::Hello;
use vestibule_protocol::header::Header;
use vestibule_protocol::limits::{MAX_MESSAGE, QUEUE_MESSAGES};
use vestibule_protocol::message::{
    FromWorker, Refusal, RefusalReason, ToWorker, kind, put_acknowledge,
};
use vestibule_protocol::socket::{PacketBuffer, PacketSocket};
use vestibule_protocol::supervision::Exit;
use vestibule_protocol::sys::seqpacket_pair;

use super::inbound::ProtocolFault;
use super::*;
use crate::connection::Connection;
use crate::event::{Undelivered, UndeliveredReason};
use crate::handoff::{Cargo, Entry, Fault};
use crate::inspect::PausedConnection;
use crate::link::Link;
use crate::options::WorkerOptions;
use crate::pool::slot::{Obstruction, State};
use crate::ticket::Tickets;

mod anything;
mod living;
mod refusing;
#[cfg(feature = "cli")]
mod succeeding;

struct Pool {
    core: Core,
    told: mpsc::UnboundedReceiver<FromRouter>,
    ends: Vec<Option<PacketSocket>>,
}

/// What a worker got: the packet's kind, its first number, and its descriptors.
type Got = (u8, u64, Vec<OwnedFd>);

fn worker(slot: u32) -> WorkerId {
    WorkerId { pool: 0, slot, generation: 0 }
}

impl Pool {
    /// Workers that nothing has started yet.
    fn empty(count: usize, options: &WorkerOptions) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let names = (1..=count).map(|n| format!("app-{n}").into()).collect();
        let core = Core::new(0, options.settings(), names, tell);
        Self { core, told, ends: (0..count).map(|_| None).collect() }
    }

    /// Workers that are ready.
    fn ready(count: usize, options: &WorkerOptions) -> Self {
        let mut pool = Self::empty(count, options);
        for slot in 0..count as u32 {
            pool.start(slot);
            pool.hello(slot, &Hello::default());
            pool.got(slot);
        }
        pool.told();
        pool
    }

    fn start(&mut self, slot: u32) {
        let (ours, theirs) = seqpacket_pair().unwrap();
        let link = Link::new(PacketSocket::new(ours).unwrap(), 1, Tickets::new([0; 16]));
        self.core.started(worker(slot), 1, Arc::new(link));
        self.core.flush();
        self.ends[slot as usize] = Some(PacketSocket::new(theirs).unwrap());
    }

    fn end(&self, slot: u32) -> &PacketSocket {
        self.ends[slot as usize].as_ref().unwrap()
    }

    fn say(&mut self, slot: u32, kind: u8, body: &[u8]) -> Result<(), ProtocolFault> {
        let header = Header::new(kind, 1);
        let message = FromWorker::decode(&header, body).unwrap();
        let result = self.core.packet(worker(slot), &header, message, &mut Vec::new());
        self.core.flush();
        result
    }

    fn hello(&mut self, slot: u32, hello: &Hello) {
        let mut body = Vec::new();
        hello.encode(&mut body);
        self.say(slot, kind::HELLO, &body).unwrap();
    }

    fn acknowledge(&mut self, slot: u32, up_to: u64, open: u32) {
        let mut body = Vec::new();
        put_acknowledge(&mut body, up_to, open);
        self.say(slot, kind::ACKNOWLEDGE, &body).unwrap();
    }

    fn refuse(
        &mut self,
        slot: u32,
        sequence: u64,
        reason: RefusalReason,
    ) -> Result<(), ProtocolFault> {
        let header = Header::new(kind::REFUSE, 1);
        let refusals = FromWorker::Refuse(vec![Refusal { sequence, reason }]);
        let result = self.core.packet(worker(slot), &header, refusals, &mut Vec::new());
        self.core.flush();
        result
    }

    /// Everything that a worker was sent since the last look.
    fn got(&self, slot: u32) -> Vec<Got> {
        let mut buffer = PacketBuffer::default();
        let mut got = Vec::new();
        while let Some(packet) = self.end(slot).try_receive(&mut buffer).unwrap() {
            let header = packet.header;
            got.push((header.kind, header.sequence, packet.descriptors.drain(..).collect()));
        }
        got
    }

    /// The connections that a worker was offered since the last look, with their numbers.
    fn offered(&self, slot: u32) -> Vec<(u64, TcpStream)> {
        let offers = self.got(slot).into_iter().filter(|(kind, _, _)| *kind == kind::OFFER);
        offers
            .flat_map(|(_, first, descriptors)| (first..).zip(descriptors))
            .map(|(number, descriptor)| (number, descriptor.into()))
            .collect()
    }

    fn told(&mut self) -> Vec<FromRouter> {
        std::iter::from_fn(|| self.told.try_recv().ok()).collect()
    }

    fn offer(&mut self) -> TcpStream {
        let (client, entry) = connection();
        self.core.offer(entry).unwrap();
        self.core.flush();
        client
    }

    fn undelivered(&mut self) -> Undelivered {
        match self.core.next_event(None) {
            Some((_, WorkerEvent::Undelivered(undelivered))) => undelivered,
            other => panic!("nothing came back: {other:?}"),
        }
    }
}

fn options() -> WorkerOptions {
    WorkerOptions::new("worker")
}

fn connection() -> (TcpStream, Entry) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, peer) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let info = vestibule_protocol::ConnectionInfo {
        id: 1,
        peer: Some(peer),
        peer_credentials: None,
        destination: None,
        listener: "web".into(),
        route: "default".into(),
        peer_context: None,
        accepted: 0,
        ..vestibule_protocol::ConnectionInfo::default()
    };
    let connection = Connection::new(PausedConnection::new(server.into()), info);
    (client, Entry::new(Data::NONE, Cargo::Connection(connection)))
}

fn list() -> Entry {
    Entry::new(Data::NONE, Cargo::List(Vec::new()))
}

/// Whether the slot's task is woken; takes the wake-up.
async fn is_woken(pool: &Pool, slot: u32) -> bool {
    let wake = Arc::clone(&pool.core.slot(slot).unwrap().wake);
    tokio::select! {
        biased;
        () = wake.notified() => true,
        () = std::future::ready(()) => false,
    }
}
