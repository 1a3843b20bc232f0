//! The example as its README tells it: two sites, two keys, one port; with curl and openssl.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use vestibule_tests::files::{Folder, set_mode};
use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::place::Place;

const WORKER: &str = env!("CARGO_BIN_EXE_tls-worker");

/// The example's folder, ready to run: worker, certificates, and its configuration on a free port.
fn folder() -> Folder {
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join("vestibule.toml");
    folder_with(&std::fs::read_to_string(written).unwrap())
}

/// The same with another configuration.
fn folder_with(config: &str) -> Folder {
    let folder = Folder::new();
    for site in ["shop", "blog"] {
        let name = format!("{site}.example.org");
        let made = Command::new("openssl")
            .current_dir(folder.path())
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "30", "-subj", &format!("/CN={name}")])
            .args(["-addext", &format!("subjectAltName=DNS:{name}")])
            .args(["-keyout", &format!("{site}.key"), "-out", &format!("{site}.crt")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // The workers' user is not whoever runs the test.
        set_mode(&folder.join(&format!("{site}.key")), 0o644);
    }
    let config = config
        .replace("127.0.0.1:8443", "127.0.0.1:0")
        .replace("[\"tls-worker\"", &format!("[\"{WORKER}\""));
    folder.write("vestibule.toml", &config, 0o644);
    folder
}

/// The example with other rules: no routes and no tests of its own, but these, and a line in the
/// listener.
fn with_rules(listener: &str, rules: &str) -> Folder {
    let folder = folder();
    let config = std::fs::read_to_string(folder.join("vestibule.toml")).unwrap();
    let (head, _) = config.split_once("[[route]]").unwrap();
    let head = head.replace("ech = \"outer\"", &format!("ech = \"outer\"\n{listener}\n"));
    folder.write("vestibule.toml", &format!("{head}\n{rules}"), 0o644);
    folder
}

fn start(folder: &Folder) -> (Master, Place) {
    let checked = Command::new(vestibule(WORKER))
        .arg("check")
        .arg(folder.join("vestibule.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let place = Place::new();
    let mut command = place.vestibule(WORKER);
    command.arg("--admin").arg(place.join("admin.sock")).arg(folder.join("vestibule.toml"));
    (Master::launch(command), place)
}

fn curl(folder: &Folder, master: &Master, name: &str, site: &str) -> Output {
    curl_for(folder, master, name, site, &["/"], &[])
}

/// One run of curl, for all of these paths.
fn curl_for(
    folder: &Folder,
    master: &Master,
    name: &str,
    site: &str,
    paths: &[&str],
    more: &[&str],
) -> Output {
    let port = master.address().port();
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(folder.join(&format!("{site}.crt")))
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .args(more)
        .args(paths.iter().map(|path| format!("https://{name}:{port}{path}")))
        .output()
        .unwrap()
}

#[test]
fn each_site_is_served_by_its_own_workers_with_its_own_key() {
    let folder = folder();
    let (master, _place) = start(&folder);
    for site in ["shop", "blog"] {
        let name = format!("{site}.example.org");
        let output = curl(&folder, &master, &name, site);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with(&format!("worker={site}-")), "{said}{:?}", output.stderr);
        assert!(said.contains(&format!("; route={site}; name={name}; peer=127.0.0.1:")), "{said}");
    }
    // Told no before any key is touched: access_denied.
    let output = curl(&folder, &master, "other.example.org", "shop");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(35), "{said}");
    assert!(said.contains("access denied"), "{said}");
    master.stop();
}

/// What curl gets that asks for these paths of the shop, one after the other: each status, and how many
/// connections it had to open for it.
fn statuses(folder: &Folder, master: &Master, version: &str, paths: &[&str]) -> String {
    let port = master.address().port();
    let name = "shop.example.org";
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(folder.join("shop.crt"))
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .args([version, "--write-out", "%{http_version}: %{http_code} %{num_connects}, "]);
    for path in paths {
        curl.args(["--output", "/dev/null"]).arg(format!("https://{name}:{port}{path}"));
    }
    let output = curl.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every later request is as hidden from the rules as the first one was, so that whatever decided about
/// that one decides about all.
#[test]
fn a_connection_stays_with_its_worker_whatever_decided_about_it() {
    let script = "[router]\nscript = \"route.js\"\n";
    let unknown = "unknown = \"shop\"";
    let other = "[[route]]\nhost = \"other.example.org\"\nreject = 403\n";
    let near = "[[route]]\npeer = \"192.0.2.0/24\"\npath = \"/b\"\nreject = 403\n\
                [[route]]\nsni = \"shop.example.org\"\npool = \"shop\"\n";
    let proxied = "proxy-protocol = \"192.0.2.1\"";
    let named = "[[route]]\nsni = \"blog.example.org\"\npath = \"/b\"\nreject = 403\n\
                 [[route]]\nsni = \"shop.example.org\"\npool = \"shop\"\n";
    for (listener, rules) in [("", script), (unknown, other), ("", near), (proxied, named)] {
        let folder = with_rules(listener, rules);
        folder.write(
            "route.js",
            "onconnection = async ({ connection }) => {\n\
             const hello = await connection.tls();\n\
             if (hello?.serverName !== 'shop.example.org') return connection.reject(403);\n\
             pools.shop.postMessage(null, [connection]);\n\
             };\n",
            0o644,
        );
        let (master, _place) = start(&folder);
        for (version, number) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let all = statuses(&folder, &master, version, &["/", "/b", "/", "/b"]);
            let expected = ["200 1, ", "200 0, ", "200 0, ", "200 0, "];
            let expected: String = expected.map(|one| format!("{number}: {one}")).concat();
            assert_eq!(all, expected, "{listener} {rules}");
        }
        master.stop();
    }
}

