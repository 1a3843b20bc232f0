//! Waiting, with workers that no process is behind.

use super::*;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::sync::mpsc;
use vestibule_protocol::{ConnectionInfo, Data};

use crate::connection::Connection;
use crate::event::WorkerEvent;
use crate::inspect::PausedConnection;
use crate::options::WorkerOptions;
use crate::pool::slot::State;
use crate::pool::{Balance, Otherwise};
#[cfg(feature = "cli")]
use crate::{connection::Orders, pool::WhenFull, route::Affinity};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Workers that are ready and take one offer each.
fn core(workers: u32, balance: Balance) -> Core {
    core_with(workers, WorkerOptions::new("none").balance(balance))
}

fn entry(id: u64, peer: Option<&str>) -> Entry {
    let (one, _) = UnixStream::pair().unwrap();
    let info = ConnectionInfo {
        id,
        peer: peer.map(|peer| format!("{peer}:1").parse().unwrap()),
        peer_credentials: None,
        destination: None,
        listener: "".into(),
        route: "".into(),
        peer_context: None,
        accepted: 0,
        ..ConnectionInfo::default()
    };
    let connection = Connection::new(PausedConnection::new(one.into()), info);
    Entry::new(Data::NONE, Cargo::Connection(connection))
}

fn id(entry: &Entry) -> u64 {
    match &entry.cargo {
        Cargo::Connection(connection) => connection.info().id,
        Cargo::List(_) => 0,
    }
}

/// What stands in line before each worker's port.
fn given(core: &Core) -> Vec<Vec<u64>> {
    core.slots.iter().map(|slot| slot.handoff.waiting_entries().map(id).collect()).collect()
}

/// The worker took what it was given, and has room again.
fn serve(core: &mut Core, slot: u32) {
    let taken = core.slots[slot as usize].handoff.abandon_waiting();
    assert_eq!(taken.len(), 1);
    core.settled(slot);
}

fn reasons(core: &mut Core) -> Vec<UndeliveredReason> {
    std::iter::from_fn(|| core.next_event(None))
        .filter_map(|(_, event)| match event {
            WorkerEvent::Undelivered(undelivered) => Some(undelivered.reason),
            _ => None,
        })
        .collect()
}

fn core_with(workers: u32, options: WorkerOptions) -> Core {
    let settings = options.handoff_window(1).queue(8, TIMEOUT).settings();
    let names = (1..=workers).map(|n| format!("app-{n}").into()).collect();
    let (supervisor, _) = mpsc::unbounded_channel();
    let mut core = Core::new(0, settings, names, supervisor);
    for slot in 0..workers {
        core.slots[slot as usize].state = State::Ready;
        core.refresh(slot);
    }
    core
}

/// A connection that belongs to somebody.
#[cfg(feature = "cli")]
fn belonging(id: u64, affinity: Affinity) -> Entry {
    let mut entry = entry(id, None);
    if let Cargo::Connection(connection) = &mut entry.cargo {
        connection.order(Orders { affinity: Some(affinity), ..Orders::default() });
    }
    entry
}

#[test]
#[cfg(feature = "cli")]
fn a_sticky_connection_waits_for_the_worker_that_it_names() {
    let mut core = core_with(3, WorkerOptions::new("none").balance(Balance::Sticky("s".into())));
    let named = |name: &str| Affinity::Worker(name.into());
    for id in 1..=3 {
        core.offer(belonging(id, named("app-2"))).unwrap();
    }
    assert_eq!(given(&core), [vec![], vec![1], vec![]]);
    assert_eq!(core.queued(), 2);
    // Nobody is called so: anybody will do.
    core.offer(belonging(4, named("other-1"))).unwrap();
    core.offer(entry(5, None)).unwrap();
    assert_eq!(given(&core), [vec![4], vec![1], vec![5]]);
}

#[test]
#[cfg(feature = "cli")]
fn what_spills_goes_to_the_next_worker_of_its_key_and_then_to_whoever_has_room() {
    let options = WorkerOptions::new("none").balance(Balance::HashHost).when_full(WhenFull::Spill);
    let mut core = core_with(3, options);
    let key = || Affinity::Key((*b"a.example").into());
    for id in 1..=4 {
        core.offer(belonging(id, key())).unwrap();
    }
    let mut ranked = [0usize, 1, 2];
    ranked.sort_by_key(|slot| {
        std::cmp::Reverse(crate::pool::pick::score(b"a.example", &format!("app-{}", slot + 1)))
    });
    let given = given(&core);
    assert_eq!(ranked.map(|slot| given[slot].clone()), [vec![1], vec![2], vec![3]]);
    // It waits for anybody, not for its own worker.
    let last = ranked[2] as u32;
    serve(&mut core, last);
    assert_eq!(core.queued(), 0);
}

