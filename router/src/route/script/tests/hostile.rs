//! Scripts that want to stop everything: each costs its own decision.

use super::*;
use crate::route::script::switch::MOST_FAILURES;

/// A script that does harm to clients at 10.1.2.3 and serves all others.
fn harmful(body: &str) -> Engine<Client> {
    let text = format!(
        "const harm = async (connection) => {{\n{body}\n}};
         onconnection = ({{ connection }}) => {{
           if (connection.remoteAddress === '10.1.2.3') return harm(connection);
           connection.reject(418);
         }};"
    );
    // On a busy machine it takes long to fill what a script has: the time of sixteen would be over.
    let limits = Limits { time: Duration::from_millis(20), memory: 4 << 20 };
    let source = Source { name: "route.js".to_owned(), text };
    Engine::new(source, limits, two_pools()).unwrap()
}

fn other_is_served(engine: &mut Engine<Client>) {
    match engine.decide(Client::at("192.0.2.1")) {
        Verdict::Decided(_, outcome) => {
            let failure = engine.last_failure();
            assert_eq!(outcome, Outcome::Reject(Refusal::Status(418)), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn harm_fails_its_own_decision_and_others_are_served() {
    for body in [
        "for (;;);",
        "try { for (;;); } finally { for (;;); }",
        "try { for (;;); } catch { connection.reject(200) }",
        "for (;;) try { for (;;); } catch {}",
        "const again = () => Promise.resolve().then(again); await again();",
        "const again = async () => { for (;;) await null; }; await again();",
        "'x'.repeat(2**28)",
        "let s = 'x'; for (;;) s += s;",
        "const kept = []; for (;;) kept.push(new Array(1000).fill(kept.length));",
        "/^(a+)+$/.test('a'.repeat(40) + 'b')",
        "const deep = () => deep(); deep();",
        "const deep = () => [].map.call([1], deep); deep();",
        "JSON.parse('['.repeat(1e6))",
        "Array(1e9).fill()",
        "Array(1e9).fill(0).join()",
        "new Uint8Array(2**30)",
        "const p = new Proxy({}, { get: () => { for (;;); } }); p.x;",
        "const p = new Proxy([], { get: (t, k) => k === 'length' ? 2**32 : 0 }); [].indexOf.call(p, 1);",
        "throw { get message() { for (;;); }, get stack() { for (;;); } };",
        "throw { toString() { for (;;); } };",
        "throw new Proxy({}, { get() { throw 1; } });",
        "throw Symbol('x');",
        "throw null;",
        "pools.app.postMessage({ get a() { for (;;); } }, [connection]);",
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);",
        "await import('fs');",
        "eval('for (;;);');",
        "Object.prototype.then = function (f) { for (;;); }; await {};",
        "console.log({ toJSON() { for (;;); } });",
        "hash({ toString() { for (;;); } });",
        "connection.reject.call({}, 503);",
        "pools.app.postMessage.call({}, 1, [connection]);",
        "pools.app.workers[0].postMessage.call(pools.app, 1, [connection]);",
        "connection.http.call(pools.app);",
        "Object.create(connection).remoteAddress;",
        "hash();",
        "pools.app.postMessage(1, { __proto__: [connection] });",
        // Longer than a signed number can tell.
        "const list = [connection]; list.length = 2 ** 32 - 1; pools.app.postMessage(1, list);",
        "const list = []; list.length = 2 ** 32 - 1; pools.app.postMessage(list, [connection]);",
    ] {
        let mut engine = harmful(body);
        for _ in 0..3 {
            assert_eq!(decide(&mut engine), Outcome::Failed, "{body}");
            other_is_served(&mut engine);
        }
        assert_eq!(engine.open(), 0, "{body}");
    }
}

/// Where there is much time, memory is over first: what waits for such a chain is never told, and fails all the same.
#[test]
fn a_chain_of_promises_that_ends_for_want_of_memory_has_failed() {
    let body = "const again = () => Promise.resolve().then(again); await again();";
    let limits = Limits { time: Duration::from_secs(60), memory: 1 << 20 };
    let text = format!(
        "onconnection = async ({{ connection }}) => {{
           if (connection.remoteAddress === '192.0.2.1') return connection.reject(418);
           {body}
         }};"
    );
    let source = Source { name: "route.js".to_owned(), text };
    let mut engine = Engine::new(source, limits, two_pools()).unwrap();
    for _ in 0..3 {
        assert_eq!(decide(&mut engine), Outcome::Failed);
        let failure = engine.take_failure().unwrap();
        assert_eq!(failure.kind, FailureKind::Memory, "{failure}");
        other_is_served(&mut engine);
    }
    assert_eq!(engine.open(), 0);
}

#[test]
fn ten_thousand_promises_that_never_settle_keep_no_connection() {
    let mut engine = engine(
        "const kept = [];
         onconnection = async ({ connection }) => {
           if (connection.remoteAddress === '192.0.2.1') return connection.reject(418);
           await new Promise((resolve) => { if (kept.length < 10) kept.push(resolve) });
         };",
    );
    for _ in 0..10_000 {
        assert_eq!(decide(&mut engine), Outcome::Undecided);
    }
    assert_eq!(engine.open(), 0);
    other_is_served(&mut engine);
}

#[test]
fn as_many_as_two_listeners_inspect_wait_within_the_memory_limit_and_are_forgotten() {
    // A waiting handler holds some 2 KiB.
    const MANY: usize = 2 * 4096;
    let mut engine = engine(
        "onconnection = async ({ connection }) => {
           if (connection.remoteAddress === '192.0.2.1') return connection.reject(418);
           await connection.http();
         };",
    );
    let mut tickets = Vec::new();
    for _ in 0..MANY {
        match engine.decide(Client::at("10.1.2.3")) {
            Verdict::Waits(_, ticket) => tickets.push(ticket),
            other => panic!("{} wait, then {other:?}: {:?}", tickets.len(), engine.last_failure()),
        }
    }
    assert_eq!(engine.open(), MANY);
    other_is_served(&mut engine);
    for ticket in tickets {
        engine.forget(ticket);
    }
    assert_eq!(engine.open(), 0);
    other_is_served(&mut engine);
}

