//! What is wrong or doubtful, and where: the form in which a person reads it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::problem::{Caution, Problem};
use super::source::Place;

/// Longest line shown whole, in characters; of a longer one the part around the place is shown.
const WIDTH: usize = 120;
/// Characters shown before the place in a line that is too long.
const BEFORE: usize = 40;

/// Something that keeps a configuration from being used. Displays as `FILE:LINE:COLUMN: error: …`,
/// the line, and a caret under what is meant.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// Where.
    pub whereabouts: Whereabouts,
    /// What.
    pub problem: Problem,
}

/// Something that can be used, but hardly as it was meant. Displays as a [`Mistake`] does.
#[derive(Clone, Debug)]
pub struct Warning {
    /// Where.
    pub whereabouts: Whereabouts,
    /// What.
    pub caution: Caution,
}

/// Where a mistake is.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// Some text of a file.
    At(Place),
    /// A file as a whole.
    File(PathBuf),
}

impl Mistake {
    pub(super) fn at(place: &Place, problem: Problem) -> Self {
        Self { whereabouts: Whereabouts::At(place.clone()), problem }
    }
}

impl Warning {
    pub(super) fn at(place: &Place, caution: Caution) -> Self {
        Self { whereabouts: Whereabouts::At(place.clone()), caution }
    }
}

impl Whereabouts {
    /// What mistakes are sorted by: a file as a whole comes first.
    pub fn order(&self) -> (usize, usize, usize) {
        match self {
            Self::At(place) => place.order(),
            Self::File(_) => (0, 0, 0),
        }
    }

    fn write(
        &self,
        out: &mut fmt::Formatter<'_>,
        kind: &str,
        text: &dyn fmt::Display,
    ) -> fmt::Result {
        let text = printable(&text.to_string());
        let path = |path: &Path| printable(&path.to_string_lossy());
        let place = match self {
            Self::File(file) => return write!(out, "{}: {kind}: {text}", path(file)),
            Self::At(place) => place,
        };
        let (line, column) = (place.line(), place.column());
        let path = path(place.source().path());
        writeln!(out, "{path}:{line}:{column}: {kind}: {text}")?;
        let Excerpt { before, shown, after } = Excerpt::of(place);
        writeln!(out, "  {line} | {before}{shown}{after}")?;
        // Tabs stay tabs, so that the caret stands below its text whatever their width.
        let indent: String = before.chars().map(|c| if c == '\t' { c } else { ' ' }).collect();
        let carets = "^".repeat(shown.chars().count().max(1));
        write!(out, "  {:width$} | {indent}{carets}", "", width = line.to_string().len())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whereabouts.write(out, "error", &self.problem)
    }
}

impl std::error::Error for Mistake {}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whereabouts.write(out, "warning", &self.caution)
    }
}

/// The line of a place, in three parts.
struct Excerpt {
    before: String,
    shown: String,
    after: String,
}

impl Excerpt {
    fn of(place: &Place) -> Self {
        let (before, shown, after) = (place.before_in_line(), place.shown(), place.after_in_line());
        let [mut before, mut shown, mut after] = [before, shown, after].map(printable);
        let count = |text: &str| text.chars().count();
        if count(&before) + count(&shown) + count(&after) > WIDTH {
            let skip = count(&before).saturating_sub(BEFORE);
            if skip > 0 {
                before = std::iter::once('…').chain(before.chars().skip(skip)).collect();
            }
            shown = cut(shown, WIDTH - BEFORE);
            after = cut(after, (WIDTH - BEFORE).saturating_sub(count(&shown)));
        }
        Self { before, shown, after }
    }
}

fn cut(text: String, most: usize) -> String {
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most).chain(std::iter::once('…')).collect()
}

/// A file may hold what would move the cursor or change the title of the terminal that shows it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::source::Source;
    use super::*;

    fn shown(text: &str, what: &str) -> String {
        let source = Arc::new(Source::new("a.toml".into(), text.to_owned(), 0));
        let start = text.find(what).unwrap();
        let place = Place::new(&source, start..start + what.len());
        Mistake::at(&place, Problem::NoPool).to_string().split_once('\n').unwrap().1.to_owned()
    }

    #[test]
    fn the_caret_stands_under_the_text() {
        assert_eq!(shown("\n\tä = \"x\"", "\"x\""), "  2 | \tä = \"x\"\n    | \t    ^^^");
        let late = format!("{}b = 1", "\n".repeat(11));
        assert_eq!(shown(&late, "1"), "  12 | b = 1\n     |     ^");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(shown("a = \x1b]0;\x07", "a"), "  1 | a = \u{fffd}]0;\u{fffd}\n    | ^");
    }

    #[test]
    fn of_a_long_line_the_part_around_the_place_is_shown() {
        let text = format!("{}here{}", "x".repeat(500), "y".repeat(500));
        let shown = shown(&text, "here");
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() < WIDTH + 12), "{shown}");
        assert_eq!(
            lines[0].find("here").map(|at| lines[0][..at].chars().count()),
            lines[1].find('^')
        );
    }

    #[test]
    fn a_place_outside_of_the_text_is_its_end() {
        let source = Arc::new(Source::new("a.toml".into(), "a = 1".to_owned(), 0));
        let place = Place::new(&source, 99..120);
        assert_eq!((place.line(), place.column()), (1, 6));
    }
}
