//! Promises that are rejected and that nobody awaits, and microtasks that throw.

use super::*;

const TYPO: &str = "route.js:1:53: TypeError: cannot read property 'postMessage' of undefined \
                    (pools: app, gold) (in a promise that nobody awaits)";

fn last(engine: &Engine<Client>) -> String {
    engine.last_failure().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn what_nobody_awaits_fails_as_what_is_thrown_does() {
    let mut engine = engine(
        "onconnection = ({ connection }) => { (async () => { pools.typo.postMessage(1, [connection]) })() }",
    );
    assert_eq!(decide(&mut engine), Outcome::Failed);
    assert_eq!(last(&engine), TYPO);
    for body in [
        "Promise.reject(new Error('x'))",
        "Promise.reject('x')",
        "Promise.resolve().then(() => null.x)",
        "new Promise((_, reject) => reject(1)).finally(() => {})",
        "(async () => { await null; throw new Error('later') })()",
        // It is asked for, and whoever asks is not.
        "(async () => { await (async () => null.x)() })()",
        "for (let i = 0; i < 1000; i++) Promise.reject(i)",
    ] {
        let mut engine = handler(body);
        assert_eq!(decide(&mut engine), Outcome::Failed, "{body}");
        assert!(last(&engine).ends_with(" (in a promise that nobody awaits)"), "{body}");
        // It is the turn's that it failed in, and no other one's.
        engine.take_failure();
        let Verdict::Decided(_, outcome) = engine.decide(Client::at("192.0.2.1")) else { panic!() };
        assert_eq!(outcome, Outcome::Failed, "{body}");
    }
}

#[test]
fn what_was_decided_meanwhile_stands_and_the_failure_is_noted() {
    let mut engine = handler("connection.reject(418); (async () => { null.x })();");
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
    let said = "route.js:2:40: TypeError: cannot read property 'x' of null (in a promise that nobody awaits)";
    assert_eq!(last(&engine), said);
}

#[test]
fn what_is_asked_for_in_the_same_turn_has_not_failed() {
    for body in [
        "const bad = (async () => null.x)(); await null; await null; try { await bad } catch {}",
        "await Promise.allSettled(Array.from({ length: 100 }, async (_, at) => { throw at }))",
        "await Promise.all([1, 2].map(async () => null.x)).catch(() => {})",
        "Promise.reject(1).then(() => {}, () => {})",
        "const bad = Promise.reject(1), worse = Promise.reject(2); bad.catch(() => {}); worse.catch(() => {})",
    ] {
        let mut engine = handler(&format!("{body}; connection.reject(418);"));
        assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)), "{body}");
        assert_eq!(last(&engine), "", "{body}");
    }
}

#[test]
fn what_a_microtask_throws_fails_as_well() {
    let mut engine = handler("queueMicrotask(() => { null.x })");
    assert_eq!(decide(&mut engine), Outcome::Failed);
    let said = "route.js:2:24: TypeError: cannot read property 'x' of null (in a microtask)";
    assert_eq!(last(&engine), said);
    let mut engine = handler(
        "for (const at of [1, 2]) queueMicrotask(() => { throw at });
         await null;
         connection.reject(418);",
    );
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
    assert_eq!(last(&engine), "route.js: threw 1 (in a microtask)");
    let text = "onconnection = () => {}; queueMicrotask(() => { throw 1 })";
    assert_eq!(build(text).unwrap_err().to_string(), "route.js: threw 1 (in a microtask)");
}

#[test]
fn what_a_handler_rejects_is_its_own() {
    let mut engine = handler("null.x");
    assert_eq!(decide(&mut engine), Outcome::Failed);
    assert_eq!(last(&engine), "route.js:2:1: TypeError: cannot read property 'x' of null");
}

#[test]
fn what_is_left_of_one_that_failed_is_not_the_next_ones() {
    for fails in ["throw 2", "(() => { throw 2 })()", "await null; throw 2"] {
        let body = format!(
            "if (connection.remoteAddress === '10.1.2.3') {{ Promise.reject(1); {fails} }}
             connection.reject(418);"
        );
        let mut engine = handler(&body);
        assert_eq!(decide(&mut engine), Outcome::Failed);
        assert_eq!(engine.take_failure().unwrap().message, "threw 2");
        let Verdict::Decided(_, outcome) = engine.decide(Client::at("192.0.2.1")) else { panic!() };
        assert_eq!(outcome, Outcome::Reject(Refusal::Status(418)));
        assert_eq!(engine.take_failure(), None, "{fails}");
    }
}

