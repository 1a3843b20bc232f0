//! Who workers are, seen in real processes: what `/proc` says of them, as root, as an ordinary user,
//! and with some capabilities. Their program is a shell that writes down what it is and ends.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../shared/copies.rs"]
mod copies;
mod denied;
mod output;
#[cfg(feature = "cli")]
mod run;
mod scene;

use rustix::process::{Resource, getrlimit};
use scene::{Found, NOBODY, Scene, as_nobody, is_root, rerun, with_capabilities};
use vestibule_router::{SpawnError, Worker, WorkerOptions};

/// Asserts everything that holds for every worker.
fn assert_alone(found: &Found) {
    let port = found.variable("VESTIBULE_FD").unwrap();
    assert_eq!(found.descriptors, ["0", "1", "2", port.as_str()]);
    assert_eq!(found.session, found.pid, "leads a session of its own");
    assert_eq!(found.group, found.pid, "leads a process group of its own");
}

fn assert_powerless(found: &Found) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(found.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(found.status("NoNewPrivs"), "1");
}

#[tokio::test]
async fn a_worker_of_another_user_is_that_user_and_nothing_else() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    // Somebody else's descriptor that is not close-on-exec.
    let _leak = rustix::pipe::pipe().unwrap();
    let found = scene.look(scene.sh().user("nobody").no_new_privileges()).await;
    assert_alone(&found);
    assert_powerless(&found);
    assert_eq!(found.status("CapBnd"), "0000000000000000");
    assert_eq!(found.status("Uid"), NOBODY.repeat_id());
    assert_eq!(found.status("Gid"), NOBODY.repeat_id());
    assert_eq!(found.status("Groups"), NOBODY.id.to_string());
    let variable = |name| found.variable(name).unwrap();
    assert_eq!((variable("USER"), variable("LOGNAME")), ("nobody".into(), "nobody".into()));
    assert_eq!(variable("HOME"), "/nonexistent");
    assert_eq!(variable("VESTIBULE_WORKER"), "app-1");
    assert_eq!(variable("VESTIBULE_POOL"), "app");
    assert_eq!(variable("NODE_APP_INSTANCE"), "0");
}

#[tokio::test]
async fn each_part_of_an_identity_is_set() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let folder = scene.folder("work", 0o755);
    let options = scene
        .sh()
        .user("61183")
        .group("61184")
        .groups(["daemon", "61185"])
        .umask(0o027)
        .nice(7)
        .nofile(500)
        .port(8080)
        .directory(&folder);
    let found = scene.look(options).await;
    assert_alone(&found);
    assert_eq!(found.status("Uid"), "61183\t61183\t61183\t61183");
    assert_eq!(found.status("Gid"), "61184\t61184\t61184\t61184");
    assert_eq!(found.status("Groups"), "1 61185");
    assert_eq!(found.status("CapEff"), "0000000000000000", "no user keeps root's capabilities");
    assert_eq!(found.umask, "0027");
    assert_eq!(found.nice, "7");
    assert_eq!(found.limits, ["500", "500"]);
    assert_eq!(found.directory, folder.to_str().unwrap());
    assert_eq!(found.variable("PORT").unwrap(), "8080");
    assert_eq!(found.variable("HOME").unwrap(), "/");
}

#[tokio::test]
async fn a_number_without_an_entry_gets_the_group_of_the_same_number_alone() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let found = scene.look(scene.sh().user("61183")).await;
    assert_eq!(found.status("Gid"), "61183\t61183\t61183\t61183");
    assert_eq!(found.status("Groups"), "61183");
}

#[tokio::test]
async fn no_groups_are_no_groups() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let found = scene.look(scene.sh().user("nobody").groups([""; 0])).await;
    assert_eq!(found.status("Groups"), "");
}

#[tokio::test]
async fn root_that_is_written_keeps_what_makes_it_root() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let own = Found::own_status();
    let found = scene.look(scene.sh().user("root").no_new_privileges()).await;
    assert_alone(&found);
    assert_eq!(found.status("Uid"), "0\t0\t0\t0");
    assert_eq!(found.status("CapBnd"), Found::line(&own, "CapBnd"));
    assert_eq!(found.status("CapEff"), found.status("CapBnd"));
    assert_eq!(found.status("CapAmb"), "0000000000000000");
    assert_eq!(found.status("NoNewPrivs"), "1");
}

#[tokio::test]
async fn an_identity_that_is_not_said_is_not_changed() {
    let scene = Scene::new();
    let own = Found::own_status();
    let found = scene.look(scene.sh()).await;
    assert_alone(&found);
    for line in ["Uid", "Gid", "Groups", "CapInh", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"] {
        assert_eq!(found.status(line), Found::line(&own, line), "{line}");
    }
}