#[test]
fn a_connection_is_posted_once() {
    for second in [
        "pools.gold.postMessage(2, [connection])",
        "pools.app.workers[1].postMessage(2, [connection])",
    ] {
        let body = format!(
            "pools.app.workers[0].postMessage(1, [connection]);
             try {{ {second} }} catch (error) {{ console.debug(error.name) }}
             {second};"
        );
        let mut engine = handler(&body);
        let outcome = decide(&mut engine);
        // The first post stands; that the handler failed afterwards is logged.
        assert_eq!(posted(&outcome), "1");
    }
    let mut engine = handler(
        "connection.reject(503);
         try { pools.app.postMessage(1, [connection]) } catch (error) { if (error.name !== 'DataCloneError') for (;;); }",
    );
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(503)));
}

#[test]
fn a_late_post_throws() {
    let mut engine = engine(
        "let last;
         onconnection = ({ connection }) => {
           if (last) {
             try { pools.app.postMessage(1, [last]) }
             catch (error) { pools.gold.postMessage(error.name, [connection]) }
           } else last = connection;
         };",
    );
    assert_eq!(decide(&mut engine), Outcome::Undecided);
    assert_eq!(posted(&decide(&mut engine)), "\"DataCloneError\"");
}

#[test]
fn one_handler_may_settle_another_that_waits_and_it_is_so_when_its_turn_comes() {
    let mut engine = engine(
        "let first;
         onconnection = async ({ connection }) => {
           if (first) { pools.gold.postMessage(1, [first]); return connection.reject(418); }
           first = connection;
           await connection.http();
         };",
    );
    let Verdict::Waits(client, ticket) = engine.decide(Client::at("10.1.2.3")) else { panic!() };
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
    let speech = Arc::new(Speech::Http2);
    let Verdict::Decided(_, outcome) = engine.resume(ticket, client, speech) else { panic!() };
    assert_eq!(posted(&outcome), "1");
}

