//! Clients that have not said yet what a rule must see, while everything changes around them: each is
//! decided by what there is when it has, and nothing that it sent is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::IpAddr;

use serde_json::Value;
use vestibule_tests::half::{Half, crowd, head, header_of_tls};
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, process};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn pool(name: &str) -> String {
    let user = if is_root() { "user = 'root'" } else { "" };
    format!("[[pool]]\nname = '{name}'\ncommand = [{WORKER:?}, 'recv']\nworkers = 1\n{user}\n")
}

fn route(name: &str, matches: &str, target: &str) -> String {
    format!("[[route]]\nname = '{name}'\n{matches}\n{target}\n")
}

/// 127.0.0.2 is a proxy.
fn listener(more: &str) -> String {
    format!(
        "[[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\nproxy-protocol = ['127.0.0.2']\n{more}\n"
    )
}

fn start(place: &Place, text: &str) -> Master {
    let mut command = place.vestibule(WORKER);
    command.arg(place.config(text));
    let master = Master::launch(command);
    place.until("every worker is ready", |status| status["health"] == "healthy");
    master
}

/// Waits until so many are accepted. The kernel keeps silent ones for a second or two.
fn accepted(master: &Master, count: usize) {
    until("all are accepted", || master.accepted_and_acknowledged().0 == count as u64);
}

fn rejections(status: &Value) -> u64 {
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    rejected.values().map(|count| count.as_u64().unwrap()).sum()
}

const LONG: &str = "inspect-timeout = '60s'\n";

/// What was announced by a proxy is known, and everybody's host or name is.
fn rules() -> String {
    [
        route("announced", "sni = 'announced.example'\nhost = 'a.example'", "pool = 'app'"),
        // First: of TLS clients no host can be told, and then nothing further is asked.
        route("name", "sni = 'a.example'", "pool = 'app'"),
        route("host", "host = 'a.example'", "pool = 'app'"),
        route("rest", "", "reject = 418"),
    ]
    .concat()
}

#[test]
fn another_router_goes_on_with_clients_that_are_looked_at() {
    // Those of anybody else are that user, and there is no planned change.
    assert!(is_root(), "only root's routers can become another user: run this as root");
    let place = Place::new();
    let text = |user: u32, limits: &str| {
        // Another name every time, and the same socket.
        let listener = listener(limits).replace("'web'", &format!("'web-{user}'"));
        let rules = rules().replace("[[route]]", &format!("[[route]]\nlistener = 'web-{user}'"));
        format!("[router]\nuser = '{user}'\n{LONG}{listener}{}{rules}", pool("app"))
    };
    let mut master = start(&place, &text(61_400, ""));
    let mut before = 0;
    for change in 1..=2u32 {
        let crowd = crowd(master.address());
        before += crowd.len();
        accepted(&master, before);
        let router = master.router();
        let said = place.reload(&text(61_400 + change, ""));
        assert!(said.contains("router: another user"), "{said}");
        place.until("the next router accepts", |status| {
            status["router"]["epoch"] == change + 1 && status["health"] == "healthy"
        });
        until("the router before it has ended", || process::is_gone(router));
        println!("{} clients that had said a part go on with router {}", crowd.len(), change + 1);
        crowd.into_iter().for_each(Half::assert_served);
    }
    let status = place.status();
    assert_eq!(rejections(&status), 0, "{status:#}");
    assert_eq!(status["connections"]["accepted"], before);
    // Who was announced has its route: the header's facts went along with who had sent it whole.
    let announced = header_of_tls("announced.example");
    let asks = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n";
    let half = Half::of(master.address(), "127.0.0.2", &announced, asks, announced.len() + 9);
    accepted(&master, before + 1);
    place.reload(&text(61_499, ""));
    place.until("the next router accepts", |status| {
        status["router"]["epoch"] == 4 && status["health"] == "healthy"
    });
    let Half { mut client, rest, .. } = half;
    client.send(&rest);
    let answer = client.answer();
    assert_eq!(
        (answer.field("route"), answer.field("peer")),
        ("announced".into(), "192.0.2.7:1".into())
    );
    drop(client);
    master.stop();
}

