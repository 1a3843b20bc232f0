//! Message semantics, points 4 to 11: `post_message`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;

use serde::{Serialize, Serializer};
use vestibule_protocol::message::RefusalReason;
use vestibule_router::worker::PostError;
use vestibule_router::{
    Codec, Data, Refused, Transferable, UndeliveredReason, Worker, WorkerEvent,
};
use vestibule_tests::world::until;
use vestibule_tests::{Gate, Order, Said, World, hostile, process, run, worker};

/// 16 MiB, the bound of a message.
const BOUND: usize = 16 << 20;

/// A pipe whose writing end can be transferred: what is written there, and that its last copy was
/// closed, is seen at the other.
fn pipe() -> (PipeReader, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader, writer.into())
}

/// Everything that is written into a pipe, to the close of its last copy.
fn written(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

fn say_again(worker: &Worker, text: &str) {
    worker.post_message(&Order::Echo(text.to_owned()), ()).unwrap();
}

fn echo(text: &str) -> Said {
    Said::Echo(text.to_owned(), 0)
}

/// The next event, which is that something could not be read.
fn message_error(world: &World, worker: &Worker) -> String {
    match world.event(worker) {
        Some(WorkerEvent::MessageError(why)) => why,
        other => panic!("no message error: {other:?}"),
    }
}

/// The next message, in another format than orders.
fn data(world: &World, worker: &Worker) -> Data {
    match world.event(worker) {
        Some(WorkerEvent::Message(data)) => data,
        other => panic!("no message: {other:?}"),
    }
}

#[test]
fn point_04_the_queue_before_a_slow_worker_ends_at_1024_messages_and_hands_back_the_next() {
    run(|world| {
        let gate = Gate::new();
        let worker = Worker::spawn(&worker!("recv").env("TEST_GATE", gate.path())).unwrap();
        for number in 0..1024 {
            say_again(&worker, &number.to_string());
        }
        let (reader, writer) = pipe();
        let order = Order::Echo("one too many".into());
        let error = worker.post_message(&order, [Transferable::from(writer)]).unwrap_err();
        assert!(matches!(error.reason, PostError::Refused(Refused::QueueFull)), "{error:?}");
        assert_eq!(error.message.decode::<Order>().unwrap(), order);
        let [Transferable::Descriptor(writer)] = error.transfer else { panic!("changed") };
        std::io::PipeWriter::from(writer).write_all(b"still mine").unwrap();
        assert_eq!(written(reader), "still mine");
        gate.open();
        for number in 0..1024 {
            assert_eq!(world.said(&worker), echo(&number.to_string()));
        }
    });
}

#[test]
fn point_04_the_queue_before_a_slow_worker_ends_at_one_mebibyte() {
    run(|world| {
        let gate = Gate::new();
        let worker = Worker::spawn(&worker!("recv").env("TEST_GATE", gate.path())).unwrap();
        let long = Order::Echo("x".repeat(100_000));
        let length = Data::bincode(&long).unwrap().len();
        let fit = (1 << 20) / length;
        for _ in 0..fit {
            worker.post_message(&long, ()).unwrap();
        }
        let error = worker.post_message(&long, ()).unwrap_err();
        assert!(matches!(error.reason, PostError::Refused(Refused::QueueFull)), "{error:?}");
        gate.open();
        for _ in 0..fit {
            assert_eq!(world.said(&worker), echo(&"x".repeat(100_000)));
        }
    });
}

#[test]
fn point_04_posting_to_a_worker_that_stands_still_never_waits() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        process::freeze(worker.pid().unwrap());
        // A post that waited would never come back: nothing thaws the worker but this thread.
        let mut posted = 0;
        let error = loop {
            match worker.post_message(&Order::Echo(posted.to_string()), ()) {
                Ok(()) => posted += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error.reason, PostError::Refused(Refused::QueueFull)), "{error:?}");
        assert!(posted >= 1024, "only {posted}");
        process::thaw(worker.pid().unwrap());
        for number in 0..posted {
            assert_eq!(world.said(&worker), echo(&number.to_string()));
        }
    });
}

