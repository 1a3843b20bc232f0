//! What each command does, and that nobody loses a connection by it.

use rustix::process::Signal;

use crate::running::{Folder, Load, Running, Who, everybody, signal, vestibule, worker, workers};

fn code(output: &std::process::Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_works_for_root_and_for_an_ordinary_user() {
    for who in everybody() {
        let folder = Folder::new(who);
        let mut running = Running::start(who, &folder.join("s"), 2);
        running.until_healthy(2);
        assert!(running.succeed(&["status"]).contains("healthy"));

        assert!(running.succeed(&["drain", "app-1"]).contains("app-1 drains"));
        running.until("app-1 is replaced", |status| {
            let app_1 = worker(status, "app-1");
            app_1["restarts"] == 1 && app_1["state"] == "ready"
        });

        running.succeed(&["drain", "app-2", "--hold"]);
        let held = running.command(&["status"]);
        assert_eq!(code(&held), 1, "a pool with fewer ready workers than wanted is degraded");
        let text = String::from_utf8(held.stdout).unwrap();
        assert!(text.contains("degraded") && text.contains("1 of 2 workers are ready"), "{text}");
        running.succeed(&["ready", "app-2"]);
        assert!(running.succeed(&["status"]).contains("2 of 2 ready"));

        running.succeed(&["scale", "app", "3"]);
        running.until_healthy(3);
        running.succeed(&["scale", "app", "1"]);
        running.until_healthy(1);

        running.succeed(&["stop"]);
        assert!(running.ended().success());
        assert!(!running.socket.exists(), "the socket goes with the program");
        let nobody = running.command(&["status"]);
        assert_eq!(code(&nobody), 69);
        assert!(said(&nobody).contains("nobody answers at"), "{nobody:?}");
    }
}

#[test]
fn scaling_and_draining_under_load_lose_no_connection() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 2);
    running.until_healthy(2);
    let load = Load::on(running.address);
    for round in 1..=3 {
        load.flows(30);
        running.succeed(&["scale", "app", "4"]);
        running.until_healthy(4);
        load.flows(30);
        running.succeed(&["scale", "app", "2"]);
        // Wanted again while the retired ones may still finish.
        running.succeed(&["scale", "app", "3"]);
        running.until_healthy(3);
        running.succeed(&["drain", "app-2"]);
        running.until("app-2 is replaced", |status| {
            let app_2 = worker(status, "app-2");
            app_2["restarts"] == round && app_2["state"] == "ready"
        });
        running.succeed(&["drain", "app-1", "--hold"]);
        running.succeed(&["ready", "app-1"]);
        running.succeed(&["scale", "app", "2"]);
        running.until_healthy(2);
    }
    load.flows(50);
    let (count, by) = load.end();
    assert!(count > 100, "{count} requests are no load");
    assert!(by.contains("app-3") && by.contains("app-4"), "{by:?}");
    let status = running.status();
    assert_eq!(status["pools"][0]["touched"], 0);
    assert_eq!(worker(&status, "app-1")["restarts"], 0, "a held worker stays");
}

#[test]
fn a_held_worker_gets_nothing_until_it_is_ready_again() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 2);
    running.until_healthy(2);
    running.succeed(&["drain", "app-1", "--hold"]);
    let status = running.status();
    assert_eq!(worker(&status, "app-1")["state"], "held");
    for _ in 0..20 {
        assert_eq!(running.served_by(), "app-2");
    }
    running.succeed(&["ready", "app-1"]);
    while running.served_by() != "app-1" {}
    assert_eq!(worker(&running.status(), "app-1")["restarts"], 0);
}

#[test]
fn a_held_slot_stays_held_when_its_process_is_replaced() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 2);
    let status = running.until_healthy(2);
    running.succeed(&["drain", "app-1", "--hold"]);
    signal(&worker(&status, "app-1")["pid"], Signal::KILL);
    running.until("app-1 has a successor", |status| {
        let app_1 = worker(status, "app-1");
        app_1["restarts"] == 1 && app_1["state"] == "held"
    });
    for _ in 0..20 {
        assert_eq!(running.served_by(), "app-2");
    }
}

