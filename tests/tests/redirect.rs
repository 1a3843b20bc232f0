//! `redirect = "https"` by the running program, as curl sees it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::{Command, Output};

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Everything is sent to TLS, but for what a certificate authority asks for.
fn hall() -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let place = Place::new();
    let file = place.config(&format!(
        "[[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n\
         [[pool]]\nname = \"acme\"\ncommand = [\"{WORKER}\", \"serve\"]\nworkers = 1\n{user}\
         [[route]]\nname = \"secure\"\nredirect = \"https\"\n\
         [[route]]\nname = \"certificates\"\npool = \"acme\"\n"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

fn curl(master: &Master, scheme: &str, paths: &[&str], more: &[&str]) -> Output {
    let port = master.address().port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--path-as-is"])
        .args(["--resolve", &format!("app.example.org:{port}:127.0.0.1")])
        .args(["--write-out", "%{http_code} %header{location} %{num_connects}\n"])
        .args(more);
    for path in paths {
        curl.args(["--output", "/dev/null"])
            .arg(format!("{scheme}://App.Example.org:{port}{path}"));
    }
    curl.output().unwrap()
}

/// What curl says of each answer: status, where it is sent, connections that it opened.
fn answers(master: &Master, paths: &[&str], more: &[&str]) -> String {
    let output = curl(master, "http", paths, more);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const TOKEN: &str = "/.well-known/acme-challenge/token";

#[test]
fn a_client_is_sent_to_the_same_place_with_tls() {
    let (master, _place) = hall();
    for (path, location) in [
        ("/", "https://app.example.org/"),
        ("/a/b?x=1&y=%20", "https://app.example.org/a/b?x=1&y=%20"),
        // No way out of what an authority asks for, and none into it.
        (
            "/.well-known/acme-challenge/../x",
            "https://app.example.org/.well-known/acme-challenge/../x",
        ),
        ("/.well-known/acme-challenges", "https://app.example.org/.well-known/acme-challenges"),
    ] {
        assert_eq!(answers(&master, &[path], &[]), format!("308 {location} 1\n"));
    }
    assert_eq!(answers(&master, &[TOKEN], &[]), "200  1\n");
    assert_eq!(answers(&master, &["/a"], &["--header", "Host:"]), "400  1\n");
    master.stop();
}

/// The rules are asked about each request of a connection, and so is this one.
#[test]
fn a_later_request_is_sent_on_as_the_first_would_be() {
    let (master, _place) = hall();
    assert_eq!(
        answers(&master, &[TOKEN, TOKEN, "/later?x=1"], &[]),
        "200  1\n200  0\n308 https://app.example.org/later?x=1 0\n"
    );
    assert_eq!(answers(&master, &[TOKEN, "/later"], &["--header", "Host:"]), "200  1\n400  0\n");
    master.stop();
}

/// What a TLS client asks for is hidden: whether it is an authority's cannot be told, so that `unknown`
/// decides, and its rejection is an alert.
#[test]
fn a_tls_client_is_told_an_alert() {
    let (master, _place) = hall();
    let output = curl(&master, "https", &["/"], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(35), "{said}");
    assert!(said.contains("alert"), "{said}");
    master.stop();
}
