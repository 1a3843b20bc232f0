//! Routing scripts in the running program: the examples, reloads, and what they are told of clients.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use serde_json::json;
use vestibule_tests::files::Folder;
use vestibule_tests::half::client_hello;
use vestibule_tests::master::vestibule;
use vestibule_tests::scripting::{EXAMPLES, ONE_POOL, Run, field};
use vestibule_tests::world::until;
use vestibule_tests::{Client, Response};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

#[test]
fn the_article_s_master_sends_an_address_to_the_worker_of_its_sum() {
    let run = Run::example(WORKER, "master");
    for (from, worker) in [
        ("127.0.0.1", "app-4"),
        ("127.0.0.2", "app-5"),
        ("127.1.2.4", "app-5"),
        ("127.0.0.3", "app-1"),
    ] {
        for _ in 0..3 {
            let response = run.get(from);
            assert_eq!(field(&response, "worker"), worker, "{from}");
            assert_eq!(field(&response, "route"), "script");
        }
    }
    run.stop();
}

#[test]
fn without_a_label_a_client_is_a_guest() {
    let run = Run::example(WORKER, "security-context");
    assert_eq!(run.worker("127.0.0.1"), "guest-1");
    run.stop();
}

#[test]
fn those_who_repair_the_house_see_it_and_others_see_the_page() {
    let folder = std::fs::read_to_string(format!("{EXAMPLES}/maintenance/route.js")).unwrap();
    let config = std::fs::read_to_string(format!("{EXAMPLES}/maintenance/vestibule.toml")).unwrap();
    // Every client here is on the loopback network: half of it repairs.
    let run = Run::of(WORKER, &config, &folder.replace("127.0.0.0/8", "127.0.0.0/9"));
    assert!(run.worker("127.0.0.1").starts_with("app-"));
    assert_eq!(run.worker("127.200.0.1"), "maintenance-1");
    run.stop();
}

#[test]
fn an_address_that_comes_too_often_is_told_so_and_others_are_not() {
    let run = Run::example(WORKER, "rate-limit");
    let statuses: Vec<u16> = (0..40).map(|_| run.get("127.0.0.7").status).collect();
    assert_eq!(statuses[..20], [200; 20]);
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(run.get("127.0.0.8").status, 200);
    run.stop();
}

#[test]
fn a_script_that_cannot_be_used_keeps_the_program_from_starting_and_says_where() {
    let folder = Folder::new();
    folder.write("route.js", "let a = 1;\n  foo();\n", 0o644);
    let config = folder.write("vestibule.toml", &ONE_POOL.replace(":8080", ":0"), 0o644);
    for verb in ["check", "run"] {
        let mut command = Command::new(vestibule(WORKER));
        let output = command.arg(verb).arg(&config).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{verb}: {said}");
        assert!(said.contains("route.js:2:3: "), "{verb}: {said}");
        assert!(said.contains("ReferenceError: foo is not defined"), "{verb}: {said}");
    }
}

#[test]
fn a_reload_brings_another_script_and_with_a_broken_one_nothing_changes_and_that_is_said() {
    let run =
        Run::of(WORKER, ONE_POOL, "onconnection = ({ connection }) => connection.reject(418);");
    let status = || run.get("127.0.0.1").status;
    assert_eq!(status(), 418);
    run.rewrite("onconnection = ({ connection }) => connection.reject(451);");
    // Who asks is answered when it is so.
    let config = ONE_POOL.replace(":8080", ":0");
    assert!(run.place.reload(&config).contains("script: changed"));
    assert_eq!(status(), 451);
    // A broken one, beside another number of workers and another pool that is good.
    run.rewrite("let a = 1;\n  onconnection = null.x;");
    let more = config.replace("workers = 2", "workers = 3")
        + "[[pool]]\nname = \"more\"\ncommand = \"demo\"\nworkers = 1\n";
    run.place.config(&more);
    let answer = run.place.ask(&json!({"command": "reload"}));
    assert_eq!(answer["reason"], "configuration", "{answer}");
    let text = answer["text"].as_str().unwrap();
    assert!(text.contains("nothing has changed") && text.contains("route.js:2:"), "{text}");
    assert!(text.contains("TypeError"), "{text}");
    let is_as_before = || {
        let now = run.place.status();
        let pools = now["pools"].as_array().unwrap();
        assert_eq!((pools.len(), &pools[0]["wanted"]), (1, &json!(2)), "{now:#}");
        assert_eq!(status(), 451);
    };
    is_as_before();
    // For whom nobody waits it is in the log.
    let refusals =
        || run.place.told("the configuration is not reloaded: nothing has changed").len();
    assert_eq!(refusals(), 1);
    run.master.signal(rustix::process::Signal::HUP);
    until("the signal's reload is refused, too", || refusals() == 2);
    is_as_before();
    // One that counts on a pool which comes with it.
    run.rewrite(
        "const pool = pools.more; if (!pool) throw new Error('no pool');\n\
         onconnection = ({ connection }) => pool.postMessage(1, [connection]);",
    );
    assert!(run.place.reload(&more).contains("pool more: added"));
    until("the new pool's worker is ready", || run.place.status()["health"] == "healthy");
    assert_eq!(run.worker("127.0.0.1"), "more-1");
    run.stop();
}

