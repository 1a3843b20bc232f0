//! Routing scripts that fail or do harm, in the running program: others are served meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vestibule_tests::load::Load;
use vestibule_tests::scripting::{ONE_POOL, Run, field};
use vestibule_tests::world::until;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// What is asked of a handler that does harm, and what becomes of whoever asks.
const HARM: [(&str, u16); 13] = [
    ("() => { for (;;); }", 503),
    ("() => { try { for (;;); } finally { for (;;); } }", 503),
    ("() => again()", 503),
    ("() => 'x'.repeat(2 ** 28)", 503),
    ("() => /^(a+)+$/.test('a'.repeat(40) + 'b')", 503),
    ("() => Array(1e9).fill()", 503),
    ("() => { const deep = () => deep(); deep(); }", 503),
    ("() => new Proxy({}, { get() { for (;;); } }).x", 503),
    // It was posted once, and that stands.
    ("(c) => { pools.app.postMessage(1, [c]); pools.app.postMessage(2, [c]); }", 200),
    ("() => new Promise(() => {})", 503),
    // Ten times: ten thousand promises that never settle.
    (
        "() => { for (let i = 0; i < 1000; i++) kept.push(new Promise(() => {})); return kept[0]; }",
        503,
    ),
    // The one before is decided by then.
    ("(c) => { const last = late; late = c; pools.app.postMessage(1, [last ?? {}]); }", 503),
    ("(c) => { throw c; }", 503),
];

#[test]
fn a_script_that_does_harm_to_some_clients_leaves_the_others_alone() {
    let harm: Vec<&str> = HARM.iter().map(|(harm, _)| *harm).collect();
    let script = format!(
        "const again = () => Promise.resolve().then(again);
         const kept = [];
         let late;
         const harm = [{}];
         onconnection = ({{ connection }}) => {{
           const [, , which, last] = connection.remoteAddress.split('.').map(Number);
           if (last === 66) return harm[which](connection);
           pools.app.postMessage(null, [connection]);
         }};",
        harm.join(",\n")
    );
    // More than most of it takes, on a slow machine too: what takes sixteen times that is the script's end
    // for a second, and another test's matter.
    let config = ONE_POOL.replace("script =", "script-timeout = \"20ms\"\nscript =");
    // Whose answers say for whom they are.
    let user = if rustix::process::geteuid().is_root() { "\nuser = \"root\"" } else { "" };
    let serve = format!("command = [\"{WORKER}\", \"recv\"]{user}");
    let run = Run::of(WORKER, &config.replace("command = \"demo\"", &serve), &script);
    let others = Load::start(run.master.address(), 2);
    others.flows(20);
    for (which, (_, status)) in HARM.iter().enumerate() {
        others.next_phase();
        for _ in 0..10 {
            let response = run.get(&format!("127.0.{which}.66"));
            assert_eq!(response.status, *status, "{which}");
            if *status == 503 {
                assert_eq!(response.header("vestibule-reason"), Some("script-failed"));
            }
            others.flows(2);
        }
    }
    let tally = others.end();
    println!("beside a script that does harm: {tally}");
    tally.assert_all_answered();
    run.stop();
}

#[test]
fn a_step_without_an_end_costs_the_router_and_the_next_one_serves() {
    let script = "onconnection = ({ connection }) => {
          if (connection.remoteAddress === '127.0.0.66') [].reverse.call({ length: 2 ** 53 - 1 });
          pools.app.postMessage(null, [connection]);
        };";
    let mut run = Run::of(WORKER, ONE_POOL, script);
    assert_eq!(run.get("127.0.0.1").status, 200);
    let first = run.master.router();
    let mut harmful = run.client("127.0.0.66");
    harmful.ask("/");
    // Nothing can end that step but the end of the process.
    until("the supervisor gives it up", || vestibule_tests::master::is_over(first));
    assert_eq!(run.get("127.0.0.1").status, 200);
    assert_ne!(run.master.router(), first);
    assert!(harmful.try_answer().is_err());
    run.stop();
}

#[test]
fn where_a_script_fails_the_written_rules_decide() {
    let config = format!(
        "{ONE_POOL}
[[route]]
name = \"loop\"
peer = [\"127.0.0.0/24\"]
pool = \"app\"
"
    );
    let run = Run::of(WORKER, &config, "onconnection = ({ connection }) => { null.x };");
    assert_eq!(field(&run.get("127.0.0.1"), "route"), "loop");
    // Sixteen failures in a row and more: it is left alone, and the rules go on.
    for _ in 0..40 {
        assert_eq!(field(&run.get("127.0.0.1"), "route"), "loop");
    }
    let response = run.get("127.0.1.1");
    assert_eq!(response.status, 503);
    assert_eq!(response.header("vestibule-reason"), Some("script-failed"));
    run.stop();
}

#[test]
fn a_script_that_failed_sixteen_times_is_off_for_a_second_and_serves_again() {
    let script = "onconnection = ({ connection }) => {
          if (connection.remoteAddress === '127.0.0.66') null.x;
          pools.app.postMessage(null, [connection]);
        };";
    let run = Run::of(WORKER, ONE_POOL, script);
    assert_eq!(run.get("127.0.0.1").status, 200);
    // On a machine that stands still the second may be over before it could be seen.
    let seen = (0..20).any(|_| {
        (1..16).for_each(|_| assert_eq!(run.get("127.0.0.66").status, 503));
        let before = Instant::now();
        assert_eq!(run.get("127.0.0.66").status, 503);
        let response = run.get("127.0.0.1");
        let off = before.elapsed() < Duration::from_secs(1);
        if off {
            assert_eq!(response.status, 503, "it is asked all the same");
            assert_eq!(response.header("vestibule-reason"), Some("script-failed"));
        }
        off
    });
    assert!(seen);
    until("it is asked again", || run.get("127.0.0.1").status == 200);
    run.place.says("the script failed 16 times in a row and is left alone for a second");
    run.stop();
}