#[test]
fn a_script_that_waits_for_its_client_is_followed_by_the_next_one_and_by_another_routers() {
    assert!(is_root(), "only root's routers can become another user: run this as root");
    let place = Place::new();
    let script = |status: u16| {
        let text = format!(
            "onconnection = async ({{ connection }}) => {{\n\
               const request = await connection.http();\n\
               if (request.host === 'a.example') return connection.reject({status});\n\
               pools.app.postMessage({{ host: request.host }}, [connection]);\n\
             }};"
        );
        place.write("route.js", &text);
    };
    let text = |user: u32| {
        format!(
            "[router]\nuser = '{user}'\nscript = 'route.js'\n{LONG}{}{}",
            listener(""),
            pool("app")
        )
    };
    script(410);
    let master = start(&place, &text(61_400));
    let half = |host: &str| {
        let asks = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        Half::of(master.address(), "127.0.0.1", b"", asks.as_bytes(), 20)
    };
    let waits: Vec<_> = ["a.example", "b.example"].repeat(10).into_iter().map(half).collect();
    accepted(&master, waits.len());
    script(411);
    place.reload(&text(61_400));
    script(412);
    place.reload(&text(61_401));
    place.until("the next router accepts", |status| {
        status["router"]["epoch"] == 2 && status["health"] == "healthy"
    });
    for Half { mut client, rest, reads } in waits {
        client.send(&rest);
        let answer = client.answer();
        if reads.windows(9).any(|nine| nine == b"a.example") {
            assert_eq!(answer.status, 412, "by the last script");
        } else {
            assert_eq!(answer.field("message"), "{\"host\":\"b.example\"}");
        }
    }
    master.stop();
}

#[test]
fn bounds_count_whoever_is_looked_at_after_another_router_or_table_took_over() {
    const BOUND: usize = 10;
    let place = Place::new();
    let limits = |inspecting: usize, per_peer: usize| {
        format!("limits = {{ inspecting = {inspecting}, per-peer = {per_peer} }}")
    };
    let user = |uid: u32| if is_root() { format!("user = '{uid}'\n") } else { String::new() };
    let text = |uid: u32, limits: &str, more: &str| {
        let router = format!("[router]\n{}{LONG}", user(uid));
        format!("{router}{}{}{more}{}", listener(limits), pool("app"), rules())
    };
    let more = route("more", "host = 'b.example'", "reject = 404");
    let master = start(&place, &text(61_400, &limits(BOUND, 1_000), ""));
    let half = |source: &str| Half::of(master.address(), source, b"", &head("a.example"), 40);
    let crowd: Vec<_> = (0..BOUND).map(|_| half("127.0.0.9")).collect();
    accepted(&master, BOUND);
    // Another table, and for root another router.
    place.reload(&text(61_401, &limits(BOUND, 1_000), &more));
    let epoch = if is_root() { 2 } else { 1 };
    place.until("it has taken over", |status| {
        status["router"]["epoch"] == epoch && status["health"] == "healthy"
    });
    assert_eq!(rejections(&place.status()), 0);
    // One too many drives out who is silent for longest.
    let late = half("127.0.0.9");
    accepted(&master, BOUND + 1);
    let mut crowd = crowd.into_iter();
    let mut oldest = crowd.next().unwrap();
    let answer = oldest.client.answer();
    assert_eq!(answer.header("vestibule-reason"), Some("too-many"));
    // With a bound for each peer in the next table, those that are there count.
    place.reload(&text(61_401, &limits(BOUND, BOUND), &more));
    let mut refused = half("127.0.0.9");
    assert_eq!(refused.client.answer().header("vestibule-reason"), Some("too-many"));
    place.reload(&text(61_402, &limits(BOUND + 1, BOUND), ""));
    place.until("it has taken over", |status| {
        status["router"]["epoch"] == 2 * epoch - 1 && status["health"] == "healthy"
    });
    let mut refused = half("127.0.0.9");
    assert_eq!(refused.client.answer().header("vestibule-reason"), Some("too-many"));
    crowd.for_each(Half::assert_served);
    late.assert_served();
    until("as many are looked at again, when those have given their places back", || {
        let again: Vec<_> = (0..BOUND).map(|_| half("127.0.0.9")).collect();
        again.into_iter().map(Half::outcome).filter(|status| *status == Some(200)).count() == BOUND
    });
    master.stop();
}

#[test]
fn a_rate_goes_on_over_a_reload_and_another_router() {
    let place = Place::new();
    let user = |uid: u32| if is_root() { format!("user = '{uid}'\n") } else { String::new() };
    let text = |uid: u32, rate: &str, status: u16| {
        let limits = format!("limits = {{ rate = '{rate}', burst = 5 }}");
        let rules = route("all", "", &format!("reject = {status}"));
        format!("[router]\n{}{}{}{rules}", user(uid), listener(&limits), pool("app"))
    };
    let master = start(&place, &text(61_400, "1/h", 410));
    let come = |source: &str| -> u16 {
        let mut client = Client::connect_from(source.parse::<IpAddr>().unwrap(), master.address());
        client.ask("/");
        client.answer().status
    };
    assert_eq!([(); 3].map(|()| come("127.0.0.9")), [410; 3]);
    place.reload(&text(61_400, "1/h", 411));
    assert_eq!([(); 3].map(|()| come("127.0.0.9")), [411, 411, 429]);
    place.reload(&text(61_401, "1/h", 412));
    let epoch = if is_root() { 2 } else { 1 };
    place.until("it has taken over", |status| {
        status["router"]["epoch"] == epoch && status["health"] == "healthy"
    });
    assert_eq!([(); 2].map(|()| come("127.0.0.9")), [429; 2]);
    assert_eq!(come("127.0.0.11"), 412);
    // Another rate begins anew.
    place.reload(&text(61_401, "2/h", 413));
    assert_eq!(come("127.0.0.9"), 413);
    master.stop();
}

