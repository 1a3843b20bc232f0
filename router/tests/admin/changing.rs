//! `restart` and `reload`: nobody loses a connection, and what cannot be done changes nothing.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::running::{Folder, Load, Running, Who, everybody, signal, vestibule, worker, workers};

/// A run with a configuration file of the test's own.
struct Configured {
    running: Running,
    file: PathBuf,
    socket: PathBuf,
    _folder: Folder,
}

impl Configured {
    fn start(text: &str) -> Self {
        Self::start_as(Who::Same, text)
    }

    fn start_as(who: Who, text: &str) -> Self {
        let folder = Folder::new(who);
        let (file, socket) = (folder.join("f.toml"), folder.join("s"));
        write(&file, &socket, text);
        let running = Running::start_as(who, &socket, |command| {
            command.arg("run").arg(&file);
        });
        Self { running, file, socket, _folder: folder }
    }

    /// Another file, and `reload`: exit code, and what was said.
    fn reload(&self, text: &str) -> (i32, String) {
        write(&self.file, &self.socket, text);
        let output = vestibule(self.running.who)
            .args(["reload", "--admin"])
            .arg(&self.socket)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    fn becomes(&self, text: &str) -> String {
        let (code, said) = self.reload(text);
        assert_eq!(code, 0, "{said}");
        said
    }
}

fn write(file: &Path, socket: &Path, text: &str) {
    std::fs::write(file, format!("admin.socket = {socket:?}\n{text}")).unwrap();
}

const LISTENER: &str = "[[listener]]\nname = 'web'\naddress = '127.0.0.1:0'\n";

fn pool(name: &str, workers: u32, more: &str) -> String {
    format!("[[pool]]\nname = '{name}'\ncommand = 'demo'\nworkers = {workers}\n{more}\n")
}

fn rolled(status: &Value, pool: usize) -> bool {
    status["pools"][pool]["roll"].is_null() && status["health"] == "healthy"
}

#[test]
fn a_restart_replaces_one_worker_after_the_other_and_loses_nothing() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 3);
    let before = running.until_healthy(3);
    let load = Load::on(running.address);
    for round in 1..=2u64 {
        load.flows(30);
        running.succeed(&["restart", "app"]);
        let mut most = 0;
        running.until("every worker is a new one", |status| {
            let ready = status["pools"][0]["ready"].as_u64().unwrap();
            assert!(ready >= 3, "never fewer than wanted: {status:#}");
            most = most.max(workers(status).len());
            let new = |n: u32| worker(status, &format!("app-{n}"))["restarts"] == round;
            rolled(status, 0) && (1..=3).all(new) && workers(status).len() == 3
        });
        assert!(most <= 4, "one at a time, not {most}");
    }
    load.flows(50);
    let (count, by) = load.end();
    assert!(count > 50, "{count} requests are no load");
    assert_eq!(by.into_iter().collect::<Vec<_>>(), ["app-1", "app-2", "app-3"]);
    let after = running.status();
    assert_eq!(after["pools"][0]["touched"], 0);
    for name in ["app-1", "app-2", "app-3"] {
        assert_ne!(worker(&before, name)["pid"], worker(&after, name)["pid"]);
    }
}