#[test]
fn a_failure_is_said_once_with_file_line_and_column_and_then_with_its_count() {
    let script = "onconnection = ({ connection }) => {
  if (connection.remoteAddress === '127.0.0.66')
    null.x;
  pools.app.postMessage(null, [connection]);
};";
    let run = Run::of(WORKER, ONE_POOL, script);
    for _ in 0..10 {
        for _ in 0..10 {
            assert_eq!(run.get("127.0.0.66").status, 503);
        }
        // Not sixteen in a row.
        assert_eq!(run.get("127.0.0.1").status, 200);
    }
    let said = || -> Vec<(Value, Value)> {
        let records = run.place.records().into_iter();
        let fields = records.map(|mut record| record["fields"].take());
        let failures = fields.filter(|fields| fields["message"].to_string().contains("route.js"));
        failures.map(|fields| (fields["message"].clone(), fields["count"].clone())).collect()
    };
    let place = run.place.join("route.js").display().to_string();
    let said_at = json!(format!("{place}:3:5: TypeError: cannot read property 'x' of null"));
    let expected = [1, 10, 100].map(|count| (said_at.clone(), json!(count)));
    until("the hundredth is said", || said().len() >= expected.len());
    assert_eq!(said(), expected);
    run.stop();
}

/// Clients who never say what they want cost those who do neither their answers nor what the script remembers.
#[test]
fn a_crowd_that_is_waited_for_does_not_use_up_a_scripts_memory() {
    const CROWD: usize = 2_000;
    let script = "let served = 0;
         onconnection = async ({ connection }) => {
           const { path } = await connection.http();
           if (path === '/count') return connection.reject(400 + served);
           served += 1;
           pools.app.postMessage(null, [connection]);
         };";
    let config = ONE_POOL
        .replace("[router]\n", "[router]\nscript-memory = \"1MiB\"\ninspect-timeout = \"60s\"\n");
    let run = Run::of(WORKER, &config, script);
    let mut crowd: Vec<_> = (0..CROWD)
        .map(|_| {
            let mut client = run.client("127.0.0.66");
            client.send(b"GET / HTTP/1.1\r\nhost: a.exa");
            client
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(run.get("127.0.0.1").status, 200);
    }
    // Who came last is still waited for; who came first was told to go.
    let last = crowd.last_mut().unwrap();
    last.send(b"mple\r\n\r\n");
    assert_eq!(last.answer().status, 200);
    assert_eq!(crowd[0].answer().status, 429);
    // While so many are told, others may be reset.
    until("the script tells how many it has posted", || {
        let mut client = run.client("127.0.0.1");
        client.try_send(b"GET /count HTTP/1.1\r\n\r\n");
        client.try_answer().is_ok_and(|answer| answer.status == 421)
    });
    drop(crowd);
    run.stop();
}

#[test]
fn what_nobody_awaits_is_logged_with_its_place_once_and_with_its_count() {
    let script = "onconnection = ({ connection }) => {
          if (connection.remoteAddress === '127.0.0.66') connection.reject(404);
          /* äöü */ (async () => { pools.typo.postMessage(1, [connection]) })();
        };";
    let run = Run::of(WORKER, ONE_POOL, script);
    let said = "route.js:3:36: TypeError: cannot read property 'postMessage' of undefined (pools: app) \
                (in a promise that nobody awaits)";
    let counts = || -> Vec<Value> {
        let records = run.place.records().into_iter();
        let mine = records.filter(|record| {
            record["fields"]["message"].as_str().is_some_and(|text| text.ends_with(said))
        });
        mine.map(|record| record["fields"]["count"].clone()).collect()
    };
    let response = run.get("127.0.0.1");
    assert_eq!(response.status, 503);
    assert_eq!(response.header("vestibule-reason"), Some("script-failed"));
    until("it is said", || counts() == [json!(1)]);
    // What is decided stands.
    (0..9).for_each(|_| assert_eq!(run.get("127.0.0.66").status, 404));
    until("it is said again", || counts() == [json!(1), json!(10)]);
    run.stop();
}