#[test]
fn a_router_that_dies_while_it_tries_a_script_has_changed_nothing() {
    let mut run =
        Run::of(WORKER, ONE_POOL, "onconnection = ({ connection }) => connection.reject(418);");
    let router = run.master.router();
    vestibule_tests::process::freeze(router);
    run.rewrite("onconnection = ({ connection }) => connection.reject(451);");
    let answer = std::thread::scope(|scope| {
        let asks = scope.spawn(|| run.place.ask(&json!({"command": "reload"})));
        run.place.says("Reload");
        let meanwhile = run.place.ask(&json!({"command": "reload"}));
        assert!(meanwhile["text"].as_str().unwrap().contains("under way"), "{meanwhile}");
        vestibule_tests::process::signal(router, rustix::process::Signal::KILL);
        asks.join().unwrap()
    });
    assert_eq!(answer["reason"], "state", "{answer}");
    assert!(answer["text"].as_str().unwrap().contains("nothing has changed"), "{answer}");
    assert_eq!(run.get("127.0.0.1").status, 418);
    run.stop();
}

#[test]
fn a_signal_that_comes_while_a_script_is_tried_has_its_reload_afterwards() {
    let mut run =
        Run::of(WORKER, ONE_POOL, "onconnection = ({ connection }) => connection.reject(418);");
    let router = run.master.router();
    vestibule_tests::process::freeze(router);
    let reloads = || run.place.told("the configuration is reloaded").len();
    run.rewrite("onconnection = ({ connection }) => connection.reject(451);");
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| run.place.ask(&json!({"command": "reload"})));
        run.place.says("Reload");
        // It says so before it reads the script, and answers nobody in between.
        run.place.ask(&json!({"command": "status"}));
        run.rewrite("onconnection = ({ connection }) => connection.reject(410);");
        run.master.signal(rustix::process::Signal::HUP);
        // It is heard before what is asked after it.
        run.place.ask(&json!({"command": "status"}));
        assert_eq!(reloads(), 0);
        vestibule_tests::process::thaw(router);
        assert_eq!(asks.join().unwrap()["answer"], "done");
    });
    until("both are made", || reloads() == 2);
    until("the last script decides", || run.get("127.0.0.1").status == 410);
    run.stop();
}

/// A request with these further lines, from this address.
fn ask(run: &Run, from: &str, lines: &str) -> Response {
    let mut client = run.client(from);
    client.send(format!("GET / HTTP/1.1\r\n{lines}\r\n").as_bytes());
    client.answer()
}

#[test]
fn a_canary_goes_by_cookie_and_stays_the_same_for_one_visitor() {
    let run = Run::example(WORKER, "canary");
    let worker =
        |lines: &str| field(&ask(&run, "127.0.0.1", &format!("host: a\r\n{lines}")), "worker");
    assert_eq!(worker("cookie: canary=always\r\n"), "canary-1");
    assert!(worker("cookie: a=1; canary=never\r\n").starts_with("stable-"));
    let visitor = |number: u32| worker(&format!("cookie: session=s{number}\r\n"));
    let chosen: Vec<bool> = (0..200).map(|number| visitor(number).starts_with("canary")).collect();
    let count = chosen.iter().filter(|chosen| **chosen).count();
    // Five of a hundred, as this hash has it.
    assert!((2..=24).contains(&count), "{count} of 200");
    for number in [0, 1, 2, 3] {
        assert_eq!(visitor(number).starts_with("canary"), chosen[number as usize]);
    }
    run.stop();
}

