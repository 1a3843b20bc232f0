use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vestibule_protocol::ConnectionInfo;
use vestibule_protocol::supervision::{
    InspectSetup, LimitSetup, ListenerSetup, RateSetup, RuleSetup, TargetSetup,
};

use super::*;
use crate::inspect::PausedConnection;
use crate::reject::Reason;

/// A dispatcher without pools: every rule turns away, each with a status of its own.
struct Hall {
    dispatch: Arc<Dispatch>,
    listener: TcpListener,
    metrics: Arc<Metrics>,
}

fn rule(status: u16, change: impl FnOnce(&mut RuleSetup)) -> RuleSetup {
    let mut rule = RuleSetup::new(format!("route-{status}"), TargetSetup::Status(status));
    change(&mut rule);
    rule
}

fn host(status: u16, host: &str) -> RuleSetup {
    rule(status, |rule| rule.hosts = Some(vec![host.to_owned()]))
}

impl Hall {
    fn new(rules: Vec<RuleSetup>) -> Self {
        Self::with(rules, InspectSetup::default(), ListenerSetup::default())
    }

    fn with(rules: Vec<RuleSetup>, inspect: InspectSetup, listener: ListenerSetup) -> Self {
        let setup = Setup {
            epoch: 1,
            parent: 1,
            identity: None,
            ticket_key: [0; 16],
            pools: Vec::new(),
            listeners: vec![listener],
            inspect,
            script: None,
            number: 1,
            rules,
        };
        let (metrics, _memory) = Metrics::new().unwrap();
        let metrics = Arc::new(metrics);
        let dispatch = Arc::new(Dispatch::new(&setup, Vec::new(), Arc::clone(&metrics)).unwrap());
        Self { dispatch, listener: TcpListener::bind("127.0.0.1:0").unwrap(), metrics }
    }

    /// A client whose connection was accepted and handed over at once, before it has said anything.
    async fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        self.accept();
        client
    }

    /// A client that has said this before its connection is handed over.
    async fn speaking(&self, bytes: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        client.write_all(bytes).await.unwrap();
        self.accept();
        client
    }

    fn accept(&self) {
        let (server, peer) = self.listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let info = ConnectionInfo {
            id: 1,
            peer: Some(peer),
            peer_credentials: None,
            destination: None,
            listener: "web".into(),
            route: "default".into(),
            peer_context: None,
            accepted: 0,
            ..ConnectionInfo::default()
        };
        let paused = PausedConnection::new(OwnedFd::from(server));
        self.dispatch.hand_over(0, &mut vec![Connection::new(paused, info)]);
    }

    fn waiting(&self) -> usize {
        self.dispatch.state().waiting.len()
    }

    async fn until_waiting(&self, count: usize) {
        while self.waiting() != count {
            tokio::task::yield_now().await;
        }
    }

    /// How often the only client that waits was looked at; `None`: nobody waits.
    fn looks(&self) -> Option<u32> {
        let mut state = self.dispatch.state();
        let token = state.waiting.oldest(0)?;
        state.waiting.get_mut(token).map(|inspection| inspection.looks())
    }

    /// Sends one byte after the other, each when the one before was looked at, until the router has
    /// decided. Returns how many that were.
    async fn dribble(&self, client: &mut TcpStream, bytes: &[u8]) -> usize {
        client.set_nodelay(true).unwrap();
        for (sent, byte) in bytes.iter().enumerate() {
            let Some(before) = self.looks() else { return sent };
            client.write_all(&[*byte]).await.unwrap();
            while self.looks() == Some(before) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        bytes.len()
    }

    fn rejected(&self, reason: Reason) -> u64 {
        let mut all = self.metrics.rejections();
        all.find(|(word, _)| *word == reason.as_str()).map_or(0, |(_, count)| count)
    }
}

/// The status of the answer, and the reason that it names; nothing if there is no answer.
async fn answer(client: &mut TcpStream) -> Option<(u16, String)> {
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    let text = String::from_utf8(answer).unwrap();
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().unwrap();
    let reason = text.split("vestibule-reason: ").nth(1)?.lines().next()?.to_owned();
    Some((status, reason))
}