#[test]
fn without_a_key_the_otherwise_of_the_pool_decides() {
    let options = WorkerOptions::new("none").balance(Balance::HashHost);
    let mut core = core_with(4, options.otherwise(Otherwise::HashPeerIp));
    for id in 1..=3 {
        core.offer(entry(id, Some("10.0.0.1"))).unwrap();
    }
    // One of them took it, and the others wait for the same.
    assert_eq!(given(&core).concat(), [1]);
    assert_eq!(core.queued(), 2);
}

/// An address that the pool gives to this worker.
fn address_of(core: &Core, slot: u32) -> String {
    (1..255)
        .map(|last| format!("10.0.0.{last}"))
        .find(|address| {
            let choice = core.choose_by_balance(&entry(0, Some(address.as_str()))).unwrap();
            matches!(choice, Choice::Now(to) | Choice::ItsQueue(to) if to == slot)
        })
        .unwrap()
}

#[test]
fn who_cannot_go_to_the_free_worker_does_not_hold_up_who_can() {
    let mut core = core(2, Balance::LeastConnections);
    for id in [1, 2] {
        core.place(entry(id, None)).unwrap();
    }
    core.place(Entry { tried: vec![0], ..entry(3, None) }).unwrap();
    core.place(entry(4, None)).unwrap();
    let holder_of_0 = given(&core)[0][0];
    serve(&mut core, 0);
    assert_eq!(given(&core)[0], [4], "{holder_of_0} was served");
    assert_eq!(core.queued(), 1);
    serve(&mut core, 1);
    assert_eq!(given(&core)[1], [3]);
    assert_eq!(core.queued(), 0);
}

#[test]
fn who_was_refused_goes_there_again_only_when_nobody_else_can_come() {
    let mut core = core(2, Balance::LeastConnections);
    for id in [1, 2] {
        core.place(entry(id, None)).unwrap();
    }
    core.place(Entry { tried: vec![1], ..entry(3, None) }).unwrap();
    serve(&mut core, 1);
    assert_eq!((given(&core)[1].len(), core.queued()), (0, 1), "the other may have room later");
    // What 0 had was sent, so that nothing but the refused one is left to be moved.
    core.slots[0].handoff.sent(1, Instant::now(), "app-1", 1);
    core.slots[0].state = State::Vacant { last: true };
    core.leave(0, UndeliveredReason::WorkerGone);
    assert_eq!((given(&core)[1].clone(), core.queued()), (vec![3], 0));
    core.slots[1].state = State::Vacant { last: true };
    core.leave(1, UndeliveredReason::WorkerGone);
    assert_eq!(reasons(&mut core), [UndeliveredReason::WorkerGone]);
}

#[test]
fn nobody_waits_for_workers_that_never_come() {
    let mut core = core(1, Balance::LeastConnections);
    for id in [1, 2] {
        core.place(entry(id, None)).unwrap();
    }
    core.slots[0].state = State::Vacant { last: true };
    core.leave(0, UndeliveredReason::WorkerGone);
    assert_eq!(core.queued(), 0);
    let reasons = reasons(&mut core);
    assert_eq!(reasons, [UndeliveredReason::WorkerGone, UndeliveredReason::NoWorker]);
    assert_eq!(core.offer(entry(3, None)).unwrap_err().0, Refused::NoWorker);
}

#[test]
fn while_all_workers_leave_everybody_waits_for_those_that_follow() {
    let address = "10.0.0.1";
    for balance in [Balance::LeastConnections, Balance::HashPeerIp] {
        let mut core = core(2, balance);
        core.drain(0, false);
        core.drain(1, false);
        core.place(entry(1, Some(address))).unwrap();
        assert_eq!(core.queued(), 1);
        // The one is followed by another process, the other by nobody.
        core.slots[1].state = State::Vacant { last: true };
        core.leave(1, UndeliveredReason::WorkerGone);
        assert_eq!(core.queued(), 1);
        core.slots[0].state = State::Ready;
        core.settled(0);
        assert_eq!((given(&core)[0].clone(), core.queued()), (vec![1], 0));
        // Nobody will follow.
        core.place(entry(2, Some(address))).unwrap();
        core.drain(0, true);
        assert_eq!(core.queued(), 0);
        assert_eq!(core.offer(entry(3, Some(address))).unwrap_err().0, Refused::NoWorker);
    }
}

