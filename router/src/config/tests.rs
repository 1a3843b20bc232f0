//! Whole configurations, good and wrong, and exactly what is said about them.
//!
//! `tests/config/NAME.toml` is read on a system that is made up, and what is said is `NAME.expected`.
//! With `UPDATE_EXPECTED=1` the files are written instead of compared; read the difference.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::thread::CapabilitySet;

use super::problem::Problem;
use super::surroundings::{Found, System};
use super::words::{self, Schema};
use super::*;

/// A system of few users and files.
struct MadeUp {
    root: bool,
}

impl System for MadeUp {
    fn euid(&self) -> u32 {
        if self.root { 0 } else { 1000 }
    }

    fn may(&self, _: CapabilitySet) -> bool {
        self.root
    }

    fn first_port(&self) -> u16 {
        1024
    }

    fn cpus(&self) -> u64 {
        4
    }

    fn descriptors(&self) -> Option<u64> {
        Some(4096)
    }

    fn path(&self) -> Option<OsString> {
        Some("/usr/bin:/bin".into())
    }

    fn user(&self, name: &str) -> io::Result<Option<u32>> {
        let users =
            [("root", 0), ("www-data", 33), ("vestibule", 900), ("alice", 1000), ("nobody", 65534)];
        Ok(users.iter().find(|(known, _)| *known == name).map(|(_, uid)| *uid))
    }

    fn sees_user(&self, uid: u32) -> bool {
        uid < 100_000
    }

    fn group(&self, name: &str) -> io::Result<bool> {
        Ok(name == "root" || name == "www-data")
    }

    fn look(&self, path: &Path) -> io::Result<Found> {
        if path.ends_with("parts/worker") {
            return Ok(Found::Executable);
        }
        if path == folder() || path == folder().join("parts") {
            return Ok(Found::Folder);
        }
        match path.to_str() {
            Some("/usr/bin/worker" | "/srv/bin/worker") => Ok(Found::Executable),
            Some("/usr/bin/node") => Ok(Found::Executable),
            Some("/srv") => Ok(Found::Folder),
            Some("/etc/passwd") => Ok(Found::Other),
            Some("/secret/worker") => Err(io::Error::from(rustix::io::Errno::ACCESS)),
            _ => Err(io::Error::from(rustix::io::Errno::NOENT)),
        }
    }
}

const AS_ROOT: MadeUp = MadeUp { root: true };

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

/// What `check` says, and with `good-` what `--print` does.
fn said(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let system = MadeUp { root: !text.starts_with("# as: a user") };
    let here = text.starts_with("# as: a user, here");
    let overrides = Overrides { here, ..Overrides::default() };
    let lines: Vec<String> = match Config::load_on(path, &overrides, &system) {
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
        Ok((config, warnings)) => {
            let mut mistakes = config.run_tests();
            #[cfg(feature = "script")]
            let warnings = {
                let (cautions, wrong) = config.run_script_tests();
                mistakes.extend(wrong);
                [warnings, cautions].concat()
            };
            let mut lines: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            lines.extend(mistakes.iter().map(ToString::to_string));
            if mistakes.is_empty() {
                lines.push("ok".to_owned());
            }
            if path.file_name().unwrap().to_string_lossy().starts_with("good-") {
                // How far comments are to the right depends on where this folder is.
                let close = |line: &str| match line.rsplit_once(" # ") {
                    Some((value, origin)) => format!("{} # {origin}", value.trim_end()),
                    None => line.to_owned(),
                };
                lines.extend(config.print().lines().map(close));
            }
            lines
        }
    };
    let folder = folder();
    let text = lines.join("\n") + "\n";
    text.replace(&format!("{}/", folder.display()), "").replace(folder.to_str().unwrap(), "FOLDER")
}

