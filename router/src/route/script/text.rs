//! A script's text, and where in it something went wrong.

use std::sync::Arc;

use super::Source;

/// The text of one script.
#[derive(Debug)]
pub(super) struct Text {
    source: Source,
    /// Lines with other letters than ASCII, from 1, and where each begins: QuickJS counts their bytes.
    wide: Vec<(u32, u32)>,
    /// Names of the pools that it can use.
    pools: Vec<Arc<str>>,
}

impl Text {
    pub(super) fn new(source: Source, pools: Vec<Arc<str>>) -> Self {
        let mut begin = 0;
        let mut wide = Vec::new();
        // Both are below the length of a text, which is at most a MiB.
        for (number, line) in (1..).zip(source.text.split_inclusive('\n')) {
            if !line.is_ascii() {
                wide.push((number, begin));
            }
            begin += line.len() as u32;
        }
        Self { source, wide, pools }
    }

    /// How the script is called.
    pub(super) fn name(&self) -> &str {
        &self.source.name
    }

    /// The text itself.
    pub(super) fn as_str(&self) -> &str {
        &self.source.text
    }

    /// The first place of a stack that is in the script: frames read `at f (NAME:LINE:COLUMN)` or
    /// `at NAME:LINE:COLUMN`.
    pub(super) fn place(&self, stack: &str) -> Option<(u32, u32)> {
        stack.lines().find_map(|frame| {
            let (_, rest) = frame.rsplit_once(self.name())?;
            let mut numbers = rest.strip_prefix(':')?.trim_end_matches(')').split(':');
            let line = numbers.next()?.parse().ok()?;
            let column = numbers.next().and_then(|column| column.parse().ok()).unwrap_or(1);
            Some((line, self.character(line, column)))
        })
    }

    /// The number of the character in its line that this byte belongs to, both from 1.
    fn character(&self, line: u32, byte: u32) -> u32 {
        let Ok(at) = self.wide.binary_search_by_key(&line, |(number, _)| *number) else {
            return byte;
        };
        let begin = self.wide.get(at).map_or(0, |(_, begin)| *begin as usize);
        let line = self.as_str().get(begin..).unwrap_or_default();
        // Some places are that of a character's last byte.
        let before = line.char_indices().take_while(|(at, _)| *at < byte as usize);
        before.count().max(1) as u32
    }

    /// The text from this place to the end of its line, and what is before it in that.
    fn around(&self, (line, column): (u32, u32)) -> (&str, &str) {
        let line =
            self.as_str().split('\n').nth(line.saturating_sub(1) as usize).unwrap_or_default();
        let at = line.char_indices().nth(column.saturating_sub(1) as usize);
        line.split_at(at.map_or(line.len(), |(at, _)| at))
    }

    /// Whether modules are meant where the language wants something else: no script has any.
    pub(super) fn means_modules(&self, place: (u32, u32)) -> bool {
        let (before, after) = self.around(place);
        before.trim_end().strip_suffix("import").is_some_and(|rest| !rest.ends_with(is_of_a_name))
            || ["import", "export"].iter().any(|word| {
                after.strip_prefix(word).is_some_and(|rest| !rest.starts_with(is_of_a_name))
            })
    }

    /// Names of the pools, if at this place one is used that there is not.
    pub(super) fn pools_instead(&self, place: (u32, u32)) -> Option<String> {
        let (_, after) = self.around(place);
        let name = after.strip_prefix("pools.")?.split(|c| !is_of_a_name(c)).next()?;
        if self.pools.iter().any(|pool| **pool == *name) {
            return None;
        }
        Some(self.pools.join(", "))
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Text {
        let source = Source { name: "route.js".to_owned(), text: text.to_owned() };
        Text::new(source, vec!["app".into(), "gold".into()])
    }

    #[test]
    fn the_place_is_the_first_one_of_the_script() {
        let stack = "    at hash (native)\n    at pick (route.js:3:17)\n    at <anonymous> (route.js:9:1)\n";
        let text = text("");
        assert_eq!(text.place(stack), Some((3, 17)));
        assert_eq!(text.place("    at route.js:7:2"), Some((7, 2)));
        assert_eq!(text.place("    at x (other.js:1:1)"), None);
    }

    #[test]
    fn columns_are_characters_and_no_bytes() {
        let text = text("a\n'äöü'; b\n\nc\n€");
        let column = |line, byte| text.character(line, byte);
        assert_eq!((column(1, 1), column(3, 1), column(4, 1)), (1, 1, 1));
        // The quote, each byte of a letter, and what is behind them.
        let second: Vec<u32> = (1..=11).map(|byte| column(2, byte)).collect();
        assert_eq!(second, [1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8]);
        assert_eq!((column(5, 3), column(5, 99), column(6, 7)), (1, 1, 7));
    }
}
