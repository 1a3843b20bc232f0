//! What workers write, read line by line.

use std::fs;

use vestibule_router::{Output, WorkerOptions};

use crate::scene::Scene;

fn sh(script: &str) -> WorkerOptions {
    WorkerOptions::new("/bin/sh").arg("-c").arg(script).output(Output::Lines)
}

#[tokio::test]
async fn a_worker_that_ends_before_it_is_ready_is_reported_with_its_last_lines() {
    let scene = Scene::new();
    let script = "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); done; \
                  printf 'no \\377 such \\033[31mmodule' >&2; exit 3";
    let error = scene.fail(sh(script)).await;
    let lines: String = (11..20).map(|number| format!("\n    line {number}")).collect();
    assert_eq!(
        error,
        format!(
            "worker ended before it was ready: exit code 3; its last lines:{lines}\
             \n    no \u{fffd} such module"
        )
    );
}

#[tokio::test]
async fn without_a_word_the_error_is_the_exit_alone() {
    let scene = Scene::new();
    assert_eq!(scene.fail(sh("exit 3")).await, "worker ended before it was ready: exit code 3");
}

#[tokio::test]
async fn standard_input_is_empty_and_the_others_are_pipes_of_its_own() {
    let scene = Scene::new();
    let found = scene.path.join("found");
    let script = "links=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); \
                  echo \"$links\" >\"$FOUND\"; exit 1";
    scene.fail(sh(script).env("FOUND", &found)).await;
    let text = fs::read_to_string(&found).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "/dev/null");
    assert!(lines[1].starts_with("pipe:") && lines[2].starts_with("pipe:"), "{text}");
    assert_ne!(lines[1], lines[2]);
}

/// A descendant in a session of its own survives the process group and holds the pipe.
#[tokio::test]
async fn a_descendant_that_holds_the_pipe_does_not_hold_the_end_up() {
    let scene = Scene::new();
    let pipe = scene.path.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // It gives up the port, which ends the worker's link, and keeps standard output. It ends when
    // this test lets it, by opening the other end of a named pipe.
    let script = "echo last words; \
                  setsid bash -c 'exec {VESTIBULE_FD}>&-; : >\"$HELD.begun\"; : <\"$HELD\"' & \
                  until [ -e \"$HELD.begun\" ]; do :; done; exit 4";
    let error = scene.fail(sh(script).env("HELD", &pipe)).await;
    fs::write(&pipe, "").unwrap();
    assert_eq!(
        error,
        "worker ended before it was ready: exit code 4; its last lines:\n    last words"
    );
}

#[tokio::test]
async fn much_output_neither_stops_the_worker_nor_is_kept() {
    let scene = Scene::new();
    // Some 20 pipes full, one line of a megabyte among them.
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; \
                  i=0; while [ $i -lt 3000 ]; do echo 'a line of some length, again and again'; \
                  i=$((i+1)); done; echo end; exit 1";
    let error = scene.fail(sh(script)).await;
    assert!(error.ends_with("\n    end") && error.len() < 8 * 1024, "{error}");
}
