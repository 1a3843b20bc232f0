//! Waiting for a worker, and being told no: with real workers and real clients.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use vestibule_router::{
    Balance, Listener, UndeliveredReason, WorkerEvent, WorkerOptions, WorkerPool,
};
use vestibule_tests::files::Folder;
use vestibule_tests::world::{options, until};
use vestibule_tests::{Client, DEADLINE, Ended, Gate, Response, World, hostile, run, worker};

/// Longer than any test: whoever waits, waits for something else.
const LONG: Duration = Duration::from_secs(600);

/// A pool behind a listener, as a program runs it: what comes back is rejected by its reason.
struct Hall {
    pool: Arc<WorkerPool>,
    address: Option<SocketAddr>,
    reasons: Arc<Mutex<Vec<UndeliveredReason>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Hall {
    fn new(world: &World, pool: WorkerPool) -> Self {
        Self::behind(pool, world.listener())
    }

    fn behind(pool: WorkerPool, mut listener: Listener) -> Self {
        let address = listener.local_addr().ok();
        let pool = Arc::new(pool);
        let reasons = Arc::new(Mutex::new(Vec::new()));
        let accepting = {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move {
                vestibule_router::serve(&mut listener, &pool).await.unwrap();
            })
        };
        let answering = {
            let (pool, reasons) = (Arc::clone(&pool), Arc::clone(&reasons));
            tokio::spawn(async move {
                while let Some((_, event)) = pool.recv().await {
                    if let WorkerEvent::Undelivered(undelivered) = event {
                        reasons.lock().unwrap().push(undelivered.reason);
                        undelivered.reject();
                    }
                }
            })
        };
        Self { pool, address, reasons, tasks: vec![accepting, answering] }
    }

    fn client(&self) -> Client {
        Client::connect(self.address.unwrap())
    }

    fn client_from(&self, source: &str) -> Client {
        Client::connect_from(source.parse::<IpAddr>().unwrap(), self.address.unwrap())
    }

    /// A client that has asked and waits for a worker.
    fn waiting(&self, source: &str) -> Client {
        let before = self.pool.queued();
        let mut client = self.client_from(source);
        client.ask("/");
        until("the client waits", || self.pool.queued() == before + 1);
        client
    }

    fn until_queued(&self, count: usize) {
        until("so many wait", || self.pool.queued() == count);
    }

    fn until_reasons(&self, expected: &[UndeliveredReason]) {
        until("the reasons are told", || *self.reasons.lock().unwrap() == expected);
    }

    fn end(self, world: &World) {
        for task in self.tasks {
            task.abort();
            // It ends by itself when no event can come any more.
            let ended = world.wait("a task ends", task);
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
        }
    }

    /// A pool whose workers get no further than the gate.
    fn starting(world: &World, gate: &Gate, set: impl Fn(WorkerOptions) -> WorkerOptions) -> Self {
        let options = set(worker!("recv").env("TEST_GATE", gate.path()));
        Self::new(world, WorkerPool::start(1, &options).unwrap())
    }
}

fn assert_rejected(answer: &Response, reason: &str) {
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("vestibule-reason"), Some(reason));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn without_any_worker_the_answer_is_no_worker() {
    run(|world| {
        let folder = Folder::new();
        let missing = options(folder.join("missing"));
        let hall = Hall::new(world, WorkerPool::start(1, &missing).unwrap());
        world.wait("the program is missing", hall.pool[0].ready()).unwrap_err();
        assert_rejected(&hall.client().get("/"), "no-worker");

        let mut tls = hall.client();
        tls.send(&[0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x03]);
        let internal_error = vec![0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 80];
        tls.finish();
        assert_eq!(tls.end(), (internal_error, Ended::Closed));

        let mut http2 = hall.client();
        http2.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        http2.finish();
        assert_eq!(http2.end(), (Vec::new(), Ended::Closed));
        hall.end(world);
    });
}

#[test]
fn a_full_queue_turns_away_who_comes_and_serves_who_waits() {
    run(|world| {
        let gate = Gate::new();
        let hall = Hall::starting(world, &gate, |options| options.queue(1, LONG));
        let mut first = hall.waiting("127.0.0.1");
        assert_rejected(&hall.client().get("/"), "queue-full");
        gate.open();
        assert_eq!(first.answer().status, 200);
        hall.end(world);
    });
}

