//! HTTP/2: the requests of a connection share it, so that one which is another worker's cannot leave. It is
//! told 421, and nothing else on the connection notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::convert::Infallible;
use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::{DEADLINE, turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// HTTP/2 goes to `two`, everything else to `one`. The rules in front are about other clients; what they
/// look at is out of the scope of the rule by `http2`. Of a client from 127.0.0.9 they cannot be told, and
/// it goes to `two` because `unknown` says so.
fn hall() -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let pool = |name: &str, mode: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"{mode}\"]\nworkers = 1\n{user}"
        )
    };
    let place = Place::new();
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\nunknown = \"two\"\n{}{}\
         [[route]]\npeer = \"127.0.0.9\"\npath = \"/private/*\"\nreject = 403\n\
         [[route]]\npeer = \"127.0.0.9\"\nhost = \"secret.example\"\nreject = 403\n\
         [[route]]\npeer = \"127.0.0.9\"\nheader = {{ x-stolen = \"*\" }}\nreject = 403\n\
         [[route]]\npeer = \"127.0.0.9\"\ncookie = {{ tier = \"gold\" }}\npool = \"one\"\n\
         [[route]]\nname = \"two\"\nhttp2 = true\npool = \"two\"\n\
         [[route]]\nname = \"one\"\npool = \"one\"\n",
        pool("two", "http2"),
        pool("one", "serve"),
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

/// Runs a case in a runtime of its own.
fn case(case: impl AsyncFnOnce(&Master)) {
    let _turn = turn();
    let (master, _place) = hall();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, case(&master)).await.unwrap() });
    // With its clients' connections: its workers would wait for them.
    drop(runtime);
    master.stop();
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// One connection, with prior knowledge (RFC 9113 3.3).
#[derive(Clone)]
struct Two(SendRequest<Body>);

/// A body that is still being sent.
type Rest = mpsc::UnboundedSender<Bytes>;

impl Two {
    async fn connect(from: &str, master: &Master) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
        let stream = TokioIo::new(socket.connect(master.address()).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// A request whose body goes on until what is returned is dropped.
    fn begin(
        &self,
        uri: &str,
        lines: &[(&str, &str)],
    ) -> (impl Future<Output = Response<Incoming>> + use<>, Rest) {
        let (rest, body) = mpsc::unbounded_channel::<Bytes>();
        let frames = futures_util::stream::unfold(body, |mut body| async {
            let bytes = body.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), body))
        });
        let mut request = Request::post(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let request = request.body(BodyExt::boxed(StreamBody::new(frames))).unwrap();
        let mut sender = self.0.clone();
        (async move { sender.send_request(request).await.unwrap() }, rest)
    }

    async fn ask(&self, uri: &str, lines: &[(&str, &str)]) -> (u16, String) {
        let (answer, rest) = self.begin(uri, lines);
        drop(rest);
        read(answer.await).await
    }
}

async fn read(answer: Response<Incoming>) -> (u16, String) {
    assert!(!answer.headers().contains_key("connection"), "RFC 9113 8.2.2");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

/// Who answered, of a body of the workers'.
fn worker(body: &str) -> &str {
    body.split_whitespace().find_map(|word| word.strip_prefix("worker=")).unwrap_or("nobody")
}

const MISDIRECTED: (u16, String) = (421, String::new());

#[test]
fn a_stream_that_is_another_workers_is_told_421_and_all_others_go_on() {
    case(async |master| {
        let client = Two::connect("127.0.0.1", master).await;
        // Under way while everything else happens: its worker has its head and half of its body.
        let (echoed, rest) = client.begin("http://app.example/echo", &[]);
        let echoed = tokio::spawn(echoed);
        rest.send(Bytes::from_static(b"before, ")).unwrap();
        let (status, body) = client.ask("http://app.example/", &[]).await;
        assert_eq!((status, worker(&body)), (200, "two-1"));
        let id = |body: &str| {
            let mut words = body.split_whitespace();
            words.find_map(|word| word.strip_prefix("id=")).unwrap().to_owned()
        };
        let connection = id(&body);

        for (uri, lines) in [
            ("http://app.example/private", &[][..]),
            ("http://app.example/private/x?y", &[]),
            ("http://app.example/%70rivate", &[]),
            ("http://app.example//x/../private/", &[]),
            ("http://secret.example/", &[]),
            ("http://SECRET.example.:80/", &[]),
            ("http://app.example/", &[("x-stolen", "yes")]),
            ("http://app.example/", &[("cookie", "a=b"), ("cookie", "tier=gold")]),
            // Two hosts: nobody can tell which one it is for.
            ("http://app.example/", &[("host", "secret.example")]),
        ] {
            assert_eq!(client.ask(uri, lines).await, MISDIRECTED, "{uri} {lines:?}");
        }
        // One whose body is still being sent is told so, too, and without its end.
        let (refused, _unfinished) = client.begin("http://app.example/private", &[]);
        assert_eq!(read(refused.await).await, MISDIRECTED);

        // Many at once, every other one out of scope.
        let asked: Vec<_> = (0..60)
            .map(|number| {
                let client = client.clone();
                let path = if number % 2 == 0 { "open" } else { "private" };
                let uri = format!("http://app.example/{path}/{number}");
                tokio::spawn(async move { client.ask(&uri, &[]).await })
            })
            .collect();
        for (number, asked) in asked.into_iter().enumerate() {
            let answer = asked.await.unwrap();
            if number % 2 == 0 {
                assert_eq!((answer.0, worker(&answer.1)), (200, "two-1"));
                assert_eq!(id(&answer.1), connection);
            } else {
                assert_eq!(answer, MISDIRECTED);
            }
        }
        rest.send(Bytes::from_static(b"and after")).unwrap();
        drop(rest);
        assert_eq!(read(echoed.await.unwrap()).await, (200, "before, and after".to_owned()));
        assert_eq!((master.handed_back(0), master.handed_back(1)), (0, 0));
        // What is acknowledged is counted a moment after it is served.
        until("all of it was one connection", || master.accepted_and_acknowledged() == (1, 1));
    });
}

#[test]
fn where_nothing_could_be_told_each_connection_has_one_request() {
    case(async |master| {
        for uri in ["http://app.example/open", "http://app.example/private"] {
            let client = Two::connect("127.0.0.9", master).await;
            let (status, body) = client.ask(uri, &[]).await;
            // By `unknown`, whatever it asks for: that is what its pool is for.
            assert_eq!((status, worker(&body)), (200, "two-1"), "{uri}");
            for _ in 0..2 {
                assert_eq!(client.ask(uri, &[]).await, MISDIRECTED);
            }
        }
        // What can be told is decided by the rules.
        let from = "127.0.0.9".parse().unwrap();
        let mut one = vestibule_tests::Client::connect_from(from, master.address());
        assert_eq!(one.get("/open").field("worker"), "one-1");
        assert_eq!(one.get("/private").status, 403);
    });
}
