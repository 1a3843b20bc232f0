//! Peers that are slow, talk too much, talk nonsense, never listen, come in numbers, or are somebody
//! else: none of them holds up the supervisor, or those who ask properly.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use rustix::thread::set_thread_res_uid;
use serde_json::Value;

use crate::running::{Folder, NOBODY, Running, Who, answer, ask, connect, get, signal, worker};

/// As many conversations as there can be, and some that wait for theirs.
const MANY: usize = 40;

/// The supervisor does its work: a worker that is killed is replaced, while the peers are there.
/// Asked of the workers themselves, as the socket is what is under attack.
fn still_supervises(running: &Running, before: &Value) {
    signal(&worker(before, "app-1")["pid"], Signal::KILL);
    let process = |address| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let number = text.split("process=").nth(1).unwrap().split(';').next().unwrap();
        number.parse::<u64>().unwrap()
    };
    let old = worker(before, "app-1")["pid"].as_u64().unwrap();
    assert_ne!(process(running.address), old);
}

fn start(folder: &Folder) -> (Running, Value) {
    let running = Running::start(Who::Same, &folder.join("s"), 1);
    let status = running.until_healthy(1);
    (running, status)
}

fn reason(answer: &Value) -> &str {
    assert_eq!(answer["answer"], "refused", "{answer}");
    answer["reason"].as_str().unwrap()
}

#[test]
fn peers_that_never_finish_their_question_hold_nobody_up() {
    let folder = Folder::new(Who::Same);
    let (running, before) = start(&folder);
    let slow: Vec<UnixStream> = (0..MANY)
        .map(|_| {
            let mut stream = connect(&running.socket);
            stream.write_all(br#"{"command":"#).unwrap();
            stream
        })
        .collect();
    still_supervises(&running, &before);
    // Waits for a conversation to end, which each does by itself.
    running.until_healthy(1);
    for mut stream in slow {
        assert_eq!(reason(&answer(&mut stream)), "not-understood");
    }
}

#[test]
fn peers_that_never_read_hold_nobody_up() {
    let folder = Folder::new(Who::Same);
    let (running, before) = start(&folder);
    let deaf: Vec<UnixStream> = (0..MANY)
        .map(|_| {
            let mut stream = connect(&running.socket);
            // More than one question, which nobody reads, and no look at the answer.
            let questions = "{\"command\":\"status\"}\n".repeat(1000);
            stream.write_all(questions.as_bytes()).unwrap();
            stream
        })
        .collect();
    still_supervises(&running, &before);
    running.until_healthy(1);
    drop(deaf);
}

#[test]
fn an_answer_that_nobody_takes_is_given_up() {
    let folder = Folder::new(Who::Same);
    let (file, socket) = (folder.join("f.toml"), folder.join("s"));
    // What these workers said last is more than a socket's buffer holds.
    let text = format!(
        r#"admin.socket = "{}"
            [[listener]]
            name = "web"
            address = "127.0.0.1:0"
            [[pool]]
            name = "app"
            command = "demo"
            workers = 1
            [[pool]]
            name = "bad"
            command = ["/bin/sh", "-c", "for n in 0 1 2 3 4 5 6 7 8 9; do printf '%0500d\\n' $n; done; exit 3"]
            workers = 60
            restart = {{ delay = "30s", max-delay = "30s" }}
            [[route]]
            pool = "app"
            peer = ["127.0.0.0/8"]
            [[route]]
            pool = "bad"
        "#,
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let running = Running::start_as(Who::Same, &socket, |command| {
        command.arg("run").arg(&file).stderr(std::process::Stdio::null());
    });
    let status = running.until("all have failed", |status| {
        let bad = status["pools"][1]["workers"].as_array().unwrap();
        bad.iter().all(|worker| worker["state"] == "backoff")
    });
    assert!(status.to_string().len() > 256 * 1024, "too little to fill a buffer");
    let mut deaf: Vec<UnixStream> = (0..32)
        .map(|_| {
            let mut stream = connect(&running.socket);
            stream.write_all(b"{\"command\":\"status\"}\n").unwrap();
            stream
        })
        .collect();
    // Asked after all of them: it is answered when they are given up.
    let status = running.status();
    assert_eq!(worker(&status, "app-1")["state"], "ready");
    let mut text = Vec::new();
    // A reset, if at all, comes after what was written.
    let _ = deaf.remove(0).read_to_end(&mut text);
    assert!(!text.ends_with(b"\n"), "the first answer was cut");
}

#[test]
fn a_question_without_an_end_is_refused() {
    let folder = Folder::new(Who::Same);
    let (running, before) = start(&folder);
    let mut stream = connect(&running.socket);
    let flood = {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let bytes = [b'x'; 4096];
            // Until it is closed.
            while stream.write_all(&bytes).is_ok() {}
        })
    };
    let answer = answer(&mut stream);
    assert_eq!(reason(&answer), "not-understood");
    assert!(answer["text"].as_str().unwrap().contains("4096"), "{answer}");
    flood.join().unwrap();
    still_supervises(&running, &before);
    running.until_healthy(1);
}

#[test]
fn nonsense_is_refused_and_does_nothing() {
    let folder = Folder::new(Who::Same);
    let (running, _) = start(&folder);
    for nonsense in [
        "",
        "status",
        "GET / HTTP/1.1",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        r#"{"command":"sing"}"#,
        r#"{"command":"stop","now":true}"#,
        r#"{"command":"scale","pool":"app","workers":99999999999}"#,
        "\u{0}\u{1b}[2J",
    ] {
        assert_eq!(reason(&ask(&running.socket, nonsense)), "not-understood", "{nonsense:?}");
    }
    // One that says nothing and goes.
    drop(connect(&running.socket));
    running.until_healthy(1);
}

#[test]
fn somebody_else_is_refused_before_anything_is_read() {
    // Only root can be somebody else.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for who in [Who::Same, Who::Ordinary] {
        let folder = Folder::new(who);
        let running = Running::start(who, &folder.join("s"), 1);
        running.until_healthy(1);
        // The mode alone would keep them out.
        std::fs::set_permissions(&folder.0, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&running.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let other = if who == Who::Same { NOBODY } else { NOBODY - 1 };
        let socket = running.socket.clone();
        let answers = std::thread::spawn(move || {
            let other = rustix::fs::Uid::from_raw(other);
            // Of this thread alone, which ends with it.
            set_thread_res_uid(other, other, other).unwrap();
            // Nothing is said, so that there is nothing to be read; and it is refused.
            let mut silent = connect(&socket);
            let first = answer(&mut silent);
            let mut stream = connect(&socket);
            // It may have been closed by now.
            let _ = stream.write_all(b"{\"command\":\"stop\"}\n");
            [first, answer(&mut stream)]
        });
        for answer in answers.join().unwrap() {
            assert_eq!(reason(&answer), "not-allowed");
        }
        let status = running.until_healthy(1);
        assert_eq!(status["supervisor"]["stopping"], false);
        assert_eq!(get(running.address).unwrap(), "app-1");
    }
}
