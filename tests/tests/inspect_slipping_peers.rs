//! Whoever tries to slip past a rule by user or security context: by becoming somebody else, by speaking
//! over another's socket, by claiming to be somebody, or where it cannot be told who they are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::process::Command;

use vestibule_tests::master::{Master, vestibule};
use vestibule_tests::place::Place;
use vestibule_tests::world::turn;
use vestibule_tests::{Client, refuse};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Users without a name: one is turned away, one has a pool of its own.
const RULES: &str = "[[route]]\nname = \"mallory\"\npeer-user = \"4242\"\nreject = 403\n\
                     [[route]]\nname = \"alice\"\npeer-user = [\"4243\"]\npool = \"app\"\n\
                     [[route]]\nname = \"ten\"\npeer = \"10.0.0.0/8\"\npool = \"app\"\n\
                     [[route]]\nname = \"rest\"\npool = \"app\"\n";

/// Listeners at a port and at a path, where anybody may connect. Everybody on TCP is a proxy if `proxies`.
fn hall(rules: &str, proxies: bool, configure: impl FnOnce(&mut Command)) -> (Master, Place) {
    let place = Place::new();
    let proxies = if proxies { "proxy-protocol = [\"0.0.0.0/0\", \"::/0\"]\n" } else { "" };
    let user = if rustix::process::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let path = place.join("app.sock");
    let file = place.config(&format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n{proxies}\
         [[listener]]\nname = \"path\"\naddress = \"unix:{}\"\n\
         [[pool]]\nname = \"app\"\ncommand = \"demo\"\nworkers = 1\n{user}{rules}",
        path.display()
    ));
    let mut command = place.vestibule(WORKER);
    command.arg(file);
    configure(&mut command);
    (Master::launch(command), place)
}

/// What the clients below are written with. `ask` says who was taken for whom by which route, or that the
/// connection was closed without a word.
const CLIENT: &str = r#"
import os, re, socket, struct, sys
socket.setdefaulttimeout(30)
path = sys.argv[1]
def become(real, effective, saved=-1):
    os.setresuid(real, effective, saved)
def connect(s=None):
    s = s or socket.socket(socket.AF_UNIX)
    s.connect(path)
    return s
