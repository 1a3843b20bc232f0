//! Clients that behave badly in the running program: nobody else waits for them, and nothing is left
//! of them. How long the others waited before and meanwhile is printed (phases 0 and 1).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::SendFlags;
use rustix::net::sockopt::set_socket_linger;
use vestibule_tests::DEADLINE;
use vestibule_tests::load::{Load, Outcome, answer};
use vestibule_tests::scene::{Scene, Setting};
use vestibule_tests::world::{turn, until};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Clients of a kind.
const MANY: usize = 100;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// Clients have to be looked at before a worker is chosen.
fn inspected() -> Setting<'static> {
    Setting { route: "host = [\"test\"]", router: "inspect-timeout = \"1s\"", ..Setting::default() }
}

/// Something is done by clients of one pool while those of the other come and go.
fn beside(name: &str, setting: Setting<'_>, deed: impl FnOnce(&mut Scene)) {
    let _turn = turn();
    let mut scene = Scene::start(&Setting { worker: WORKER, ..setting });
    let others = Load::start(scene.others, 2);
    others.flows(300);
    others.next_phase();
    deed(&mut scene);
    others.flows(300);
    let others = others.end();
    println!("{name}: others {others}");
    others.assert_all_answered();
    // Their own pool serves whoever behaves.
    let own = Load::start(scene.faulty, 2);
    own.flows(20);
    own.end().assert_all_answered();
    scene.end();
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Ends a connection with a reset.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

fn outcome(stream: &mut TcpStream) -> Outcome {
    let own = stream.local_addr().unwrap();
    answer(stream, own)
}

#[test]
fn clients_that_say_nothing_hold_up_nobody() {
    for (name, setting) in [("silent", Setting::default()), ("silent, inspected", inspected())] {
        beside(name, setting, |scene| {
            let silent: Vec<TcpStream> = (0..MANY).map(|_| connect(scene.faulty)).collect();
            let load = Load::start(scene.others, 1);
            load.flows(100);
            load.end().assert_all_answered();
            drop(silent);
        });
    }
}

#[test]
fn clients_that_reset_at_every_stage_leave_nothing_behind() {
    for (name, setting) in [("reset", Setting::default()), ("reset, inspected", inspected())] {
        beside(name, setting, |scene| {
            for number in 0..4 * MANY {
                let mut stream = connect(scene.faulty);
                match number % 4 {
                    // Before anybody has accepted it, perhaps.
                    0 => {}
                    1 => stream.write_all(&REQUEST[..10]).unwrap(),
                    2 => stream.write_all(REQUEST).unwrap(),
                    _ => {
                        stream.write_all(REQUEST).unwrap();
                        assert_eq!(outcome(&mut stream), Outcome::Answered);
                    }
                }
                reset(stream);
            }
        });
    }
}

#[test]
fn clients_that_reset_while_they_wait_leave_nothing_behind() {
    let pool = "max-connections = 1\nqueue = { max = 1000, timeout = \"60s\" }";
    beside("reset while waiting", Setting { pool, ..Setting::default() }, |scene| {
        // Each worker has its one client, and keeps it.
        let mut busy: Vec<TcpStream> = (0..2).map(|_| connect(scene.faulty)).collect();
        for stream in &mut busy {
            stream.write_all(REQUEST).unwrap();
            assert_eq!(outcome(stream), Outcome::Answered);
        }
        let waiting: Vec<TcpStream> = (0..MANY).map(|_| connect(scene.faulty)).collect();
        let queued = |scene: &Scene| scene.pool()["queued"].as_u64();
        until("all wait", || queued(scene) == Some(MANY as u64));
        waiting.into_iter().for_each(reset);
        until("none waits", || queued(scene) == Some(0));
    });
}

#[test]
fn clients_that_have_said_all_are_answered() {
    let settings = [("half-closed", Setting::default()), ("half-closed, inspected", inspected())];
    for (name, setting) in settings {
        beside(name, setting, |scene| {
            for _ in 0..MANY {
                let mut asked = connect(scene.faulty);
                asked.write_all(REQUEST).unwrap();
                asked.shutdown(Shutdown::Write).unwrap();
                assert_eq!(outcome(&mut asked), Outcome::Answered);
                let mut silent = connect(scene.faulty);
                silent.shutdown(Shutdown::Write).unwrap();
                assert_eq!(outcome(&mut silent), Outcome::Ended);
            }
        });
    }
}

/// An urgent byte is not among the others unless a worker asks for it there.
#[test]
fn clients_that_send_urgent_data_are_answered() {
    beside("urgent", Setting::default(), |scene| {
        for (at, mut stream) in urgent(scene.faulty) {
            assert_eq!(outcome(&mut stream), Outcome::Answered, "at {at}");
        }
    });
}

/// Nobody can look past an urgent byte without taking what is before it: whoever hides so what a rule
/// asks for is turned away, and told so.
#[test]
fn clients_that_hide_behind_urgent_data_are_rejected() {
    beside("urgent, inspected", inspected(), |scene| {
        for (at, mut stream) in urgent(scene.faulty) {
            let outcome = outcome(&mut stream);
            // With nothing before it there is nothing to be taken, if the rest is there in time.
            let seen = at == 0 && outcome == Outcome::Answered;
            let rejected = Outcome::Rejected("not-http".to_owned());
            assert!(seen || outcome == rejected, "{outcome:?} at {at}");
        }
    });
}

/// Clients that have sent a request with an urgent byte, each at another place of it.
fn urgent(address: SocketAddr) -> Vec<(usize, TcpStream)> {
    let client = |number: usize| {
        let mut stream = connect(address);
        let at = number % REQUEST.len();
        let (one, two) = REQUEST.split_at(at);
        stream.write_all(one).unwrap();
        rustix::net::send(&stream, b"!", SendFlags::OOB).unwrap();
        // It may have been turned away by now.
        let _ = stream.write_all(two);
        (at, stream)
    };
    (0..MANY).map(client).collect()
}