#[test]
fn whoever_waits_goes_on_and_is_not_left_alone_for_it() {
    let mut engine = handler(
        "(async () => { null.x })();
         pools.gold.postMessage((await connection.http())?.path ?? null, [connection]);",
    );
    // As many at once as would switch a script off.
    let waiting: Vec<_> = (0..40).map(|_| engine.decide(Client::at("10.1.2.3"))).collect();
    assert!(last(&engine).ends_with(" (in a promise that nobody awaits)"), "{}", last(&engine));
    for verdict in waiting {
        let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
        let verdict = engine.resume(ticket, client, Arc::new(Speech::Http2));
        let Verdict::Decided(_, outcome) = verdict else { panic!("{verdict:?}") };
        assert_eq!(posted(&outcome), "null");
    }
}

#[test]
fn what_cannot_be_known_is_no_failure_of_the_script() {
    for (body, decided) in [
        ("connection.http().then(() => {});", None),
        ("connection.http().then(() => {}); await connection.tls().catch(() => {});", None),
        (
            "connection.http().then(() => {}); await connection.tls().catch(() => {}); connection.reject(418);",
            Some(Outcome::Reject(Refusal::Status(418))),
        ),
    ] {
        let mut engine = handler(body);
        // Clients do not switch it off.
        for _ in 0..40 {
            let outcome = says(&mut engine, Speech::Unknown(Cause::TimedOut));
            let expected = decided.clone().unwrap_or(Outcome::Unknown(Cause::TimedOut));
            assert_eq!(outcome, expected, "{body}");
            assert_eq!(last(&engine), "", "{body}");
        }
    }
}

#[test]
fn nor_is_it_while_its_connection_waits() {
    let mut engine = handler(
        "connection.tls().then((tls) => tls.serverName);
         await connection.http();
         connection.reject(418);",
    );
    let hidden = ClientHello { server_name: Fact::Unknown(Cause::Hidden), alpn: Fact::Absent };
    let verdict = engine.decide(Client { announced: Some(hidden), ..Client::at("10.1.2.3") });
    let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
    assert_eq!(last(&engine), "");
    let verdict = engine.resume(ticket, client, Arc::new(Speech::Http2));
    let Verdict::Decided(_, outcome) = verdict else { panic!("{verdict:?}") };
    assert_eq!(outcome, Outcome::Reject(Refusal::Status(418)));
}

#[test]
fn a_handler_that_waits_fails_in_its_own_turn() {
    let mut engine = engine(
        "let give_up;
         onconnection = async ({ connection }) => {
           if (give_up) { give_up(new Error('no more')); return connection.reject(418); }
           await Promise.race([connection.http(), new Promise((_, reject) => { give_up = reject })]);
         };",
    );
    let verdict = engine.decide(Client::at("10.1.2.3"));
    let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
    assert_eq!(last(&engine), "");
    let verdict = engine.resume(ticket, client, Arc::new(Speech::Http2));
    let Verdict::Decided(_, outcome) = verdict else { panic!("{verdict:?}") };
    assert_eq!(
        (outcome, last(&engine).as_str()),
        (Outcome::Failed, "route.js:3:39: Error: no more")
    );
}

#[test]
fn a_top_level_that_nobody_awaits_is_no_script() {
    let text =
        "onconnection = ({ connection }) => connection.reject(418);\n(async () => { null.x })();";
    let said = "route.js:2:16: TypeError: cannot read property 'x' of null (in a promise that nobody awaits)";
    assert_eq!(build(text).unwrap_err().to_string(), said);
    build(&text.replace("();", "().catch(() => {});")).unwrap();
}

#[test]
fn who_asks_for_a_description_is_told_of_each_connection_by_itself() {
    let mut engine =
        handler("if (connection.remoteAddress === '10.1.2.3') null.x; connection.reject(418);")
            .quietly();
    for _ in 0..40 {
        assert_eq!(decide(&mut engine), Outcome::Failed);
        assert!(engine.take_failure().is_some());
    }
    let Verdict::Decided(_, outcome) = engine.decide(Client::at("192.0.2.1")) else { panic!() };
    assert_eq!(outcome, Outcome::Reject(Refusal::Status(418)));
    assert_eq!(engine.take_failure(), None);
}
