//! Reading the files: the named one and those that it includes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::mistake::{Mistake, Whereabouts};
use super::problem::Problem;
use super::read::Draft;
use super::source::{Place, Source};
use super::tree::{Item, Report, Section};
use super::words::FILE;

/// Largest file, in bytes: a hundred thousand routes fit, and the wrong file does no harm.
const LARGEST: u64 = 16 * 1024 * 1024;
/// Most files: each is open only while it is read, but a pattern can match a whole disk.
const MOST_FILES: usize = 1000;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) draft: Draft,
    /// Some text is no TOML: what is missing may only be unreadable.
    pub(super) broken: bool,
    read: usize,
    /// Files that were read, by their real paths.
    known: Vec<PathBuf>,
    /// Those of them that include the one that is read now.
    open: Vec<PathBuf>,
}

impl Files {
    /// Reads the named file and what it includes.
    pub(super) fn read(path: &Path, report: &mut Report) -> Self {
        match contents(path) {
            Ok(bytes) => Self::of(path, bytes, report),
            Err(error) => {
                report.note(Whereabouts::File(path.to_owned()), error.into_problem());
                Self { broken: true, ..Self::default() }
            }
        }
    }

    /// The named file, whose text is there already, and what it includes.
    pub(super) fn of(path: &Path, bytes: Vec<u8>, report: &mut Report) -> Self {
        let mut files = Self::default();
        files.take_in(path.to_owned(), bytes, report);
        files
    }

    fn take_in(&mut self, path: PathBuf, bytes: Vec<u8>, report: &mut Report) {
        let real = real(&path);
        self.known.push(real.clone());
        let number = self.read;
        self.read += 1;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let source = Arc::new(Source::new(path, text, number));
                let end = at + char::REPLACEMENT_CHARACTER.len_utf8();
                report.wrong(&Place::new(&source, at..end), Problem::NotText);
                self.broken = true;
                return;
            }
        };
        let source = Arc::new(Source::new(path, text, number));
        let (table, errors) = DeTable::parse_recoverable(source.text());
        let syntax = Syntax::new(&errors, &source);
        let mut found = Report::default();
        let file = Section::file(&mut found, &FILE, table.get_ref(), &source);
        self.draft.add(&file, &mut found);
        report.warnings.append(&mut found.warnings);
        for mistake in found.mistakes.into_iter().filter(|mistake| syntax.allows(mistake)) {
            report.note(mistake.whereabouts, mistake.problem);
        }
        self.broken |= !syntax.mistakes.is_empty();
        for (place, message) in syntax.mistakes {
            report.wrong(&place, Problem::Syntax(message));
        }
        if let Some(include) = file.item("include") {
            self.open.push(real);
            self.include(&include, report);
            self.open.pop();
        }
    }

    /// What a file includes comes after what it says itself, in lexical order.
    fn include(&mut self, item: &Item<'_>, report: &mut Report) {
        const TAKES: &str = "a list of patterns, such as `[\"conf.d/*.toml\"]`";
        let Some(patterns) = item.elements() else {
            report.wrong(&item.place, item.other_kind(TAKES));
            return;
        };
        for pattern in patterns {
            let Some(text) = pattern.filled(report, TAKES) else { continue };
            let paths = matching(text, item.source());
            let Some(paths) = report.take(&pattern.place, paths) else { continue };
            for path in paths {
                if self.read >= MOST_FILES {
                    report.wrong(&pattern.place, Problem::TooMany(MOST_FILES));
                    return;
                }
                self.included(path, &pattern.place, report);
            }
        }
    }

    fn included(&mut self, path: PathBuf, place: &Place, report: &mut Report) {
        let real = real(&path);
        if self.open.contains(&real) {
            report.wrong(place, Problem::Cycle(path));
        } else if self.known.contains(&real) {
            report.wrong(place, Problem::Twice(path));
        } else {
            match contents(&path) {
                Ok(bytes) => self.take_in(path, bytes, report),
                Err(error) => {
                    self.broken = true;
                    let reason = error.reason();
                    report.wrong(place, Problem::Include { path, reason });
                }
            }
        }
    }
}

/// One file under two names is one file.
fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Why a file has no text.
enum Unreadable {
    System(io::Error),
    TooLarge,
}

impl Unreadable {
    fn reason(&self) -> String {
        match self {
            Self::System(error) => error.to_string(),
            Self::TooLarge => Problem::TooLarge(LARGEST).to_string(),
        }
    }

