//! A worker that its user may not run: the error names what stands in the way.

use std::fs;

use vestibule_router::WorkerOptions;

use crate::scene::{Scene, as_nobody, is_root, rerun};

const SCRIPT: &str = "#!/bin/sh\nexit 0\n";

fn nobody(program: impl AsRef<std::path::Path>) -> WorkerOptions {
    let options = WorkerOptions::new(program);
    if is_root() { options.user("nobody") } else { options }
}

#[tokio::test]
async fn the_folder_that_blocks_the_user_is_named() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let program = scene.file("closed/deep/worker", SCRIPT, 0o755);
    let closed = scene.folder("closed", 0o700);
    let expected = format!(
        "{} may not be run: the folder {} cannot be entered by nobody (mode 0700)",
        program.display(),
        closed.display()
    );
    assert_eq!(scene.fail(nobody(&program)).await, expected);

    // Where a link leads counts as well as where it is.
    let link = scene.path.join("link");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    let expected = expected.replace(program.to_str().unwrap(), link.to_str().unwrap());
    assert_eq!(scene.fail(nobody(&link)).await, expected);
}

/// The same of a user's own folders, without any right to look into others.
#[tokio::test]
async fn an_ordinary_user_is_told_the_same() {
    if is_root() {
        return as_nobody("denied::an_ordinary_user_is_told_the_same");
    }
    let scene = Scene::new();
    let program = scene.file("closed/deep/worker", SCRIPT, 0o755);
    let closed = scene.folder("closed", 0o600);
    let error = scene.fail(nobody(&program)).await;
    assert_eq!(
        error,
        format!(
            "{} may not be run: the folder {} cannot be entered by nobody (mode 0600)",
            program.display(),
            closed.display()
        )
    );
    scene.folder("closed", 0o700);
}

#[tokio::test]
async fn a_file_that_is_not_executable_is_named() {
    let scene = Scene::new();
    let program = scene.file("worker", SCRIPT, 0o644);
    let error = scene.fail(nobody(&program)).await;
    let path = program.display();
    assert!(error.starts_with(&format!("{path} may not be run: {path} is not executable for ")));
    assert!(error.ends_with("(mode 0644; chmod +x)"), "{error}");
}

#[tokio::test]
async fn a_program_that_its_owner_alone_may_run_is_named() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let program = scene.file("worker", SCRIPT, 0o700);
    let path = program.display();
    assert_eq!(
        scene.fail(nobody(&program)).await,
        format!("{path} may not be run: {path} is not executable for nobody (mode 0700; chmod +x)")
    );
}

#[tokio::test]
async fn an_interpreter_out_of_reach_is_named() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let interpreter = scene.file("closed/sh", "", 0o755);
    let closed = scene.folder("closed", 0o700);
    let script = scene.file("worker", &format!("#! {} -e\n", interpreter.display()), 0o755);
    assert_eq!(
        scene.fail(nobody(&script)).await,
        format!(
            "{} may not be run: the folder {} cannot be entered by nobody (mode 0700)",
            script.display(),
            closed.display()
        )
    );
}

#[tokio::test]
async fn what_is_missing_is_named_with_its_path() {
    let scene = Scene::new();
    let missing = scene.path.join("missing");
    let error = scene.fail(nobody(&missing)).await;
    assert_eq!(error, format!("{} does not exist", missing.display()));

    let script = scene.file("worker", "#!/no/such/shell\n", 0o755);
    assert_eq!(
        scene.fail(nobody(&script)).await,
        format!("{} needs /no/such/shell to run, which does not exist", script.display())
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_entered_is_named() {
    let scene = Scene::new();
    let missing = scene.path.join("missing");
    assert_eq!(
        scene.fail(nobody("/bin/sh").directory(&missing)).await,
        format!(
            "the working directory {} cannot be entered: No such file or directory (os error 2)",
            missing.display()
        )
    );
    if !is_root() {
        return;
    }
    let inner = scene.folder("closed/inner", 0o755);
    let closed = scene.folder("closed", 0o750);
    for directory in [&inner, &closed] {
        assert_eq!(
            scene.fail(nobody("/bin/sh").directory(directory)).await,
            format!(
                "the working directory {} may not be entered: the folder {} cannot be entered by \
                 nobody (mode 0750)",
                directory.display(),
                closed.display()
            )
        );
    }
}

/// `PATH` is root's; what of it the worker's user cannot reach is passed over.
#[tokio::test]
async fn the_first_in_path_that_the_user_may_run_is_run() {
    if !is_root() {
        return;
    }
    if !rerun() {
        let scene = Scene::new();
        let path: Vec<_> =
            ["closed", "open"].iter().map(|name| scene.folder(name, 0o755)).collect();
        for name in ["closed", "open"] {
            let script = format!("#!/bin/sh\necho {name} >\"$FOUND\"\n");
            scene.file(&format!("{name}/vestibule-test-worker"), &script, 0o755);
        }
        scene.folder("closed", 0o700);
        let mut command = std::process::Command::new("/proc/self/exe");
        command.env("PATH", std::env::join_paths(path).unwrap());
        return crate::scene::finish(
            command,
            "denied::the_first_in_path_that_the_user_may_run_is_run",
        );
    }
    let scene = Scene::new();
    let found = scene.path.join("found");
    let worker = || WorkerOptions::new("vestibule-test-worker").env("FOUND", &found);
    scene.fail(worker().user("nobody")).await;
    assert_eq!(fs::read_to_string(&found).unwrap(), "open\n");
    scene.fail(worker()).await;
    assert_eq!(fs::read_to_string(&found).unwrap(), "closed\n");
}