#[test]
fn whoever_is_looked_at_is_decided_by_the_rules_that_a_reload_brings() {
    let place = Place::new();
    let text = |pools: &[&str], rules: &str| {
        let pools: String = pools.iter().map(|name| pool(name)).collect();
        format!("[router]\n{LONG}{}{pools}{rules}", listener(""))
    };
    let first = route("a", "sni = 'a.example'", "pool = 'former'")
        + &route("b", "host = 'a.example'", "pool = 'former'")
        + &route("rest", "", "pool = 'former'");
    let master = start(&place, &text(&["former"], &first));
    let (one, other) = (crowd(master.address()), crowd(master.address()));
    let both = one.len() + other.len();
    accepted(&master, both);
    // The only pool that any of them could have gone to is no more.
    let second = first.replace("former", "latter");
    let said = place.reload(&text(&["latter"], &second));
    assert!(said.contains("pool former: removed"), "{said}");
    place.until("the pool is gone, while they still wait", |status| {
        status["pools"].as_array().unwrap().len() == 1 && status["health"] == "healthy"
    });
    one.into_iter().for_each(Half::assert_served);
    assert_eq!(rejections(&place.status()), 0);
    let third = route("a", "sni = 'a.example'", "reject = 410")
        + &route("b", "host = 'a.example'", "reject = 410")
        + &route("rest", "", "pool = 'latter'");
    place.reload(&text(&["latter"], &third));
    let heads = other.into_iter().filter(|half| half.reads.starts_with(b"POST"));
    heads.for_each(|half| assert_eq!(half.outcome(), Some(410)));
    assert_eq!(place.status()["router"]["epoch"], 1, "the same router");
    master.stop();
}

#[test]
fn a_removed_pool_finishes_with_the_router_that_follows_a_crash() {
    let place = Place::new();
    let both = format!("{}{}{}", listener(""), pool("app"), pool("former"));
    let route = |name: &str| route("all", "", &format!("pool = '{name}'"));
    let mut master = start(&place, &format!("{both}{}", route("former")));
    // It keeps the worker, which drains for as long.
    let mut busy = master.client();
    assert_eq!(busy.get("/").field("worker"), "former-1");
    place.reload(&format!("{}{}{}", listener(""), pool("app"), route("app")));
    assert_eq!(master.client().get("/").field("worker"), "app-1");
    master.kill_router();
    place.until("the next router accepts", |status| {
        status["router"]["epoch"] == 2 && status["health"] == "healthy"
    });
    assert_eq!(master.workers().len(), 2);
    assert_eq!(busy.get("/").field("worker"), "former-1");
    drop(busy);
    until("nothing of the removed pool is left", || master.workers().len() == 1);
    assert_eq!(master.client().get("/").field("worker"), "app-1");
    master.stop();
}

#[test]
fn a_listener_whose_clients_must_be_heard_since_a_reload_keeps_silent_ones_in_the_kernel() {
    let place = Place::new();
    let plain = "[[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\n";
    let text = |rules: &str| format!("[router]\n{LONG}{plain}{}{rules}", pool("app"));
    let hears = text(&rules());
    let master = start(&place, &text(""));
    let defers = || defer_accept(&master, master.address().port());
    assert!(!defers());
    place.reload(&hears);
    until("silent clients are kept in the kernel", defers);
    place.reload(&text(""));
    until("they are not any more", || !defers());
    place.reload(&hears);
    until("and again", defers);
    master.stop();
}

/// Whether the listening socket of a port has `TCP_DEFER_ACCEPT`, asked of the supervisor's copy.
fn defer_accept(master: &Master, port: u16) -> bool {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags};
    let pid = rustix::process::Pid::from_raw(i32::try_from(master.pid()).unwrap()).unwrap();
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", master.pid())).unwrap() {
        let number = entry.unwrap().file_name().to_string_lossy().parse().unwrap();
        // It may have been closed since.
        let Ok(socket) = rustix::process::pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
        else {
            continue;
        };
        let listens = rustix::net::sockopt::socket_acceptconn(&socket) == Ok(true);
        let here = rustix::net::getsockname(&socket)
            .ok()
            .and_then(|address| std::net::SocketAddr::try_from(address).ok())
            .is_some_and(|address| address.port() == port);
        if listens && here {
            return vestibule_tests::sockets::defers_accept(&socket);
        }
    }
    panic!("nobody listens on {port}");
}