#[test]
fn a_new_router_knows_what_was_held_added_and_taken_away() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 2);
    running.until_healthy(2);
    running.succeed(&["scale", "app", "4"]);
    running.until_healthy(4);
    running.succeed(&["scale", "app", "3"]);
    running.until_healthy(3);
    running.succeed(&["drain", "app-1", "--hold"]);
    let before = running.status();
    signal(&before["router"]["pid"], Signal::KILL);
    let after = running.until("another router accepts", |status| {
        status["router"]["restarts"] == 1 && status["router"]["state"] == "accepting"
    });
    assert_eq!(after["router"]["last-exit"]["signal"], 9);
    assert_eq!(workers(&after), workers(&before));
    for _ in 0..30 {
        assert!(["app-2", "app-3"].contains(&running.served_by().as_str()));
    }
    running.succeed(&["ready", "app-1"]);
    running.succeed(&["scale", "app", "5"]);
    let status = running.until_healthy(5);
    let names: Vec<_> = workers(&status).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["app-1", "app-2", "app-3", "app-4", "app-5"]);
    running.succeed(&["stop"]);
}

#[test]
fn a_retired_slot_does_not_hold_a_stop_up() {
    let folder = Folder::new(Who::Same);
    let mut running = Running::start(Who::Same, &folder.join("s"), 2);
    running.until_healthy(2);
    running.succeed(&["scale", "app", "1"]);
    running.until_healthy(1);
    running.succeed(&["stop"]);
    assert!(running.ended().success());
}

#[test]
fn a_router_that_hangs_is_reported_and_does_not_hang_status() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 1);
    let status = running.until_healthy(1);
    signal(&status["router"]["pid"], Signal::STOP);
    let output = running.command(&["status"]);
    assert_eq!(code(&output), 1);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the router did not answer within a second"), "{text}");
    assert!(text.contains(" ? queued"), "{text}");
    running.until("it is replaced", |status| status["router"]["restarts"] == 1);
    running.until_healthy(1);
}

#[test]
fn what_cannot_be_done_is_refused_with_what_can() {
    let folder = Folder::new(Who::Same);
    let running = Running::start(Who::Same, &folder.join("s"), 2);
    running.until_healthy(2);
    for (arguments, answer) in [
        (&["drain", "app-9"][..], "there is no worker `app-9`; there is app-1, app-2"),
        (&["ready", "web-1"], "there is no worker `web-1`; there is app-1, app-2"),
        (&["scale", "web", "2"], "there is no pool `web`; there is app"),
        (&["scale", "app", "0"], "a pool has 1 to 4096 workers, not 0"),
        (&["scale", "app", "5000"], "a pool has 1 to 4096 workers, not 5000"),
        (&["restart", "web"], "there is no pool `web`; there is app"),
        (
            &["reload"],
            "there is no configuration file to be read again: it was started without one",
        ),
    ] {
        let output = running.command(arguments);
        assert_eq!(code(&output), 64, "{arguments:?}");
        assert_eq!(said(&output), format!("vestibule: {answer}\n"));
    }
    running.until_healthy(2);
}

#[test]
fn a_worker_that_cannot_start_is_shown_with_its_last_words() {
    let folder = Folder::new(Who::Same);
    let (file, socket) = (folder.join("f.toml"), folder.join("s"));
    let text = format!(
        r#"admin.socket = "{}"
            [[listener]]
            name = "web"
            address = "127.0.0.1:0"
            [[pool]]
            name = "app"
            command = "demo"
            workers = 1
            [[pool]]
            name = "bad"
            command = ["/bin/sh", "-c", "echo what is this; exit 3"]
            workers = 1
            restart = {{ delay = "20s", max-delay = "30s" }}
            [[route]]
            pool = "app"
            peer = ["127.0.0.0/8"]
            [[route]]
            pool = "bad"
        "#,
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let running = Running::start_as(Who::Same, &socket, |command| {
        command.arg("run").arg(&file);
    });
    let status =
        running.until("bad-1 waits", |status| worker(status, "bad-1")["state"] == "backoff");
    let bad = worker(&status, "bad-1");
    assert_eq!(bad["last-exit"]["code"], 3);
    assert_eq!(bad["last-lines"][0], "what is this");
    assert_eq!(bad["last-error"], "ended before it was ready: exit code 3");
    let output = running.command(&["status"]);
    assert_eq!(code(&output), 1);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("pool bad: 0 of 1 workers are ready"), "{text}");
    assert!(text.contains("      | what is this\n"), "{text}");
    let drain = running.command(&["drain", "bad-1"]);
    assert_eq!((code(&drain), said(&drain).contains("it is in backoff")), (64, true));
    assert_eq!(running.served_by(), "app-1", "the other pool serves");
}

#[test]
fn without_anybody_there_every_command_says_so() {
    let folder = Folder::new(Who::Same);
    for arguments in [&["status"][..], &["stop"], &["drain", "app-1"], &["scale", "app", "2"]] {
        let mut command = vestibule(Who::Same);
        let output = command.args(arguments).arg("--admin").arg(folder.join("s")).output().unwrap();
        assert_eq!(code(&output), 69, "{arguments:?}: {output:?}");
    }
}
