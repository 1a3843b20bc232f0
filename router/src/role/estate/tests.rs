use std::net::IpAddr;
use std::time::Duration;

use vestibule_protocol::ConnectionInfo;
use vestibule_protocol::limits::{MAX_PREFIX, MAX_SCOPE};
use vestibule_protocol::supervision::InspectSetup;

use super::*;
use crate::handoff::Cargo;
use crate::role::passing::tests::{decided, known};

const BOUNDS: Bounds =
    Bounds { epoch: 2, reserved_from: u64::MAX, bytes: 10_000, gaps: 10, rates: 5, former: 2 };

fn socket() -> Option<OwnedFd> {
    Some(std::os::unix::net::UnixStream::pair().unwrap().0.into())
}

fn worker(slot: u32, next: u64) -> Passed {
    let worker = WorkerId { pool: 1, slot, generation: 0 };
    Passed::Worker { worker, each: false, faulty: false, next, missed: 0 }
}

fn offered(sequence: u64, epoch: u16) -> Passed {
    Passed::Offered { sequence, age: Duration::ZERO, follows: false, epoch, what: decided(known()) }
}

fn waiting(change: impl FnOnce(&mut crate::role::passing::tests::Known)) -> Passed {
    let mut what = known();
    change(&mut what);
    Passed::Waiting { pool: 1, what: decided(what) }
}

/// How each is judged, by one estate.
fn judged(all: Vec<(Passed, Option<OwnedFd>)>) -> (Vec<Option<String>>, Estate) {
    let mut estate = Estate::new(BOUNDS);
    let judge = |(passed, descriptor)| {
        estate.judge(passed, descriptor).err().map(|wrong| wrong.to_string())
    };
    let judged = all.into_iter().map(judge).collect();
    (judged, estate)
}

fn is_wrong(passed: Passed, descriptor: Option<OwnedFd>, why: &str) {
    let (judged, estate) = judged(vec![(passed, descriptor)]);
    assert!(judged[0].as_deref().is_some_and(|said| said.contains(why)), "{judged:?}");
    let (legacies, things) = estate.end();
    assert!(legacies.is_empty() && things.is_empty(), "{things:?}");
}

#[test]
fn what_cannot_be_is_left_out_and_all_else_is_taken() {
    let all = vec![
        (worker(0, 9), None),
        (offered(5, 1), socket()),
        // Again, from above, of this router, without its descriptor.
        (offered(5, 1), socket()),
        (offered(9, 1), socket()),
        (offered(6, 2), socket()),
        (offered(6, 1), None),
        (offered(7, 1), socket()),
        // Nothing is passed on of this one.
        (worker(1, 9), None),
        (worker(0, 9), None),
        (offered(8, 1), socket()),
        (waiting(|_| {}), socket()),
    ];
    let (judged, estate) = judged(all);
    let wrong: Vec<_> = judged.iter().enumerate().filter(|(_, wrong)| wrong.is_some()).collect();
    let wrong: Vec<_> = wrong.into_iter().map(|(at, _)| at).collect();
    assert_eq!(wrong, [2, 3, 4, 5, 8, 9], "{judged:?}");
    let (legacies, things) = estate.end();
    assert_eq!((legacies.len(), things.len()), (1, 1));
    let offers = legacies[0].unanswered.offers().iter().map(|offer| offer.sequence);
    assert_eq!(offers.collect::<Vec<_>>(), [5, 7]);
}

#[test]
fn what_is_no_stream_socket_is_no_connection() {
    let (pipe, _other) = std::io::pipe().unwrap();
    is_wrong(waiting(|_| {}), Some(pipe.into()), "no stream socket");
    is_wrong(waiting(|_| {}), None, "did not arrive");
    is_wrong(worker(0, 2), socket(), "a descriptor came with what has none");
    is_wrong(Passed::All, socket(), "a descriptor came");
}