#[test]
fn a_worker_with_room_takes_whoever_waits_longest_with_its_key_or_without_any() {
    let mut core = core(1, Balance::HashPeerIp);
    core.place(entry(1, Some("10.0.0.1"))).unwrap();
    core.place(entry(2, None)).unwrap();
    core.place(entry(3, Some("10.0.0.1"))).unwrap();
    core.place(entry(4, None)).unwrap();
    let mut order = Vec::new();
    while !given(&core)[0].is_empty() {
        order.push(given(&core)[0][0]);
        serve(&mut core, 0);
    }
    assert_eq!(order, [1, 2, 3, 4]);
}

#[test]
fn a_held_worker_gives_its_lane_away_and_nobody_waits_for_it() {
    let mut core = core(2, Balance::HashPeerIp);
    let address = address_of(&core, 0);
    core.place(entry(1, Some(&address))).unwrap();
    core.place(entry(2, Some(&address))).unwrap();
    assert_eq!((given(&core)[0].len(), core.queued()), (1, 1));
    core.hold(0, true);
    assert_eq!(core.queued() + given(&core)[1].len(), 2);
    assert_eq!(given(&core)[0].len(), 0);
    core.hold(1, true);
    assert_eq!(core.queued(), 0);
    assert_eq!(core.offer(entry(3, Some(&address))).unwrap_err().0, Refused::NoWorker);
}

#[tokio::test(start_paused = true)]
async fn who_moves_waits_anew() {
    let mut core = core(2, Balance::HashPeerIp);
    let (one, two) = (address_of(&core, 0), address_of(&core, 1));
    for (id, address) in [(1, &one), (2, &one), (3, &two)] {
        core.place(entry(id, Some(address))).unwrap();
    }
    let entered = now();
    assert_eq!(core.sweep(entered), Some(entered + TIMEOUT));
    tokio::time::advance(TIMEOUT / 2).await;
    core.slots[0].state = State::Leaving;
    core.leave(0, UndeliveredReason::WorkerGone);
    // Both that 0 had, the one in line and the one that waited, wait for 1 now.
    assert_eq!(core.queued(), 2);
    assert_eq!(core.sweep(entered + TIMEOUT), Some(now() + TIMEOUT));
    tokio::time::advance(TIMEOUT).await;
    assert_eq!(core.sweep(now()), None);
    assert_eq!(reasons(&mut core), [UndeliveredReason::QueueTimeout; 2]);
}

#[test]
fn when_every_worker_is_to_end_who_waits_or_comes_is_told_so() {
    let mut core = core(1, Balance::LeastConnections);
    core.place(entry(1, None)).unwrap();
    core.place(entry(2, None)).unwrap();
    core.finish_all();
    assert_eq!(core.queued(), 0);
    assert!(reasons(&mut core).contains(&UndeliveredReason::ShuttingDown));
    assert_eq!(core.offer(entry(3, None)).unwrap_err().0, Refused::Closed);
}

#[test]
fn who_had_a_place_keeps_it_however_many_wait() {
    let options = WorkerOptions::new("none").balance(Balance::LeastConnections);
    let mut core = core_with(2, options);
    core.queue.set_bounds(1, TIMEOUT);
    for id in 1..=3 {
        core.offer(entry(id, None)).unwrap();
    }
    assert_eq!(core.offer(entry(4, None)).unwrap_err().0, Refused::QueueFull);
    // They stand before ports whose workers leave, and others follow.
    core.drain(0, false);
    core.drain(1, false);
    assert_eq!((core.queued(), reasons(&mut core)), (3, vec![]));
    assert_eq!(core.offer(entry(5, None)).unwrap_err().0, Refused::QueueFull);
}

#[test]
fn a_keys_lane_moves_into_a_queue_that_is_full() {
    let mut core = core(2, Balance::HashPeerIp);
    let (here, there) = (address_of(&core, 0), address_of(&core, 1));
    for (id, address) in [(1, &here), (2, &here), (3, &here), (4, &there)] {
        core.offer(entry(id, Some(address))).unwrap();
    }
    core.queue.set_bounds(1, TIMEOUT);
    core.slots[0].handoff.sent(1, Instant::now(), "app-1", 1);
    core.drain(0, true);
    assert_eq!((core.queued(), reasons(&mut core)), (2, vec![]), "they wait for the other worker");
    for id in [4, 2, 3] {
        assert_eq!(given(&core)[1], [id]);
        serve(&mut core, 1);
    }
}
