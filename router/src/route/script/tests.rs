//! Scripts as people write them, and as nobody should.

mod deciding;
mod hostile;
mod unawaited;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::inspect::Speech;

/// A client at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) peer: Option<SocketAddr>,
    pub(super) context: Option<Label>,
    pub(super) announced: Option<ClientHello>,
}

impl Client {
    pub(super) fn at(address: &str) -> Self {
        let ip: std::net::IpAddr = address.parse().unwrap();
        Self { peer: Some(SocketAddr::new(ip, 51234)), context: None, announced: None }
    }
}

impl Subject for Client {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn local(&self) -> Option<SocketAddr> {
        Some("192.0.2.80:80".parse().unwrap())
    }

    fn listener(&self) -> Arc<str> {
        "web".into()
    }

    fn context(&mut self) -> Fact<Label> {
        self.context.clone().into()
    }

    fn user(&self) -> Fact<String> {
        Fact::Absent
    }

    fn announced(&self) -> Option<ClientHello> {
        self.announced.clone()
    }
}

/// Two pools: `app` with five workers, of which the last is not ready, and `gold` with one.
#[derive(Debug)]
pub(super) struct TwoPools {
    app: AtomicUsize,
    /// How often a script has asked whether a worker is ready.
    asked: AtomicUsize,
}

impl Pools for TwoPools {
    fn names(&self) -> Vec<Arc<str>> {
        vec!["app".into(), "gold".into()]
    }

    fn slots(&self, pool: usize) -> Vec<(u32, Arc<str>)> {
        let count = if pool == 0 { self.app.load(Ordering::Relaxed) } else { 1 };
        let name = ["app", "gold"][pool];
        (0..count as u32).map(|slot| (slot, format!("{name}-{}", slot + 1).into())).collect()
    }

    fn ready(&self, _: usize, slot: u32) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        slot != 4
    }

    fn connections(&self, _: usize, slot: u32) -> u32 {
        // Above what a signed number holds.
        if slot == 3 { u32::MAX } else { slot }
    }

    fn worker_for(&self, pool: usize, key: &[u8]) -> Option<u32> {
        Some(key.len() as u32 % self.slots(pool).len() as u32)
    }
}

pub(super) fn two_pools() -> Arc<TwoPools> {
    Arc::new(TwoPools { app: AtomicUsize::new(5), asked: AtomicUsize::new(0) })
}

pub(super) fn build(text: &str) -> Result<Engine<Client>, Failure> {
    let source = Source { name: "route.js".to_owned(), text: text.to_owned() };
    Engine::new(source, Limits::default(), two_pools())
}

pub(super) fn engine(text: &str) -> Engine<Client> {
    build(text).unwrap()
}

/// A script that is the body of a handler.
pub(super) fn handler(body: &str) -> Engine<Client> {
    engine(&format!("onconnection = async ({{ connection }}) => {{\n{body}\n}};"))
}

pub(super) fn decide(engine: &mut Engine<Client>) -> Outcome {
    match engine.decide(Client::at("10.1.2.3")) {
        Verdict::Decided(_, outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

pub(super) fn says(engine: &mut Engine<Client>, speech: Speech) -> Outcome {
    let Verdict::Waits(client, ticket) = engine.decide(Client::at("10.1.2.3")) else {
        panic!("it does not wait")
    };
    match engine.resume(ticket, client, Arc::new(speech)) {
        Verdict::Decided(_, outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

/// The message that a script posts to `gold`, as text.
pub(super) fn posted(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Post { message, .. } => String::from_utf8(message.as_bytes().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What an expression is in a handler, as JSON.
pub(super) fn value(expression: &str) -> String {
    let body = format!("pools.gold.postMessage([{expression}], [connection])");
    posted(&decide(&mut handler(&body)))
}