#[test]
fn point_04_a_worker_whose_messages_nobody_fetches_is_told_that_they_were_not_taken() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        for number in 0..1024 {
            // Each is posted when the one before was taken out of the queue before the worker.
            until("there is room", || {
                worker.post_message(&Order::Echo(number.to_string()), ()).is_ok()
            });
        }
        // Its answers fill what the router keeps; the next ones go back to it.
        for _ in 0..8 {
            until("there is room", || worker.post_message(&Order::Echo("lost".into()), ()).is_ok());
        }
        until("all eight came back to the worker", || {
            world.connect_and_ask(&worker).field("lost") == "8"
        });
        for number in 0..1024 {
            assert_eq!(world.said(&worker), echo(&number.to_string()));
        }
        say_again(&worker, "last");
        assert_eq!(world.said(&worker), echo("last"));
    });
}

/// A value that cannot be written.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("is not for everybody"))
    }
}

#[test]
fn point_05_a_message_that_cannot_be_serialised_is_not_sent_and_its_connection_stays_the_callers() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        let error = worker.post_message(&Unwritable, [connection]).unwrap_err();
        assert!(matches!(error.reason, PostError::DataClone(_)), "{error:?}");
        worker.post_message(&1u64, error.into_connection()).unwrap();
        assert_eq!(client.get("/").field("reqno"), "1");
        // Nothing else came before.
        say_again(&worker, "first");
        assert_eq!(world.said(&worker), echo("first"));
    });
}

#[test]
fn point_07_a_duplicate_made_before_stays_usable() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (reader, writer) = pipe();
        let duplicate = writer.try_clone().unwrap();
        worker.post_message(&Order::Echo("".into()), [Transferable::from(writer)]).unwrap();
        assert_eq!(world.said(&worker), Said::Echo("".into(), 1));
        std::io::PipeWriter::from(duplicate).write_all(b" and mine").unwrap();
        assert_eq!(written(reader), "0 and mine");
    });
}

#[test]
fn point_08_messages_descriptors_and_connections_keep_their_order() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let mut listener = world.listener();
        let (mut pipes, mut clients) = (Vec::new(), Vec::new());
        for number in 0..300 {
            let order = Order::Echo(number.to_string());
            match number % 3 {
                0 => worker.post_message(&order, ()).unwrap(),
                1 => {
                    let (reader, writer) = pipe();
                    worker.post_message(&order, [Transferable::from(writer)]).unwrap();
                    pipes.push(reader);
                }
                _ => {
                    let (client, connection) = world.connect(&mut listener);
                    worker.post_message(&order, [connection]).unwrap();
                    clients.push(client);
                }
            }
        }
        for number in 0..300 {
            let count = usize::from(number % 3 != 0);
            assert_eq!(world.said(&worker), Said::Echo(number.to_string(), count));
        }
        assert!(pipes.into_iter().all(|pipe| written(pipe) == "0"));
        assert!(clients.iter_mut().all(|client| client.get("/").status == 200));
    });
}

#[test]
fn point_08_descriptor_number_zero_is_a_valid_descriptor() {
    run(|world| {
        let worker = world.worker(&worker!("recv").env("TEST_WITHOUT_INPUT", "1"));
        let answer = world.connect_and_ask(&worker);
        assert_eq!(answer.field("descriptor"), "0", "the lowest free number");
    });
}

#[test]
fn point_08_as_many_descriptors_as_a_packet_carries_keep_their_order() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (readers, writers): (Vec<_>, Vec<_>) =
            (0..64).map(|_| pipe()).map(|(reader, writer)| (reader, writer.into())).unzip();
        worker.post_message(&Order::Echo("all".into()), writers).unwrap();
        assert_eq!(world.said(&worker), Said::Echo("all".into(), 64));
        for (number, reader) in readers.into_iter().enumerate() {
            assert_eq!(written(reader), number.to_string());
        }
        let writers: Vec<Transferable> = (0..65).map(|_| pipe().1.into()).collect();
        let error = worker.post_message(&Order::Echo("more".into()), writers).unwrap_err();
        assert!(matches!(error.reason, PostError::TooManyTransferred(65)), "{error:?}");
        assert_eq!(error.transfer.len(), 65);
    });
}

