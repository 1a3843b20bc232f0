//! `vestibule check`, as a person runs it: exit codes, and what is said where.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn check(arguments: &[&str]) -> Output {
    check_with(&[], arguments)
}

fn check_with(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VESTIBULE_")) {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    command.arg("check").args(arguments).current_dir(root).output().unwrap()
}

fn said(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A file of its own, for as long as the test runs.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const SMALL: &str = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:8080\"\n\
                     [[pool]]\nname = \"app\"\ncommand = \"demo\"\n";

#[test]
fn the_example_is_accepted_and_printed_with_where_each_value_comes_from() {
    let example = "examples/hello/vestibule.toml";
    let output = check(&[example]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expected = format!("{example}: ok (1 listener, 1 pool, 2 routes, 2 tests)\n");
    assert_eq!((said(&output.stdout), said(&output.stderr)), (expected.as_str(), ""));
    let output = check(&[example, "--print", "--admin", "admin.sock", "--log", "debug"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = said(&output.stdout);
    for line in [
        "# log: \"debug\"                           # --log",
        "name = \"web\"                             # examples/hello/vestibule.toml:8",
        "backlog = 4096                           # default",
        "expect = \"documentation-networks\"        # examples/hello/vestibule.toml:34",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
    let socket = printed.lines().find(|line| line.starts_with("socket = \"/")).unwrap();
    assert!(socket.contains("/admin.sock\"") && socket.ends_with("# --admin"), "{socket}");
}

#[test]
fn an_option_goes_before_its_variable() {
    let example = "examples/hello/vestibule.toml";
    let variables =
        [("VESTIBULE_PRINT", "1"), ("VESTIBULE_HERE", "0"), ("VESTIBULE_ADMIN", "/run/v/a")];
    let socket = |arguments: &[&str]| {
        let output = check_with(&variables, arguments);
        let line = said(&output.stdout).lines().find(|line| line.starts_with("socket")).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(socket(&[example]), "socket = \"/run/v/a\" # VESTIBULE_ADMIN");
    assert_eq!(socket(&[example, "--admin", "/run/o"]), "socket = \"/run/o\" # --admin");
}

#[test]
fn every_mistake_is_shown_on_standard_error_and_the_exit_code_is_78() {
    let file =
        File::new("mistakes.toml", &format!("{SMALL}balance = \"leastconn\"\ninstances = 4\n"));
    let output = check(&[file.path(), "--print"]);
    assert_eq!(output.status.code(), Some(78));
    let path = file.path();
    let expected = format!(
        "{path}:7:11: error: `leastconn` is no balance: write `least-connections`\n\
         \x20 7 | balance = \"leastconn\"\n    |           ^^^^^^^^^^^\n\
         {path}:8:1: error: `instances` is no key of `[[pool]]`: write `workers`\n\
         \x20 8 | instances = 4\n    | ^^^^^^^^^\n\
         {path}: 2 mistakes\n"
    );
    assert_eq!((said(&output.stdout), said(&output.stderr)), ("", expected.as_str()));
}

#[test]
fn a_test_that_fails_is_a_mistake() {
    let test = "[[test]]\npeer = \"10.1.2.3\"\nexpect = \"elsewhere\"\n\
                [[route]]\nname = \"elsewhere\"\npeer = \"10.9.0.0/16\"\npool = \"app\"\n";
    let file = File::new("test.toml", &format!("{SMALL}{test}"));
    let output = check(&[file.path()]);
    assert_eq!(output.status.code(), Some(78));
    let expected = "takes the route `no-route` (none matches: 404), not `elsewhere`";
    assert!(said(&output.stderr).contains(expected), "{output:?}");
}

#[test]
fn what_is_no_configuration_is_told_from_a_wrong_one() {
    let missing = check(&["no-such.toml"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(said(&missing.stderr).starts_with("no-such.toml: error: cannot be read: No such file"));
    let script = check(&["app.js"]);
    assert_eq!(script.status.code(), Some(64));
    let instead = "vestibule: `app.js` is no configuration: did you mean `run -- node app.js`?\n";
    assert_eq!(said(&script.stderr), instead);
    assert_eq!(check(&[]).status.code(), Some(64));
}

#[test]
fn a_program_of_another_protocol_is_refused_before_anything_starts() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    let output =
        command.args(["run", "--listen", "127.0.0.1:0", "--", "node", "app.js"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(said(&output.stdout), "");
    assert_eq!(
        said(&output.stderr),
        "vestibule: `node-cluster`, which `run -- node …` means, is not there yet: a worker links \
         the Rust runtime, or speaks what docs/wire-protocol.md says\n"
    );
}

const SCRIPTED: &str = "[router]\nscript = \"SCRIPT\"\n[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:8080\"\n\
                        [[pool]]\nname = \"app\"\ncommand = \"demo\"\nworkers = 3\n";

/// What `check` says of a script, its own path aside.
fn said_of(name: &str, script: &str, tests: &str) -> (Option<i32>, String) {
    let script = File::new(&format!("{name}.js"), script);
    let text = format!("{}{tests}", SCRIPTED.replace("SCRIPT", script.path()));
    let config = File::new(&format!("{name}.toml"), &text);
    let output = check(&[config.path()]);
    let said = said(&output.stderr).replace(script.path(), "route.js");
    (output.status.code(), said.replace(config.path(), "app.toml"))
}

#[test]
fn a_script_that_cannot_be_used_is_shown_at_its_place() {
    for (name, script, expected) in [
        (
            "syntax",
            "let a = 1;\n  let b = ;\n",
            "route.js:2:11: error: SyntaxError: unexpected token in expression: ';'\n  2 |   let b = ;\n    |           ^\napp.toml: 1 mistake\n",
        ),
        (
            "throws",
            "pools.app.workers[7].name;\n",
            "route.js:1:1: error: TypeError: cannot read property 'name' of undefined\n  1 | pools.app.workers[7].name;\n    | ^\napp.toml: 1 mistake\n",
        ),
        (
            "handler",
            "let a = 1;\n",
            "route.js:1:1: error: the script sets no handler: `onconnection = ({ connection }) => …`\n  1 | let a = 1;\n    | ^\napp.toml: 1 mistake\n",
        ),
    ] {
        assert_eq!(said_of(name, script, ""), (Some(78), expected.to_owned()));
    }
}

#[test]
fn tests_ask_the_script() {
    let script = "onconnection = ({ connection: c }) => {
      if (c.remoteAddress === '10.0.0.1') return c.reject(403);
      if (c.remoteAddress === '10.0.0.2') return;
      if (c.remoteAddress === '10.0.0.3') null.x;
      pools.app.workers[2].postMessage(1, [c]);
    };\n";
    let test =
        |peer: &str, expect: &str| format!("[[test]]\npeer = \"{peer}\"\nexpect = \"{expect}\"\n");
    let right = [
        test("127.0.0.1", "script"),
        test("127.0.0.1", "script:app-3"),
        test("10.0.0.1", "script:403"),
        test("10.0.0.2", "script-failed"),
        test("10.0.0.3", "script-failed"),
    ];
    assert_eq!(said_of("right", script, &right.concat()), (Some(0), String::new()));
    let wrong = [
        test("127.0.0.1", "script:app-1"),
        test("10.0.0.2", "script"),
        test("10.0.0.3", "script:app"),
    ];
    let (code, said) = said_of("wrong", script, &wrong.concat());
    assert_eq!(code, Some(78));
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("error:")).collect();
    assert_eq!(
        lines,
        [
            "app.toml:12:10: error: a connection from 127.0.0.1 on `web` takes the route `script:app-3`, not `script:app-1`",
            "app.toml:15:10: error: a connection from 10.0.0.2 on `web` takes the route `script-failed` (it neither posts nor rejects, and no `[[route]]` matches), not `script`",
            "app.toml:18:10: error: a connection from 10.0.0.3 on `web` takes the route `script-failed` (route.js:4:43: TypeError: cannot read property 'x' of null), not `script:app`",
        ]
    );
}

#[test]
fn the_routing_example_passes_its_own_tests() {
    let example = "examples/routing/vestibule.toml";
    let output = check(&[example]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expected = format!("{example}: ok (2 listeners, 3 pools, 11 routes, 13 tests");
    assert!(said(&output.stdout).starts_with(&expected), "{output:?}");
}
