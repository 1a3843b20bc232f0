use super::*;
use vestibule_protocol::message::RefusalReason;

/// Plays the socket: takes `room` packets, then is full.
fn flush(outbox: &mut Outbox, open: u32, room: usize) -> (Vec<(Header, Vec<u8>)>, Sent) {
    let mut packets = Vec::new();
    let sent = outbox
        .flush(|| open, &mut |header, body, _| {
            if packets.len() == room {
                return Ok(Sent::Blocked);
            }
            packets.push((*header, body.to_vec()));
            Ok(Sent::Whole)
        })
        .unwrap();
    (packets, sent)
}

fn kinds(packets: &[(Header, Vec<u8>)]) -> Vec<u8> {
    packets.iter().map(|(header, _)| header.kind).collect()
}

fn refuse(sequence: u64) -> Refusal {
    Refusal { sequence, reason: RefusalReason::Full }
}

fn attached(max_packet: u32) -> Outbox {
    let mut outbox = Outbox::default();
    outbox.attached(7, max_packet, Hello::default());
    assert_eq!(flush(&mut outbox, 0, 1).1, Sent::Whole);
    outbox
}

#[test]
fn nothing_is_said_before_a_router_speaks() {
    let mut outbox = Outbox::default();
    outbox.push(Letter::closing());
    assert_eq!(flush(&mut outbox, 0, 9), (vec![], Sent::Whole));
    outbox.attached(3, 32_768, Hello::default());
    let (packets, _) = flush(&mut outbox, 5, 9);
    assert_eq!(kinds(&packets), [kind::HELLO, kind::CLOSING]);
    assert!(packets.iter().all(|(header, _)| header.epoch == 3 && header.sequence == 0));
    assert_eq!(Hello::decode(&packets[0].1).unwrap().open, 5);
}

#[test]
fn refusals_go_before_the_acknowledgement_that_covers_them() {
    let mut outbox = attached(32_768);
    outbox.push(Letter::draining());
    outbox.settle(4, [refuse(2), refuse(3)].into_iter());
    let (packets, _) = flush(&mut outbox, 2, 9);
    assert_eq!(kinds(&packets), [kind::REFUSE, kind::ACKNOWLEDGE, kind::DRAINING]);
}

#[test]
fn a_full_socket_keeps_the_newest_acknowledgement_only() {
    let mut outbox = attached(32_768);
    for up_to in 1..=100 {
        outbox.settle(up_to, std::iter::empty());
        assert_eq!(flush(&mut outbox, 1, 0).1, Sent::Blocked);
    }
    let (packets, sent) = flush(&mut outbox, 64, 9);
    assert_eq!((kinds(&packets), sent), (vec![kind::ACKNOWLEDGE], Sent::Whole));
    let mut expected = Vec::new();
    message::put_acknowledge(&mut expected, 100, 64);
    assert_eq!(packets[0].1, expected);
    assert!(outbox.is_empty());
}

#[test]
fn the_load_is_said_again_only_if_the_router_does_not_know() {
    let mut outbox = attached(32_768);
    outbox.settle(1, std::iter::empty());
    assert_eq!(flush(&mut outbox, 1, 9).1, Sent::Whole);
    outbox.load(1);
    assert!(outbox.is_empty());
    outbox.load(0);
    assert_eq!(kinds(&flush(&mut outbox, 0, 9).0), [kind::ACKNOWLEDGE]);
}

#[test]
fn many_refusals_are_split_over_the_packets_that_the_router_takes() {
    let mut outbox = attached(1024);
    outbox.settle(200, (1..=200).map(refuse));
    let (packets, _) = flush(&mut outbox, 0, 99);
    let last = packets.len() - 1;
    assert!(
        packets[..last].iter().all(|(header, body)| {
            header.kind == kind::REFUSE && HEADER_LEN + body.len() <= 1024
        })
    );
    let refused: usize = packets[..last].iter().map(|(_, body)| body.len() / REFUSAL_LEN).sum();
    assert_eq!((refused, packets[last].0.kind), (200, kind::ACKNOWLEDGE));
}

#[test]
fn a_message_that_does_not_fit_the_routers_packets_goes_by_memory() {
    let mut outbox = attached(1024);
    let letter = Letter::message(Data::bytes("x".repeat(2000))).unwrap();
    assert_eq!(outbox.push_message(letter), 1);
    let (packets, _) = flush(&mut outbox, 0, 9);
    let (header, body) = &packets[0];
    assert!(header.large && header.descriptors == 1 && body.is_empty());
    assert_eq!(header.sequence, 1);
}

#[test]
fn an_error_is_cut_to_the_routers_packets() {
    let mut outbox = attached(1024);
    let report =
        ErrorReport { message: "ä".repeat(2000), file: "f".repeat(4000), line: 3, column: 4 };
    outbox.push(Letter::error(&report));
    let (packets, _) = flush(&mut outbox, 0, 9);
    let (header, body) = &packets[0];
    assert!(HEADER_LEN + body.len() <= 1024);
    let FromWorker::Error(said) = FromWorker::decode(header, body).unwrap() else {
        panic!("no error")
    };
    assert!(report.message.starts_with(&said.message) && said.message.len() > 400);
    assert_eq!((said.line, said.column), (3, 4));
}

#[test]
fn a_letter_that_the_system_refuses_comes_out_and_the_rest_goes_on() {
    let mut outbox = attached(32_768);
    outbox.push_message(Letter::message(Data::bytes("refused")).unwrap());
    outbox.push(Letter::draining());
    let mut kinds = Vec::new();
    let sent = outbox.flush(|| 0, &mut |header, body, _| {
        if body == b"refused" {
            return Err(SendError::System(rustix::io::Errno::PERM));
        }
        kinds.push(header.kind);
        Ok(Sent::Whole)
    });
    assert_eq!((sent, kinds), (Ok(Sent::Whole), vec![kind::DRAINING]));
    let refused = outbox.take_refused();
    assert_eq!(refused.map(|(letter, _)| letter.into_data()), Some(Data::bytes("refused")));
}

#[test]
fn a_new_router_is_told_first_what_the_old_one_is_refused_and_hello_says_the_rest() {
    let mut outbox = attached(32_768);
    outbox.settle(9, [refuse(7), refuse(9)].into_iter());
    outbox.attached(8, 32_768, Hello { received: 9, ..Hello::default() });
    outbox.settle(10, [refuse(10)].into_iter());
    let (packets, _) = flush(&mut outbox, 3, 9);
    let order: Vec<_> = packets.iter().map(|(header, _)| (header.kind, header.epoch)).collect();
    let (before, after) = ((kind::REFUSE, 7), (kind::REFUSE, 8));
    assert_eq!(order, [before, (kind::HELLO, 8), after, (kind::ACKNOWLEDGE, 8)]);
    assert_eq!(Hello::decode(&packets[1].1).unwrap().received, 9);
}
