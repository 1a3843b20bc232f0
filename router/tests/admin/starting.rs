//! The socket's path: who may use it, and who had it before.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::running::{Folder, Running, Who, everybody, number, vestibule};

fn file(folder: &Folder, socket: &Path) -> std::path::PathBuf {
    let path = folder.join("f.toml");
    let text = format!(
        "[admin]\nsocket = \"{}\"\n[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n\
         [[pool]]\nname = \"app\"\ncommand = \"demo\"\nworkers = 1\n",
        socket.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_socket_is_for_its_owner_only() {
    for who in everybody() {
        let folder = Folder::new(who);
        let running = Running::start(who, &folder.join("s"), 1);
        running.until_healthy(1);
        let mode = std::fs::metadata(&running.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn a_live_socket_is_an_error_with_a_file_and_a_warning_without() {
    let folder = Folder::new(Who::Same);
    let socket = folder.join("s");
    let first = Running::start(Who::Same, &socket, 1);
    first.until_healthy(1);

    let output = vestibule(Who::Same).arg("run").arg(file(&folder, &socket)).output().unwrap();
    assert_eq!(output.status.code(), Some(71), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("belongs to a vestibule that runs"), "{said}");

    let second = Running::start_as(Who::Same, &socket, |command| {
        command.args(["run", "--listen", "127.0.0.1:0", "--workers", "1", "--admin"]);
        command.arg(&socket).stderr(Stdio::null());
    });
    assert_eq!(second.served_by(), "app-1");
    assert_eq!(first.status()["supervisor"]["pid"], first.pid(), "the first one still answers");
    drop(second);
    assert_eq!(first.status()["supervisor"]["pid"], first.pid(), "its path was left alone");
}

#[test]
fn a_socket_that_a_killed_supervisor_left_is_replaced() {
    let folder = Folder::new(Who::Same);
    let socket = folder.join("s");
    let mut first = Running::start(Who::Same, &socket, 1);
    first.until_healthy(1);
    rustix::process::kill_process(number(first.pid()), Signal::KILL).unwrap();
    first.ended();
    assert!(socket.exists(), "nobody could remove it");
    let config = file(&folder, &socket);
    let second = Running::start_as(Who::Same, &socket, |command| {
        command.arg("run").arg(&config);
    });
    assert_eq!(second.until_healthy(1)["supervisor"]["pid"], second.pid());
}

#[test]
fn without_its_folder_there_is_a_warning_and_no_socket() {
    let folder = Folder::new(Who::Same);
    let socket = folder.join("none").join("s");
    let config = file(&folder, &socket);
    let running = Running::start_as(Who::Same, &socket, |command| {
        command.arg("run").arg(&config);
    });
    assert_eq!(running.served_by(), "app-1");
    assert_eq!(running.command(&["status"]).status.code(), Some(69));
}

#[test]
fn the_usual_folders_are_found_by_both_sides() {
    for who in everybody() {
        let folder = Folder::new(who);
        let socket = folder.join("admin.sock");
        let running = Running::start_as(who, &socket, |command| {
            command.env("RUNTIME_DIRECTORY", &folder.0);
            command.args(["run", "--listen", "127.0.0.1:0", "--workers", "1"]);
        });
        running.until_healthy(1);
        let mut status = vestibule(who);
        let output = status.env("RUNTIME_DIRECTORY", &folder.0).arg("status").output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