#[test]
fn a_new_version_that_never_becomes_ready_stops_the_roll_and_the_old_one_stays() {
    let run = Configured::start(&format!("{LISTENER}{}", pool("app", 2, "")));
    let before = run.running.until_healthy(2);
    let bad = "[[pool]]\nname = 'app'\nworkers = 2\n\
               command = ['/bin/sh', '-c', 'echo what is this; exit 3']\n";
    let said = run.becomes(&format!("{LISTENER}{bad}"));
    assert!(said.contains("pool app: program, which is rolled"), "{said}");
    let status = run
        .running
        .until("the roll has stopped", |status| status["pools"][0]["roll"]["state"] == "stopped");
    let roll = &status["pools"][0]["roll"];
    assert_eq!((&roll["left"], &roll["worker"]), (&2.into(), &"app-1".into()));
    assert_eq!(roll["last-lines"][0], "what is this");
    assert_eq!(status["health"], "degraded");
    for name in ["app-1", "app-2"] {
        assert_eq!(worker(&status, name)["pid"], worker(&before, name)["pid"], "it stays");
    }
    let text = run.running.command(&["status"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("a new app-1 did not become ready"), "{text}");
    // One that dies all the same is replaced by one that works.
    signal(&worker(&before, "app-2")["pid"], Signal::KILL);
    run.running.until("app-2 is back", |status| {
        let app_2 = worker(status, "app-2");
        app_2["restarts"] == 1 && app_2["state"] == "ready"
    });
    run.becomes(&format!("{LISTENER}{}", pool("app", 2, "env = { A = 'b' }")));
    run.running.until("every worker is a new one", |status| {
        rolled(status, 0) && worker(status, "app-1")["pid"] != worker(&before, "app-1")["pid"]
    });
}

#[test]
fn a_configuration_with_a_mistake_or_a_failing_test_changes_nothing() {
    let good = format!("{LISTENER}{}", pool("app", 2, ""));
    let run = Configured::start(&good);
    let before = run.running.until_healthy(2);
    let (code, said) = run.reload(&format!("{LISTENER}{}", pool("app", 2, "wrokers = 3")));
    assert_eq!(code, 78);
    assert!(said.contains("nothing has changed") && said.contains("did you mean `workers`?"));
    let route = "[[route]]\nname = 'r'\npeer = ['10.0.0.0/8']\nreject = 403\n\
                 [[test]]\npeer = '10.1.2.3'\nexpect = 'no-route'\n";
    let (code, said) = run.reload(&format!("{good}{route}"));
    assert_eq!(code, 78, "{said}");
    // An address that somebody else has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let other = format!("[[listener]]\nname = 'b'\naddress = '{address}'\n");
    let (code, said) = run.reload(&format!("{good}{other}"));
    assert_eq!(code, 78);
    assert!(said.contains("cannot listen on"), "{said}");
    let after = run.running.until_healthy(2);
    assert_eq!(workers(&after), workers(&before));
    assert_eq!(after["listeners"], before["listeners"]);
    assert_eq!(run.becomes(&good).trim(), "reloaded: nothing is different");
}

#[test]
fn a_reload_adds_removes_renames_and_resizes_under_load() {
    let first = format!("{LISTENER}{}", pool("app", 2, ""));
    let run = Configured::start(&first);
    let before = run.running.until_healthy(2);
    let load = Load::on(run.running.address);
    let second = format!(
        "[[listener]]\nname = 'front'\naddress = '127.0.0.1:0'\nbacklog = 100\n{}{}\
         [[route]]\nname = 'other'\npool = 'next'\npeer = ['127.9.0.0/16']\n\
         [[route]]\nname = 'all'\npool = 'app'\n",
        pool("app", 3, "balance = 'round-robin'\nqueue = { max = 10 }"),
        pool("next", 1, ""),
    );
    for round in 0..3 {
        load.flows(30);
        let said = run.becomes(&second);
        for line in [
            "listener front: was web",
            "listener front: backlog",
            "pool app: settings, 3 workers",
            "pool next: added",
            "route other: added",
            "route all: added",
        ] {
            assert!(said.contains(line), "{line}: {said}");
        }
        let status = run.running.until_healthy(4);
        assert_eq!(status["listeners"][0]["name"], "front");
        let address = |status: &Value| status["listeners"][0]["address"].clone();
        assert_eq!(address(&status), address(&before), "the same socket");
        assert_eq!(worker(&status, "app-1")["pid"], worker(&before, "app-1")["pid"], "{round}");
        let said = run.becomes(&first);
        for line in ["listener web: was front", "pool next: removed", "route all: removed"] {
            assert!(said.contains(line), "{line}: {said}");
        }
        run.running.until_healthy(2);
    }
    // The other way to ask.
    write(&run.file, &run.socket, &second);
    signal(&run.running.status()["supervisor"]["pid"], Signal::HUP);
    run.running.until_healthy(4);
    load.flows(50);
    let (count, _) = load.end();
    assert!(count > 50, "{count} requests are no load");
    let status = run.running.status();
    assert_eq!(status["pools"][0]["touched"], 0);
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{status:#}");
}

/// Whoever is no root cannot become another: that is said, and nothing has changed.
#[test]
fn an_ordinary_users_router_stays_that_user() {
    let who = everybody().pop().unwrap();
    let text = format!("{LISTENER}{}", pool("app", 1, ""));
    let run = Configured::start_as(who, &text);
    let before = run.running.until_healthy(1);
    let (code, said) = run.reload(&format!("{text}[router]\nuser = '61300'\n"));
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("nothing has changed"), "{said}");
    let after = run.running.until_healthy(1);
    assert_eq!(after["router"]["pid"], before["router"]["pid"]);
    assert_eq!(after["router"]["epoch"], 1);
}

/// Another user for the router: root's business, and nothing else shows it.
#[test]
fn another_user_of_the_router_means_another_router_and_loses_nothing() {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root's routers can become another user: run this as root, or leave it out with --skip"
    );
    let with = |uid: u32| format!("{LISTENER}{}[router]\nuser = '{uid}'\n", pool("app", 2, ""));
    let run = Configured::start(&with(61_300));
    let before = run.running.until_healthy(2);
    let load = Load::on(run.running.address);
    for round in 1..=3u32 {
        load.flows(30);
        let said = run.becomes(&with(61_300 + round));
        assert!(said.contains("router: another user"), "{said}");
        let status =
            run.running.until("the next router accepts and the last has ended", |status| {
                status["router"]["epoch"] == round + 1
                    && status["health"] == "healthy"
                    && !status["router"]["last-exit"].is_null()
            });
        let pid = status["router"]["pid"].as_u64().unwrap();
        let uid = std::os::unix::fs::MetadataExt::uid(
            &std::fs::metadata(format!("/proc/{pid}/task")).unwrap(),
        );
        // `/proc` shows root where a process cannot be dumped; its status says who it is.
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(text.contains(&format!("Uid:\t{}\t", 61_300 + round)), "{uid} {text}");
        assert_eq!(status["router"]["last-exit"]["code"], 0, "the one before it ended by itself");
    }
    load.flows(50);
    let (count, _) = load.end();
    assert!(count > 50, "{count} requests are no load");
    let status = run.running.status();
    assert_eq!(workers(&status), workers(&before), "workers stay");
    let rejected = status["connections"]["rejected"].as_object().unwrap();
    assert!(rejected.values().all(|count| *count == 0), "{status:#}");
    assert_eq!(status["pools"][0]["touched"], 0);
}
