//! Behind real proxies: HAProxy with both versions of the PROXY protocol, and nginx. Who is behind
//! them counts; whoever is not listed is an ordinary client.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use vestibule_tests::files::Folder;
use vestibule_tests::master::Master;
use vestibule_tests::place::Place;
use vestibule_tests::world::until;
use vestibule_tests::{Client, Ended};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// The program, with proxies on 127.0.0.1 and 127.0.0.2.
fn hall(more: &str) -> (Master, Place) {
    hall_with(more, "")
}

/// The same, with these rules before its own.
fn hall_with(more: &str, first: &str) -> (Master, Place) {
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let place = Place::new();
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         proxy-protocol = [\"127.0.0.1\", \"127.0.0.2\"]\n{more}\
         [[pool]]\nname = \"app\"\ncommand = [\"{WORKER}\", \"recv\"]\nworkers = 1\n{user}{first}\
         [[route]]\nname = \"nine\"\npeer = \"127.0.0.9\"\npool = \"app\"\n\
         [[route]]\nname = \"rest\"\npool = \"app\"\n"
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    (Master::launch(command), place)
}

/// A program of another project that runs until it is dropped.
struct Running {
    child: Child,
    log: std::path::PathBuf,
}

impl Running {
    fn start(folder: &Folder, mut command: Command, ports: &[SocketAddr]) -> Self {
        let log = folder.join("log");
        let output = std::fs::File::create(&log).unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}; see .ci/setup", command.get_program()));
        for port in ports {
            until("the proxy listens", || {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{}", std::fs::read_to_string(&log).unwrap());
                TcpStream::connect(port).is_ok()
            });
        }
        Self { child, log }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Ports that are free now.
fn free_ports<const N: usize>() -> [SocketAddr; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.each_ref().map(|listener| listener.local_addr().unwrap())
}

fn from(source: &str, to: SocketAddr) -> Client {
    Client::connect_from(source.parse::<IpAddr>().unwrap(), to)
}

/// A client behind the proxy is routed, and told to the worker, by its own address, on every request
/// of its connection, and its bytes come whole.
fn assert_counts(proxy: SocketAddr) {
    for source in ["127.0.0.9", "127.0.0.10"] {
        let mut client = from(source, proxy);
        for _ in 0..2 {
            let answer = client.get("/");
            assert_eq!(answer.field("peer"), client.address().to_string());
            let route = if source == "127.0.0.9" { "nine" } else { "rest" };
            assert_eq!(answer.field("route"), route);
        }
    }
    let mut client = from("127.0.0.9", proxy);
    let sent = [b"POST /bytes HTTP/1.1\r\n\r\n".as_slice(), &[b'x'; 100_000]].concat();
    client.send(&sent);
    client.finish();
    assert!(client.answer().body == sent, "a byte was lost or made up");
}

#[test]
fn haproxys_clients_count_in_both_versions() {
    let (master, _place) = hall("");
    let [first, second, tls] = free_ports();
    let folder = Folder::new();
    let to = master.address();
    let config = folder.write(
        "haproxy.cfg",
        &format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             unique-id-format %[uuid()]\n\
             listen first\n bind {first}\n server app {to} send-proxy\n\
             listen second\n bind {second}\n server app {to} send-proxy-v2\n\
             listen more\n bind {tls}\n server app {to} send-proxy-v2 proxy-v2-options unique-id,crc32c\n"
        ),
        0o644,
    );
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let _haproxy = Running::start(&folder, command, &[first, second, tls]);
    assert_counts(first);
    assert_counts(second);
    assert_counts(tls);
    master.stop();
}

/// What HAProxy tells of TLS that it has ended: the name decides, and the worker is told all of it.
#[test]
fn haproxys_tls_clients_are_routed_by_their_name_and_the_worker_is_told() {
    let by_name = "[[route]]\nname = \"api\"\nsni = \"api.example.org\"\npath = \"/api/*\"\n\
                   alpn = \"http/1.1\"\npool = \"app\"\n\
                   [[route]]\nname = \"secret\"\nsni = \"secret.example.org\"\nreject = 403\n\
                   [[test]]\npeer = \"127.0.0.9\"\nsni = \"api.example.org\"\nalpn = \"http/1.1\"\n\
                   path = \"/api/x\"\nexpect = \"api\"\n";
    let (master, place) = hall_with("", by_name);
    let [tls, checked] = free_ports();
    let folder = Folder::new();
    let made = Command::new("openssl")
        .current_dir(folder.path())
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "30", "-subj", "/CN=example.org"])
        .args(["-addext", "subjectAltName=DNS:*.example.org", "-keyout", "key", "-out", "crt"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let pem = folder.write("all.pem", &format!("{}{}", read("key"), read("crt")), 0o644);
    let unix = folder.join("unix.sock");
    let to = master.address();
    // Names of connections are those that clients ask for, so that they are known here.
    let config = folder.write(
        "haproxy.cfg",
        &format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             unique-id-format id-%[ssl_fc_sni]\n\
             listen tls\n bind {tls} ssl crt {} alpn http/1.1\n \
             server app {to} send-proxy-v2 proxy-v2-options ssl,authority,unique-id\n\
             listen unix\n bind unix@{}\n server app {to} send-proxy-v2 proxy-v2-options unique-id\n\
             listen checked\n bind {checked}\n \
             server app {to} check inter 100ms fall 1 send-proxy-v2 check-send-proxy\n",
            pem.display(),
            unix.display(),
        ),
        0o644,
    );
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let haproxy = Running::start(&folder, command, &[tls, checked]);
    let curl = |name: &str, path: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
            .arg(folder.join("crt"))
            .args(["--interface", "127.0.0.9"])
            .args(["--resolve", &format!("{name}.example.org:{}:127.0.0.1", tls.port())])
            .args(["--write-out", "\nstatus=%{http_code}"])
            .arg(format!("https://{name}.example.org:{}{path}", tls.port()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let field = |said: &str, name: &str| {
        let found = said.split_whitespace().find_map(|it| it.strip_prefix(&format!("{name}=")));
        found.unwrap_or_else(|| panic!("no {name}: {said}")).to_owned()
    };
    for (name, path, route) in
        [("api", "/api/x", "api"), ("api", "/", "nine"), ("other", "/api/x", "nine")]
    {
        let said = curl(name, path);
        assert_eq!(field(&said, "route"), route, "{said}");
        assert!(field(&said, "peer").starts_with("127.0.0.9:"), "{said}");
        assert_eq!(field(&said, "name"), format!("{name}.example.org"), "{said}");
        assert_eq!(field(&said, "alpn"), "http/1.1", "{said}");
        assert_eq!(field(&said, "unique"), format!("id-{name}.example.org"), "{said}");
    }
    assert_eq!(field(&curl("secret", "/"), "status"), "403");
    // A client of a Unix-domain socket HAProxy sends as a connection of its own (LOCAL), whose fields are
    // to be skipped.
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--unix-socket"])
        .arg(&unix)
        .arg("http://api.example.org/api/x")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let facts = ["route", "name", "unique"].map(|name| field(&said, name));
    assert_eq!(facts, ["rest", "none", "none"], "{said}");
    assert!(field(&said, "peer").starts_with("127.0.0.1:"), "{said}");
    // Its checks are connections of its own, which close after the header: no failure of anybody's.
    let before = master.accepted_and_acknowledged().0;
    until("it checks a few times", || master.accepted_and_acknowledged().0 >= before + 5);
    let mut client = from("127.0.0.9", checked);
    assert_eq!(client.get("/").field("route"), "nine");
    let said = std::fs::read_to_string(&haproxy.log).unwrap();
    assert!(!said.contains("is DOWN"), "{said}");
    drop(client);
    drop(haproxy);
    let status = place.status();
    assert_eq!(status["connections"]["rejected"]["proxy-header"], 0, "{status}");
    master.stop();
}

/// The kernel knows the context of the proxy, which is nobody's behind it: no rule by it can be told, so
/// that none is slipped past.
#[test]
fn a_proxys_security_context_is_not_its_clients() {
    for rule in [
        "peer-context = \"*:*:guest_t:*\"\nreject = 403",
        "peer-context = \"none\"\npool = \"app\"",
        "peer-level = \"s0\"\nreject = 403",
    ] {
        let (master, _place) = hall_with("", &format!("[[route]]\nname = \"context\"\n{rule}\n"));
        let ask = |header: &str| {
            let mut client = from("127.0.0.2", master.address());
            client.send(header.as_bytes());
            let answer = client.get("/");
            (answer.status, answer.header("vestibule-reason").map(str::to_owned))
        };
        let hidden = (400, Some("unknown-fact".to_owned()));
        assert_eq!(ask("PROXY TCP4 127.0.0.9 192.0.2.2 51200 80\r\n"), hidden, "{rule}");
        // Its own connections, and clients without a proxy, are who they are.
        assert_ne!(ask("PROXY UNKNOWN\r\n"), hidden, "{rule}");
        let mut ordinary = from("127.0.0.3", master.address());
        assert_ne!(ordinary.get("/").status, 400, "{rule}");
        drop(ordinary);
        master.stop();
    }
}

#[test]
fn nginxs_clients_count() {
    let (master, _place) = hall("");
    let [port] = free_ports();
    let folder = Folder::new();
    let to = master.address();
    let config = folder.write(
        "nginx.conf",
        &format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n{}\
             pid {1}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
             stream {{ server {{ listen {port}; proxy_pass {to}; proxy_protocol on; proxy_half_close on; }} }}\n",
            if rustix::process::geteuid().is_root() { "user root;\n" } else { "" },
            folder.path().display(),
        ),
        0o644,
    );
    let mut command = Command::new("nginx");
    command.args(["-g", "daemon off; master_process off;", "-e", "stderr", "-c"]).arg(config);
    let _nginx = Running::start(&folder, command, &[port]);
    assert_counts(port);
    master.stop();
}

#[test]
fn a_listed_sender_without_a_header_is_closed_and_another_is_an_ordinary_client() {
    let (master, _place) = hall("");
    let to = master.address();
    let ended = |bytes: &[u8]| {
        let mut client = from("127.0.0.2", to);
        client.send(bytes);
        // Closed with bytes that nobody read, it is reset.
        client.try_finish();
        client.end().0
    };
    for wrong in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 70000\r\nGET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0GET / HTTP/1.1\r\n\r\n",
        b"",
    ] {
        assert_eq!(ended(wrong), b"", "{}", wrong.escape_ascii());
    }
    let mut ordinary = from("127.0.0.3", to);
    assert_eq!(ordinary.get("/").field("peer"), ordinary.address().to_string());
    // What an ordinary client says of itself reaches the worker as what it is: bytes.
    let mut pretends = from("127.0.0.3", to);
    let sent = b"PROXY /bytes TCP4 192.0.2.1 192.0.2.2 1 2\r\n\r\n";
    pretends.send(sent);
    pretends.finish();
    assert_eq!(pretends.answer().body, sent);
    // A proxy's own connection, and one whose family has no addresses.
    for own in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut check = from("127.0.0.2", to);
        check.send(own);
        assert_eq!(check.get("/").field("peer"), check.address().to_string());
    }
    // A client of the proxy on a Unix-domain socket has no address.
    let mut unix = from("127.0.0.2", to);
    unix.send(&[&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8"[..], &[0; 216]].concat());
    assert_eq!(unix.get("/").field("peer"), "none");
    drop((ordinary, unix));
    master.stop();
}

#[test]
fn a_header_in_any_pieces_is_taken_off_whole_and_nothing_else_is() {
    let (master, _place) = hall("");
    let header = b"PROXY TCP4 127.0.0.9 192.0.2.2 51200 80\r\n";
    let request = b"GET /bytes HTTP/1.1\r\n\r\nbody";
    let whole = [&header[..], request].concat();
    for cut in 0..whole.len() {
        let mut client = from("127.0.0.2", master.address());
        client.send(&whole[..cut]);
        std::thread::yield_now();
        client.send(&whole[cut..]);
        client.finish();
        assert_eq!(client.answer().body, request, "cut at {cut}");
    }
    master.stop();
}

#[test]
fn limits_are_for_who_is_behind_the_proxy() {
    let (master, _place) = hall("limits = { rate = \"1/h\", burst = 2 }\n");
    let ask = |source: &str| {
        let mut client = from("127.0.0.1", master.address());
        client.send(format!("PROXY TCP4 {source} 192.0.2.2 51200 80\r\n").as_bytes());
        let answer = client.get("/");
        (answer.status, answer.header("vestibule-reason").map(str::to_owned))
    };
    let limited = (429, Some("rate-limited".to_owned()));
    assert_eq!([ask("192.0.2.1"), ask("192.0.2.1")], [(200, None), (200, None)]);
    assert_eq!(ask("192.0.2.1"), limited);
    assert_eq!(ask("192.0.2.9"), (200, None));
    assert_eq!(ask("192.0.2.1"), limited);
    let mut quiet = from("127.0.0.2", master.address());
    quiet.finish();
    assert_eq!(quiet.end(), (Vec::new(), Ended::Closed));
    master.stop();
}
