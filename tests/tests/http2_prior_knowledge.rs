//! Clients that begin with HTTP/2 in clear (RFC 9113 3.3), through the program itself: a rule by `http2`
//! takes them to workers that speak it, and everybody else goes elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Command;
use std::time::Duration;

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::turn;
use vestibule_tests::{Client, Ended};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP/2 goes to `two`, what is known to be something else to `one`, and what cannot be told where
/// `unknown` says.
fn hall(inspect_timeout: &str, unknown: &str) -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let pool = |name: &str, mode: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\ncommand = [\"{WORKER}\", \"{mode}\"]\nworkers = 1\n{user}"
        )
    };
    let place = Place::new();
    let file = place.config(&format!(
        "[router]\ninspect-timeout = \"{inspect_timeout}\"\n\
         [[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\nunknown = \"{unknown}\"\n{}{}{}\
         [[route]]\nname = \"two\"\nhttp2 = true\npool = \"two\"\n\
         [[route]]\nname = \"one\"\npool = \"one\"\n",
        pool("two", "http2"),
        pool("one", "recv"),
        pool("other", "recv"),
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

/// What curl is answered: version, status and worker. Of Debian 12 it begins anew on a connection of HTTP/2
/// that it uses again, so it asks once.
fn curl(master: &Master, version: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", version]);
    command.args(["--write-out", "%{http_version} %{http_code}"]);
    let output = command.arg(format!("http://{}/", master.address())).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let (body, version) = said.split_once('\n').unwrap();
    format!("{version} {}", body.split(' ').next().unwrap())
}

/// Three requests at once over one connection, by another client: who answered each, and the connection's
/// number.
const NODE: &str = r#"
const client = require("http2").connect(process.argv[1]);
client.setTimeout(30000, () => process.exit(1));
let left = 3;
for (let number = 0; number < 3; number++) {
  const request = client.request({ ":path": `/${number}` });
  let body = "";
  request.setEncoding("utf8").on("data", (text) => (body += text));
  request.on("end", () => {
    console.log(body.replace(/ pid=.* id=/, " ").trim());
    if (--left === 0) client.close();
  });
}
"#;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// `SETTINGS` without any, and `GET http://a/` on stream 1, its whole request.
fn settings_and_request() -> Vec<u8> {
    const END: u8 = 0x01 | 0x04;
    let head = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
    [frame(4, 0, 0, &[]), frame(1, END, 1, &head)].concat()
}

/// The data of stream 1 that comes first, behind the server's preface.
fn data(client: &mut Client) -> String {
    let mut kinds = Vec::new();
    loop {
        let head = client.bytes(9);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = client.bytes(length);
        kinds.push(head[3]);
        assert_eq!(kinds[0], 4, "its first frame is SETTINGS");
        if (head[3], head[8]) == (0, 1) {
            return String::from_utf8(payload).unwrap();
        }
    }
}

#[test]
fn clients_speak_http2_with_a_worker_that_does_and_http1_with_another() {
    let _turn = turn();
    let (master, _place) = hall("60s", "other");
    for _ in 0..3 {
        assert_eq!(curl(&master, "--http2-prior-knowledge"), "2 200 worker=two-1");
        assert_eq!(curl(&master, "--http1.1"), "1.1 200 worker=one-1");
        // One that would like to, and begins with HTTP/1.
        assert_eq!(curl(&master, "--http2"), "1.1 200 worker=one-1");
    }
    let url = format!("http://{}/", master.address());
    let output = Command::new("node").args(["-e", NODE, &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // After nine connections of curl's.
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "worker=two-1 10\n".repeat(3));
    master.stop();
}

#[test]
fn a_preface_that_comes_byte_by_byte_is_one() {
    let _turn = turn();
    let (master, _place) = hall("60s", "other");
    let mut dribbles = master.client();
    let mut posts = master.client();
    let post = b"POST / HTTP/1.1\r\nhost: test\r\n\r\n";
    for (byte, other) in PREFACE.iter().zip(post) {
        dribbles.send(&[*byte]);
        posts.send(&[*other]);
        std::thread::sleep(Duration::from_millis(1));
    }
    posts.send(&post[PREFACE.len()..]);
    assert_eq!(posts.answer().field("worker"), "one-1");
    // Meanwhile others are served.
    assert_eq!(master.client().get("/").field("worker"), "one-1");
    dribbles.send(&settings_and_request());
    let body = data(&mut dribbles);
    assert!(body.starts_with("worker=two-1 "), "{body}");
    // What is none to the very last byte.
    let mut almost = master.client();
    almost.send(&[&PREFACE[..PREFACE.len() - 1], b"\r"].concat());
    let answer = almost.answer();
    assert_eq!(
        (answer.field("worker"), answer.field("route")),
        ("other-1".into(), "unknown".into())
    );
    drop((dribbles, posts, almost));
    master.stop();
}

/// Wherever it stops; and its worker reads every byte from the first.
#[test]
fn a_preface_that_stops_goes_where_unknown_says_once_its_time_is_over() {
    let _turn = turn();
    let (master, place) = hall("50ms", "other");
    let mut clients: Vec<Client> = (0..PREFACE.len())
        .map(|cut| {
            let mut client = master.client();
            client.send(&PREFACE[..cut]);
            client
        })
        .collect();
    place.until("all are handed over", |status| status["pools"][2]["delivered"] == clients.len());
    for (cut, client) in clients.iter_mut().enumerate() {
        // Too late: it is a request to a worker that speaks HTTP/1.
        client.send(&PREFACE[cut..]);
        let answer = client.answer();
        let said = (answer.field("worker"), answer.field("route"));
        assert_eq!(said, ("other-1".into(), "unknown".into()), "{cut}");
    }
    let status = place.status();
    assert_eq!([0, 1].map(|pool| &status["pools"][pool]["delivered"]), [0, 0], "{status}");
    drop(clients);
    master.stop();
}

#[test]
fn a_preface_that_stops_is_turned_away_where_unknown_says_so() {
    let _turn = turn();
    let (master, place) = hall("50ms", "reject");
    for cut in 0..PREFACE.len() {
        let mut client = master.client();
        client.send(&PREFACE[..cut]);
        match cut {
            // Whoever says nothing hears nothing, nor who has said enough to be of HTTP/2, which has other words.
            0 | 4.. => assert_eq!(client.end(), (Vec::new(), Ended::Closed), "{cut}"),
            _ => assert_eq!(client.answer().status, 408, "{cut}"),
        }
    }
    let status = place.status();
    let rejected = &status["connections"]["rejected"];
    assert_eq!(rejected["inspect-timeout"], PREFACE.len(), "{status}");
    master.stop();
}