const HEAD: &[u8] = b"GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n";

#[tokio::test]
async fn a_head_that_is_there_is_decided_without_waiting() {
    let hall = Hall::new(vec![host(410, "a.example"), host(411, "b.example")]);
    let mut client = hall.speaking(HEAD).await;
    assert_eq!(hall.waiting(), 0);
    assert_eq!(answer(&mut client).await.unwrap().0, 410);
}

#[tokio::test]
async fn a_head_that_is_dribbled_is_heard_to_its_end() {
    let hall = Hall::new(vec![host(410, "a.example"), rule(411, |_| ())]);
    let mut client = hall.client().await;
    client.set_nodelay(true).unwrap();
    assert_eq!(hall.waiting(), 1);
    for byte in HEAD {
        client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(answer(&mut client).await.unwrap().0, 410);
    assert_eq!(hall.waiting(), 0);
}

#[tokio::test]
async fn a_rule_by_address_decides_without_a_byte() {
    let hall = Hall::new(vec![
        rule(412, |rule| rule.peers = Some(vec!["127.0.0.0/8".to_owned()])),
        host(410, "a.example"),
    ]);
    let _silent = hall.client().await;
    assert_eq!((hall.waiting(), hall.rejected(Reason::Rejected)), (0, 1));
}

#[tokio::test]
async fn half_a_head_and_its_end_are_no_request_and_nothing_at_all_is_a_client_gone() {
    let hall = Hall::new(vec![host(410, "a.example")]);
    let mut half = hall.client().await;
    half.write_all(&HEAD[..20]).await.unwrap();
    half.shutdown().await.unwrap();
    assert_eq!(answer(&mut half).await, Some((400, "not-http".to_owned())));
    drop(hall.client().await);
    hall.until_waiting(0).await;
    assert_eq!(hall.rejected(Reason::ClientGone), 1);
}

#[tokio::test]
async fn an_urgent_byte_ends_the_inspection() {
    let hall = Hall::new(vec![host(410, "a.example")]);
    let mut client = hall.client().await;
    client.write_all(&HEAD[..20]).await.unwrap();
    rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
    assert_eq!(answer(&mut client).await, Some((400, "not-http".to_owned())));
    assert_eq!(hall.rejected(Reason::NotHttp), 1);
}

#[tokio::test]
async fn whoever_does_not_show_it_in_time_is_told_so_and_a_rule_that_needs_it_not_decides() {
    let inspect = InspectSetup { timeout: Duration::from_millis(50), ..InspectSetup::default() };
    let listener = ListenerSetup::default;
    let hall = Hall::with(vec![host(410, "a.example"), rule(411, |_| ())], inspect, listener());
    let mut client = hall.speaking(&HEAD[..20]).await;
    assert_eq!(answer(&mut client).await, Some((408, "inspect-timeout".to_owned())));
    // A client that speaks HTTP has no TLS name, however slowly it speaks.
    let tls = rule(410, |rule| rule.server_names = Some(vec!["a.example".to_owned()]));
    let hall = Hall::with(vec![tls, rule(411, |_| ())], inspect, listener());
    let mut client = hall.speaking(&HEAD[..20]).await;
    assert_eq!(answer(&mut client).await.unwrap().0, 411);
}

#[tokio::test]
async fn a_head_beyond_the_bound_is_too_large() {
    let inspect = InspectSetup { most: 1024, ..InspectSetup::default() };
    let hall = Hall::with(vec![host(410, "a.example")], inspect, ListenerSetup::default());
    let head = format!("GET /{} HTTP/1.1\r\nhost: a.example\r\n\r\n", "x".repeat(1024));
    let mut client = hall.speaking(head.as_bytes()).await;
    assert_eq!(answer(&mut client).await, Some((431, "head-too-large".to_owned())));
}

#[tokio::test]
async fn of_too_many_who_say_nothing_the_first_is_turned_away() {
    let limits = LimitSetup { inspecting: Some(2), ..LimitSetup::default() };
    let listener = ListenerSetup { limits, ..ListenerSetup::default() };
    let hall = Hall::with(vec![host(410, "a.example")], InspectSetup::default(), listener);
    let mut first = hall.speaking(b"GET").await;
    let _second = hall.speaking(b"GET").await;
    let mut third = hall.speaking(b"GET").await;
    assert_eq!(hall.waiting(), 2);
    assert_eq!(answer(&mut first).await, Some((429, "too-many".to_owned())));
    third.write_all(&HEAD[3..]).await.unwrap();
    assert_eq!(answer(&mut third).await.unwrap().0, 410);
    let mut fourth = hall.speaking(HEAD).await;
    assert_eq!(answer(&mut fourth).await.unwrap().0, 410);
}

#[tokio::test]
async fn a_stop_turns_away_who_is_looked_at() {
    let hall = Hall::new(vec![host(410, "a.example")]);
    let mut client = hall.speaking(&HEAD[..20]).await;
    hall.dispatch.end_inspections();
    assert_eq!(answer(&mut client).await, Some((503, "shutting-down".to_owned())));
}

fn behind_proxy(limits: LimitSetup) -> ListenerSetup {
    let proxies = vec!["127.0.0.1".to_owned()];
    ListenerSetup { proxies, limits, ..ListenerSetup::default() }
}

#[tokio::test]
async fn a_proxys_client_counts_once_its_header_is_there() {
    let peer = rule(410, |rule| rule.peers = Some(vec!["192.0.2.0/24".to_owned()]));
    let rules = vec![peer, rule(411, |_| ())];
    let hall = Hall::with(rules, InspectSetup::default(), behind_proxy(LimitSetup::default()));
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 51200 80\r\n";
    let mut whole = hall.speaking(header).await;
    whole.write_all(HEAD).await.unwrap();
    assert_eq!(answer(&mut whole).await.unwrap().0, 410);
    let mut dribbled = hall.client().await;
    dribbled.set_nodelay(true).unwrap();
    for byte in header.iter().chain(HEAD) {
        if dribbled.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(answer(&mut dribbled).await.unwrap().0, 410);
    let mut local = hall.speaking(b"PROXY UNKNOWN\r\n").await;
    local.write_all(HEAD).await.unwrap();
    assert_eq!(answer(&mut local).await.unwrap().0, 411);
    let mut without = hall.speaking(HEAD).await;
    assert_eq!(answer(&mut without).await, None, "closed without a word");
    assert_eq!(hall.rejected(Reason::ProxyHeader), 1);
}

#[tokio::test]
async fn what_a_proxy_announces_is_the_name() {
    let tls = rule(410, |rule| rule.server_names = Some(vec!["a.example".to_owned()]));
    let rules = vec![tls, rule(411, |_| ())];
    let hall = Hall::with(rules, InspectSetup::default(), behind_proxy(LimitSetup::default()));
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x18".to_vec();
    header.extend([192, 0, 2, 7, 10, 0, 0, 1, 0, 1, 0, 2, 2, 0, 9]);
    header.extend(b"a.example");
    let mut client = hall.speaking(&header).await;
    client.write_all(HEAD).await.unwrap();
    assert_eq!(answer(&mut client).await.unwrap().0, 410);
}

#[tokio::test]
async fn the_limits_are_those_of_the_proxys_client() {
    let second = Duration::from_secs(3600);
    let rate = Some(RateSetup { connections: 1, per: second, burst: 1 });
    let limits = LimitSetup { rate, ..LimitSetup::default() };
    let hall = Hall::with(vec![rule(411, |_| ())], InspectSetup::default(), behind_proxy(limits));
    for (source, expected) in [
        ("192.0.2.7", (411, "rejected")),
        ("192.0.2.7", (429, "rate-limited")),
        ("192.0.2.8", (411, "rejected")),
    ] {
        let mut client =
            hall.speaking(format!("PROXY TCP4 {source} 10.0.0.1 1 2\r\n").as_bytes()).await;
        client.write_all(HEAD).await.unwrap();
        assert_eq!(
            answer(&mut client).await,
            Some((expected.0, expected.1.to_owned())),
            "{source}"
        );
    }
}

#[tokio::test]
async fn a_peer_holds_no_more_than_it_may_while_it_is_looked_at() {
    let limits = LimitSetup { per_peer: Some(2), ..LimitSetup::default() };
    let listener = ListenerSetup { limits, ..ListenerSetup::default() };
    let hall = Hall::with(vec![host(410, "a.example")], InspectSetup::default(), listener);
    let mut first = hall.speaking(b"GET").await;
    let _second = hall.speaking(b"GET").await;
    let mut third = hall.speaking(HEAD).await;
    assert_eq!(answer(&mut third).await, Some((429, "too-many".to_owned())));
    first.write_all(&HEAD[3..]).await.unwrap();
    assert_eq!(answer(&mut first).await.unwrap().0, 410);
    let mut fourth = hall.speaking(HEAD).await;
    assert_eq!(answer(&mut fourth).await.unwrap().0, 410);
}

/// Whoever sends a byte each time that it was looked at has the router look for ever: each look costs it
/// a copy of all that is there.
#[tokio::test]
async fn who_is_looked_at_64_times_is_looked_at_no_more() {
    let inspect = InspectSetup { timeout: Duration::from_secs(600), ..InspectSetup::default() };
    let head = format!("GET /{} HTTP/1.1\r\nhost: a.example\r\n\r\n", "x".repeat(100));
    let hall = Hall::with(vec![host(410, "a.example")], inspect, ListenerSetup::default());
    let mut client = hall.client().await;
    let sent = hall.dribble(&mut client, head.as_bytes()).await;
    // The first look was at nothing.
    assert_eq!(sent, 63);
    assert_eq!(answer(&mut client).await, Some((431, "head-too-large".to_owned())));
}

#[tokio::test]
async fn who_is_looked_at_64_times_for_a_header_is_no_proxy() {
    let inspect = InspectSetup { timeout: Duration::from_secs(600), ..InspectSetup::default() };
    // It is looked at anew when it could be whole: from the shortest one on at each byte.
    let begin = b"PROXY UNKNOWN ";
    let rest = format!("{}\r\n", "x".repeat(80));
    let gate = behind_proxy(LimitSetup::default());
    let hall = Hall::with(vec![rule(411, |_| ())], inspect, gate);
    let mut client = hall.speaking(begin).await;
    let sent = hall.dribble(&mut client, rest.as_bytes()).await;
    assert_eq!(sent, 63);
    assert_eq!(answer(&mut client).await, None, "closed without a word");
    assert_eq!(hall.rejected(Reason::ProxyHeader), 1);
}

/// The kernel knows the proxy's context.
#[tokio::test]
async fn what_context_a_proxys_client_has_cannot_be_told() {
    let contexts = |text: &str| Some(vec![text.to_owned()]);
    for context in ["*:*:guest_t:*", "none"] {
        let context = rule(410, |rule| rule.contexts = contexts(context));
        let rules = vec![context, rule(411, |_| ())];
        let hall = Hall::with(rules, InspectSetup::default(), behind_proxy(LimitSetup::default()));
        let mut named = hall.speaking(b"PROXY TCP4 192.0.2.7 10.0.0.1 51200 80\r\n").await;
        named.write_all(HEAD).await.unwrap();
        assert_eq!(answer(&mut named).await, Some((400, "unknown-fact".to_owned())));
        // A client of the proxy on a Unix-domain socket has no address.
        let unix = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8"[..], &[0; 216], HEAD].concat();
        let mut unix = hall.speaking(&unix).await;
        assert_eq!(answer(&mut unix).await, None, "who has no address is closed without a word");
        assert_eq!(hall.rejected(Reason::UnknownFact), 2);
        let mut local = hall.speaking(b"PROXY UNKNOWN\r\n").await;
        local.write_all(HEAD).await.unwrap();
        assert_ne!(answer(&mut local).await.unwrap().0, 400);
    }
}
