//! What a rule says about labels: `user:role:type:level`, with `*` for any text within a part.

use std::fmt;
use std::str::FromStr;

use super::{Label, MOST};

/// A pattern for labels. The level is the last part and keeps its colons; of a label without a level
/// it is empty, which `*` matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelPattern {
    text: Box<str>,
    parts: [Box<str>; 4],
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not four parts.
    #[error(
        "a context is `user:role:type:level`, with `*` for any, such as `*:*:staff_client_t:*`"
    )]
    Parts,
    /// It holds what no label holds, so nothing would ever match.
    #[error("a context holds printable ASCII without spaces")]
    Character,
    /// Longer than any label that is taken.
    #[error("a context of more than {MOST} bytes matches nothing")]
    TooLong,
}

impl LabelPattern {
    /// Whether a label is as this says.
    pub fn matches(&self, label: &Label) -> bool {
        let [user, role, kind, level] = &self.parts;
        part_matches(kind, label.type_())
            && part_matches(user, label.user())
            && part_matches(role, label.role())
            && part_matches(level, label.level())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for LabelPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > MOST {
            return Err(PatternError::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(PatternError::Character);
        }
        let mut parts = text.splitn(4, ':');
        let mut part = || {
            let part = parts.next().filter(|part| !part.is_empty());
            part.map(Box::from).ok_or(PatternError::Parts)
        };
        Ok(Self { parts: [part()?, part()?, part()?, part()?], text: text.into() })
    }
}

impl fmt::Display for LabelPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

/// Whether a text is as a pattern says, in which each `*` stands for any text, none included.
///
/// Each piece between two asterisks is taken where it comes first; taking it later would leave less
/// for what follows, never more. So nothing is tried twice, however many asterisks there are.
fn part_matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        let Some(at) = text.find(piece) else { return false };
        text = text.get(at + piece.len()..).unwrap_or_default();
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, label: &str) -> bool {
        pattern.parse::<LabelPattern>().unwrap().matches(&Label::parse(label).unwrap())
    }

    #[test]
    fn an_asterisk_stays_within_its_part() {
        let label = "staff_u:staff_r:staff_client_t:s0:c1,c3";
        for pattern in [
            "*:*:staff_client_t:*",
            "staff_u:staff_r:staff_client_t:s0:c1,c3",
            "*:*:staff_*_t:s0:*",
            "*_u:*_r:*:*c3",
            "s*f*u:*:*:s0:c1,c3",
        ] {
            assert!(matches(pattern, label), "{pattern}");
        }
        for pattern in [
            "*:*:staff_client:*",
            "*:*:guest_*:*",
            "*:staff_client_t:*:*",
            "*:*:*:s0",
            "staff_u:*:*:*c1",
            "staff_u*:staff_u:*:*",
        ] {
            assert!(!matches(pattern, label), "{pattern}");
        }
    }

    #[test]
    fn a_label_without_a_level_is_matched_by_any_level() {
        assert!(matches("*:*:app_t:*", "u:r:app_t"));
        assert!(!matches("*:*:app_t:s0", "u:r:app_t"));
    }

    #[test]
    fn what_is_no_pattern_says_how_to_write_one() {
        for text in ["staff_client_t", "*:*:staff_client_t", "::t:*", "*:*:t:", ""] {
            assert_eq!(text.parse::<LabelPattern>(), Err(PatternError::Parts), "{text}");
        }
        assert_eq!("*:*: t:*".parse::<LabelPattern>(), Err(PatternError::Character));
        let long = format!("*:*:{}:*", "t".repeat(MOST));
        assert_eq!(long.parse::<LabelPattern>(), Err(PatternError::TooLong));
    }

    /// The definition once more, trying everything.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|from| naive(rest, &text[from..])),
            Some((byte, rest)) => {
                text.split_first().is_some_and(|(first, text)| first == byte && naive(rest, text))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]
        #[test]
        fn a_part_matches_as_the_definition_says(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
            prop_assert_eq!(
                part_matches(&pattern, &text),
                naive(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