#[test]
fn sixteen_failures_in_a_row_leave_the_script_alone() {
    let mut engine = engine(
        "globalThis.asked = 0;
         onconnection = ({ connection }) => { if (++asked < 100) null.x; connection.reject(418) };",
    );
    for _ in 0..MOST_FAILURES {
        assert_eq!(decide(&mut engine), Outcome::Failed);
    }
    // Off: it is not even asked, else the hundredth question would be answered.
    for _ in 0..1000 {
        assert_eq!(decide(&mut engine), Outcome::Failed);
    }
}

/// A script, and the pools that count how often it asks whether a worker is ready.
fn counted(text: &str, time: Duration) -> (Engine<Client>, impl Fn() -> usize) {
    let pools = two_pools();
    let source = Source { name: "route.js".to_owned(), text: text.to_owned() };
    let limits = Limits { time, ..Limits::default() };
    let engine = Engine::new(source, limits, pools.clone()).unwrap();
    (engine, move || pools.asked.swap(0, Ordering::Relaxed))
}

#[test]
fn long_steps_end_at_the_first_look_at_the_clock() {
    // Ten thousand steps, of which each scans 8 KiB, take longer than the limit.
    let (mut engine, asked) = counted(
        "const long = 'x'.repeat(2 ** 13);
         onconnection = () => { for (;;) { long.indexOf('y'); pools.app.workers[0].ready; } };",
        Duration::from_millis(1),
    );
    assert_eq!(decide(&mut engine), Outcome::Failed);
    assert_eq!(engine.last_failure().unwrap().kind, FailureKind::Time);
    // A turn of this loop takes three steps.
    let asked = asked();
    assert!(asked < 5000, "{asked} turns");
}

#[test]
fn one_decision_that_takes_the_time_of_sixteen_leaves_the_script_alone() {
    // Work that no machine does in sixteen milliseconds: ended by the clock, and by itself.
    for (length, body) in [
        (1 << 15, "for (;;) long.indexOf('y');"),
        (1 << 18, "for (let i = 0; i < 1000; i++) long.indexOf('y');"),
    ] {
        let text = format!(
            "const long = 'x'.repeat({length});
             onconnection = ({{ connection }}) => {{
               pools.app.workers[0].ready;
               if (connection.remoteAddress === '10.1.2.3') {{ {body} }}
               connection.reject(418);
             }};"
        );
        let (mut engine, asked) = counted(&text, Duration::from_millis(1));
        other_is_served(&mut engine);
        let outcome = decide(&mut engine);
        assert_eq!(engine.last_failure().unwrap().kind, FailureKind::Time, "{body}");
        match body.contains("1000") {
            // What it has done stands.
            true => assert_eq!(outcome, Outcome::Reject(Refusal::Status(418))),
            false => assert_eq!(outcome, Outcome::Failed),
        }
        assert_eq!(asked(), 2);
        assert_eq!(decide(&mut engine), Outcome::Failed);
        assert_eq!(asked(), 0, "{body}: it is asked again");
    }
}

#[test]
fn what_ran_out_of_time_or_memory_begins_anew_without_what_it_left() {
    let mut engine = engine(
        "globalThis.kept = [];
         const again = () => Promise.resolve().then(again);
         onconnection = ({ connection }) => {
           if (connection.remoteAddress === '10.1.2.3') { kept.push(1); return again(); }
           pools.gold.postMessage(kept.length, [connection]);
         };",
    );
    assert_eq!(decide(&mut engine), Outcome::Failed);
    let Verdict::Decided(_, outcome) = engine.decide(Client::at("192.0.2.1")) else { panic!() };
    assert_eq!(posted(&outcome), "0");
}

