//! Message semantics, point 20: no byte that a client sent is lost or out of its place, whoever has its
//! connection.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use vestibule_router::Connection;
use vestibule_router::inspect::Touched;
use vestibule_tests::world::until;
use vestibule_tests::{Ended, hostile, process, run, worker};

#[test]
fn point_20_every_byte_sent_before_the_hand_over_is_read_by_the_worker() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        let mut sent = b"POST /bytes HTTP/1.1\r\n\r\n".to_vec();
        sent.extend((0..50_000u32).map(|n| (n % 251) as u8));
        client.send(&sent);
        client.finish();
        until_unread(&connection, sent.len() as u64);
        assert_eq!(connection.touched(), Touched::No);
        worker.post_message(&1u64, [connection]).unwrap();
        assert!(client.answer().body == sent, "not what was sent");
        assert_eq!(client.end(), (Vec::new(), Ended::Closed));
    });
}

/// Waits until so many bytes wait in the connection.
fn until_unread(connection: &Connection, bytes: u64) {
    until("the bytes have arrived", || rustix::io::ioctl_fionread(connection).unwrap() == bytes);
}

#[test]
fn point_20_every_byte_is_read_again_after_a_death_and_a_refusal() {
    run(|world| {
        for behaviour in ["dies", "refuses-full"] {
            let pool = world.pool(2, &hostile!(behaviour).env("TEST_HOSTILE", "1"));
            let mut listener = world.listener();
            let (mut client, connection) = world.connect(&mut listener);
            let mut sent = b"POST /bytes HTTP/1.1\r\n\r\n".to_vec();
            sent.extend((0..50_000u32).map(|n| (n % 241) as u8));
            client.send(&sent);
            client.finish();
            until_unread(&connection, sent.len() as u64);
            pool[0].post_message(&1u64, [connection]).unwrap();
            assert!(client.answer().body == sent, "{behaviour}: not what was sent");
            assert_eq!(pool.counters().moved, 1, "{behaviour}");
        }
    });
}

#[test]
fn point_20_bytes_that_arrive_while_a_connection_moves_are_read_in_their_order() {
    run(|world| {
        let pool = world.pool(2, &worker!("recv"));
        let pid = pool[0].pid().unwrap();
        process::freeze(pid);
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        pool[0].post_message(&1u64, [connection]).unwrap();
        let mut sent = b"POST /bytes HTTP/1.1\r\n\r\n".to_vec();
        client.send(&sent);
        process::signal(pid, rustix::process::Signal::KILL);
        for number in 0..2000u32 {
            let bytes = number.to_le_bytes();
            client.send(&bytes);
            sent.extend(bytes);
        }
        client.finish();
        assert!(client.answer().body == sent, "not what was sent");
    });
}
