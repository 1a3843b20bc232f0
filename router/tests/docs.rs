//! What README and docs show can be used as it stands: each block of TOML is checked as
//! `vestibule check` does, each block of JavaScript is run as a routing script.
//!
//! A block that is part of a configuration gets what it needs and does not say: listeners and pools of
//! the names that it uses. Of what is no configuration, or is meant to be wrong, the word behind the
//! fence is another one, such as `text`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use vestibule_router::config::{Config, Overrides};

/// Pages that show configurations or scripts, and how many of each at least.
const PAGES: [(&str, usize, usize); 3] =
    [("README.md", 1, 1), ("docs/routing.md", 1, 0), ("docs/scripts.md", 2, 1)];

/// A block between two fences.
struct Block {
    page: String,
    line: usize,
    language: String,
    text: String,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The blocks of all pages of README, `docs` and `examples`.
fn blocks() -> Vec<Block> {
    let mut pages = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs"), PathBuf::from("examples")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages.iter().flat_map(|page| blocks_of(page)).collect()
}

fn blocks_of(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((fence, line)) = lines.next() {
        let indent = fence.len() - fence.trim_start().len();
        let Some(info) = fence.trim_start().strip_prefix("```") else { continue };
        let language = info.split_whitespace().next().unwrap_or_default();
        let mut text = String::new();
        let mut closed = false;
        for (inside, _) in lines.by_ref() {
            closed = inside.trim() == "```";
            if closed {
                break;
            }
            text.push_str(inside.get(indent..).unwrap_or_default());
            text.push('\n');
        }
        let page = page.display().to_string();
        assert!(closed, "{page}:{line}: this block has no end");
        found.push(Block { page, line, language: language.to_owned(), text });
    }
    found
}

/// The blocks of one language, however it is written.
fn in_language(names: &[&str]) -> Vec<Block> {
    let is_one = |block: &Block| names.iter().any(|name| block.language.eq_ignore_ascii_case(name));
    blocks().into_iter().filter(is_one).collect()
}

const TOML: &[&str] = &["toml"];
const JAVASCRIPT: &[&str] = &["js", "javascript"];

/// The tables `[[table]]`.
fn tables<'a>(file: &'a DeTable<'_>, table: &str) -> impl Iterator<Item = &'a DeValue<'a>> {
    let all = file.get(table).and_then(|all| all.get_ref().as_array());
    all.into_iter().flatten().map(Spanned::get_ref)
}

/// The texts under `key` of all tables `[[table]]`: one, or a list of them.
fn texts<'a>(file: &'a DeTable<'_>, table: &str, key: &str) -> Vec<&'a str> {
    let values = tables(file, table).filter_map(|table| Some(table.get(key)?.get_ref()));
    values
        .flat_map(|value| match value {
            DeValue::Array(list) => list.iter().map(Spanned::get_ref).collect(),
            one => vec![one],
        })
        .filter_map(DeValue::as_str)
        .collect()
}

/// What a part of a configuration needs to be a whole one, to be written behind it.
fn frame(file: &DeTable<'_>) -> String {
    let mut frame = String::new();
    if !file.contains_key("listener") {
        let mut names: BTreeSet<&str> = texts(file, "route", "listener").into_iter().collect();
        names.extend(texts(file, "test", "listener"));
        write_listeners(&mut frame, &names);
    }
    if !file.contains_key("pool") {
        let mut names: BTreeSet<&str> = texts(file, "route", "pool").into_iter().collect();
        let unknown = texts(file, "listener", "unknown").into_iter();
        names.extend(unknown.filter(|word| *word != "reject"));
        names.extend(texts(file, "test", "expect").into_iter().filter_map(pool_of));
        write_pools(&mut frame, &names);
    }
    frame
}

fn write_listeners(frame: &mut String, names: &BTreeSet<&str>) {
    let default = BTreeSet::from(["web"]);
    let names = if names.is_empty() { &default } else { names };
    for (name, port) in names.iter().zip(8080..) {
        writeln!(frame, "[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"").unwrap();
    }
}

fn write_pools(frame: &mut String, names: &BTreeSet<&str>) {
    let default = BTreeSet::from(["app"]);
    let names = if names.is_empty() { &default } else { names };
    for name in names {
        writeln!(frame, "[[pool]]\nname = \"{name}\"\ncommand = \"demo\"\nworkers = 4").unwrap();
    }
}

/// The pool that a test expects a script to choose: in `script:app` and `script:app-2`.
fn pool_of(expect: &str) -> Option<&str> {
    let (pool, _) = chosen(expect)?;
    Some(pool)
}

/// That pool, and which of its workers, counted from 0.
fn chosen(expect: &str) -> Option<(&str, Option<usize>)> {
    let decides = expect.strip_prefix("script:")?;
    if decides == "reset" || decides == "close" || decides.parse::<u16>().is_ok() {
        return None;
    }
    let numbered = decides.rsplit_once('-').and_then(|(pool, number)| {
        let number: usize = number.parse().ok()?;
        Some((pool, number.checked_sub(1)))
    });
    Some(numbered.unwrap_or((decides, None)))
}

/// A script that decides as the tests of a part of a configuration expect of theirs.
fn script_for(file: &DeTable<'_>) -> Option<String> {
    let mut script = String::from("onconnection = ({ connection: c }) => {\n");
    let mut any = false;
    for test in tables(file, "test") {
        let text = |key: &str| test.get(key)?.get_ref().as_str();
        let (Some(peer), Some((pool, worker))) = (text("peer"), text("expect").and_then(chosen))
        else {
            continue;
        };
        any = true;
        let worker = worker.map_or_else(String::new, |at| format!(".workers[{at}]"));
        let post = format!("pools[\"{pool}\"]{worker}.postMessage(1, [c])");
        writeln!(script, "  if (c.remoteAddress === \"{peer}\") {post};").unwrap();
    }
    script.push_str("};\n");
    any.then_some(script)
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("docs-{name}"));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What `check` finds wrong with a file. Warnings are none: a part leads nowhere else.
fn mistakes(path: &Path) -> Vec<String> {
    let found = match Config::load(path, &Overrides::default()) {
        Ok((config, _)) => {
            let mut found = config.run_tests();
            found.extend(config.run_script_tests().1);
            if let Some(Err(mistake)) = config.try_script() {
                found.push(mistake);
            }
            found
        }
        Err(found) => found,
    };
    found.iter().map(ToString::to_string).collect()
}

/// What is wrong with a block of TOML that stands on a page with these scripts.
fn wrong_toml(block: &Block, scripts: &[Block], folder: &Folder) -> Vec<String> {
    let (file, _) = DeTable::parse_recoverable(&block.text);
    let file = file.get_ref();
    let mut whole = block.text.clone();
    let router = file.get("router").map(Spanned::get_ref);
    if let Some(named) = router.and_then(|it| it.get("script")?.get_ref().as_str()) {
        let here = scripts.iter().find(|script| script.page == block.page);
        let script = here.expect("the page shows the script that a block of it names");
        folder.write(named, &script.text);
        let mut frame = String::new();
        write_listeners(&mut frame, &BTreeSet::new());
        write_pools(&mut frame, &pools_of(&script.text));
        whole.push_str(&frame);
    } else {
        if let Some(script) = script_for(file) {
            folder.write("expected.js", &script);
            whole.push_str("[router]\nscript = \"expected.js\"\n");
        }
        whole.push_str(&frame(file));
    }
    mistakes(&folder.write("app.toml", &whole))
}

/// The pools that a script names as `pools.NAME`.
fn pools_of(script: &str) -> BTreeSet<&str> {
    let named = script.split("pools.").skip(1);
    named
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            &rest[..end.unwrap_or(rest.len())]
        })
        .collect()
}