#[test]
fn a_failure_says_what_and_where() {
    let mut engine = handler("  const a = null;\n  a.b;");
    let Verdict::Decided(_, outcome) = engine.decide(Client::at("10.1.2.3")) else { panic!() };
    assert_eq!(outcome, Outcome::Failed);
    let said = engine.last_failure().unwrap().to_string();
    assert_eq!(said, "route.js:3:3: TypeError: cannot read property 'b' of null");
    let mut engine = handler("let i = 0;\nfor (;;) { i++; }");
    decide(&mut engine);
    let said = engine.last_failure().unwrap().to_string();
    // Where it was when its time was over, somewhere in the loop.
    assert!(said.starts_with("route.js:"), "{said}");
    assert!(said.ends_with("the script ran for more than 5ms"), "{said}");
}

#[test]
fn a_top_level_that_loops_or_eats_memory_is_no_script() {
    assert_eq!(build("for (;;);").unwrap_err().kind, FailureKind::Time);
    // In a few steps, so that its time is not over first, however busy the machine.
    let failure = build("const a = []; for (;;) a.push(new Uint8Array(2 ** 20));").unwrap_err();
    assert_eq!(failure.kind, FailureKind::Memory, "{failure}");
    assert_eq!(build("const f = () => f(); f();").unwrap_err().kind, FailureKind::Threw);
}

#[test]
fn decisions_leave_nothing_behind() {
    let mut engine = engine(
        "let asked = 0;
         onconnection = async ({ connection }) => {
           switch (++asked % 7) {
             case 0: return pools.app.workers[1].postMessage({ at: connection.remotePort }, [connection]);
             case 1: connection.http(); connection.tls(); throw new Error('asked, and did not wait');
             case 2: connection.http(); return pools.gold.postMessage([1, 'x'], [connection]);
             case 3: await connection.http(); connection.reject(418);
               break;
             case 4: (async () => { throw new Error('nobody awaits this') })(); return connection.reject(418);
             case 5: for (let i = 0; i < 100; i++) Promise.reject({}); return await connection.http();
             case 6: Promise.reject({}); throw {};
           }
         };",
    );
    let mut decide_for_a_while = || {
        for _ in 0..700 {
            if let Verdict::Waits(client, ticket) = engine.decide(Client::at("10.1.2.3")) {
                engine.resume(ticket, client, Arc::new(Speech::Http2));
            }
        }
        assert_eq!(engine.open(), 0);
        engine.pieces()
    };
    let before = decide_for_a_while();
    assert_eq!(decide_for_a_while(), before);
}

#[test]
fn a_large_message_is_not_kept() {
    let mut engine = engine(
        "let asked = 0;
         onconnection = ({ connection }) => {
           const message = ++asked % 2 ? { small: 1 } : Array.from({ length: 200 }, () => ({}));
           pools.gold.postMessage(message, [connection]);
         };",
    );
    let mut pieces = || {
        decide(&mut engine);
        engine.pieces()
    };
    let (_, _, small, large) = (pieces(), pieces(), pieces(), pieces());
    assert!(large < small + 100, "{large} pieces after a large message, {small} after a small one");
}

#[test]
fn what_a_failed_handler_asked_for_is_not_the_next_ones() {
    let mut engine = engine(
        "onconnection = async ({ connection }) => {
           if (connection.remoteAddress === '10.1.2.3') {
             connection.http().then(() => { globalThis.wrong = true });
             throw 1;
           }
           await connection.http();
           pools.gold.postMessage(globalThis.wrong ?? false, [connection]);
         };",
    );
    assert_eq!(decide(&mut engine), Outcome::Failed);
    let Verdict::Waits(client, ticket) = engine.decide(Client::at("192.0.2.1")) else { panic!() };
    let speech = Arc::new(Speech::Http2);
    let Verdict::Decided(_, outcome) = engine.resume(ticket, client, speech) else { panic!() };
    assert_eq!(posted(&outcome), "false");
}
