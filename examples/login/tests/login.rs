//! The example as its README shows it, with the program itself and curl.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use vestibule_tests::files::Folder;
use vestibule_tests::master::{Master, vestibule};

const LOGIN: &str = env!("CARGO_BIN_EXE_login-worker");
const CUSTOMER: &str = env!("CARGO_BIN_EXE_customer-worker");

#[test]
fn each_customer_comes_to_its_own_worker() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vestibule.toml");
    let mut config = std::fs::read_to_string(file).unwrap();
    let user = if rustix::process::geteuid().is_root() { "\nuser = \"root\"" } else { "" };
    for (name, path) in [("login-worker", LOGIN), ("customer-worker", CUSTOMER)] {
        config = config.replace(&format!("[\"{name}\"]"), &format!("[\"{path}\"]{user}"));
    }
    let folder = Folder::new();
    let path = folder.write("vestibule.toml", &config.replace(":8080", ":0"), 0o644);
    let mut command = Command::new(vestibule(LOGIN));
    command.arg("run").arg(path).arg("--admin").arg(folder.join("admin.sock"));
    let master = Master::launch(command);
    let curl = |user: &str| {
        let url = format!("http://{}/", master.address());
        let arguments =
            ["--silent", "--show-error", "--write-out", "%{http_code} %{num_connects} "];
        let output =
            Command::new("curl").args(arguments).args(["--user", user, &url, &url]).output();
        let output = output.expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (user, name, worker) in
        [("anna:sesame", "anna", "customers-1"), ("bert:secret", "bert", "customers-2")]
    {
        // The second request is on the same connection, and it is the customer's.
        let text = curl(user);
        let line = format!("customer={name} worker={worker} by=login-");
        assert_eq!(text.matches(&line).count(), 2, "{text}");
        assert!(text.contains("200 1 ") && text.contains("200 0 "), "{text}");
    }
    let text = curl("anna:wrong");
    assert_eq!(text, "401 1 401 1 ");
    master.stop();
}
