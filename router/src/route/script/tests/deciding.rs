//! What scripts can ask, and what becomes of their connections.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::inspect::{Cause, ClientHello, Facts, HttpHead};

fn head(target: &str, headers: &[(&str, &str)]) -> Speech {
    let headers = headers.iter().map(|(name, value)| ((*name).into(), value.as_bytes().into()));
    Speech::Http1(HttpHead::new("GET", target, 1, headers.collect()))
}

#[test]
fn the_interface_example_posts_a_number_that_counts_to_the_worker_of_the_hash() {
    let mut engine = engine(
        r#"
        let requests = 0;
        onconnection = ({ connection }) => {
          const pool = connection.peerContext?.type === "staff_client_t" ? pools.gold : pools.app;
          const worker = pool.workers[hash(connection.remoteAddress) % pool.workers.length];
          worker.postMessage({ reqno: ++requests }, [connection]);
        };"#,
    );
    let slot = crate::route::script::globals::fnv1a(b"10.1.2.3") % 5;
    for number in 1..=3 {
        let message = Data::from_parts(
            vestibule_protocol::Codec::Json,
            format!("{{\"reqno\":{number}}}").into_bytes(),
        );
        let expected = Outcome::Post { pool: 0, to: To::Slot(slot), message };
        assert_eq!(decide(&mut engine), expected);
    }
    let label = Label::parse("staff_u:staff_r:staff_client_t:s0-s0:c0.c5").unwrap();
    let client = Client { context: Some(label), ..Client::at("10.1.2.3") };
    let Verdict::Decided(_, Outcome::Post { pool, .. }) = engine.decide(client) else { panic!() };
    assert_eq!(pool, 1);
    assert_eq!(engine.open(), 0);
}

#[test]
fn a_connection_tells_what_comes_with_it() {
    assert_eq!(
        value(
            "connection.remoteAddress, connection.remotePort, connection.localAddress, connection.localPort, connection.listener, connection.peerContext, connection.peerUser"
        ),
        r#"["10.1.2.3",51234,"192.0.2.80",80,"web",null,null]"#
    );
    let mut engine = handler(
        "const { user, role, type, level, label } = connection.peerContext;
         pools.gold.postMessage({ user, role, type, level, label }, [connection]);",
    );
    let label = Label::parse("u:r:t:s0:c1").unwrap();
    let peer = Some("[2001:db8::1]:1".parse().unwrap());
    let client = Client { context: Some(label), peer, ..Client::at("192.0.2.1") };
    let Verdict::Decided(_, outcome) = engine.decide(client) else { panic!() };
    assert_eq!(
        posted(&outcome),
        r#"{"user":"u","role":"r","type":"t","level":"s0:c1","label":"u:r:t:s0:c1"}"#
    );
}