#[test]
fn ten_thousand_tenants_each_have_their_worker() {
    let run = Run::example(WORKER, "tenants");
    for tenant in [0, 1, 4711, 9999] {
        let response = ask(&run, "127.0.0.1", &format!("host: Tenant-{tenant}.example.org:80\r\n"));
        assert_eq!(field(&response, "worker"), format!("app-{}", tenant % 4 + 1));
    }
    assert_eq!(ask(&run, "127.0.0.1", "host: tenant-10000.example.org\r\n").status, 404);
    // In pieces, and the worker reads each byte of it.
    let mut client = run.client("127.0.0.1");
    for piece in ["GET /x HT", "TP/1.1\r\nHo", "st: tenant-2.exa", "mple.org\r\n\r", "\n"] {
        client.send(piece.as_bytes());
        std::thread::yield_now();
    }
    assert_eq!(field(&client.answer(), "worker"), "app-3");
    // Two hosts are no host: what cannot be known is nobody's tenant.
    let response = ask(&run, "127.0.0.1", "host: tenant-1.example.org\r\nhost: b\r\n");
    assert_eq!(response.status, 400);
    assert_eq!(response.header("vestibule-reason"), Some("not-http"));
    run.stop();
}

#[test]
fn a_tls_client_goes_by_the_name_that_it_asks_for() {
    let run = Run::example(WORKER, "sni");
    let answer = |bytes: &[u8]| {
        let mut client = run.client("127.0.0.1");
        client.send(bytes);
        client.finish();
        client.end().0
    };
    // access_denied, as an alert.
    assert_eq!(answer(&client_hello(Some("other.example.org"))), [0x15, 3, 3, 0, 2, 2, 49]);
    // A worker that speaks no TLS says what it says; it is no alert of the router's. Those that do are
    // in `examples/tls`.
    let said = answer(&client_hello(Some("shop.example.org")));
    assert!(!said.starts_with(&[0x15]), "{said:?}");
    assert_eq!(ask(&run, "127.0.0.1", "host: shop.example.org\r\n").status, 421);
    run.stop();
}

#[test]
fn behind_a_proxy_that_ended_tls_the_name_is_what_its_header_announces() {
    let config = ONE_POOL.replace("[[pool]]", "proxy-protocol = \"127.0.0.1\"\n[[pool]]");
    let script = "onconnection = async ({ connection }) => {
        const tls = await connection.tls();
        if (tls?.serverName === 'secret.example') return connection.reject(403);
        const http = await connection.http();
        pools.app.postMessage([tls?.serverName ?? null, tls?.alpn ?? null, http.host], [connection]);
      };";
    let run = Run::of(WORKER, &config, script);
    let field = |kind: u8, value: &[u8]| {
        [&[kind, 0, u8::try_from(value.len()).unwrap()][..], value].concat()
    };
    let answer = |fields: &[u8]| {
        let length = u16::try_from(12 + fields.len()).unwrap().to_be_bytes();
        let addresses = [10, 1, 2, 3, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let mut client = run.client("127.0.0.1");
        client.send(&[&signature[..], &[0x21, 0x11], &length, &addresses, fields].concat());
        client.send(b"GET / HTTP/1.1\r\nhost: inner.example\r\n\r\n");
        client.answer()
    };
    // Nobody slips past a rejection by name behind a proxy.
    assert_eq!(answer(&field(2, b"secret.example")).status, 403);
    for fields in [field(2, b"shop.example.org"), Vec::new()] {
        let response = answer(&fields);
        assert_eq!(response.status, 200);
        assert_eq!(response.field("route"), "script");
    }
    run.stop();
}

#[test]
fn who_asks_only_for_tls_waits_for_no_head() {
    let script = "onconnection = async ({ connection }) => {
        if ((await connection.tls()) === null) connection.reject(418);
      };";
    // Longer than anybody here waits.
    let config = ONE_POOL.replace("script =", "inspect-timeout = \"60s\"\nscript =");
    let run = Run::of(WORKER, &config, script);
    let mut client = run.client("127.0.0.1");
    client.send(b"G");
    // As soon as it cannot be the preface of HTTP/2 or a hello, and not when a head is missed.
    assert_eq!(client.answer().status, 418);
    drop(client);
    run.stop();
}

#[test]
fn clients_that_show_nothing_are_no_failure_of_the_script_and_delay_nobody() {
    let run = Run::example(WORKER, "tenants");
    // Half a head each, and never the rest.
    let silent: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = run.client("127.0.0.66");
            client.send(b"GET / HTTP/1.1\r\nhost: ten");
            client
        })
        .collect();
    for _ in 0..20 {
        let response = ask(&run, "127.0.0.1", "host: tenant-2.example.org\r\n");
        assert_eq!(field(&response, "worker"), "app-3");
    }
    drop(silent);
    let response = ask(&run, "127.0.0.1", "host: tenant-2.example.org\r\n");
    assert_eq!(field(&response, "worker"), "app-3");
    run.stop();
}