#[test]
fn every_wrong_configuration_is_answered_exactly() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let (mut wrong, mut different) = (0, Vec::new());
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "toml") {
            continue;
        }
        let said = said(&path);
        wrong += usize::from(said.contains(": error: "));
        let expected = path.with_extension("expected");
        if update {
            std::fs::write(&expected, &said).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != said {
            different.push(format!("{}:\n{said}", path.display()));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(wrong >= 40, "{wrong} wrong configurations");
}

/// Reads a text as `/etc/app.toml`.
fn read(text: &str) -> Result<(Config, Vec<Warning>), Vec<Mistake>> {
    read_bytes(text.as_bytes().to_vec())
}

fn read_bytes(bytes: Vec<u8>) -> Result<(Config, Vec<Warning>), Vec<Mistake>> {
    let path = Path::new("/etc/app.toml");
    let mut report = tree::Report::default();
    let files = load::Files::of(path, bytes, &mut report);
    Config::finish(path, files, &Overrides::default(), &AS_ROOT, report)
}

fn good(name: &str) -> (Config, String) {
    let path = folder().join(name);
    let (config, _) = Config::load_on(&path, &Overrides::default(), &AS_ROOT).unwrap();
    (config, std::fs::read_to_string(path).unwrap())
}

const SMALL: &str = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:8080\"\n\
                     [[pool]]\nname = \"app\"\ncommand = \"demo\"\n";

/// A text in which `line` is the last one of each table: file, tables, inline tables.
fn with_line(schema: &Schema, line: &str) -> String {
    match schema.title {
        "the file" => format!("{line}\n{SMALL}"),
        "`[router]`" => format!("{SMALL}[router]\n{line}\n"),
        "`[admin]`" => format!("{SMALL}[admin]\n{line}\n"),
        "`[[listener]]`" => format!("[[listener]]\n{line}\n"),
        "`[[pool]]`" => format!("[[pool]]\n{line}\n"),
        "`limits`" => format!("[[listener]]\nlimits = {{ {line} }}\n"),
        "`queue`" => format!("[[pool]]\nqueue = {{ {line} }}\n"),
        "`restart`" => format!("[[pool]]\n[pool.restart]\n{line}\n"),
        "`[[route]]`" => format!("[[route]]\n{line}\n"),
        "`[[test]]`" => format!("[[test]]\n{line}\n"),
        other => panic!("{other} is in no text"),
    }
}

fn problems(text: &str) -> Vec<Problem> {
    read(text).unwrap_err().into_iter().map(|mistake| mistake.problem).collect()
}

/// As the kernel tells numbers only, whatever a route says.
#[test]
fn a_tests_user_is_the_same_by_name_and_by_number() {
    let (config, _) = read(
        "[[listener]]\nname = \"web\"\naddress = \"unix:@app\"\n\
         [[pool]]\nname = \"app\"\ncommand = \"demo\"\n\
         [[route]]\nname = \"name\"\npeer-user = \"root\"\npool = \"app\"\n\
         [[route]]\nname = \"number\"\npeer-user = \"65534\"\npool = \"app\"\n\
         [[test]]\npeer-user = \"root\"\nexpect = \"name\"\n\
         [[test]]\npeer-user = \"0\"\nexpect = \"name\"\n\
         [[test]]\npeer-user = \"nobody\"\nexpect = \"number\"\n\
         [[test]]\npeer-user = \"65534\"\nexpect = \"number\"\n\
         [[test]]\npeer-user = \"1234\"\nexpect = \"no-route\"\n",
    )
    .unwrap();
    let mistakes: Vec<_> =
        config.run_tests().iter().map(|mistake| mistake.problem.to_string()).collect();
    assert_eq!(mistakes, [""; 0]);
}

#[test]
fn unknown_keys_are_refused_in_every_table() {
    for schema in words::ALL {
        let found = problems(&with_line(schema, "zzz-unknown = 1"));
        let unknown = |problem: &Problem| {
            matches!(problem, Problem::UnknownKey { key, table, .. }
                if key == "zzz-unknown" && *table == schema.title)
        };
        assert!(found.iter().any(unknown), "{}: {found:?}", schema.title);
    }
}

#[test]
fn what_is_not_there_yet_is_refused_with_its_word() {
    for schema in words::ALL {
        for key in schema.later {
            let found = problems(&with_line(schema, &format!("{key} = 1")));
            assert!(found.contains(&Problem::NotYet((*key).to_owned())), "{key}: {found:?}");
        }
    }
}

#[test]
fn every_key_is_read() {
    // A value of a kind that no key takes: whoever reads it complains.
    for schema in words::ALL {
        for key in schema.keys {
            let text = with_line(schema, &format!("{key} = 1979-05-27"));
            let found = problems(&text);
            let complaint =
                |problem: &Problem| matches!(problem, Problem::Kind { key: k, .. } if k == key);
            assert!(found.iter().any(complaint), "{} {key}: {found:?}", schema.title);
        }
    }
}

#[test]
fn every_key_is_documented() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(key, _)| key)
        .collect();
    for schema in words::ALL {
        for key in schema.keys {
            let key = match schema.title {
                "`queue`" => format!("queue.{key}"),
                "`restart`" => format!("restart.{key}"),
                "`limits`" => format!("limits.{key}"),
                "`[[listener]]`" if *key == "limits" => continue,
                "the file" if *key != "include" => continue,
                "`[[pool]]`" if *key == "queue" || *key == "restart" => continue,
                _ => (*key).to_owned(),
            };
            assert!(rows.contains(key.as_str()), "{} {key}", schema.title);
        }
    }
}