/// An ordinary user runs everything that needs no right; what needs one is refused by name.
#[tokio::test]
async fn an_ordinary_user_needs_no_right_and_gets_none() {
    if is_root() {
        return as_nobody("an_ordinary_user_needs_no_right_and_gets_none");
    }
    let limit = getrlimit(Resource::Nofile);
    let lowered = rustix::process::Rlimit { current: Some(256), maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, lowered).unwrap();
    let scene = Scene::new();
    let found = scene.look(scene.sh().no_new_privileges().nice(5).umask(0o077)).await;
    assert_alone(&found);
    assert_powerless(&found);
    let hard = limit.maximum.unwrap().to_string();
    assert_eq!(found.limits, [hard.as_str(), hard.as_str()], "the soft limit is raised");
    assert_eq!((found.nice.as_str(), found.umask.as_str()), ("5", "0077"));

    let uid = rustix::process::geteuid().as_raw();
    for (key, options) in [
        ("user", scene.sh().user("root")),
        ("group", scene.sh().group("root")),
        ("groups", scene.sh().groups(["root"])),
    ] {
        assert_eq!(
            refusal(options),
            format!(
                "`{key}` needs CAP_SETUID and CAP_SETGID, which this process (uid {uid}) does not \
                 have: start it as root, or leave `{key}` away and workers run as this user"
            )
        );
    }
    assert!(refusal(scene.sh().root("/")).starts_with("`root` needs CAP_SYS_CHROOT"));
}

fn refusal(options: WorkerOptions) -> String {
    match Worker::spawn(&options) {
        Err(SpawnError::Identity(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The error of the first step that fails, with its name.
#[tokio::test]
async fn a_step_that_fails_is_named() {
    if is_root() {
        return as_nobody("a_step_that_fails_is_named");
    }
    let scene = Scene::new();
    let hard = getrlimit(Resource::Nofile).maximum.unwrap();
    for (options, reason) in [
        (
            scene.sh().nofile(hard + 1),
            "its descriptor limit `nofile` cannot be set: Operation not permitted (os error 1)",
        ),
        (scene.sh().nice(-5), "its niceness `nice` cannot be set: Permission denied (os error 13)"),
    ] {
        let error = scene.fail(options).await;
        assert_eq!(error, format!("/bin/sh cannot be started: {reason}"));
    }
}

/// Capabilities decide, not the number of the user.
#[tokio::test]
async fn a_user_with_the_two_capabilities_can_set_users_and_keeps_nothing() {
    if is_root() {
        let name = "a_user_with_the_two_capabilities_can_set_users_and_keeps_nothing";
        return with_capabilities(name, NOBODY.id, &["setuid", "setgid"]);
    }
    if !rerun() {
        return;
    }
    let scene = Scene::new();
    assert_eq!(Found::line(&Found::own_status(), "CapAmb"), "00000000000000c0");
    let found = scene.look(scene.sh().user("61183").no_new_privileges()).await;
    assert_alone(&found);
    assert_powerless(&found);
    assert_eq!(found.status("Uid"), "61183\t61183\t61183\t61183");
    // Without CAP_SETPCAP the bounding set stays: nothing can be gained from it.
    assert_ne!(found.status("CapBnd"), "0000000000000000");

    // A worker that stays who it is does not keep them either.
    let found = scene.look(scene.sh().no_new_privileges()).await;
    assert_powerless(&found);
}

#[tokio::test]
async fn root_without_the_capabilities_cannot_set_users() {
    let name = "root_without_the_capabilities_cannot_set_users";
    if !is_root() {
        return;
    }
    if !rerun() {
        return with_capabilities(name, 0, &["setgid", "net_bind_service"]);
    }
    let scene = Scene::new();
    assert!(refusal(scene.sh().user("nobody")).starts_with(
        "`user` needs CAP_SETUID and CAP_SETGID, which this process (uid 0) does not have"
    ));
}

#[tokio::test]
async fn a_worker_with_a_root_of_its_own_sees_nothing_else() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let root = scene.shell_root();
    let inside = root.join("srv");
    std::fs::create_dir(&inside).unwrap();
    let script = "cd /; set -- *; cd \"$OLDPWD\"; echo \"$PWD: $*\"; exit 9";
    let options = WorkerOptions::new("sh")
        .arg("-c")
        .arg(script)
        .user("nobody")
        .root(&root)
        .directory("/srv")
        .output(vestibule_router::Output::Lines);
    let error = scene.fail(options).await;
    let mut folders: Vec<_> =
        root.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    folders.sort();
    let folders: Vec<_> = folders.iter().map(|name| name.to_str().unwrap()).collect();
    let expected = format!("\n    /srv: {}", folders.join(" "));
    assert!(error.ends_with(&expected), "{error} {expected}");
}
