//! Workers that are replaced because they have had enough, or because they say so: the next one is
//! ready first, never two of a pool at once, and no client notices. And a listener that is removed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use vestibule_tests::load::Load;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

const LISTENER: &str = "[[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\n";

fn pool(name: &str, workers: usize, more: &str) -> String {
    let user = if rustix::process::geteuid().is_root() { "user = 'root'" } else { "" };
    format!(
        "[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = {workers}\n\
         drain-timeout = '30s'\n{user}\n{more}\n"
    )
}

fn hall(workers: usize, more: &str) -> (Master, Place) {
    let place = Place::new();
    let file = place.config(&format!("{LISTENER}{}", pool("app", workers, more)));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    let master = Master::launch(command);
    place.until("every worker is ready", |status| status["health"] == "healthy");
    (master, place)
}

fn workers(status: &Value) -> &[Value] {
    status["pools"][0]["workers"].as_array().unwrap()
}

/// Processes of each name, by their numbers, those that drain after those that are ready.
fn pids(status: &Value) -> BTreeMap<String, Vec<u64>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for worker in workers(status) {
        let name = worker["name"].as_str().unwrap().to_owned();
        all.entry(name).or_default().extend(worker["pid"].as_u64());
    }
    all
}

/// Nobody is under way, and there is one process for each name.
fn rests(status: &Value, count: usize) -> bool {
    status["health"] == "healthy"
        && status["pools"][0]["roll"].is_null()
        && workers(status).len() == count
}

/// Looks all the time, until it is so: there are never fewer that are ready than wanted, and never more
/// than one that comes or goes.
fn watch(place: &Place, wanted: usize, what: &str, mut over: impl FnMut(&Value) -> bool) -> Value {
    place.until(what, |status| {
        let ready = status["pools"][0]["ready"].as_u64().unwrap();
        assert!(ready >= wanted as u64, "a new one is ready first: {status:#}");
        assert!(workers(status).len() <= wanted + 1, "one at a time: {status:#}");
        over(status)
    })
}

/// What each replacement was for.
fn reasons(place: &Place) -> Vec<Value> {
    let told = place.told("a successor is started");
    told.iter().map(|record| record["fields"]["worn"].clone()).collect()
}

/// Of all names. One whose successor is there has two processes, which both know how many there were before them.
fn restarts(status: &Value) -> u64 {
    let mut most = BTreeMap::<_, u64>::new();
    for worker in workers(status) {
        let most = most.entry(worker["name"].as_str()).or_default();
        *most = worker["restarts"].as_u64().unwrap().max(*most);
    }
    most.values().sum()
}

#[test]
fn a_worker_of_an_age_is_replaced_one_at_a_time_and_nobody_is_lost() {
    for count in [3, 1] {
        let (master, place) = hall(count, "max-age = '1s'");
        let load = Load::start(master.address(), 4);
        let status = watch(&place, count, "each name has had three processes", |status| {
            workers(status).iter().all(|worker| worker["restarts"].as_u64() >= Some(2))
        });
        load.flows(50);
        let tally = load.end();
        println!("{count} workers, {} replaced: {tally}", restarts(&status));
        tally.assert_all_answered();
        let reasons = reasons(&place);
        assert!(reasons.len() as u64 >= restarts(&status), "{reasons:?}");
        assert!(reasons.iter().all(|worn| worn == "max-age"), "{reasons:?}");
        master.stop();
    }
}

#[test]
fn a_worker_that_has_served_enough_is_replaced_and_not_before() {
    const BOUND: u64 = 300;
    let (master, place) = hall(2, &format!("max-connections-served = {BOUND}"));
    let load = Load::start(master.address(), 4);
    let status = watch(&place, 2, "each name has had three processes", |status| {
        workers(status).iter().all(|worker| worker["restarts"].as_u64() >= Some(2))
    });
    let tally = load.end();
    // Those that are gone have had the bound, less a tenth at most.
    let (gone, served) = (restarts(&status), status["pools"][0]["delivered"].as_u64().unwrap());
    println!("{gone} replaced after {served} connections: {tally}");
    assert!(served >= gone * BOUND * 9 / 10, "{gone} replaced after {served} connections");
    tally.assert_all_answered();
    let reasons = reasons(&place);
    assert!(reasons.iter().all(|worn| worn == "max-connections-served"), "{reasons:?}");
    master.stop();
}