/// A client that offers a protocol comes to the workers that are for it.
#[test]
fn a_client_goes_by_the_protocols_that_it_offers() {
    let rules = "[[route]]\nname = \"two\"\nalpn = \"h2\"\npool = \"shop\"\n\
                 [[route]]\nname = \"one\"\nalpn = \"http/1.1\"\npool = \"blog\"\n\
                 [[route]]\nname = \"neither\"\nreject = 421\n";
    let folder = with_rules("", rules);
    let (master, _place) = start(&folder);
    for (version, pool, route) in [
        (&["--http2"][..], "worker=shop-", "; route=two; "),
        (&["--http1.1"], "worker=blog-", "; route=one; "),
        (&["--http1.1", "--no-alpn"], "", ""),
    ] {
        let port = master.address().port();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--insecure"])
            .args(version)
            .arg(format!("https://127.0.0.1:{port}/"))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with(pool), "{version:?}: {said}{:?}", output.stderr);
        assert!(said.contains(route), "{version:?}: {said}");
        assert_eq!(said.is_empty(), pool.is_empty(), "{version:?}: {said}");
    }
    master.stop();
}

/// The example of a script that decides by name, with workers that complete the handshake.
#[test]
fn the_script_that_decides_by_name_leads_to_workers_that_end_tls() {
    let folder = folder();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/sni");
    let read = |file: &str| std::fs::read_to_string(example.join(file)).unwrap();
    let mut config = read("vestibule.toml").replace("127.0.0.1:8080", "127.0.0.1:0");
    for site in ["shop", "blog"] {
        let demo = format!("name = \"{site}\"\ncommand = \"demo\"");
        assert!(config.contains(&demo), "{config}");
        let (crt, key) = (format!("{site}.crt"), format!("{site}.key"));
        let command = format!("name = \"{site}\"\ncommand = [\"{WORKER}\", \"{crt}\", \"{key}\"]");
        config = config.replace(&demo, &command);
    }
    folder.write("vestibule.toml", &config, 0o644);
    folder.write("route.js", &read("route.js"), 0o644);
    let (master, _place) = start(&folder);
    for site in ["shop", "blog"] {
        let name = format!("{site}.example.org");
        let output = curl(&folder, &master, &name, site);
        let said = String::from_utf8(output.stdout).unwrap();
        let (worker, route) = (format!("worker={site}-"), format!("; route=script; name={name}; "));
        assert!(said.starts_with(&worker) && said.contains(&route), "{said}{:?}", output.stderr);
    }
    let all = statuses(&folder, &master, "--http2", &["/", "/", "/"]);
    assert_eq!(all, "2: 200 1, 2: 200 0, 2: 200 0, ");
    let output = curl(&folder, &master, "other.example.org", "shop");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("access denied"), "{said}");
    master.stop();
}

#[test]
fn openssl_completes_a_handshake_and_reads_an_answer() {
    let folder = folder();
    let (master, _place) = start(&folder);
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-servername", "blog.example.org"])
        .args(["-verify_hostname", "blog.example.org", "-connect", &master.address().to_string()])
        .arg("-CAfile")
        .arg(folder.join("blog.crt"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: blog.example.org\r\nconnection: close\r\n\r\n";
    let mut input = openssl.stdin.take().unwrap();
    input.write_all(request).unwrap();
    let output = openssl.wait_with_output().unwrap();
    drop(input);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("worker=blog-"), "{output:?}");
    assert!(said.contains("; route=blog; name=blog.example.org"), "{output:?}");
    master.stop();
}

/// A rule in front looks at paths. It is about other clients, so that this one's address decides, without a
/// look: nobody knows that it speaks TLS, and the worker is told what may not be asked for in clear.
const PATHS: &str = r#"
[[route]]
peer = "127.0.0.9"
path = "/admin/*"
reject = 403

[[route]]
name = "shop"
peer = "127.0.0.1"
pool = "shop"
"#;

/// Version, status, and whether it took another connection, of each answer.
const SAYS: &str = "\n%{http_version} %{http_code} %{num_connects}\n";

#[test]
fn a_later_request_that_is_another_workers_is_told_421_behind_tls() {
    let folder = with_rules("", PATHS);
    let (master, _place) = start(&folder);
    let ask = |more: &[&str]| {
        let more = [&["--write-out", SAYS], more].concat();
        let paths = ["/", "/admin/x", "/x/..//%61dmin", "/y"];
        let name = "shop.example.org";
        let output = curl_for(&folder, &master, name, "shop", &paths, &more);
        let said = String::from_utf8(output.stdout).unwrap();
        let answers = said.lines().filter(|line| !line.is_empty());
        let answers =
            answers.map(|line| if line.starts_with("worker=shop-") { "shop" } else { line });
        (answers.collect::<Vec<_>>().join("; "), String::from_utf8(output.stderr).unwrap())
    };
    // HTTP/2: the next request is served on the same connection.
    let (said, why) = ask(&["--http2", "--path-as-is"]);
    assert_eq!(said, "shop; 2 200 1; 2 421 0; 2 421 0; shop; 2 200 0", "{why}");
    // HTTP/1.1: the connection closes with the answer, and what opens the next one is served.
    let (said, why) = ask(&["--http1.1", "--path-as-is"]);
    assert_eq!(said, "shop; 1.1 200 1; 1.1 421 0; shop; 1.1 200 1; shop; 1.1 200 0", "{why}");
    // Whom the rule is about cannot be seen to be another: nothing of it is served.
    let (said, why) = ask(&["--http2", "--interface", "127.0.0.9"]);
    assert_eq!(said, "0 000 1; 0 000 1; 0 000 1; 0 000 1", "{why}");
    assert!(why.contains("access denied"), "{why}");
    master.stop();
}
