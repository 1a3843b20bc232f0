//! `vestibule trace`: what was decided about connections, and what each route said of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::running::{DEADLINE, Folder, Running, Who, ask, number, signal, vestibule};

/// A run whose socket is in the same folder as its configuration.
fn start(folder: &Folder, text: &str) -> Running {
    let (file, socket) = (folder.join("f.toml"), folder.join("s"));
    std::fs::write(&file, format!("admin.socket = {socket:?}\n{text}")).unwrap();
    Running::start_as(Who::Same, &socket, |command| {
        command.arg("run").arg(&file);
    })
}

const POOLS: &str = "
[[listener]]
name = 'web'
address = '127.0.0.1:0'
[[pool]]
name = 'app'
command = 'demo'
workers = 1
";

const ROUTES: &str = "
[[pool]]
name = 'never-ready'
command = ['sleep', '600']
protocol = 'vestibule'
workers = 1
queue.timeout = '10ms'
[[route]]
name = 'far'
peer = '10.0.0.0/8'
reject = 403
[[route]]
name = 'admin'
host = 'admin.test'
reject = 403
[[route]]
name = 'slow'
path = '/slow'
pool = 'never-ready'
[[route]]
name = 'rest'
path = '/*'
pool = 'app'
";

/// One request on a connection of its own; the head of the answer.
fn request(address: SocketAddr, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// Somebody who follows.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn of(socket: &Path, arguments: &[&str]) -> Self {
        let mut command = vestibule(Who::Same);
        command.arg("trace").args(arguments).arg("--admin").arg(socket);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (say, lines) = channel();
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|it| say.send(it))
        });
        Self { child, lines }
    }

    /// Has connections made until one is shown that ends like this; the lines about its routes.
    fn shows(&self, ending: &str, mut connect: impl FnMut()) -> Vec<String> {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < DEADLINE, "`{ending}` is never shown");
            connect();
            while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100)) {
                if !line.ends_with(ending) {
                    continue;
                }
                let mut said = Vec::new();
                while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100))
                    && let Some(line) = line.strip_prefix("    ")
                {
                    said.push(line.to_owned());
                }
                return said;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended already. Not SIGINT, which is ignored by what a shell started in the background.
        let _ = rustix::process::kill_process(number(self.child.id()), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// What `trace --last rejected` prints, until it says this.
fn last_rejected(running: &Running, more: &[&str], wanted: &str) -> String {
    let begin = Instant::now();
    loop {
        let page = running.succeed(&[&["trace", "--last", "rejected"], more].concat());
        if page.contains(wanted) {
            return page;
        }
        assert!(begin.elapsed() < DEADLINE, "{wanted:?} is not in {page:?}");
    }
}

#[test]
fn decisions_are_shown_with_what_each_route_says() {
    let folder = Folder::new(Who::Same);
    let running = start(&folder, &format!("{POOLS}{ROUTES}"));
    let follower = Follower::of(&running.socket, &["--peer", "127.0.0.0/8"]);

    let said = follower.shows(" on web: route rest, app", || {
        assert_eq!(request(running.address, "www.test", "/"), "HTTP/1.1 200 OK");
    });
    assert_eq!(said, ["far: no: peer", "admin: no: host", "slow: no: path", "rest: yes"]);

    let said = follower.shows(" on web: route admin, rejected", || {
        let answer = request(running.address, "admin.test", "/");
        assert_eq!(answer, "HTTP/1.1 403 Forbidden");
    });
    assert_eq!(said, ["far: no: peer", "admin: yes"]);

    let said = follower.shows(" on web: route unknown, not-http", || {
        let answer = request(running.address, "www.test\r\nhost: admin.test", "/");
        assert_eq!(answer, "HTTP/1.1 400 Bad Request");
    });
    assert_eq!(said, ["far: no: peer", "admin: host cannot be told: not-http"]);
}

#[test]
fn whoever_follows_goes_on_with_the_next_router() {
    let folder = Folder::new(Who::Same);
    let running = start(&folder, &format!("{POOLS}{ROUTES}"));
    let follower = Follower::of(&running.socket, &[]);
    let rest = || {
        // Between two routers it is refused, or waits for the next one.
        if let Ok(mut stream) = TcpStream::connect(running.address) {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        }
    };
    follower.shows("route rest, app", rest);
    signal(&running.status()["router"]["pid"], Signal::KILL);
    running.until("there is another router", |status| {
        status["router"]["epoch"] == 2 && status["router"]["state"] == "accepting"
    });
    while follower.lines.try_recv().is_ok() {}
    follower.shows("route rest, app", rest);
}

#[test]
fn the_last_rejections_are_kept_though_nobody_asked() {
    let folder = Folder::new(Who::Same);
    let running = start(&folder, &format!("{POOLS}{ROUTES}"));
    assert_eq!(running.succeed(&["trace", "--last", "rejected"]), "");
    assert_eq!(request(running.address, "www.test", "/"), "HTTP/1.1 200 OK");
    assert_eq!(request(running.address, "admin.test", "/"), "HTTP/1.1 403 Forbidden");
    let page = last_rejected(&running, &[], "route admin, rejected");
    assert_eq!(page.lines().count(), 3, "{page}");
    assert!(page.ends_with("\n    far: no: peer\n    admin: yes\n"), "{page}");
    assert!(!page.contains("rest"), "what went to a worker is none: {page}");

    // What a pool turns away is there, too, and no route said so.
    assert_eq!(request(running.address, "www.test", "/slow"), "HTTP/1.1 503 Service Unavailable");
    let page = last_rejected(&running, &[], "route slow, queue-timeout");
    assert!(page.ends_with("queue-timeout\n"), "{page}");

    let near = last_rejected(&running, &["--peer", "127.0.0.0/8"], "route admin");
    assert_eq!(near, page);
    assert_eq!(running.succeed(&["trace", "--last", "rejected", "--peer", "10.0.0.0/8"]), "");
}

#[test]
fn of_thousands_of_routes_the_first_and_the_deciding_one_are_shown() {
    let folder = Folder::new(Who::Same);
    let route = |at: u32| {
        let network = format!("10.{}.{}.0/24", at / 256, at % 256);
        format!("[[route]]\nname = 'net-{at}'\npeer = '{network}'\npool = 'app'\n")
    };
    let routes: String = (0..5000).map(route).collect();
    let last = "[[route]]\nname = 'none'\nreject = 403\n";
    let running = start(&folder, &format!("{POOLS}{routes}{last}"));
    assert_eq!(request(running.address, "www.test", "/"), "HTTP/1.1 403 Forbidden");
    let page = last_rejected(&running, &[], "route none, rejected");
    let lines: Vec<_> = page.lines().skip(1).map(str::trim).collect();
    assert_eq!(lines.len(), 34, "{page}");
    assert_eq!(lines[0], "net-0: no: peer");
    assert_eq!(lines[31..], ["net-31: no: peer", "…: no: 4968 more", "none: yes"]);
}

#[test]
fn what_a_script_decides_is_shown_as_its() {
    let folder = Folder::new(Who::Same);
    let script: PathBuf = folder.join("route.js");
    let text = "onconnection = async ({ connection }) => {
        if ((await connection.http()).path === '/no') return connection.reject(404);
        pools.app.postMessage(null, [connection]);
    };";
    std::fs::write(&script, text).unwrap();
    let running = start(&folder, &format!("router.script = 'route.js'\n{POOLS}"));
    let follower = Follower::of(&running.socket, &[]);
    let said = follower.shows("route script, app", || {
        assert_eq!(request(running.address, "www.test", "/"), "HTTP/1.1 200 OK");
    });
    assert_eq!(said, [""; 0]);
    assert_eq!(request(running.address, "www.test", "/no"), "HTTP/1.1 404 Not Found");
    last_rejected(&running, &[], "route script, rejected");
}

