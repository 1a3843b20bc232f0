//! `vestibule explain`, as a person runs it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const EXAMPLE: &str = "examples/routing/vestibule.toml";

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("vestibule-explain-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn explain(arguments: &[&str]) -> Output {
    explain_of(EXAMPLE, arguments)
}

fn explain_of(config: &str, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VESTIBULE_")) {
        command.env_remove(name);
    }
    command.args(["explain", config]).args(arguments).current_dir(root).output().unwrap()
}

fn page(arguments: &[&str]) -> String {
    let output = explain(arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_rule_says_why_it_matches_or_not_and_the_result_follows() {
    let page = page(&[
        "--peer",
        "10.1.2.3",
        "--host",
        "app.example.org",
        "--path",
        "/api/v1?v=2",
        "--header",
        "X-Tenant: acme",
    ]);
    let expected = "\
a connection from 10.1.2.3 on `web`: GET /api/v1?v=2, host app.example.org
   1. nobody-there     no    peer: `10.1.2.3` is not `192.0.2.0/24`, `198.51.100.0/24`, `203.0.113.0/24`, `2001:db8::/32`
   2. tls-app          no    listener is not `tls`
   3. tls-other        no    listener is not `tls`
   4. admin-from-here  no    peer: `10.1.2.3` is not `127.0.0.0/8`, `::1/128`
   5. admin            no    path: `/api/v1` is not `/admin/*`
   6. secure           no    host: `app.example.org` is not `secure.example.org`
   7. certificates     no    host: `app.example.org` is not `secure.example.org`
   8. chat             no    host: `app.example.org` is not `chat.example.org`
   9. beta             no    cookie `tier` is not `beta`, `gold*`
  10. api              yes
  11. app              -     not asked
route `api`: pool `api`
balance: hash:header:x-tenant, key `acme`
looked at: its first bytes
";
    assert_eq!(page, expected);
}

#[test]
fn a_rule_by_address_needs_no_byte_and_a_hidden_fact_ends_the_search() {
    let near = page(&["--peer", "203.0.113.7"]);
    assert!(near.contains("   1. nobody-there     yes\n"), "{near}");
    let end = "route `nobody-there`: rejected (rejected)\nlooked at: its address only\n";
    assert!(near.ends_with(end), "{near}");
    let hidden = page(&["--peer", "10.1.2.3", "--sni", "app.example.org"]);
    let open = "   5. admin            ?     path cannot be told (unknown-fact): no later route is asked\n";
    assert!(hidden.contains(open), "{hidden}");
    assert!(hidden.contains("route `unknown`: rejected (unknown-fact)\n"), "{hidden}");
}

/// Only on a listener that listens to proxies; one of those has ended the client's TLS.
#[test]
fn a_name_and_a_request_are_a_client_behind_a_proxy() {
    let output = explain_of(
        "router/tests/config/test-proxied.toml",
        &["--listener", "behind", "--peer", "192.0.2.1", "--sni", "A.example", "--path", "/api/x"],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expected = "\
a connection from 192.0.2.1 on `behind`: TLS for a.example, ended by a proxy: GET /api/x, no host
   1. api   yes
   2. h2    -     not asked
   3. rest  -     not asked
route `api`: pool `app`
balance: least-connections
looked at: its first bytes
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let context = "staff_u:staff_r:staff_t:s0";
    let output = explain_of(
        "router/tests/config/test-proxied.toml",
        &["--listener", "behind", "--sni", "a", "--host", "b", "--peer-context", context],
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{error}");
    let said = "`peer-context` cannot be seen of a client whose TLS a proxy has ended";
    assert!(error.contains(said), "{error}");
}

#[test]
fn redirections_and_sticky_workers_are_named() {
    let secure = page(&["--peer", "10.1.2.3", "--host", "secure.example.org", "--path", "/a?b"]);
    assert!(secure.contains("route `secure`: 308 to https://secure.example.org/a?b\n"), "{secure}");
    let chat = page(&[
        "--peer",
        "10.1.2.3",
        "--host",
        "chat.example.org",
        "--header",
        "cookie: sid=x.chat-2",
    ]);
    assert!(chat.contains("balance: sticky:sid, worker `chat-2`\n"), "{chat}");
}

#[test]
fn what_cannot_be_is_a_usage_error() {
    for (arguments, said) in [
        (&["--listener", "wep"][..], "there is no listener `wep`; there is `web`, `tls`"),
        (&["--sni", "a", "--host", "b"], "`host` is behind TLS"),
        (&["--peer-context", "staff_t"], "a security context is `user:role:type:level`"),
        (&["--header", "nonsense"], "write a name, a colon and a value"),
        (&["--peer", "10.0.0.0/8"], "--peer"),
    ] {
        let output = explain(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_script_is_run_and_what_it_decides_is_told() {
    let page = |config: &str, arguments: &[&str]| {
        let output = explain_of(&format!("examples/scripts/{config}/vestibule.toml"), arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let tenant = page("tenants", &["--peer", "10.1.2.3", "--host", "tenant-4711.example.org"]);
    let expected = "\
a connection from 10.1.2.3 on `web`: GET /, host tenant-4711.example.org
the script posts it to worker `app-4`
route `script:app-4`
message: {\"tenant\":\"tenant-4711.example.org\"}
";
    assert_eq!(tenant, expected);
    let nobody = page("tenants", &["--peer", "10.1.2.3", "--host", "nobody.example.org"]);
    assert!(nobody.ends_with("\nthe script rejects it: 404\nroute `script:404`\n"), "{nobody}");
    // TLS hides the request from a script as from a route.
    let hidden = page("tenants", &["--peer", "10.1.2.3", "--sni", "tenant-1.example.org"]);
    assert!(hidden.ends_with("\nthe script rejects it: 404\nroute `script:404`\n"), "{hidden}");
}

#[test]
fn hosts_that_differ_are_not_called_none() {
    for (arguments, said) in [
        (&["--host", "good", "--header", "Host:evil"][..], "hosts that differ"),
        (&["--header", "Host:a b"], "a host that is none"),
        (&["--host", "good", "--header", "Host:GOOD."], "host good"),
        (&["--path", "/"], "no host"),
    ] {
        let first = page(&[&["--peer", "10.1.2.3"], arguments].concat());
        let expected = format!("a connection from 10.1.2.3 on `web`: GET /, {said}\n");
        assert!(first.starts_with(&expected), "{first}");
    }
}

#[test]
fn what_a_script_leaves_the_routes_decide_and_a_failure_is_told_with_its_place() {
    let folder = Folder::new("left");
    let file = |name: &str, text: &str| {
        let path = folder.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let script = "onconnection = ({ connection }) => {\n  \
                  if (connection.remoteAddress === '10.0.0.1') return;\n  \
                  if (connection.peerUser === '0') return connection.reject('reset');\n  \
                  null.f();\n};\n";
    file("route.js", script);
    let config = |routes: &str| {
        let text = format!(
            "[router]\nscript = \"route.js\"\n[[listener]]\nname = \"web\"\n\
             address = \"127.0.0.1:8080\"\n[[pool]]\nname = \"app\"\ncommand = \"demo\"\n{routes}"
        );
        file("vestibule.toml", &text)
    };
    let page = |config: &str, arguments: &[&str]| {
        let output = explain_of(config, arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let routed = config("[[route]]\nname = \"all\"\npool = \"app\"\n");
    let left = page(&routed, &["--peer", "10.0.0.1"]);
    let expected = "\
a connection from 10.0.0.1 on `web`: GET /, no host
the script neither posts nor rejects
   1. all  yes
route `all`: pool `app`
balance: least-connections
looked at: its address only
";
    assert_eq!(left, expected);
    let reset = page(&routed, &["--peer-user", "root"]);
    let end = "\nthe script rejects it: reset\n   1. all  -     not asked\nroute `script:reset`\n";
    assert!(reset.ends_with(end), "{reset}");
    let bare = config("");
    let failed = page(&bare, &["--peer", "10.0.0.2"]);
    assert!(failed.contains("\nthe script fails: "), "{failed}");
    assert!(failed.contains("route.js:4:"), "{failed}");
    assert!(failed.ends_with("\nno route matches: rejected (script-failed)\n"), "{failed}");
}

/// Listeners of every kind, and one pool.
const LISTENERS: &str = r#"
[router]
script = "route.js"
[[listener]]
name = "web"
address = "127.0.0.1:8080"
[[listener]]
name = "all"
address = "*:443"
[[listener]]
name = "any"
address = "127.0.0.1:0"
[[listener]]
name = "path"
address = "unix:@vestibule-never-there"
[[listener]]
name = "behind"
address = "127.0.0.1:81"
proxy-protocol = ["10.0.0.0/8"]
[[pool]]
name = "app"
command = "demo"
"#;

/// What is said of a client of a script.
fn scripted(name: &str, script: &str, arguments: &[&str]) -> String {
    let folder = Folder::new(name);
    std::fs::write(folder.0.join("route.js"), script).unwrap();
    let config = folder.0.join("vestibule.toml");
    std::fs::write(&config, LISTENERS).unwrap();
    let output =
        explain_of(&config.to_string_lossy(), &[&["--peer", "10.1.2.3"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = String::from_utf8(output.stdout).unwrap();
    page.replace(&format!("{}/", folder.0.display()), "")
}

#[test]
fn what_fails_after_a_decision_is_told_and_the_decision_too() {
    let twice = "onconnection = ({ connection }) => {\n  connection.reject(404); connection.reject(404);\n};";
    let expected = "\
a connection from 10.1.2.3 on `web`: GET /, no host
the script rejects it: 404
and fails, which changes nothing about that: route.js:2:38: InvalidStateError: the connection was posted, rejected or is gone
route `script:404`
";
    assert_eq!(scripted("twice", twice, &[]), expected);
    // Beside what goes on, too.
    let beside = "onconnection = async ({ connection }) => {\n  (async () => null.x)();\n  \
                  await connection.http();\n  connection.reject(404);\n};";
    let beside = scripted("beside", beside, &[]);
    assert!(beside.contains("about that: route.js:2:"), "{beside}");
}

#[test]
fn where_a_listener_is_its_clients_want_to_go() {
    let script = "onconnection = ({ connection }) => {
        pools.app.postMessage([connection.localAddress, connection.localPort], [connection]);
    };";
    for (listener, said) in [
        ("web", "[\"127.0.0.1\",8080]"),
        ("all", "[null,443]"),
        ("any", "[null,null]"),
        ("path", "[null,null]"),
        ("behind", "[null,null]"),
    ] {
        let page = scripted("where", script, &["--listener", listener]);
        assert!(page.ends_with(&format!("\nmessage: {said}\n")), "{listener}: {page}");
    }
}