def ask(s, before=b"", ancillary=[]):
    said = b""
    try:
        s.sendmsg([before + b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"], ancillary)
        while part := s.recv(65536):
            said += part
    except (BrokenPipeError, ConnectionResetError):
        pass
    found = re.search(rb"peer=(\S+);.* route=(\S+)", said)
    print(b" ".join(found.groups()).decode() if found else said.split(b"\r\n")[0].decode() or "closed")
"#;

/// What a client says, whose steps are these. It begins as root.
fn client(place: &Place, steps: &str) -> String {
    let output = Command::new("python3")
        .args(["-c", &format!("{CLIENT}\n{steps}")])
        .arg(place.join("app.sock"))
        .output()
        .expect("python3 is installed");
    assert!(output.status.success(), "{steps}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn needs_root() {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "only root can be several users: run this as root");
}

/// `SO_PEERCRED` is who connected, with the effective user of that moment (unix(7)).
#[test]
fn who_connected_counts_whoever_speaks_afterwards() {
    needs_root();
    let _turn = turn();
    let (master, place) = hall(RULES, false, |_| {});
    for (steps, said) in [
        ("become(4242, 4242, 4242); ask(connect())", "closed"),
        ("become(4243, 4243, 4243); ask(connect())", "unix:4243 alice"),
        ("become(4244, 4244, 4244); ask(connect())", "unix:4244 rest"),
        // Mallory becomes alice, or root, once it is connected.
        (
            "become(4242, 4242, 0); s = connect(); become(0, 0); become(4243, 4243, 4243); ask(s)",
            "closed",
        ),
        ("become(4242, 4242, 0); s = connect(); become(0, 0, 0); ask(s)", "closed"),
        // Root has only borrowed mallory's rights, or mallory's programs have set-user-ID of alice.
        ("become(0, 4242); ask(connect())", "closed"),
        ("become(4242, 4243, 4243); ask(connect())", "unix:4243 alice"),
        // A socket that alice made, and that mallory connects.
        (
            "become(4243, 4243, 0); s = socket.socket(socket.AF_UNIX); become(0, 0); \
          become(4242, 4242, 4242); ask(connect(s))",
            "closed",
        ),
        // A connection that mallory made: alice inherits it, or is passed it.
        (
            "become(-1, 4242); s = connect(); become(-1, 0)\nif os.fork() == 0:\n \
          become(4243, 4243, 4243); ask(s)\nelse:\n os.wait()",
            "closed",
        ),
        (
            "ours, theirs = socket.socketpair()\nif os.fork() == 0:\n become(4242, 4242, 4242)\n \
          s = connect(); socket.send_fds(theirs, [b'x'], [s.fileno()]); os._exit(0)\n\
          become(4243, 4243, 4243); ask(socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0]))",
            "closed",
        ),
        // And the other way round: who lets others speak has to answer for them.
        (
            "become(4243, 4243, 0); s = connect(); become(0, 0); become(4242, 4242, 4242); ask(s)",
            "unix:4243 alice",
        ),
    ] {
        assert_eq!(client(&place, steps), said, "{steps}");
    }
    master.stop();
}

#[test]
fn nobody_is_taken_for_whom_he_claims_to_be() {
    needs_root();
    let _turn = turn();
    let (master, place) = hall(RULES, true, |_| {});
    // Credentials that the kernel lets this process claim, for it may become these: a worker could ask for
    // them, and nobody here does.
    for claimed in ["0", "4243"] {
        let steps = format!(
            "become(4243, 4242, 0); s = connect(); mine = struct.pack('3i', os.getpid(), {claimed}, 0)\n\
             ask(s, ancillary=[(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, mine)])"
        );
        assert_eq!(client(&place, &steps), "closed", "{claimed}");
    }
    // A Unix-domain peer is in no network of proxies, and its header is no header.
    for header in [
        "b'PROXY TCP4 10.1.2.3 10.1.2.4 1 2\\r\\n'",
        "b'PROXY UNKNOWN\\r\\n'",
        "b'\\r\\n\\r\\n\\0\\r\\nQUIT\\n\\x21\\x11\\0\\x0c\\x0a\\1\\2\\3\\x0a\\1\\2\\4\\0\\1\\0\\2'",
        "b'\\r\\n\\r\\n\\0\\r\\nQUIT\\n\\x20\\0\\0\\0'",
    ] {
        for (user, said) in [("4242", "closed"), ("4244", "HTTP/1.1 400 Bad Request")] {
            let steps = format!("become({user}, {user}, {user}); ask(connect(), {header})");
            assert_eq!(client(&place, &steps), said, "{user} {header}");
        }
    }
    master.stop();
}

/// Root within a user namespace is who it is outside.
#[test]
fn a_namespace_of_users_hides_nobody() {
    needs_root();
    let _turn = turn();
    let (master, place) = hall(RULES, false, |_| {});
    let within = |user: &str, program: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        command.args(["unshare", "--user", "--map-root-user"]).args(program).output().unwrap()
    };
    let id = within("4242", &["id", "-u"]);
    if !id.status.success() {
        eprintln!("skipped: this system gives users no namespace: {id:?}");
        return master.stop();
    }
    assert_eq!(id.stdout, b"0\n");
    let socket = place.join("app.sock");
    let curl = ["curl", "--silent", "--unix-socket", socket.to_str().unwrap(), "http://x/"];
    let mallory = within("4242", &curl);
    assert_eq!((mallory.status.success(), mallory.stdout), (false, Vec::new()));
    let alice = within("4243", &curl);
    let said = String::from_utf8(alice.stdout).unwrap();
    assert!(said.contains("; peer=unix:4243; ") && said.ends_with("; route=alice\n"), "{said}");
    master.stop();
}

/// Within a namespace of users all that are not mapped there show as one, so that a rule about one of them
/// would let it pass: there such a configuration is wrong.
#[test]
fn a_user_whom_a_namespace_does_not_know_is_an_error_there() {
    let place = Place::new();
    let file = place.config(&format!(
        "[[listener]]\nname = \"path\"\naddress = \"unix:{}\"\n\
         [[pool]]\nname = \"app\"\ncommand = \"demo\"\n{RULES}",
        place.join("app.sock").display()
    ));
    let vestibule = vestibule(WORKER);
    let checked = |namespace: &[&str]| {
        let [program, arguments @ ..] = namespace else { panic!("a program") };
        let output = Command::new(program).args(arguments).arg("check").arg(&file).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let program = vestibule.to_str().unwrap();
    assert_eq!(checked(&[program]).0, Some(0));
    if !Command::new("unshare").args(["--user", "true"]).status().unwrap().success() {
        eprintln!("skipped: this system gives no namespace of users");
        return;
    }
    let (code, said) = checked(&["unshare", "--user", "--map-root-user", program]);
    assert_eq!(code, Some(78), "{said}");
    for user in ["4242", "4243"] {
        let what = format!("error: user {user} is not mapped in this user namespace");
        assert!(said.contains(&what), "{said}");
    }
}

/// What an Internet peer has not, it does not match; what a proxy hides cannot be told.
#[test]
fn a_client_without_a_user_is_no_users() {
    let _turn = turn();
    let (master, place) = hall(RULES, true, |_| {});
    let begin = |header: &[u8]| {
        let mut client = master.client();
        client.send(header);
        client
    };
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    // From its sender itself, or for an Internet client.
    for header in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
        &[&signature[..], b"\x20\0\0\0"].concat(),
    ] {
        let answer = begin(header).get("/");
        assert!(answer.text().ends_with("; route=rest\n"), "{}", answer.text());
    }
    // For a client of the proxy's own path: one has a user, and only the proxy knows which.
    let paths = [&[b'/'; 108][..], &[b'x'; 108]].concat();
    let mut hidden = begin(&[&signature[..], b"\x21\x31\0\xd8", &paths].concat());
    assert_eq!(hidden.end().0, b"", "told nothing, as on a path");
    place.until("it is counted", |status| status["connections"]["rejected"]["unknown-fact"] == 1);
    master.stop();
}

/// Where the kernel does not tell, whose rule it is cannot be told either: neither the rule by user or
/// context nor what comes after it.
#[test]
fn what_the_kernel_does_not_tell_opens_nothing() {
    let _turn = turn();
    let users = RULES.replace(
        "[[route]]\nname = \"mallory\"",
        "[[route]]\nlistener = \"path\"\nname = \"mallory\"",
    );
    let staff = "[[route]]\npeer-context = \"*:*:staff_client_t:*\"\nreject = 403\n";
    let none = "[[route]]\nname = \"none\"\npeer-context = \"none\"\npool = \"app\"\n";
    let level = "[[route]]\npeer-level = \"s0\"\nreject = 403\n";
    let rest = "[[route]]\nname = \"rest\"\npool = \"app\"\n";
    for (rules, on_tcp) in [
        (users.clone(), true),
        ([staff, rest].concat(), false),
        ([none, rest].concat(), false),
        ([level, rest].concat(), false),
    ] {
        let (master, place) = hall(&rules, false, refuse::word_of_peers);
        let curl = Command::new("curl")
            .args(["--silent", "--unix-socket"])
            .arg(place.join("app.sock"))
            .arg("http://x/")
            .output()
            .expect("curl is installed");
        assert_eq!((curl.status.success(), curl.stdout), (false, Vec::new()), "{rules}");
        let answer = master.client().get("/");
        if on_tcp {
            assert!(answer.text().ends_with("; route=rest\n"), "{}", answer.text());
        } else {
            let told = (answer.status, answer.header("vestibule-reason"));
            assert_eq!(told, (400, Some("unknown-fact")), "{rules}");
        }
        master.stop();
    }
}

/// Without labels a peer is `none` and nothing else.
#[test]
fn a_client_without_a_context_is_in_none() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("skipped: this system labels; see tests/selinux-vm");
        return;
    }
    let _turn = turn();
    let (master, _place) = hall(
        "[[route]]\nname = \"any\"\npeer-context = [\"*:*:*:*\", \"none:*:*:*\"]\npool = \"app\"\n\
         [[route]]\npeer-level = \"s0-s0:c0.c1023\"\npool = \"app\"\n\
         [[route]]\nname = \"none\"\npeer-context = \"none\"\npool = \"app\"\n\
         [[route]]\nreject = 403\n",
        false,
        |_| {},
    );
    let mut client = Client::connect(master.address());
    let answer = client.get("/");
    assert!(answer.text().ends_with("; context=none; route=none\n"), "{}", answer.text());
    master.stop();
}
