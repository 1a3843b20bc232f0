//! Whoever tries to slip past a rule that rejects: by hiding what it looks at, by saying it twice, or
//! by spelling it so that rule and worker could understand two things. None of it reaches a worker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::time::Duration;

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, Response};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// `/admin` and `secret.example` are closed; everything else is served.
const RULES: &str = "[[route]]\nname = \"admin\"\npath = \"/admin/*\"\nreject = 403\n\
                     [[route]]\nname = \"secret\"\nhost = \"secret.example\"\nreject = 403\n\
                     [[route]]\nname = \"rest\"\npool = \"app\"\n";

fn hall(rules: &str) -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let place = Place::new();
    let file = place.config(&format!(
        "[router]\ninspect-timeout = \"300ms\"\npeek-max = \"4KiB\"\n\
         [[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         [[pool]]\nname = \"app\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 1\n{user}{rules}"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

fn answer(client: &mut Client) -> Option<Response> {
    client.try_answer().ok()
}

/// Nothing of what was sent reaches a worker: the client is told no, or nothing at all.
fn assert_kept_out(master: &Master, bytes: &[u8], status: u16, reason: &str) {
    let mut client = master.client();
    client.send(bytes);
    let told = answer(&mut client).map(|answer| {
        (answer.status, answer.header("vestibule-reason").unwrap_or("a worker's answer").to_owned())
    });
    assert_eq!(told, Some((status, reason.to_owned())), "{}", bytes.escape_ascii());
}

fn get(target: &str, lines: &[&str]) -> Vec<u8> {
    let mut head = format!("GET {target} HTTP/1.1\r\n");
    for line in lines {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

#[test]
fn no_spelling_of_a_closed_path_is_served() {
    let (master, _place) = hall(RULES);
    let host = ["host: a.example"];
    assert_eq!(master.client().get("/open").status, 200, "what is open is served");
    for target in [
        "/admin",
        "/admin/",
        "/admin/x?y",
        "/admin?x",
        "/%61dmin",
        "/%41/../admin",
        "/%61%64%6d%69%6e/x",
        "//admin",
        "///admin//x",
        "/./admin",
        "/.//./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/%2E./admin",
        "/x/y/../../admin/z",
        "/../admin",
        "/open/..//admin",
        "http://a.example/admin",
        "HTTP://a.example/x/../admin",
        "https://a.example//admin?x",
    ] {
        assert_kept_out(&master, &get(target, &host), 403, "rejected");
    }
    for odd in [
        "/\\admin",
        "\\admin",
        "/x\\..\\admin",
        "/x/..\\admin",
        "/open#/../admin",
        "admin",
        "ftp://a.example/admin",
        "http://a.example\\admin",
        "http://a.example#/admin",
    ] {
        assert_kept_out(&master, &get(odd, &host), 400, "not-http");
    }
    master.stop();
}

/// hyper takes what stands there for a path, unless it is an authority, or `*` of `OPTIONS`.
#[test]
fn no_target_that_should_have_no_path_hides_a_closed_one() {
    let (master, _place) =
        hall("[[route]]\npath = \"/admin/*\"\nreject = 403\n[[route]]\npool = \"app\"\n");
    for line in ["CONNECT /admin", "CONNECT http://a.example/admin", "CONNECT *", "GET *"] {
        let head = format!("{line} HTTP/1.1\r\nhost: a.example\r\n\r\n");
        assert_kept_out(&master, head.as_bytes(), 400, "not-http");
    }
    for line in ["CONNECT a.example:443", "OPTIONS *"] {
        let mut client = master.client();
        client.send(format!("{line} HTTP/1.1\r\nhost: a.example\r\n\r\n").as_bytes());
        assert_eq!(client.answer().status, 200, "{line}");
    }
    master.stop();
}

/// The same as browsers send it, and as it is written.
#[test]
fn no_spelling_of_a_closed_path_beyond_ascii_is_served() {
    let (master, _place) = hall(
        "[[route]]\npath = \"/caf\u{e9}/*\"\nreject = 403\n\
         [[route]]\npath = \"/stra%c3%9Fe\"\nreject = 403\n\
         [[route]]\npool = \"app\"\n",
    );
    assert_eq!(master.client().get("/caf%C3%A8").status, 200, "what is open is served");
    for target in [
        "/caf\u{e9}",
        "/caf%C3%A9/x",
        "/%63af%c3%a9",
        "/caf%c3\u{e9}/../caf%C3%A9",
        "/stra\u{df}e",
        "/stra%C3%9fe",
    ] {
        assert_kept_out(&master, &get(target, &["host: a.example"]), 403, "rejected");
    }
    master.stop();
}

#[test]
fn no_way_to_name_a_closed_host_is_served() {
    let (master, _place) = hall(RULES);
    for (target, lines) in [
        ("/", &["host: secret.example"][..]),
        ("/", &["Host: SECRET.example."]),
        ("/", &["HOST:secret.example:8080"]),
        ("/", &["host: secret.example", "host: secret.example"]),
        ("http://secret.example/", &["host: secret.example"]),
        ("http://secret.example", &[]),
        ("http://Secret.Example.:80/x", &["host: secret.example:80"]),
    ] {
        assert_kept_out(&master, &get(target, lines), 403, "rejected");
    }
    for (target, lines) in [
        ("/", &["host: a.example", "host: secret.example"][..]),
        ("/", &["host: secret.example", "host: a.example"]),
        ("http://secret.example/", &["host: a.example"]),
        ("http://a.example/", &["host: secret.example"]),
        ("http://a.example@secret.example/", &["host: a.example"]),
        ("/", &["host: a.example, secret.example"]),
        ("/", &["host: secret.example/"]),
        ("/", &["host: a.example", " host: secret.example"]),
        ("/", &["host : secret.example"]),
        ("/", &["host: secret.example\0"]),
        ("/", &["host: %73ecret.example"]),
    ] {
        assert_kept_out(&master, &get(target, lines), 400, "not-http");
    }
    // Lines that end without a carriage return mean the same to whoever takes them.
    assert_kept_out(&master, b"GET / HTTP/1.1\nhost: secret.example\n\n", 403, "rejected");
    assert_kept_out(
        &master,
        b"GET / HTTP/1.1\r\nhost: a\rhost: secret.example\r\n\r\n",
        400,
        "not-http",
    );
    assert_kept_out(&master, b"\r\n\r\nGET /admin HTTP/1.0\r\n\r\n", 403, "rejected");
    assert_kept_out(&master, b"GET /admin\r\n", 400, "not-http");
    assert_kept_out(&master, b"GET /admin HTTP/1.1 HTTP/1.0\r\n\r\n", 400, "not-http");
    assert_kept_out(&master, b"GET /admin HTTP/3.0\r\n\r\n", 400, "not-http");
    master.stop();
}

/// A parameter, a field and a cookie, however they are written, and however often.
#[test]
fn no_way_to_write_a_closed_parameter_field_or_cookie_is_served() {
    let (master, _place) = hall(
        "[[route]]\nquery = { debug = \"*\" }\nreject = 403\n\
         [[route]]\nheader = { x-admin = \"*\" }\nreject = 403\n\
         [[route]]\ncookie = { role = \"root*\" }\nreject = 403\n\
         [[route]]\npool = \"app\"\n",
    );
    assert_eq!(master.client().get("/?debugs=1&a=debug").status, 200, "what is open is served");
    for target in [
        "/?debug",
        "/?a&&debug=",
        "/?%64ebu%67=1",
        "/x?y?z&debug",
        "http://a.example?debug",
        "https://a.example/?a=1&debug=2",
    ] {
        assert_kept_out(&master, &get(target, &["host: a.example"]), 403, "rejected");
    }
    for line in [
        "X-Admin: 1",
        "x-ADMIN:",
        "cookie: role=root",
        "cookie: a=b;role=rooty",
        "cookie: a=b;\trole =  root",
        "cookie: a=b\r\ncookie: role=root",
        "cookie: role=guest; role=root",
    ] {
        assert_kept_out(&master, &get("/", &["host: a.example", line]), 403, "rejected");
    }
    // hyper and others cut off what follows `#`: they would see the parameter.
    for (target, line) in [
        ("/?debug#", "x: y"),
        ("/?a&debug#b=1", "x: y"),
        ("http://a.example/?debug#", "x: y"),
        ("/", "x-admin : 1"),
        ("/", "x: y\r\n x-admin: 1"),
        ("/", "x-admin"),
    ] {
        assert_kept_out(&master, &get(target, &["host: a.example", line]), 400, "not-http");
    }
    master.stop();
}

#[test]
fn hiding_what_a_rule_looks_at_opens_nothing() {
    let (master, _place) = hall(RULES);
    // Dribbled to the end, it is heard all the same.
    let mut dribbled = master.client();
    for byte in get("/admin", &["host: a.example"]) {
        dribbled.send(&[byte]);
    }
    assert_eq!(dribbled.answer().status, 403);
    // Half of it, and no more.
    assert_kept_out(&master, b"GET /admin HTTP/1.1\r\nhost: a", 408, "inspect-timeout");
    let mut half = master.client();
    half.send(b"GET /open HTTP/1.1\r\nhost: a");
    half.finish();
    let told = answer(&mut half).unwrap();
    assert_eq!((told.status, told.header("vestibule-reason")), (400, Some("not-http")));
    // More than is looked at, in a line, in the target, in many lines.
    let long = format!("x-long: {}", "x".repeat(5000));
    assert_kept_out(
        &master,
        &get("/open", &[&long, "host: secret.example"]),
        431,
        "head-too-large",
    );
    let target = format!("/open?{}", "x".repeat(5000));
    assert_kept_out(&master, &get(&target, &["host: secret.example"]), 431, "head-too-large");
    let many: Vec<_> = (0..200).map(|line| format!("x: {line}")).collect();
    let mut many: Vec<_> = many.iter().map(String::as_str).collect();
    many.push("host: secret.example");
    assert_kept_out(&master, &get("/open", &many), 431, "head-too-large");
    // The preface of HTTP/2, with a request behind it, half of it, or something like it: only a close.
    for preface in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSX",
        b"PRI /admin HTTP/2.0\r\n\r\n",
    ] {
        let mut http2 = master.client();
        http2.send(preface);
        assert!(answer(&mut http2).is_none(), "{}", preface.escape_ascii());
    }
    // TLS: an alert.
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../router/tests/recorded");
    let hello = std::fs::read(recorded.join("openssl-3.0.22.hello")).unwrap();
    let mut tls = master.client();
    tls.send(&hello);
    tls.finish();
    assert_eq!(tls.end().0, [0x15, 3, 3, 0, 2, 2, 49]);
    // An urgent byte stops every look, and whoever sends one is told so.
    let mut urgent = master.client();
    urgent.send(b"GET /open HTTP/1.1\r\nhost: ");
    urgent.send_urgent(b'!');
    urgent.try_send(b"secret.example\r\n\r\n");
    let told = answer(&mut urgent).unwrap();
    assert_eq!((told.status, told.header("vestibule-reason")), (400, Some("not-http")));
    // Nothing at all.
    let mut silent = master.client();
    silent.finish();
    assert_eq!(silent.end().0, b"");
    // Whoever did as it should is served.
    assert_eq!(master.client().get("/open").status, 200);
    // It is noted a moment after it is served.
    until("a worker has seen one and no more", || master.accepted_and_acknowledged().1 == 1);
    master.stop();
}

#[test]
fn an_unknown_name_never_comes_to_the_next_rule() {
    let (master, _place) = hall(
        "[[route]]\nname = \"secret\"\nsni = \"secret.example\"\nreject = \"reset\"\n\
         [[route]]\nname = \"rest\"\npool = \"app\"\n",
    );
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../router/tests/recorded");
    // A browser's hello holds another one, or pretends to: its name is unknown.
    for browser in ["chromium-156.0.8078.79.hello", "firefox-153.7.0esr.hello"] {
        let hello = std::fs::read(recorded.join(browser)).unwrap();
        let mut client = master.client();
        client.send(&hello);
        client.finish();
        assert_eq!(client.end().0, [0x15, 3, 3, 0, 2, 2, 49], "{browser}");
    }
    // In records of one byte each it is the same hello; with a record of another kind, none.
    let hello = std::fs::read(recorded.join("openssl-3.0.22.hello")).unwrap();
    let mut records: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    records.splice(600..600, [21, 3, 3, 0, 2, 1, 0]);
    let mut client = master.client();
    client.send(&records);
    client.finish();
    assert_eq!(client.end().0, [0x15, 3, 3, 0, 2, 2, 49]);
    // A half hello, and silence.
    let mut client = master.client();
    client.send(&hello[..100]);
    std::thread::sleep(Duration::from_millis(1));
    client.send(&hello[100..200]);
    assert_eq!(client.end().0, [0x15, 3, 3, 0, 2, 2, 49]);
    assert_eq!(master.accepted_and_acknowledged().1, 0, "what a worker ever saw");
    // Plain HTTP has no such name.
    assert_eq!(master.client().get("/").status, 200);
    master.stop();
}