#[test]
fn what_is_said_of_a_connection_is_no_longer_than_it_can_be() {
    let handed_back = |prefix: usize| {
        waiting(move |what| {
            let by = Some(Box::new("app-1".into()));
            what.info.clear();
            ConnectionInfo { id: 1, handed_back_by: by, ..ConnectionInfo::default() }
                .encode(&mut what.info);
            what.prefix = vec![b'x'; prefix];
        })
    };
    is_wrong(handed_back(MAX_PREFIX + 1), socket(), "what was read of it has 65537 bytes");
    is_wrong(waiting(|what| what.prefix = vec![1]), socket(), "nobody handed back");
    is_wrong(waiting(|what| what.codec = 9), socket(), "format 9");
    is_wrong(waiting(|what| what.info.clear()), socket(), "cannot be read");
    let with_scope = |scope: Vec<u8>| {
        let Passed::Waiting { pool, mut what } = waiting(|_| {}) else { panic!("it waits") };
        what.scope = Some(scope);
        Passed::Waiting { pool, what }
    };
    is_wrong(with_scope(vec![0; MAX_SCOPE + 1]), socket(), "its scope has 4097 bytes");
    is_wrong(with_scope(vec![1]), socket(), "cannot be read");
    let (judged, _) = judged(vec![(with_scope(Vec::new()), socket()), (handed_back(9), socket())]);
    assert_eq!(judged, [None, None]);
}

#[test]
fn all_together_have_no_more_bytes_and_descriptors_than_are_taken() {
    let large = || waiting(|what| what.message = vec![0; 4_000]);
    let all = (0..3).map(|_| (large(), socket())).chain([(waiting(|_| {}), socket())]);
    let (judged, estate) = judged(all.collect());
    assert!(judged[2].as_deref().is_some_and(|why| why.contains("10000 bytes")), "{judged:?}");
    assert_eq!((judged[1].as_deref(), judged[3].as_deref()), (None, None), "a small one has room");
    assert_eq!(estate.end().1.len(), 3);
    let mut estate = Estate::new(Bounds { reserved_from: 0, ..BOUNDS });
    let judged = estate.judge(waiting(|_| {}), socket());
    assert!(matches!(judged, Err(Wrong::Descriptors)), "{judged:?}");
}

#[test]
fn so_many_peers_are_told_of_and_the_others_begin_anew() {
    let used = |count| vec![(1, IpAddr::from([127, 0, 0, 1]), Duration::MAX); count];
    let all = [3, 0, 0, 1, 3, 1].map(|count| (Passed::Used(used(count)), None));
    let (judged, estate) = judged(all.into());
    let wrong: Vec<_> = judged.iter().map(Option::is_some).collect();
    assert_eq!(wrong, [false, false, false, false, true, true]);
    let (_, things) = estate.end();
    let [Inherited::Used(used)] = &*things else { panic!("{things:?}") };
    assert_eq!(used.len(), 5);
}

#[test]
fn so_many_former_configurations_are_named() {
    let all = (0..4).map(|number| (Passed::Former { number }, None)).collect();
    let (judged, estate) = judged(all);
    assert!(judged[2].as_deref().is_some_and(|why| why.contains("more than 2")), "{judged:?}");
    assert_eq!(estate.end().1.len(), 2);
}

#[test]
fn what_is_said_of_time_is_no_more_than_anybody_was_given() {
    let passed = Passed::Inspected {
        listener: 1,
        what: known(),
        admitted: true,
        announced: None,
        left: Duration::from_secs(3_600),
    };
    let (judged, estate) = judged(vec![(passed, socket())]);
    assert_eq!(judged, [None]);
    let (_, things) = estate.end();
    let [Inherited::Inspected(_, before)] = &*things else { panic!("{things:?}") };
    assert!(before.deadline <= std::time::Instant::now() + InspectSetup::MOST_TIME);
}

#[test]
fn slots_that_did_not_take_it_are_remembered_up_to_a_number() {
    let Passed::Waiting { pool, mut what } = waiting(|_| {}) else { panic!("it waits") };
    what.tried = (0..100_000).collect();
    let mut estate = Estate::new(Bounds { bytes: 1 << 20, ..BOUNDS });
    estate.judge(Passed::Waiting { pool, what }, socket()).unwrap();
    let (_, things) = estate.end();
    let [Inherited::Waiting(1, entry)] = &*things else { panic!("{things:?}") };
    assert!(entry.tried.len() == 4096 && matches!(entry.cargo, Cargo::Connection(_)));
}