#[test]
fn what_is_printed_says_the_same() {
    for name in ["good-full.toml", "good-small.toml"] {
        let (config, _) = good(name);
        let (again, _) = read(&config.print()).unwrap();
        assert_eq!(again.router, config.router);
        assert_eq!(again.admin, config.admin);
        assert_eq!(again.listeners, config.listeners);
        assert_eq!(again.routes, config.routes);
        let plain = |pools: &[Pool]| {
            let mut pools = pools.to_vec();
            for pool in &mut pools {
                if let Command::Program { program, argv } = &mut pool.command.value {
                    // A program is printed by its path, wherever it was relative to.
                    argv[0] = program.display().to_string();
                }
            }
            pools
        };
        assert_eq!(plain(&again.pools), plain(&config.pools));
        assert_eq!(again.print().lines().count(), config.print().lines().count());
    }
}

#[test]
fn option_goes_before_variable_before_file_before_default() {
    let file = Path::new("/etc/app.toml");
    let load = |text: &str, admin: Option<Sourced<PathBuf>>| {
        let mut report = tree::Report::default();
        let files = load::Files::of(file, text.as_bytes().to_vec(), &mut report);
        let overrides = Overrides { admin, ..Overrides::default() };
        let (config, _) = Config::finish(file, files, &overrides, &AS_ROOT, report).unwrap();
        let origin = config.admin.socket.origin.to_string();
        (config.admin.socket.value.clone(), origin)
    };
    let written = format!("{SMALL}[admin]\nsocket = \"admin.sock\"\n");
    let variable = Origin::Environment("VESTIBULE_ADMIN");
    let said = Sourced { value: PathBuf::from("/run/b"), origin: variable };
    assert_eq!(load(SMALL, None), (None, "default".to_owned()));
    let from_file = (Some("/etc/admin.sock".into()), "/etc/app.toml:8".to_owned());
    assert_eq!(load(&written, None), from_file);
    let from_variable = (Some("/run/b".into()), "VESTIBULE_ADMIN".to_owned());
    assert_eq!(load(&written, Some(said)), from_variable);
}

#[test]
fn text_that_is_no_utf8_is_shown_where_it_is() {
    let mistakes = read_bytes(b"a = 1\nb = \"\xff\"\n".to_vec()).unwrap_err();
    let expected =
        "/etc/app.toml:2:6: error: this is no UTF-8\n  2 | b = \"\u{fffd}\"\n    |      ^";
    assert_eq!(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
}

/// Small changes to a text, anywhere.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let base = include_str!("../../tests/config/good-full.toml").replace("include = ", "# ");
    let bytes = base.into_bytes();
    let length = bytes.len();
    let piece = prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 1..4),
        "[\\[\\]{}=\",.#'\\n\\\\ -]{1,4}".prop_map(String::into_bytes),
        prop_oneof![Just("[[pool]]\n"), Just("\"\"\""), Just("0x"), Just("nan"), Just("é")]
            .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let change = (0..length, 0..40usize, piece);
    proptest::collection::vec(change, 1..6).prop_map(move |changes| {
        let mut text = bytes.clone();
        for (at, remove, insert) in changes {
            let at = at.min(text.len());
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in a file, there is an answer, and it can be shown.
    #[test]
    fn no_file_makes_the_parser_panic(
        bytes in prop_oneof![
            3 => mutated(),
            1 => proptest::collection::vec(any::<u8>(), 0..200),
            1 => "(\\[{1,3}[a-z.]{0,6}\\]{0,3}|[a-z-]{1,8} ?= ?[0-9\"\\[{]{0,3}|\\n){0,20}"
                .prop_map(String::into_bytes),
        ],
    ) {
        match read_bytes(bytes) {
            Err(mistakes) => {
                prop_assert!(!mistakes.is_empty());
                for mistake in &mistakes {
                    prop_assert!(mistake.to_string().starts_with("/etc/app.toml:"));
                }
                let order: Vec<_> =
                    mistakes.iter().map(|mistake| mistake.whereabouts.order()).collect();
                prop_assert!(order.is_sorted());
            }
            Ok((config, warnings)) => {
                prop_assert!(!config.listeners.is_empty() && !config.pools.is_empty());
                let _ = (config.print(), config.run_tests());
                for warning in &warnings {
                    let _ = warning.to_string();
                }
            }
        }
    }
}
