//! A route's `message` reaches the worker with the connection, and no other worker or connection.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;

use vestibule_tests::files::Folder;
use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::world::turn;

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Runs pools `app`, whose workers let hyper serve, and `typed`, whose workers take numbers only.
fn case(routes: &str, case: impl FnOnce(&mut Master)) {
    let _turn = turn();
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"" } else { "" };
    let pool = |name: &str, how: &str| {
        let command = format!("command = [\"{WORKER}\", \"{how}\"]");
        format!("[[pool]]\nname = \"{name}\"\n{command}\nworkers = 1\n{user}\n")
    };
    let (app, typed) = (pool("app", "serve"), pool("typed", "typed"));
    let listener = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n";
    let folder = Folder::new();
    let config = format!("{listener}{app}{typed}{routes}");
    let path = folder.write("vestibule.toml", &config, 0o644);
    let mut command = Command::new(vestibule(WORKER));
    command.arg("run").arg(path).arg("--admin").arg(folder.join("admin.sock"));
    let mut master = Master::launch(command);
    case(&mut master);
    master.stop();
}

/// What the worker was posted with the connection of this request.
fn posted(master: &Master, host: &str) -> String {
    let mut client = master.client();
    client.send(request(host).as_bytes());
    client.answer().text()
}

fn request(host: &str) -> String {
    format!("GET /message HTTP/1.1\r\nhost: {host}\r\n\r\n")
}

#[test]
fn every_kind_of_value_arrives_as_json() {
    // More than a packet holds: it travels in a descriptor of its own.
    let long = "x".repeat(40_000);
    let values = [
        ("table", "{ tenant = \"a\", limits = { open = 3, rates = [1, 2.5] } }"),
        ("text", "\"gr\\u00fc\\u00dfe\""),
        ("number", "-7"),
        ("truth", "false"),
        ("list", "[[], {}, \"\"]"),
        ("long", &format!("\"{long}\"")),
    ];
    let routes: String = values
        .iter()
        .map(|(host, value)| {
            format!("[[route]]\nhost = \"{host}\"\npool = \"app\"\nmessage = {value}\n")
        })
        .collect();
    case(&format!("{routes}[[route]]\npool = \"app\"\n"), |master| {
        let json = |host: &str| {
            let text = posted(master, host);
            let json = text.strip_prefix("Json ").expect("JSON").to_owned();
            serde_json::from_str::<serde_json::Value>(&json).expect("JSON")
        };
        let table = serde_json::json!({"tenant": "a", "limits": {"open": 3, "rates": [1, 2.5]}});
        assert_eq!(json("table"), table);
        assert_eq!(json("text"), "grüße");
        assert_eq!(json("number"), -7);
        assert_eq!(json("truth"), false);
        assert_eq!(json("list"), serde_json::json!([[], {}, ""]));
        assert_eq!(json("long"), long);
        assert_eq!(posted(master, "none"), "None ");
    });
}

#[test]
fn each_connection_gets_the_message_of_its_own_route() {
    let route = |host: &str, message: u32| {
        format!("[[route]]\nhost = \"{host}\"\npool = \"app\"\nmessage = {message}\n")
    };
    case(&(route("one", 1) + &route("two", 2)), |master| {
        // All before one worker at once, in few packets.
        let mut clients: Vec<_> = (0..40).map(|_| master.client()).collect();
        let hosts = ["one", "two"];
        for (client, host) in clients.iter_mut().zip(hosts.iter().cycle()) {
            client.send(request(host).as_bytes());
        }
        for (client, message) in clients.iter_mut().zip(["Json 1", "Json 2"].iter().cycle()) {
            assert_eq!(client.answer().text(), *message);
        }
    });
}

#[test]
fn a_later_request_of_another_route_comes_with_that_routes_message() {
    let routes = "[[route]]\nhost = \"one\"\npool = \"app\"\nmessage = 1\n\
                  [[route]]\nhost = \"two\"\npool = \"app\"\nmessage = 2\n\
                  [[route]]\npool = \"app\"\n";
    case(routes, |master| {
        let mut client = master.client();
        for (host, message) in
            [("one", "Json 1"), ("two", "Json 2"), ("other", "None "), ("one", "Json 1")]
        {
            client.send(request(host).as_bytes());
            assert_eq!(client.answer().text(), message, "{host}");
        }
    });
}

#[test]
fn a_worker_takes_the_messages_of_its_type_and_refuses_others() {
    let routes = "[[route]]\nhost = \"number\"\npool = \"typed\"\nmessage = 7\n\
                  [[route]]\nhost = \"text\"\npool = \"typed\"\nmessage = \"seven\"\n";
    case(routes, |master| {
        let mut client = master.client();
        client.send(request("number").as_bytes());
        assert_eq!(client.answer().field("reqno"), "7");
        let mut client = master.client();
        client.send(request("text").as_bytes());
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("vestibule-reason")), (503, Some("no-worker")));
    });
}
