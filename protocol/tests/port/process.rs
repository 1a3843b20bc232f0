//! Ports between processes. A test starts this binary again with one end of a channel as its standard
//! input and the name of a part to play; the part is `play`, below.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vestibule_protocol::codec::Data;
use vestibule_protocol::envelope::Transferable;
use vestibule_protocol::header::Header;
use vestibule_protocol::message::{self, ItemKind};
use vestibule_protocol::port::{MessagePort, PortEvent, PortMessageError};
use vestibule_protocol::socket::{PacketSocket, ReceiveError, Sent};
use vestibule_protocol::sys;

use crate::support::{
    Canary, assert_end, channel, header, message as receive, message_error, number, write_to,
};

const PART: &str = "VESTIBULE_TEST_PART";

/// Another process that plays a part at the other end of the port.
struct Player(Child);

impl Player {
    fn start(part: &str) -> (Self, MessagePort) {
        let (player, socket) = Self::start_raw(part);
        (player, MessagePort::new(socket).unwrap())
    }

    fn start_raw(part: &str) -> (Self, OwnedFd) {
        let (ours, theirs) = sys::seqpacket_pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::play", "--nocapture", "--test-threads=1"])
            .env(PART, part)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        (Self(child), ours)
    }

    /// Waits for its end, which says whether its own assertions held.
    fn assert_success(mut self) {
        assert!(self.0.wait().unwrap().success(), "see the other process's output");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Plays the part that the environment names; without one there is nothing to play.
#[test]
fn play() {
    let Ok(part) = std::env::var(PART) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let port = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let port = MessagePort::new(port).unwrap();
        match part.as_str() {
            "descriptor-zero" => take_descriptor_zero(&port).await,
            "echo" => echo(&port).await,
            "starved" => starve(&port).await,
            "count" => count_descriptors(&port).await,
            "wait" => while port.recv().await.is_some() {},
            "hold" => hold(&port).await,
            "take-port" => take_port(&port).await,
            other => panic!("no part {other}"),
        }
    });
}

/// Frees descriptor 0, so that the next one that arrives gets this number.
#[allow(unsafe_code, reason = "std has no safe way to close its own standard input")]
fn close_standard_input() {
    // SAFETY: nothing in this process uses its standard input from here on; the number is owned by
    // nobody else, since std never closes it.
    drop(unsafe { OwnedFd::from_raw_fd(0) });
}

async fn take_descriptor_zero(port: &MessagePort) {
    close_standard_input();
    let (_, transfer) = receive(port).await;
    let [first, second] = <[_; 2]>::try_from(transfer).unwrap();
    assert_eq!(first.as_fd().as_raw_fd(), 0, "the lowest free number");
    assert_ne!(second.as_fd().as_raw_fd(), 0);
    write_to(first, "first");
    write_to(second, "second");
}

#[tokio::test]
async fn point_08_descriptor_number_zero_is_a_valid_descriptor() {
    let (player, port) = Player::start("descriptor-zero");
    let ((first, one), (second, two)) = (Canary::new(), Canary::new());
    port.post_message(&"two", [one, two]).unwrap();
    assert_eq!(first.wait(), "first");
    assert_eq!(second.wait(), "second");
    player.assert_success();
}

/// Sends everything back as it came, until the end.
async fn echo(port: &MessagePort) {
    while let Some(event) = port.recv().await {
        let PortEvent::Message { data, transfer } = event else { panic!("{event:?}") };
        port.post(data, transfer).unwrap();
    }
}

#[tokio::test]
async fn point_09_large_messages_and_descriptors_travel_between_processes() {
    let (player, port) = Player::start("echo");
    for length in [0, 1000, 100_000, 16 << 20] {
        let (canary, writer) = Canary::new();
        let sent = Data::bytes((0..length).map(|n| (n % 253) as u8).collect::<Vec<_>>());
        port.post(sent.clone(), vec![writer.into()]).unwrap();
        let (data, transfer) = receive(&port).await;
        assert!(data == sent, "{length} bytes came back changed");
        let [item] = <[_; 1]>::try_from(transfer).unwrap();
        write_to(item, "there and back");
        assert_eq!(canary.wait(), "there and back", "no copy is left in the other process");
    }
    port.close();
    player.assert_success();
}

/// Lowers the limit so that `room` more descriptors can be opened.
fn leave_room_for(room: u64) {
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(next + room), maximum: limit.maximum })
        .unwrap();
}

async fn starve(port: &MessagePort) {
    let limit = getrlimit(Resource::Nofile);
    leave_room_for(1);
    assert_eq!(message_error(port).await, PortMessageError::MissingDescriptors(2));
    port.post_message(&1u32, ()).unwrap();
    assert_eq!(number(port).await, 0, "the one that arrived is closed");

    leave_room_for(0);
    port.post_message(&2u32, ()).unwrap();
    let lost = ReceiveError::Body { sequence: 3, reason: None };
    assert_eq!(message_error(port).await, PortMessageError::Receive(lost));

    setrlimit(Resource::Nofile, limit).unwrap();
    port.post_message(&3u32, ()).unwrap();
    let (_, transfer) = receive(port).await;
    assert_eq!(transfer.len(), 3, "the port goes on");
    for item in transfer {
        write_to(item, "whole");
    }
}