#[test]
fn who_waits_too_long_is_told_queue_timeout() {
    run(|world| {
        let gate = Gate::new();
        let hall =
            Hall::starting(world, &gate, |options| options.queue(9, Duration::from_millis(20)));
        let mut clients: Vec<Client> = (0..3).map(|_| hall.client()).collect();
        for client in &mut clients {
            assert_rejected(&client.get("/"), "queue-timeout");
        }
        hall.until_reasons(&[UndeliveredReason::QueueTimeout; 3]);
        gate.open();
        hall.end(world);
    });
}

#[test]
fn what_so_many_workers_refused_is_tried_with_no_more() {
    run(|world| {
        let pool = world.pool(3, &hostile!("refuses-full").max_attempts(2));
        let hall = Hall::new(world, pool);
        assert_rejected(&hall.client().get("/"), "max-attempts");
        assert_eq!(hall.pool.counters().moved, 1);
        hall.end(world);
    });
}

#[test]
fn a_connection_that_a_dead_worker_read_from_is_closed_without_a_word() {
    run(|world| {
        for behaviour in ["reads-and-dies", "reads-and-refuses"] {
            let hall = Hall::new(world, world.pool(2, &hostile!(behaviour)));
            let mut client = hall.client();
            client.ask("/");
            assert_eq!(client.end().0, b"", "{behaviour}");
            hall.until_reasons(&[UndeliveredReason::Touched]);
            assert_eq!(hall.pool.counters().touched, 1);
            hall.end(world);
        }
    });
}

#[test]
fn nothing_is_said_after_what_a_worker_wrote() {
    run(|world| {
        let hall = Hall::new(world, world.pool(2, &hostile!("writes-and-dies")));
        let mut client = hall.client();
        client.ask("/");
        assert_eq!(client.end().0, b"x");
        hall.until_reasons(&[UndeliveredReason::Touched]);
        hall.end(world);
    });
}

#[test]
fn a_client_that_leaves_gives_its_place_back_at_once() {
    run(|world| {
        let gate = Gate::new();
        let hall = Hall::starting(world, &gate, |options| options.queue(2, LONG));
        let silent = hall.client();
        hall.until_queued(1);
        let mut stays = hall.waiting("127.0.0.1");
        drop(silent);
        hall.until_reasons(&[UndeliveredReason::ClientGone]);
        assert_eq!(hall.pool.queued(), 1);
        let mut next = hall.waiting("127.0.0.1");
        gate.open();
        assert_eq!(stays.answer().status, 200);
        assert_eq!(next.answer().status, 200);
        assert_eq!(hall.pool.counters().client_gone, 1);
        hall.end(world);
    });
}

#[test]
fn a_client_that_has_said_all_is_served_and_one_that_said_nothing_is_not() {
    run(|world| {
        let gate = Gate::new();
        let hall = Hall::starting(world, &gate, |options| options.queue(9, LONG));
        let mut said_all = hall.waiting("127.0.0.1");
        said_all.finish();
        let mut said_nothing = hall.client();
        said_nothing.finish();
        assert_eq!(said_nothing.end(), (Vec::new(), Ended::Closed));
        hall.until_reasons(&[UndeliveredReason::ClientGone]);
        assert_eq!(hall.pool.queued(), 1);
        gate.open();
        assert_eq!(said_all.answer().status, 200);
        hall.end(world);
    });
}

#[test]
fn a_unix_client_waits_and_leaves_as_any_other() {
    run(|world| {
        let (folder, gate) = (Folder::new(), Gate::new());
        let path = folder.join("socket");
        let listener = Listener::from_socket(UnixListener::bind(&path).unwrap().into()).unwrap();
        let options = worker!("recv").env("TEST_GATE", gate.path()).queue(9, LONG);
        let hall = Hall::behind(WorkerPool::start(1, &options).unwrap(), listener);
        let mut said_all = UnixStream::connect(&path).unwrap();
        said_all.set_read_timeout(Some(DEADLINE)).unwrap();
        said_all.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        said_all.shutdown(std::net::Shutdown::Write).unwrap();
        let mut leaves = UnixStream::connect(&path).unwrap();
        // It cannot be answered any more, whatever it said.
        leaves.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        hall.until_queued(2);
        drop(leaves);
        hall.until_reasons(&[UndeliveredReason::ClientGone]);
        gate.open();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut said_all, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        hall.end(world);
    });
}

#[test]
fn who_waits_when_all_ends_is_told_so() {
    run(|world| {
        let gate = Gate::new();
        let hall = Hall::starting(world, &gate, |options| options.queue(9, LONG));
        let mut waits = hall.waiting("127.0.0.1");
        hall.pool[0].finish();
        assert_rejected(&waits.answer(), "shutting-down");
        assert_rejected(&hall.client().get("/"), "shutting-down");
        gate.open();
        hall.end(world);
    });
}