    fn into_problem(self) -> Problem {
        match self {
            Self::System(error) => Problem::Unreadable(error.to_string()),
            Self::TooLarge => Problem::TooLarge(LARGEST),
        }
    }
}

/// A bounded read: the path may be a device.
fn contents(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Unreadable::System)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(Unreadable::System)?;
    if bytes.len() as u64 > LARGEST { Err(Unreadable::TooLarge) } else { Ok(bytes) }
}

/// The files that a pattern means, in lexical order. One without wildcards means one file, there or
/// not.
fn matching(pattern: &str, source: &Source) -> Result<Vec<PathBuf>, Problem> {
    // Shown as the including file is: relative if that was named so.
    let folder = source.path().parent().unwrap_or_else(|| Path::new(""));
    if !pattern.contains(['*', '?', '[']) {
        return Ok(vec![folder.join(pattern)]);
    }
    let whole = match (Path::new(pattern).is_absolute(), folder.to_str()) {
        (true, _) | (false, Some("")) => pattern.to_owned(),
        // The folder's own name may have what would be a wildcard.
        (false, Some(folder)) => format!("{}/{pattern}", glob::Pattern::escape(folder)),
        (false, None) => {
            let reason = "the name of this folder is no UTF-8";
            return Err(Problem::Pattern { pattern: pattern.to_owned(), reason });
        }
    };
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let found = glob::glob_with(&whole, options)
        .map_err(|error| Problem::Pattern { pattern: pattern.to_owned(), reason: error.msg })?;
    let mut paths = Vec::new();
    for path in found {
        match path {
            Ok(path) => paths.push(path),
            Err(error) => {
                let reason = error.error().to_string();
                return Err(Problem::Include { path: error.path().to_owned(), reason });
            }
        }
    }
    paths.sort();
    Ok(paths)
}

/// What is no TOML, and what can be believed of the rest.
struct Syntax {
    mistakes: Vec<(Place, String)>,
    lines: Vec<usize>,
    /// A bracket or quote that was never closed took in what follows it.
    runaway: Option<usize>,
}

impl Syntax {
    fn new(errors: &[toml::de::Error], source: &Arc<Source>) -> Self {
        let mut mistakes: Vec<(Place, String)> = errors
            .iter()
            .map(|error| {
                let place = Place::new(source, error.span().unwrap_or(0..0));
                let message = in_our_words(error.message(), &place);
                (place, message)
            })
            .collect();
        mistakes.sort_by_key(|(place, _)| place.order());
        let unclosed = errors.iter().any(|error| error.message().contains("unclosed"));
        let runaway = mistakes.first().map(|(place, _)| place.line()).filter(|_| unclosed);
        if runaway.is_some() {
            mistakes.truncate(1);
            for (_, message) in &mut mistakes {
                message.push_str("; or a `{`, `[` or `\"` before this is not closed");
            }
        }
        // One mistake a line: the parser's further ones are about what it made of the first.
        let mut lines: Vec<usize> = Vec::new();
        mistakes.retain(|(place, _)| {
            let line = place.line();
            let new = !lines.contains(&line);
            if new {
                lines.push(line);
            }
            new
        });
        Self { mistakes, lines, runaway }
    }

    /// Whether a mistake is one for certain, and no consequence of unreadable text.
    fn allows(&self, mistake: &Mistake) -> bool {
        let Whereabouts::At(place) = &mistake.whereabouts else { return true };
        if self.mistakes.is_empty() {
            return true;
        }
        let line = place.line();
        let consequence = matches!(mistake.problem, Problem::Missing { .. } | Problem::NoTarget);
        !consequence
            && !self.lines.contains(&line)
            && self.runaway.is_none_or(|runaway| line < runaway)
    }
}

/// The parser speaks of its grammar; what people get wrong is said to them. Anything else, and what
/// another version of the parser says, is passed on.
fn in_our_words(message: &str, place: &Place) -> String {
    let said = match message {
        "string values must be quoted, expected literal string" if place.shown().is_empty() => {
            "there is no value"
        }
        "string values must be quoted, expected literal string" => "a text needs quotes",
        "key with no value, expected `=`" => "there is no value: write `key = value`",
        "duplicate key" => "this is there already, above",
        "unexpected leading zero, expected nothing" => {
            "a number has no zero before it (in octal it begins with `0o`)"
        }
        "invalid basic string, expected `\"`" => "this text has no `\"` at its end",
        other => other,
    };
    said.to_owned()
}
