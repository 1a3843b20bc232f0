//! Clients that are looked at before their worker is chosen, through the program itself: slow ones hold
//! nobody up. That the worker reads every byte is in `inspect_pieces`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, Ended};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// The program, with a route that asks for the host.
fn hall(listener: &str, router: &str) -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let place = Place::new();
    let file = place.config(&format!(
        "[router]\n{router}[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n{listener}\
         [[pool]]\nname = \"app\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 2\n{user}\
         [[route]]\nname = \"none\"\nhost = \"none.example\"\nreject = 418\n\
         [[route]]\nname = \"rest\"\npool = \"app\"\n"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

#[test]
fn a_head_in_many_pieces_leaves_nothing_behind_that_holds_up_the_next_request() {
    let (master, _place) = hall("", "");
    let mut client = master.client();
    let head = format!("GET / HTTP/1.1\r\nx-long: {}\r\nhost: a\r\n\r\n", "x".repeat(3000));
    for piece in head.as_bytes().chunks(100) {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.answer().status, 200);
    // Shorter than any low-water mark that the long head could have left.
    for _ in 0..3 {
        client.send(b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(client.answer().status, 200);
    }
    let mut crawling = master.client();
    for byte in b"GET / HTTP/1.1\r\nhost: none.example\r\n\r\n" {
        crawling.send(&[*byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(crawling.answer().status, 418);
    drop(client);
    master.stop();
}

#[test]
fn who_is_looked_at_when_the_program_stops_is_told_so() {
    let (mut master, _place) = hall("", "inspect-timeout = \"60s\"\n");
    let mut client = master.client();
    client.send(b"GET / HTTP/1.1\r\nhos");
    until("it was accepted", || master.accepted_and_acknowledged().0 == 1);
    master.router();
    master.workers();
    master.signal(rustix::process::Signal::TERM);
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("vestibule-reason")), (503, Some("shutting-down")));
    assert!(master.wait().success());
    master.assert_all_gone();
}

/// How long the clients of a crowd may take: nobody else may wait for that.
const PATIENCE: Duration = Duration::from_secs(60);

fn patient() -> String {
    format!("inspect-timeout = \"{}s\"\n", PATIENCE.as_secs())
}

/// What somebody waits for each of many answers: sorted.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn p99(&self) -> Duration {
        self.0[self.0.len() * 99 / 100]
    }
}

/// Has somebody served while a crowd says half a head each, and in turn by a program that has no crowd:
/// whatever else the machine does, it does to both.
fn serve_beside_a_crowd(master: &Master, crowd: usize) -> Vec<Client> {
    let (calm, _place) = hall("", "");
    let clients: Vec<_> = (0..crowd)
        .map(|_| {
            let mut client = from("127.0.0.66", master);
            client.send(b"GET / HTTP/1.1\r\nhost: a.exa");
            client
        })
        .collect();
    let time = |master: &Master| {
        let begin = Instant::now();
        assert_eq!(from("127.0.0.1", master).get("/").status, 200);
        begin.elapsed()
    };
    let (beside, alone): (Vec<_>, Vec<_>) = (0..300).map(|_| (time(master), time(&calm))).unzip();
    let (beside, alone) = (Times::of(beside), Times::of(alone));
    println!(
        "beside {crowd} half heads: median {:?}, p99 {:?}; without: {:?}, {:?}",
        beside.median(),
        beside.p99(),
        alone.median(),
        alone.p99()
    );
    assert!(beside.p99() < PATIENCE / 10, "somebody waits for the crowd");
    assert!(beside.median() < 5 * alone.median(), "a crowd costs everybody time");
    calm.stop();
    clients
}

fn from(source: &str, master: &Master) -> Client {
    Client::connect_from(source.parse::<IpAddr>().unwrap(), master.address())
}

fn raise_descriptors() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

#[test]
fn ten_thousand_half_heads_of_one_address_do_not_hold_up_another() {
    const CROWD: usize = 10_000;
    raise_descriptors();
    let (master, _place) = hall("limits = { per-peer = 256, inspecting = 4096 }\n", &patient());
    let mut crowd = serve_beside_a_crowd(&master, CROWD);
    // As many as one peer may have are waited for; all others were told at once.
    let (mut held, mut refused) = (0, 0);
    for client in &mut crowd {
        // Whoever was refused may be told already.
        client.try_send(b"mple\r\n\r\n");
        match client.try_answer() {
            Ok(answer) if answer.status == 200 => held += 1,
            Ok(answer) => {
                assert_eq!(answer.header("vestibule-reason"), Some("too-many"));
                refused += 1;
            }
            // More rejections at one time than linger are resets.
            Err(Ended::Reset | Ended::Closed) => refused += 1,
        }
    }
    println!("of the crowd {held} were held and {refused} refused");
    assert_eq!((held, refused), (256, CROWD - 256));
    drop(crowd);
    master.stop();
}

#[test]
fn without_limits_a_crowd_costs_places_and_nobodys_time() {
    const CROWD: usize = 4_000;
    raise_descriptors();
    let (master, _place) = hall("", &patient());
    let crowd = serve_beside_a_crowd(&master, CROWD);
    for mut client in crowd {
        client.send(b"mple\r\n\r\n");
        assert_eq!(client.answer().status, 200);
    }
    master.stop();
}