#[test]
fn who_waits_when_the_pool_is_dropped_is_told_so() {
    run(|world| {
        let gate = Gate::new();
        let hall = Hall::starting(world, &gate, |options| options.queue(9, LONG));
        let mut waits = hall.waiting("127.0.0.1");
        hall.end(world);
        assert_rejected(&waits.answer(), "shutting-down");
        gate.open();
    });
}

#[test]
fn a_full_worker_takes_who_waits_in_the_order_of_coming() {
    run(|world| {
        let hall = Hall::new(world, world.pool(1, &worker!("recv").max_connections(1)));
        let mut served = hall.client();
        let mut last: u64 = served.get("/").field("id").parse().unwrap();
        let waiting: Vec<Client> = (0..5).map(|_| hall.waiting("127.0.0.1")).collect();
        for mut next in waiting {
            // Nobody is served before the one in front leaves.
            let queued = hall.pool.queued();
            drop(served);
            let id: u64 = next.answer().field("id").parse().unwrap();
            assert_eq!((id, hall.pool.queued()), (last + 1, queued - 1));
            last = id;
            served = next;
        }
        // It was served after it waited, so nobody looked for its end any more.
        drop(served);
        until("the worker is empty", || hall.pool[0].connections() == 0);
        assert_eq!(hall.pool.counters().client_gone, 0);
        hall.end(world);
    });
}

/// Two addresses that a pool of two gives to different workers, with the first one's worker.
fn two_keys(hall: &Hall) -> [(String, String); 2] {
    let mut found: Vec<(String, String)> = Vec::new();
    for last in 1..=254 {
        let source = format!("127.0.7.{last}");
        let mut client = hall.client_from(&source);
        let worker = client.get("/").field("worker");
        drop(client);
        until("the worker is empty", || hall.pool.iter().all(|worker| worker.connections() == 0));
        if found.iter().all(|(_, known)| *known != worker) {
            found.push((source, worker));
        }
        if let [one, two] = found.as_slice() {
            return [one.clone(), two.clone()];
        }
    }
    panic!("one worker for all");
}

fn keyed() -> WorkerOptions {
    worker!("recv").balance(Balance::HashPeerIp).max_connections(1)
}

#[test]
fn a_key_waits_for_its_worker_while_others_are_served() {
    run(|world| {
        let hall = Hall::new(world, world.pool(2, &keyed().queue(9, LONG)));
        let [(one, first), (two, second)] = two_keys(&hall);
        let mut holds = hall.client_from(&one);
        assert_eq!(holds.get("/").field("worker"), first);
        let mut waits = hall.waiting(&one);
        assert_eq!(hall.client_from(&two).get("/").field("worker"), second);
        assert_eq!(hall.pool.queued(), 1, "a free worker of another key changes nothing");
        drop(holds);
        assert_eq!(waits.answer().field("worker"), first);
        hall.end(world);
    });
}

#[test]
fn the_bound_and_the_deadline_hold_for_all_keys_together() {
    run(|world| {
        let hall = Hall::new(world, world.pool(2, &keyed().queue(1, LONG)));
        let [(one, _), (two, _)] = two_keys(&hall);
        let mut holding: Vec<Client> =
            [&one, &two].map(|source| hall.client_from(source)).into_iter().collect();
        for client in &mut holding {
            assert_eq!(client.get("/").status, 200);
        }
        let _waits = hall.waiting(&one);
        assert_rejected(&hall.client_from(&two).get("/"), "queue-full");
        hall.end(world);

        let short = Duration::from_millis(20);
        let hall = Hall::new(world, world.pool(2, &keyed().queue(1, short)));
        let mut holds = hall.client_from(&one);
        assert_eq!(holds.get("/").status, 200);
        assert_rejected(&hall.client_from(&one).get("/"), "queue-timeout");
        hall.end(world);
    });
}

#[test]
fn who_waits_for_a_worker_that_leaves_goes_to_the_next_one_of_its_key() {
    run(|world| {
        let hall = Hall::new(world, world.pool(2, &keyed().queue(9, LONG)));
        let [(one, first), (_, second)] = two_keys(&hall);
        let mut holds = hall.client_from(&one);
        assert_eq!(holds.get("/").field("worker"), first);
        let mut waits = hall.waiting(&one);
        hall.pool.iter().find(|worker| worker.name() == first).unwrap().finish();
        assert_eq!(waits.answer().field("worker"), second);
        drop(holds);
        hall.end(world);
    });
}