#[test]
fn a_worker_that_has_grown_is_replaced_and_another_is_not() {
    let (master, place) = hall(2, "max-memory = '200MiB'");
    let load = Load::start(master.address(), 2);
    let before = pids(&place.status());
    let grown = master.client().get("/grow/220").field("worker");
    let status = watch(&place, 2, "it is replaced", |status| {
        rests(status, 2) && pids(status)[&grown] != before[&grown]
    });
    let after = pids(&status);
    let stays = after.iter().filter(|(name, _)| **name != grown);
    assert!(stays.clone().count() == 1 && stays.clone().all(|(name, pids)| *pids == before[name]));
    // Both at once: one after the other.
    until("both have grown", || {
        let names = [(); 2].map(|()| master.client().get("/grow/220").field("worker"));
        names[0] != names[1]
    });
    watch(&place, 2, "both are replaced", |status| {
        let now = pids(status);
        rests(status, 2) && after.iter().all(|(name, pids)| now[name] != *pids)
    });
    let tally = load.end();
    println!("{tally}");
    tally.assert_all_answered();
    assert!(reasons(&place).iter().all(|worn| worn == "max-memory"));
    master.stop();
}

/// A pool of which nobody can be started once the file is there.
fn hall_that_fails() -> (Master, Place, std::path::PathBuf) {
    let place = Place::new();
    let fails = place.join("fails");
    let program =
        format!("[ -e {} ] && {{ echo not today; exit 3; }}; exec {WORKER} recv", fails.display());
    let user = if rustix::process::geteuid().is_root() { "user = 'root'\n" } else { "" };
    let text = format!(
        "{LISTENER}[[pool]]\nname = 'app'\nworkers = 2\nmax-memory = '200MiB'\n{user}\
         command = ['/bin/sh', '-c', \"{program}\"]\n"
    );
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(&text));
    let master = Master::launch(command);
    (master, place, fails)
}

/// A worker grows too large, and its successor does not become ready: its name.
fn grow_in_vain(master: &Master, place: &Place, before: &Value) -> String {
    let grown = master.client().get("/grow/220").field("worker");
    let status = place
        .until("the roll has stopped", |status| status["pools"][0]["roll"]["state"] == "stopped");
    let roll = &status["pools"][0]["roll"];
    assert_eq!(
        (&roll["worker"], &roll["last-lines"][0]),
        (&grown.as_str().into(), &"not today".into())
    );
    assert_eq!((pids(&status), &status["pools"][0]["ready"]), (pids(before), &2.into()));
    grown
}

#[test]
fn a_worn_worker_whose_successor_does_not_become_ready_stays_until_one_does() {
    let (master, place, fails) = hall_that_fails();
    let before = place.until("every worker is ready", |status| status["health"] == "healthy");
    let load = Load::start(master.address(), 2);
    std::fs::write(&fails, "").unwrap();
    grow_in_vain(&master, &place, &before);
    std::fs::remove_file(&fails).unwrap();
    place.order(&serde_json::json!({"command": "restart", "pool": "app"}));
    watch(&place, 2, "every worker is a new one", |status| {
        let now = pids(status);
        rests(status, 2) && pids(&before).iter().all(|(name, pids)| now[name] != *pids)
    });
    load.flows(50);
    load.end().assert_all_answered();
    master.stop();
}

/// The wait itself is shown without one, by the tests of `supervisor/master/roll/progress.rs`.
#[test]
#[ignore = "takes two minutes: by hand, with --ignored"]
fn a_worn_worker_whose_successor_does_not_become_ready_has_another_a_minute_later() {
    let (master, place, fails) = hall_that_fails();
    let before = place.until("every worker is ready", |status| status["health"] == "healthy");
    let load = Load::start(master.address(), 2);
    std::fs::write(&fails, "").unwrap();
    let grown = grow_in_vain(&master, &place, &before);
    let begin = Instant::now();
    let tried = |times: usize| {
        while place.told("a successor is started").len() < times {
            assert!(begin.elapsed() < Duration::from_secs(180), "{times} were not tried");
            std::thread::sleep(Duration::from_millis(100));
        }
        begin.elapsed()
    };
    let again = tried(2);
    std::fs::remove_file(&fails).unwrap();
    println!("others were tried after {again:?} and {:?}", tried(3));
    watch(&place, 2, "it is replaced", |status| {
        rests(status, 2) && pids(status)[&grown] != pids(&before)[&grown]
    });
    load.flows(50);
    load.end().assert_all_answered();
    master.stop();
}

