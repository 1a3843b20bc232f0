//! Bytes to lines, and lines to what may be shown. Pure.

use std::fmt::Write;

/// The longest line; what is longer is split.
const LONGEST: usize = 8 * 1024;

/// Bytes of which no line was made yet: less than one read and one line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins: the bytes before are let go of once a read, not once a line.
    start: usize,
    /// The line before was split: what follows is its rest, even if that is nothing.
    split: bool,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.start));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end, or as much of it as a line may hold. What is not UTF-8
    /// is replaced.
    pub(super) fn next(&mut self) -> Option<String> {
        loop {
            let waiting = self.bytes.get(self.start..).unwrap_or_default();
            let end = waiting.iter().take(LONGEST + 1).position(|byte| *byte == b'\n');
            let (line, next) = match end {
                Some(end) => (waiting.get(..end), end + 1),
                None if waiting.len() > LONGEST => {
                    let end = boundary(waiting.get(..LONGEST).unwrap_or_default());
                    (waiting.get(..end), end)
                }
                None => return None,
            };
            let line = text(line.unwrap_or_default());
            self.start += next;
            let ends_split = std::mem::replace(&mut self.split, end.is_none());
            if !(ends_split && line.is_empty()) {
                return Some(line);
            }
        }
    }

    /// What came after the last line's end.
    pub(super) fn rest(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.bytes);
        let rest = bytes.get(std::mem::take(&mut self.start)..).unwrap_or_default();
        (!rest.is_empty()).then(|| text(rest))
    }
}

/// Where to split so that no character is cut in two: before the last one if it is not whole.
fn boundary(head: &[u8]) -> usize {
    match std::str::from_utf8(head) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => head.len(),
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
}

/// A line without control characters, which could move a terminal's cursor, rename its window or
/// hide what was written before. Tabs stay; so do colours (`ESC [ … m`) where they are wanted, and
/// they end with the line.
pub(super) fn printable(line: &str, colours: bool) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut coloured = false;
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        let mut taken = character.len_utf8();
        match character {
            '\t' => shown.push(character),
            '\x1b' => match colour(rest) {
                Some(sequence) => {
                    taken = sequence.len();
                    if colours {
                        shown.push_str(sequence);
                        coloured = true;
                    }
                }
                None => shown.push_str("\\u{1b}"),
            },
            // Also what reorders the characters around it.
            control if control.is_control() || is_direction(control) => {
                // Writing to a String does not fail.
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(control));
            }
            _ => shown.push(character),
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    if coloured {
        shown.push_str("\x1b[0m");
    }
    shown
}

/// The sequence that sets colours, if the text begins with one (ECMA-48, SGR).
fn colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || matches!(c, ';' | ':')))?;
    let sequence = text.get(..end + 3)?;
    sequence.ends_with('m').then_some(sequence)
}

/// Unicode's bidirectional controls.
const fn is_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece);
            found.extend(std::iter::from_fn(|| lines.next()));
        }
        found.extend(lines.rest());
        found
    }

    #[test]
    fn lines_are_the_same_however_their_bytes_arrive() {
        let text = "first\r\n\nthird ö\nrest".as_bytes();
        let expected = ["first", "", "third ö", "rest"];
        for at in 0..=text.len() {
            assert_eq!(all(&[&text[..at], &text[at..]]), expected);
        }
    }

    #[test]
    fn a_long_line_is_split_between_characters() {
        let line = "ö".repeat(LONGEST);
        for offset in 0..2 {
            let line = format!("{}{line}\nnext\n", "x".repeat(offset));
            let found = all(&[line.as_bytes()]);
            assert!(
                found.iter().all(|piece| piece.len() <= LONGEST && !piece.contains('\u{fffd}'))
            );
            assert_eq!(format!("{}\nnext\n", found[..found.len() - 1].concat()), line);
        }
    }

    #[test]
    fn a_line_of_exactly_the_bound_has_no_empty_rest() {
        for length in [LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST] {
            let line = "x".repeat(length);
            let found = all(&[line.as_bytes(), b"\n"]);
            assert_eq!(found.concat(), line);
            assert!(found.iter().all(|piece| !piece.is_empty()), "{length}");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_replaced_and_never_stops_the_rest() {
        assert_eq!(all(&[b"a\xffb\n\xc3"]), ["a\u{fffd}b", "\u{fffd}"]);
        let broken = vec![0xff; 3 * LONGEST];
        assert_eq!(all(&[&broken]).len(), 3);
    }

    #[test]
    fn control_characters_are_shown_and_colours_stay_where_they_are_wanted() {
        let line = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\ttab\u{9b}2J\u{202e}";
        assert_eq!(
            printable(line, true),
            "\\u{1b}]0;title\\u{7}\\u{1b}[2J\x1b[31mred\x1b[0m\ttab\\u{9b}2J\\u{202e}\x1b[0m"
        );
        assert_eq!(
            printable(line, false),
            "\\u{1b}]0;title\\u{7}\\u{1b}[2Jred\ttab\\u{9b}2J\\u{202e}"
        );
        assert_eq!(printable("\x1b[31", true), "\\u{1b}[31");
    }
}