#[test]
fn helpers_compute_as_published_and_large_numbers_stay_positive() {
    // FNV-1a, 32 bits: the published values of "", "a" and "foobar".
    assert_eq!(
        value(r#"hash(""), hash("a"), hash("foobar")"#),
        "[2166136261,3826002220,3214735720]"
    );
    // Half of a surrogate pair, which is no UTF-8: the hash of the three bytes ED A0 80.
    let half = crate::route::script::globals::fnv1a(&[0xed, 0xa0, 0x80]);
    assert_eq!(value(r#"hash("\ud800")"#), format!("[{half}]"));
    assert_eq!(value("pools.app.workers[3].connections"), "[4294967295]");
    assert_eq!(
        value(
            r#"inNetwork("10.1.2.3", "10.0.0.0/8"), inNetwork("11.0.0.1", "10.0.0.0/8"), inNetwork("::ffff:10.0.0.1", "10.0.0.0/8"), inNetwork(null, "::/0"), inNetwork("10.0.0.1", "10.0.0.1")"#
        ),
        "[true,false,true,false,true]"
    );
    assert_eq!(
        value("pools.app.workers.map((w) => [w.name, w.ready])"),
        r#"[[["app-1",true],["app-2",true],["app-3",true],["app-4",true],["app-5",false]]]"#
    );
    assert_eq!(
        value(r#"pools.app.workerFor("abc").name, pools.nobody ?? null"#),
        r#"["app-4",null]"#
    );
}

#[test]
fn a_rejection_takes_a_status_or_a_word_and_nothing_else() {
    for (how, refusal) in [
        ("503", Refusal::Status(503)),
        ("400", Refusal::Status(400)),
        ("\"reset\"", Refusal::Reset),
        ("\"close\"", Refusal::Close),
    ] {
        let outcome = decide(&mut handler(&format!("connection.reject({how})")));
        assert_eq!(outcome, Outcome::Reject(refusal));
    }
    for how in ["200", "600", "403.5", "\"503\"", "NaN", "", "null", "{}"] {
        let outcome = decide(&mut handler(&format!("connection.reject({how})")));
        assert_eq!(outcome, Outcome::Failed, "{how}");
    }
}

#[test]
fn a_handler_that_does_nothing_leaves_the_decision_to_the_rules() {
    for body in ["", "await null;", "await new Promise(() => {});", "return 7;"] {
        let mut engine = handler(body);
        assert_eq!(decide(&mut engine), Outcome::Undecided, "{body}");
        assert_eq!(engine.open(), 0);
    }
}

#[test]
fn a_handler_waits_for_what_its_client_says_and_no_longer() {
    let mut engine = handler(
        r#"const [tls, http] = await Promise.all([connection.tls(), connection.http()]);
           await null;
           pools.gold.postMessage({
             sni: tls && tls.serverName, alpn: tls && tls.alpn,
             http: http && [http.method, http.target, http.path, http.host, http.header("X-A"), http.header("none"), http.cookie("b"), http.query("q")],
           }, [connection]);"#,
    );
    let request = head(
        "/a/../b?q=1%20",
        &[("Host", "Example.org:80"), ("x-a", "1"), ("X-A", "2"), ("Cookie", "a=1; b=2")],
    );
    assert_eq!(
        posted(&says(&mut engine, request)),
        r#"{"sni":null,"alpn":null,"http":["GET","/a/../b?q=1%20","/b","example.org","1, 2",null,"2","1 "]}"#
    );
    let hello = ClientHello {
        server_name: Fact::Known("a.example".into()),
        alpn: Fact::Known(vec![b"h2".as_slice().into(), b"http/1.1".as_slice().into()]),
    };
    assert_eq!(
        posted(&says(&mut engine, Speech::Tls(hello))),
        r#"{"sni":"a.example","alpn":["h2","http/1.1"],"http":null}"#
    );
    assert_eq!(engine.open(), 0);
}

/// A client whose proxy has ended TLS for this name.
fn proxied(name: &str) -> Client {
    let hello = ClientHello { server_name: Fact::Known(name.into()), alpn: Fact::Absent };
    Client { announced: Some(hello), ..Client::at("10.1.2.3") }
}

#[test]
fn what_a_proxy_announces_is_what_tls_gives_and_no_bytes_are_waited_for() {
    let post =
        "pools.gold.postMessage([tls?.serverName, tls?.alpn, http?.host ?? null], [connection]);";
    let expected = r#"["shop.example.org",[],null]"#;
    let mut engine = handler(&format!("const tls = await connection.tls(), http = null; {post}"));
    let Verdict::Decided(_, outcome) = engine.decide(proxied("shop.example.org")) else { panic!() };
    assert_eq!(posted(&outcome), expected);
    // What the client says itself is there as well, in whichever order they are asked.
    for asks in [
        "const http = await connection.http(), tls = await connection.tls();",
        "const [tls, http] = await Promise.all([connection.tls(), connection.http()]);",
    ] {
        let mut engine = handler(&format!("{asks} {post}"));
        let verdict = engine.decide(proxied("shop.example.org"));
        let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
        let speech = Arc::new(head("/", &[("host", "inner.example")]));
        let Verdict::Decided(_, outcome) = engine.resume(ticket, client, speech) else { panic!() };
        assert_eq!(posted(&outcome), r#"["shop.example.org",[],"inner.example"]"#, "{asks}");
    }
}

#[test]
fn who_asks_for_another_connection_that_waits_hears_what_was_announced_of_it() {
    let mut engine = engine(
        "let first;
         onconnection = async ({ connection }) => {
           if (first) {
             first.tls().then((tls) => pools.gold.postMessage(tls?.serverName ?? null, [first]));
             return connection.reject(418);
           }
           first = connection;
           await connection.http();
         };",
    );
    let verdict = engine.decide(proxied("shop.example.org"));
    let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
    let Verdict::Decided(_, outcome) = engine.resume(ticket, client, Arc::new(head("/", &[])))
    else {
        panic!()
    };
    assert_eq!(posted(&outcome), "\"shop.example.org\"");
}

#[test]
fn what_is_awaited_is_all_that_is_waited_for() {
    let facts = |speech: &'static Speech| Facts { speech, ..Facts::of_address(0, None) };
    let said = |engine: &mut Engine<Client>, speech: Speech| {
        let verdict = engine.decide(Client::at("10.1.2.3"));
        let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
        (ticket, engine.resume(ticket, client, Arc::new(speech)))
    };
    let mut tls = handler("pools.gold.postMessage(await connection.tls(), [connection]);");
    let (ticket, verdict) = said(&mut tls, Speech::Http1Begun);
    assert!(ticket.is_answered(&facts(&Speech::Http1Begun)), "a first byte tells");
    assert!(!ticket.is_answered(&facts(&Speech::TlsBegun)));
    let Verdict::Decided(_, outcome) = verdict else { panic!("{verdict:?}") };
    assert_eq!(posted(&outcome), "null");
    let mut http = handler("pools.gold.postMessage(await connection.http(), [connection]);");
    let (ticket, verdict) = said(&mut http, Speech::TlsBegun);
    assert!(ticket.is_answered(&facts(&Speech::TlsBegun)), "a first byte tells");
    assert!(!ticket.is_answered(&facts(&Speech::Http1Begun)));
    let Verdict::Decided(_, outcome) = verdict else { panic!("{verdict:?}") };
    assert_eq!(posted(&outcome), "null");
    // What begins and is not whole is no answer to whoever asks for it next.
    let mut both = handler(
        "await connection.tls();
         pools.gold.postMessage((await connection.http()).path, [connection]);",
    );
    let (_, verdict) = said(&mut both, Speech::Http1Begun);
    let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
    assert!(!ticket.is_answered(&facts(&Speech::Http1Begun)));
    let Verdict::Decided(_, outcome) = both.resume(ticket, client, Arc::new(head("/x", &[])))
    else {
        panic!()
    };
    assert_eq!(posted(&outcome), "\"/x\"");
}

#[test]
fn who_asks_for_more_while_a_connection_is_away_waits_for_that() {
    let mut engine = engine(
        "let first;
         onconnection = async ({ connection }) => {
           if (first) {
             first.http().then((http) => pools.gold.postMessage(http && http.path, [first]));
             return connection.reject(418);
           }
           first = connection;
           await connection.tls();
           await new Promise(() => {});
         };",
    );
    let verdict = engine.decide(Client::at("10.1.2.3"));
    let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
    let verdict = engine.resume(ticket, client, Arc::new(Speech::Http1Begun));
    let Verdict::Waits(client, ticket) = verdict else { panic!("{verdict:?}") };
    let verdict = engine.resume(ticket, client, Arc::new(head("/x", &[])));
    let Verdict::Decided(_, outcome) = verdict else { panic!("{verdict:?}") };
    assert_eq!(posted(&outcome), "\"/x\"");
    assert_eq!(engine.open(), 0);
}

#[test]
fn what_cannot_be_known_never_reads_as_if_it_were_not_there() {
    let body = r#"const http = await connection.http();
                  if (http?.host === "secret.example") connection.reject(403);
                  else pools.app.postMessage(null, [connection]);"#;
    for cause in [Cause::TimedOut, Cause::TooLarge, Cause::NotHttp] {
        let mut engine = handler(body);
        for _ in 0..100 {
            let outcome = says(&mut engine, Speech::Http1Unread(cause));
            assert_eq!(outcome, Outcome::Unknown(cause), "clients do not switch it off");
        }
    }
    // Two hosts in one head.
    let two = head("/", &[("host", "a.example"), ("host", "secret.example")]);
    assert_eq!(says(&mut handler(body), two), Outcome::Unknown(Cause::NotHttp));
    let hidden = ClientHello { server_name: Fact::Unknown(Cause::Hidden), alpn: Fact::Absent };
    let body = "(await connection.tls()).serverName; connection.reject(503)";
    let outcome = says(&mut handler(body), Speech::Tls(hidden));
    assert_eq!(outcome, Outcome::Unknown(Cause::Hidden));
    // A script may catch it and decide.
    let body = "try { await connection.http() } catch { connection.reject(408) }";
    let outcome = says(&mut handler(body), Speech::Unknown(Cause::TimedOut));
    assert_eq!(outcome, Outcome::Reject(Refusal::Status(408)));
}

#[test]
fn a_plain_function_may_use_then() {
    let text = "onconnection = ({ connection }) => { connection.http().then((http) => pools.app.postMessage(http.path, [connection])) }";
    assert_eq!(posted(&says(&mut engine(text), head("/x", &[]))), "\"/x\"");
}

#[test]
fn the_handler_may_be_declared_in_any_way_and_change() {
    for text in [
        "function onconnection({ connection }) { connection.reject(503) }",
        "const onconnection = ({ connection }) => connection.reject(503)",
        "globalThis.onconnection = async ({ connection }) => { connection.reject(503) }",
        "onconnection = () => { onconnection = ({ connection }) => connection.reject(503) }",
    ] {
        let Ok(mut engine) = build(text) else {
            // A `const` beside the global of that name is an error of the language.
            assert!(text.starts_with("const"), "{text}");
            continue;
        };
        decide(&mut engine);
        assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(503)), "{text}");
    }
}

#[test]
fn json_carries_what_it_can_and_refuses_the_rest() {
    assert_eq!(
        value(r#"1, -0, 0.5, 1e300, -1e-9, "a\n\u0000é", true, null, [], {}, {a: {b: [1]}}"#),
        r#"[1,0,0.5,1e300,-1e-9,"a\n\u0000é",true,null,[],{},{"a":{"b":[1]}}]"#
    );
    for refused in [
        "undefined",
        "NaN",
        "Infinity",
        "() => 1",
        "Symbol('x')",
        "10n",
        "new Date()",
        "new Map()",
        "new (class A {})()",
        "{ a: undefined }",
        "[,]",
        "'\\ud800'",
        "(() => { const o = {}; o.o = o; return o })()",
        "connection",
        "{ '\\ud800': 1 }",
        "new Proxy({}, {})",
        "new Error('x')",
        "Promise.resolve()",
        "Object.setPrototypeOf(() => 1, null)",
        "'x'.repeat(1 << 20), 1",
        // The last thing in it, too.
        "'x'.repeat(1 << 20)",
        "{ ['x'.repeat(1 << 20)]: 1 }",
    ] {
        let body = format!(
            "try {{ pools.gold.postMessage([{refused}], [connection]) }}
             catch (error) {{ if (error.name === 'DataCloneError') connection.reject(418) }}"
        );
        let outcome = decide(&mut handler(&body));
        assert_eq!(outcome, Outcome::Reject(Refusal::Status(418)), "{refused}");
    }
    let none = decide(&mut handler("pools.gold.postMessage(undefined, [connection])"));
    assert_eq!(none, Outcome::Post { pool: 1, to: To::Balance, message: Data::NONE });
}

#[test]
fn a_message_is_what_it_is_when_it_is_posted() {
    // The object posted last is kept for its layout, which is no reason to see the last one's values.
    let mut engine = engine(
        "const one = { n: 0 };
         onconnection = ({ connection }) => {
           one.n += 1;
           if (one.n === 3) one.more = [one.n];
           if (one.n === 4) delete one.more;
           pools.gold.postMessage(one.n === 2 ? { n: 'other' } : one, [connection]);
         };",
    );
    let said: Vec<_> = (0..5).map(|_| posted(&decide(&mut engine))).collect();
    let expected =
        [r#"{"n":1}"#, r#"{"n":"other"}"#, r#"{"n":3,"more":[3]}"#, r#"{"n":4}"#, r#"{"n":5}"#];
    assert_eq!(said, expected);
}

#[test]
fn what_a_head_is_asked_for_is_one_text() {
    let mut asked = handler(
        "const http = await connection.http();
         const name = (ask) => { try { return ask() } catch (error) { return error.name } };
         pools.gold.postMessage([
           http.cookie('a', 'b'), http.query('q'), http.header('HOST'), http.cookie('\u{e9}'),
           name(() => http.cookie()), name(() => http.query(1)), name(() => http.header({ toString: () => 'host' })),
           name(() => http.header.call({}, 'host')), name(() => http.cookie('\\ud800')),
           http.header.name, http.header.length,
         ], [connection]);",
    );
    let head = head("/?q=1", &[("host", "a.example"), ("cookie", "a=x")]);
    assert_eq!(
        posted(&says(&mut asked, head)),
        r#"["x","1","a.example",null,"TypeError","TypeError","TypeError","TypeError","TypeError","header",1]"#
    );
}

#[test]
fn a_transfer_list_is_one_connection() {
    for (transfer, name) in [
        ("[connection, connection]", "DataCloneError"),
        ("[]", "TypeError"),
        ("", "TypeError"),
        ("connection", "TypeError"),
        ("[{}]", "TypeError"),
        ("[connection, 1]", "TypeError"),
        ("[connection, undefined]", "TypeError"),
        ("[, connection]", "TypeError"),
    ] {
        let body = format!(
            "try {{ pools.app.postMessage(1, {transfer}) }}
             catch (error) {{ pools.gold.postMessage(error.name, [connection]) }}"
        );
        assert_eq!(posted(&decide(&mut handler(&body))), format!("\"{name}\""), "{transfer}");
    }
}

#[test]
fn slots_that_come_and_go_change_the_lists() {
    let pools = two_pools();
    let source = Source {
        name: "route.js".to_owned(),
        text: "onconnection = ({connection}) => pools.app.postMessage(pools.app.workers.length, [connection])".to_owned(),
    };
    let mut engine = Engine::new(source, Limits::default(), pools.clone()).unwrap();
    assert_eq!(posted(&decide(&mut engine)), "5");
    pools.app.store(7, Ordering::Relaxed);
    engine.slots_changed();
    assert_eq!(posted(&decide(&mut engine)), "7");
}

/// What JSON can say.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1i64 << 53)..1 << 53).prop_map(Value::from),
        // What is not finite becomes null.
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// A text as a literal. (Within one, `JSON.parse` makes a `__proto__` a plain key.)
fn literal(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_is_posted_is_what_a_worker_reads(value in json()) {
        let value = value.to_string();
        let body = format!("pools.gold.postMessage(JSON.parse({}), [connection])", literal(&value));
        let posted = posted(&decide(&mut handler(&body)));
        // JavaScript is the judge: it reads numbers to the last digit.
        let same = format!(
            "const [one, other] = [{}, {}].map((text) => JSON.stringify(JSON.parse(text)));
             connection.reject(one === other ? 418 : 500)",
            literal(&value),
            literal(&posted),
        );
        let outcome = decide(&mut handler(&same));
        prop_assert_eq!(outcome, Outcome::Reject(Refusal::Status(418)), "{} {}", value, posted);
    }
}