/// What is wrong with a block of JavaScript. It decides about two clients: one of a network that
/// pages call theirs, and another one.
fn wrong_javascript(block: &Block, folder: &Folder) -> Vec<String> {
    folder.write("route.js", &block.text);
    let mut whole = String::from("[router]\nscript = \"route.js\"\n");
    write_listeners(&mut whole, &BTreeSet::new());
    write_pools(&mut whole, &pools_of(&block.text));
    for peer in ["10.1.2.3", "192.0.2.1"] {
        writeln!(whole, "[[test]]\npeer = \"{peer}\"\nexpect = \"script\"").unwrap();
    }
    mistakes(&folder.write("app.toml", &whole))
}

#[test]
fn every_configuration_that_a_page_shows_is_one() {
    let folder = Folder::new("toml");
    let scripts = in_language(JAVASCRIPT);
    let mut wrong = Vec::new();
    for block in in_language(TOML) {
        let found = wrong_toml(&block, &scripts, &folder);
        wrong.extend(found.iter().map(|mistake| format!("{}: {mistake}", block.place())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_script_that_a_page_shows_decides() {
    let folder = Folder::new("js");
    let mut wrong = Vec::new();
    for block in in_language(JAVASCRIPT) {
        let found = wrong_javascript(&block, &folder);
        wrong.extend(found.iter().map(|mistake| format!("{}: {mistake}", block.place())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_blocks_of_the_pages_are_found() {
    let [toml, scripts] = [in_language(TOML), in_language(JAVASCRIPT)];
    let on = |page: &str, blocks: &[Block]| blocks.iter().filter(|it| it.page == page).count();
    for (page, configurations, programs) in PAGES {
        assert!(on(page, &toml) >= configurations, "{page}: {} of TOML", on(page, &toml));
        assert!(on(page, &scripts) >= programs, "{page}: {} of JavaScript", on(page, &scripts));
    }
    for block in blocks().iter().filter(|block| block.language.is_empty()) {
        let table = block.text.lines().find(|line| line.starts_with('['));
        assert_eq!(table, None, "{}: a configuration has a fence of `toml`", block.place());
    }
}

/// Everything that is wrong in a block is seen, or the other tests would say nothing.
#[test]
fn a_wrong_block_is_refused() {
    let folder = Folder::new("wrong");
    let block = |language: &str, text: &str| Block {
        page: "docs/wrong.md".to_owned(),
        line: 1,
        language: language.to_owned(),
        text: text.to_owned(),
    };
    for (text, expected) in [
        ("[[route]]\npol = \"app\"\n", "`pol` is no key of `[[route]]`"),
        ("[[route]]\npool = \"app\"\nhost = \"a/b\"\n", "`a/b`"),
        ("[[route]]\npool = app\n", "a text needs quotes"),
        (
            "[[route]]\nname = \"a\"\npool = \"app\"\n[[test]]\npeer = \"10.1.2.3\"\nexpect = \"b\"\n",
            "`b`",
        ),
        ("[[test]]\npeer = \"10.1.2.3\"\nexpect = \"script:app-5\"\n", "script:app-5"),
    ] {
        let found = wrong_toml(&block("toml", text), &[], &folder);
        assert!(found.iter().any(|it| it.contains(expected)), "{text}: {found:?}");
    }
    for (text, expected) in [
        ("onconnection = ({ connection }) => {};", "neither posts nor rejects"),
        ("onconnection = ({ connection }) => pools.app.post(1);", "not a function"),
        ("onconnection = ;", "SyntaxError"),
        ("let a = 1;", "sets no handler"),
    ] {
        let found = wrong_javascript(&block("js", text), &folder);
        assert!(found.iter().any(|it| it.contains(expected)), "{text}: {found:?}");
    }
}
