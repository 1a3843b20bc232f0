//! What a worker that cannot be started says: the path, and what to do about it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use vestibule_router::{Worker, WorkerError, WorkerEvent, WorkerOptions};
use vestibule_tests::files::{Folder, set_mode};
use vestibule_tests::world::options;
use vestibule_tests::{Order, Said, World, run, user, worker};

const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// Starts a worker that cannot be started, and returns why: its one event.
fn reason(world: &World, options: &WorkerOptions) -> String {
    let worker = Worker::spawn(options).unwrap();
    let waited = world.wait("the worker has failed", worker.ready()).unwrap_err().to_string();
    let events = world.events(&worker);
    let [WorkerEvent::Error(WorkerError::NotStarted(reason))] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert!(waited.contains(reason), "who waited was told {waited:?}, not {reason:?}");
    reason.clone()
}

#[test]
fn a_missing_program_names_the_path_that_was_tried() {
    run(|world| {
        let folder = Folder::new();
        let path = folder.join("no-worker");
        assert_eq!(reason(world, &options(&path)), format!("{} does not exist", path.display()));
    });
}

#[test]
fn a_missing_folder_names_the_path_that_was_tried() {
    run(|world| {
        let reason = reason(world, &options("./no/such/folder/worker"));
        assert!(reason.contains("no/such/folder/worker does not exist"), "{reason}");
    });
}

#[test]
fn a_name_without_a_slash_names_the_path_that_was_searched() {
    run(|world| {
        let reason = reason(world, &options("no-such-worker"));
        assert!(reason.contains("`no-such-worker` is in no folder of PATH"), "{reason}");
        assert!(reason.contains(&std::env::var("PATH").unwrap()), "{reason}");
        assert!(reason.contains("`./no-such-worker`"), "{reason}");
    });
}

#[test]
fn a_program_that_is_not_executable_says_so() {
    run(|world| {
        let folder = Folder::new();
        let path = folder.write("worker", "#!/bin/sh\n", 0o644);
        let reason = reason(world, &options(&path));
        assert!(reason.contains(&format!("{} is not executable", path.display())), "{reason}");
        assert!(reason.contains("chmod +x"), "{reason}");
    });
}

#[test]
fn a_folder_is_no_program() {
    run(|world| {
        let folder = Folder::new();
        let reason = reason(world, &options(folder.path()));
        assert!(reason.contains(&folder.path().display().to_string()), "{reason}");
    });
}

#[test]
fn a_missing_interpreter_is_told_from_a_missing_program() {
    run(|world| {
        let folder = Folder::new();
        let path = folder.write("worker", "#!/no/such/interpreter\n", 0o755);
        let reason = reason(world, &options(&path));
        assert!(reason.contains(&path.display().to_string()), "{reason}");
        assert!(reason.contains("interpreter") && !reason.contains("worker does not"), "{reason}");
    });
}

#[test]
fn a_missing_working_directory_is_told_from_a_missing_program() {
    run(|world| {
        let reason = reason(world, &worker!("recv").directory("/no/such/directory"));
        let expected = "the working directory /no/such/directory cannot be entered";
        assert!(reason.starts_with(expected), "{reason}");
    });
}

#[test]
fn an_ordinary_user_is_told_which_folder_on_the_way_cannot_be_entered() {
    let name = "an_ordinary_user_is_told_which_folder_on_the_way_cannot_be_entered";
    if !user::as_nobody(name, &[WORKER]) {
        return;
    }
    run(|world| {
        let folder = Folder::new();
        let locked = folder.join("locked");
        std::fs::create_dir_all(locked.join("deeper")).unwrap();
        let program = locked.join("deeper").join("worker");
        let copy = folder.copy(user::program(0, WORKER));
        std::fs::rename(copy, &program).unwrap();
        // Without the lock it starts, so that it is the lock that the error is about.
        let worker = world.worker(&options(&program).arg("recv"));
        worker.post_message(&Order::Echo("open".into()), ()).unwrap();
        assert_eq!(world.said(&worker), Said::Echo("open".into(), 0));
        drop(worker);
        set_mode(&locked, 0o600);
        let reason = reason(world, &options(&program).arg("recv"));
        set_mode(&locked, 0o700);
        assert!(reason.contains(&program.display().to_string()), "{reason}");
        assert!(
            reason.contains(&format!("the folder {} cannot be entered", locked.display())),
            "{reason}"
        );
    });
}

#[test]
fn an_ordinary_user_is_told_of_a_program_that_only_others_may_run() {
    let name = "an_ordinary_user_is_told_of_a_program_that_only_others_may_run";
    if !user::as_nobody(name, &[WORKER]) {
        return;
    }
    run(|world| {
        let folder = Folder::new();
        let program = folder.copy(user::program(0, WORKER));
        // Executable for others, not for its owner, who runs this.
        set_mode(&program, 0o655);
        let reason = reason(world, &options(&program).arg("recv"));
        assert!(reason.contains("is not executable"), "{reason}");
    });
}