#[test]
fn point_09_messages_of_up_to_16_mebibytes_travel_whole_both_ways_with_their_descriptors() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        // Around the size that leaves its packet for a memfd, around a packet's, and the bound's.
        for length in [0, 24_560, 24_576, 24_577, 32_768, 100_000, BOUND] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 253) as u8).collect();
            let (reader, writer) = pipe();
            let sent = Data::bytes(bytes);
            worker.post(sent.clone(), [Transferable::from(writer)]).unwrap();
            assert!(data(world, &worker) == sent, "{length} bytes came back changed");
            assert_eq!(written(reader), "0", "the descriptor came with {length} bytes");
        }
    });
}

#[test]
fn point_09_a_connection_may_come_with_a_large_message() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        let text = "x".repeat(1_000_000);
        worker.post_message(&Order::Echo(text.clone()), [connection]).unwrap();
        assert_eq!(world.said(&worker), Said::Echo(text, 1));
        assert_eq!(client.get("/").status, 200);
    });
}

#[test]
fn point_09_a_message_over_the_bound_is_an_error_at_its_sender() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        let (_reader, writer) = pipe();
        let long = Data::bytes(vec![0; BOUND + 1]);
        let error = worker.post(long, [Transferable::from(writer)]).unwrap_err();
        assert!(matches!(error.reason, PostError::DataClone(_)), "{error:?}");
        assert_eq!((error.message.len(), error.transfer.len()), (BOUND + 1, 1));
        // The worker's own message is the worker's own error.
        worker.post_message(&Order::Bytes(BOUND + 1), ()).unwrap();
        let Said::Echo(error, length) = world.said(&worker) else { panic!("no error") };
        assert!(error.contains("cannot be cloned"), "{error}");
        assert_eq!(length, BOUND + 1, "it got its message back");
        worker.post_message(&Order::Bytes(BOUND), ()).unwrap();
        assert_eq!(data(world, &worker).len(), BOUND);
    });
}