#[test]
fn a_script_that_fails_where_no_route_decides_is_no_route_s() {
    let folder = Folder::new(Who::Same);
    let script: PathBuf = folder.join("route.js");
    std::fs::write(&script, "onconnection = () => null.x;").unwrap();
    let two = "[[pool]]\nname = 'gold'\ncommand = 'demo'\nworkers = 1";
    let written = "[[route]]\nname = 'far'\npeer = '10.0.0.0/8'\nreject = 403";
    // Several pools and no route, one pool that a route would be implied for, and routes that do not match.
    for more in [two, "", written] {
        let running = start(&folder, &format!("router.script = 'route.js'\n{POOLS}{more}"));
        let answer = request(running.address, "www.test", "/");
        assert_eq!(answer, "HTTP/1.1 503 Service Unavailable");
        last_rejected(&running, &[], "route no-route, script-failed");
    }
}

#[test]
fn wrong_questions_are_refused() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 1);
    let answer = ask(&running.socket, r#"{"command":"trace","peer":"10.0.0.0/64"}"#);
    assert_eq!(answer["answer"], "refused", "{answer}");
    assert_eq!(answer["reason"], "not-understood", "{answer}");
    let answer = ask(&running.socket, r#"{"command":"trace","since":1e99}"#);
    assert_eq!(answer["reason"], "not-understood", "{answer}");

    for wrong in [&["--peer", "everybody"], &["--last", "accepted"]] {
        let output = running.command(&[&["trace"], &wrong[..]].concat());
        assert_eq!(output.status.code(), Some(64), "{output:?}");
    }
    let nobody = vestibule(Who::Same).args(["trace", "--admin", "/nowhere"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(69), "{nobody:?}");
}