/// A client whose next request the worker of this name gets, by round robin among few.
fn client_of(master: &Master, name: &str) -> Client {
    let mut found = None;
    until("it is this worker's turn", || {
        let mut client = master.client();
        let is_its = client.get("/").field("worker") == name;
        found = is_its.then_some(client);
        is_its
    });
    found.unwrap()
}

#[test]
fn a_worker_that_drains_by_itself_is_replaced_before_it_has_ended() {
    let (master, place) = hall(2, "balance = 'round-robin'");
    let load = Load::start(master.address(), 4);
    let before = pids(&place.status());
    // It cannot end while this one is served.
    let mut busy = client_of(&master, "app-1");
    client_of(&master, "app-1").get("/drain");
    let old = before["app-1"][0];
    let status = place.until("another takes its place", |status| {
        let now = &pids(status)["app-1"];
        now.len() == 2 && now.contains(&old) && status["pools"][0]["ready"] == 2
    });
    assert_eq!(pids(&status)["app-2"], before["app-2"], "the other one stays");
    let answer = busy.get("/");
    assert_eq!(answer.field("pid"), old.to_string(), "it is served to its end");
    drop(busy);
    place.until("the old one has ended", |status| {
        rests(status, 2) && !pids(status)["app-1"].contains(&old)
    });
    // Everybody at once: who comes meanwhile waits.
    let before = pids(&place.status());
    for name in ["app-1", "app-2"] {
        client_of(&master, name).get("/drain");
    }
    place.until("both are others", |status| {
        let now = pids(status);
        rests(status, 2) && before.iter().all(|(name, pids)| now[name] != *pids)
    });
    load.flows(50);
    let tally = load.end();
    println!("{tally}");
    tally.assert_all_answered();
    assert_eq!(reasons(&place), Vec::<Value>::new(), "nobody else was to be replaced");
    master.stop();
}

#[test]
fn who_waits_at_a_listener_that_is_removed_is_served_by_its_rules_before_it_is_closed() {
    const WAITING: usize = 400;
    let place = Place::new();
    let both = format!(
        "{LISTENER}[[listener]]\nname = 'old'\naddress = '127.0.0.1:0'\nbacklog = 1024\n{}{}\
         [[route]]\nname = 'old'\nlistener = ['old']\npool = 'former'\n\
         [[route]]\nname = 'rest'\npool = 'app'\n",
        pool("app", 1, ""),
        pool("former", 1, ""),
    );
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(&both));
    let mut master = Master::launch(command);
    let old = master.next_address();
    place.until("every worker is ready", |status| status["health"] == "healthy");
    assert_eq!(Client::connect(old).get("/").field("worker"), "former-1");
    let router = master.router();
    process::freeze(router);
    // The kernel accepts them; the router does not.
    let mut waiting: Vec<_> = (0..WAITING).map(|_| Client::connect(old)).collect();
    for client in &mut waiting {
        client.ask("/");
    }
    let said = place.reload(&format!("{LISTENER}{}", pool("app", 1, "")));
    assert!(said.contains("listener old: removed"), "{said}");
    assert!(said.contains("pool former: removed"), "{said}");
    process::thaw(router);
    for client in &mut waiting {
        assert_eq!(client.answer().field("worker"), "former-1");
    }
    drop(waiting);
    until("the removed pool's worker has ended", || master.workers().len() == 1);
    until("nobody listens there", || is_refused(old));
    assert_eq!(master.client().get("/").field("worker"), "app-1");
    assert_eq!(master.router(), router, "the same router");
    master.stop();
}

fn is_refused(address: SocketAddr) -> bool {
    let refused = std::io::ErrorKind::ConnectionRefused;
    TcpStream::connect(address).is_err_and(|error| error.kind() == refused)
}
