//! Whom `vestibule run` starts workers as, without being told.

use std::process::{Command, Output};

use crate::scene::{NOBODY, SCRIPT, Scene, is_root};
use crate::{assert_alone, assert_powerless};

/// Runs a shell as the only worker. It is never ready, so that the program gives up.
fn run(scene: &Scene, options: &[&str], script: &str) -> Output {
    let result = Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(["run", "--listen", "127.0.0.1:0", "--workers", "1"])
        .args(options)
        .args(["--", "/bin/sh", "-c", script])
        .env("FOUND", scene.found())
        .env("LISTEN_FDS", "1")
        .output()
        .unwrap();
    assert_eq!(result.status.code(), Some(70), "{}", String::from_utf8_lossy(&result.stderr));
    result
}

#[test]
fn roots_workers_are_nobody_unless_root_is_written() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    run(&scene, &[], SCRIPT);
    let found = scene.read();
    assert_alone(&found);
    assert_powerless(&found);
    assert_eq!(found.status("Uid"), NOBODY.repeat_id());
    assert_eq!(found.status("CapBnd"), "0000000000000000");
    assert_eq!(found.variable("USER").unwrap(), "nobody");
    assert_eq!(found.variable("LISTEN_FDS"), None);
    assert_ne!(found.variable("PORT").unwrap(), "0");

    run(&scene, &["--user", "root"], SCRIPT);
    let found = scene.read();
    assert_alone(&found);
    assert_eq!(found.status("Uid"), "0\t0\t0\t0");
    assert_eq!(found.status("NoNewPrivs"), "1");
}

#[test]
fn the_last_lines_of_a_worker_that_never_came_up_are_shown() {
    let scene = Scene::new();
    let result = run(&scene, &[], "echo 'cannot find module' >&2; exit 3");
    let said = String::from_utf8(result.stderr).unwrap();
    assert!(said.contains("exit code 3; its last lines:"), "{said}");
    assert!(said.lines().any(|line| line.trim() == "cannot find module"), "{said}");
    let line = said.lines().find(|line| line.contains("\"stream\":\"stderr\"")).unwrap();
    assert!(line.contains("\"worker\":\"app-1\"") && line.contains("cannot find module"), "{line}");
}