fn three() -> (Vec<Canary>, Vec<Transferable>) {
    (0..3).map(|_| Canary::new()).map(|(canary, writer)| (canary, writer.into())).unzip()
}

#[tokio::test]
async fn point_10_descriptors_lost_at_the_receivers_limit_are_a_message_error() {
    let (player, port) = Player::start("starved");
    let (canaries, transfer) = three();
    port.post_message(&"three", transfer).unwrap();
    assert_eq!(number(&port).await, 1);
    for canary in canaries {
        assert_eq!(canary.wait(), "", "one arrived and is closed, the others never came");
    }
    port.post_message(&0u32, ()).unwrap();

    assert_eq!(number(&port).await, 2);
    port.post(Data::bytes(vec![0; 100_000]), Vec::new()).unwrap();

    assert_eq!(number(&port).await, 3);
    let (canaries, transfer) = three();
    port.post_message(&"three", transfer).unwrap();
    for canary in canaries {
        assert_eq!(canary.wait(), "whole");
    }
    player.assert_success();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

const ROUNDS: usize = 50;

/// Receives what cannot be read and what can, and has as many descriptors as before in the end.
async fn count_descriptors(port: &MessagePort) {
    let before = open_descriptors();
    let (mut messages, mut errors) = (0, 0);
    while let Some(event) = port.recv().await {
        match event {
            PortEvent::Message { transfer, .. } => messages += transfer.len(),
            PortEvent::MessageError(_) => errors += 1,
        }
    }
    assert_eq!((messages, errors), (ROUNDS, 3 * ROUNDS));
    // Another thread closes what strangers sent.
    while open_descriptors() != before {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn point_10_no_descriptor_stays_open_in_the_receiver() {
    let (player, socket) = Player::start_raw("count");
    let peer = PacketSocket::new(socket).unwrap();
    let (canary, writer) = Canary::new();
    let malformed = [&header(2).encode()[..], &[1]].concat();
    let unsealed = Header { large: true, ..header(2) }.encode();
    let mut unknown = header(1).encode();
    unknown[3] = 99;
    let mut good = header(1).encode().to_vec();
    message::put_item(&mut good, &ItemKind::Descriptor).unwrap();
    message::put_message(&mut good, b"");
    for _ in 0..ROUNDS {
        send_slowly(&peer, &malformed, &[&writer, &writer]).await;
        send_slowly(&peer, &unsealed, &[&writer, &writer]).await;
        send_slowly(&peer, &unknown, &[&writer]).await;
        send_slowly(&peer, &good, &[&writer]).await;
    }
    drop((writer, peer));
    player.assert_success();
    assert_eq!(canary.wait(), "");
}

/// Sends when there is room.
async fn send_slowly(socket: &PacketSocket, bytes: &[u8], descriptors: &[&OwnedFd]) {
    let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    loop {
        socket.writable().await.unwrap();
        match socket.try_send(&[IoSlice::new(bytes)], &descriptors).unwrap() {
            Sent::Whole => return,
            Sent::Blocked => {}
            Sent::Later => tokio::task::yield_now().await,
        }
    }
}

/// Takes a port and answers through it with the sum of what is queued.
async fn take_port(port: &MessagePort) {
    let (_, transfer) = receive(port).await;
    let Ok([Transferable::Port(passed)]) = <[_; 1]>::try_from(transfer) else { panic!("no port") };
    let passed = passed.into_port().unwrap();
    let mut sum = 0;
    loop {
        match number(&passed).await {
            0 => break,
            number => sum += number,
        }
    }
    passed.post_message(&sum, ()).unwrap();
}

#[tokio::test]
async fn point_12_a_port_travels_to_another_process_with_what_is_queued_in_it() {
    let (player, port) = Player::start("take-port");
    let (near, far) = channel();
    near.post_message(&20u32, ()).unwrap();
    near.post_message(&3u32, ()).unwrap();
    port.post_message(&"a port", far).unwrap();
    near.post_message(&0u32, ()).unwrap();
    assert_eq!(number(&near).await, 23);
    player.assert_success();
    assert_end(&near).await;
}

#[tokio::test]
async fn point_13_duplicates_do_not_keep_another_process_waiting() {
    let (player, port) = Player::start("wait");
    let duplicate = port.try_clone().unwrap();
    port.close();
    player.assert_success();
    drop(duplicate);
}

/// Says two things, and is silent until it is killed.
async fn hold(port: &MessagePort) {
    port.post_message(&1u32, ()).unwrap();
    port.post_message(&2u32, ()).unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn point_13_the_death_of_a_process_closes_its_ports_after_what_it_said() {
    let (player, port) = Player::start("hold");
    let duplicate = port.try_clone().unwrap();
    let event = port.recv().await;
    assert!(matches!(event, Some(PortEvent::Message { .. })), "{event:?}");
    port.post_message(&"never read: the kernel reports a reset first", ()).unwrap();
    // The second may be on its way: the process is asked for it before it dies.
    assert_eq!(number(&port).await, 2);
    player.kill();
    assert_end(&port).await;
    assert_end(&duplicate).await;
    assert!(port.post_message(&3u32, ()).is_err());
}