#[test]
fn point_10_what_the_worker_cannot_decode_is_its_message_error_and_a_refusal_to_the_sender() {
    run(|world| {
        let worker = world.worker(&worker!("typed"));
        let (reader, writer) = pipe();
        worker.post_message(&"no number", [Transferable::from(writer)]).unwrap();
        let mut listener = world.listener();
        let (mut client, connection) = world.connect(&mut listener);
        worker.post_message(&"no number either", [connection]).unwrap();
        let (mut came_back, mut errors) = (Vec::new(), 0);
        while came_back.len() < 2 || errors < 2 {
            match world.event(&worker) {
                Some(WorkerEvent::Undelivered(undelivered)) => came_back.push(undelivered),
                Some(WorkerEvent::Message(said)) => {
                    let Said::MessageError(_) = said.decode().unwrap() else { panic!("{said:?}") };
                    errors += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        let second = came_back.pop().unwrap();
        let first = came_back.pop().unwrap();
        let reason = UndeliveredReason::Refused(RefusalReason::Undecodable);
        assert_eq!((first.reason, second.reason), (reason, reason));
        assert_eq!(first.message.decode::<String>().unwrap(), "no number");
        assert_eq!(first.transfer.len(), 1);
        drop(first);
        assert_eq!(written(reader), "", "the worker's copy is closed");
        worker.post_message(&9u64, [second.into_connection().unwrap()]).unwrap();
        assert_eq!(client.get("/").field("reqno"), "9");
    });
}

#[test]
fn point_10_a_message_that_lost_descriptors_is_a_message_error_and_comes_back_whole() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        worker.post_message(&Order::Descriptors(3), ()).unwrap();
        assert_eq!(world.said(&worker), Said::Done);
        let (readers, writers): (Vec<_>, Vec<_>) =
            (0..10).map(|_| pipe()).map(|(reader, writer)| (reader, writer.into())).unzip();
        worker.post_message(&Order::Echo("ten".into()), writers).unwrap();
        let (mut undelivered, mut error) = (None, None);
        while undelivered.is_none() || error.is_none() {
            match world.event(&worker) {
                Some(WorkerEvent::Undelivered(message)) => undelivered = Some(message),
                Some(WorkerEvent::Message(said)) => error = Some(said.decode::<Said>().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        let undelivered = undelivered.unwrap();
        let missing = UndeliveredReason::Refused(RefusalReason::MissingDescriptor);
        assert_eq!((undelivered.reason, undelivered.transfer.len()), (missing, 10));
        let Some(Said::MessageError(error)) = error else { panic!("{error:?}") };
        assert!(error.contains("did not arrive"), "{error}");
        drop(undelivered);
        // Those that did arrive are closed: every pipe ends, and the worker takes the next message.
        assert!(readers.into_iter().all(|reader| written(reader).is_empty()));
        let (reader, writer) = pipe();
        worker.post_message(&Order::Echo("one".into()), [Transferable::from(writer)]).unwrap();
        assert_eq!(world.said(&worker), Said::Echo("one".into(), 1));
        assert_eq!(written(reader), "0");
    });
}

#[test]
fn point_10_a_large_message_that_could_still_change_is_a_message_error_and_refused() {
    run(|world| {
        let worker = world.worker(&hostile!("unsealed-memory"));
        assert_eq!(message_error(world, &worker), "large message is not sealed memory");
        assert_eq!(data(world, &worker).decode::<String>().unwrap(), "1 undecodable");
    });
}

#[test]
fn point_10_a_large_message_whose_memory_did_not_come_is_a_message_error_and_refused() {
    run(|world| {
        let worker = world.worker(&hostile!("missing-memory"));
        assert!(message_error(world, &worker).contains("did not arrive"));
        let said = data(world, &worker).decode::<String>().unwrap();
        assert!(said.starts_with("1 "), "{said}");
    });
}

#[test]
fn point_11_json_and_bytes_are_named_in_the_envelope_and_come_back_as_they_were() {
    run(|world| {
        let worker = world.worker(&worker!("recv").codec(Codec::Json));
        worker.post_message(&[("tenant", "a")], ()).unwrap();
        assert_eq!(data(world, &worker), Data::json(&[("tenant", "a")]).unwrap());
        worker.post(Data::bytes(*b"\0\xff"), ()).unwrap();
        assert_eq!(data(world, &worker), Data::bytes(*b"\0\xff"));
    });
}

#[test]
fn point_11_rust_programs_may_use_any_type() {
    run(|world| {
        let worker = world.worker(&worker!("recv"));
        worker.post_message(&Order::Name, ()).unwrap();
        assert_eq!(world.said(&worker), Said::Name("app-1".into(), "app".into()));
    });
}

#[test]
fn point_11_a_format_that_the_receiver_cannot_read_is_its_message_error_and_refused_as_such() {
    run(|world| {
        let worker = world.worker(&worker!("typed"));
        worker.post(Data::bytes(*b"no type"), ()).unwrap();
        let (mut refused, mut told) = (false, false);
        while !refused || !told {
            match world.event(&worker) {
                Some(WorkerEvent::Undelivered(undelivered)) => {
                    let format = UndeliveredReason::Refused(RefusalReason::Format);
                    assert_eq!(undelivered.reason, format);
                    refused = true;
                }
                Some(WorkerEvent::Message(said)) => {
                    assert!(matches!(said.decode().unwrap(), Said::MessageError(_)));
                    told = true;
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn point_11_a_format_that_nobody_knows_is_a_message_error_at_the_parent() {
    run(|world| {
        let worker = world.worker(&hostile!("unknown-format"));
        assert_eq!(message_error(world, &worker), "unknown format 200");
        let said = data(world, &worker).decode::<String>().unwrap();
        assert!(said == "1 undecodable" || said == "1 format", "{said}");
    });
}
