//! Levels of a multi-level policy: a sensitivity and a set of categories, and which dominates which.
//!
//! A level dominates another if its sensitivity is as high and its categories contain the other's.
//! Names are those that every distributed policy has, `s0` … and `c0` …; a policy is free to choose
//! others, whose order only the policy itself knows: such a level is no level here, and a rule that
//! needs one neither matches nor passes over it.

use std::fmt;
use std::str::FromStr;

/// Categories that there can be: `c0` to `c1023`, as in the reference policy. More would be more
/// than its `mls_num_cats`.
pub const MOST_CATEGORIES: usize = 1024;

/// Sensitivities that there can be: `s0` to `s1023`. Real policies have one or sixteen.
const MOST_SENSITIVITIES: usize = 1024;

const WORDS: usize = MOST_CATEGORIES / 64;

/// Why a text is no level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// Not `s` and a number below 1024.
    #[error("a level begins with its sensitivity, `s0` to `s1023`")]
    Sensitivity,
    /// Not `c` and a number below 1024.
    #[error("categories are `c0` to `c1023`, several with commas, `c0.c5` for all from c0 to c5")]
    Category,
    /// A range of categories that ends before it begins.
    #[error("a range of categories begins with the lower one, such as `c0.c5`")]
    Backwards,
    /// A range of levels whose upper one does not dominate its lower one.
    #[error("the second level of a range must dominate the first, as in `s0-s0:c0.c5`")]
    Order,
}

/// A set of categories.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Categories([u64; WORDS]);

impl Categories {
    /// Whether every category of `other` is in this set.
    pub fn contains(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, others)| others & !mine == 0)
    }

    /// Each category's number, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..MOST_CATEGORIES).filter(|category| {
            let word = self.0.get(category / 64).copied().unwrap_or_default();
            word >> (category % 64) & 1 == 1
        })
    }

    fn add(&mut self, first: usize, last: usize) {
        for category in first..=last {
            if let Some(word) = self.0.get_mut(category / 64) {
                *word |= 1 << (category % 64);
            }
        }
    }

    /// `c1,c3.c5`; the parts may come in any order and overlap.
    fn parse(text: &str) -> Result<Self, LevelError> {
        let category = |text| number(text, 'c', MOST_CATEGORIES).ok_or(LevelError::Category);
        let mut categories = Self::default();
        for part in text.split(',') {
            let (first, last) = match part.split_once('.') {
                Some((first, last)) => (category(first)?, category(last)?),
                None => (category(part)?, category(part)?),
            };
            if first > last {
                return Err(LevelError::Backwards);
            }
            categories.add(first, last);
        }
        Ok(categories)
    }
}

/// As the kernel writes them: three in a row and more as a range.
impl fmt::Display for Categories {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = all.next() {
            let mut last = first;
            while let Some(next) = all.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(out, "{separator}c{first}")?;
            match last - first {
                0 => {}
                1 => write!(out, ",c{last}")?,
                _ => write!(out, ".c{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Categories {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A sensitivity with categories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Level {
    /// Its sensitivity: `s0` is the lowest.
    pub sensitivity: u16,
    /// Its categories.
    pub categories: Categories,
}

impl Level {
    /// Whether what is at this level may know what is at the other one.
    pub fn dominates(&self, other: &Self) -> bool {
        self.sensitivity >= other.sensitivity && self.categories.contains(&other.categories)
    }
}

impl FromStr for Level {
    type Err = LevelError;

    /// `s0`, or `s0:c1,c3.c5`.
    fn from_str(text: &str) -> Result<Self, LevelError> {
        let (sensitivity, categories) = match text.split_once(':') {
            Some((sensitivity, categories)) => (sensitivity, Some(categories)),
            None => (text, None),
        };
        let sensitivity = number(sensitivity, 's', MOST_SENSITIVITIES);
        Ok(Self {
            sensitivity: sensitivity.ok_or(LevelError::Sensitivity)? as u16,
            categories: categories.map(Categories::parse).transpose()?.unwrap_or_default(),
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "s{}", self.sensitivity)?;
        if self.categories != Categories::default() {
            write!(out, ":{}", self.categories)?;
        }
        Ok(())
    }
}

/// From one level to another that dominates it; a single level is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LevelRange {
    low: Level,
    high: Level,
}

impl LevelRange {
    /// The lower end.
    pub fn low(&self) -> &Level {
        &self.low
    }

    /// The upper end.
    pub fn high(&self) -> &Level {
        &self.high
    }

    /// Whether all of `other` lies inside: its lower end dominates this one's, and this one's upper
    /// end dominates its. So the kernel judges which levels a user may have.
    pub fn contains(&self, other: &Self) -> bool {
        other.low.dominates(&self.low) && self.high.dominates(&other.high)
    }
}

impl FromStr for LevelRange {
    type Err = LevelError;

    /// `s0:c1`, or `s0-s0:c0.c5`.
    fn from_str(text: &str) -> Result<Self, LevelError> {
        let (low, high): (Level, Level) = match text.split_once('-') {
            Some((low, high)) => (low.parse()?, high.parse()?),
            None => {
                let level = text.parse()?;
                (level, level)
            }
        };
        if !high.dominates(&low) {
            return Err(LevelError::Order);
        }
        Ok(Self { low, high })
    }
}

impl fmt::Display for LevelRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.low)?;
        if self.low != self.high {
            write!(out, "-{}", self.high)?;
        }
        Ok(())
    }
}

/// A name of one letter and a number below `most`, without zeros in front.
fn number(text: &str, letter: char, most: usize) -> Option<usize> {
    let digits = text.strip_prefix(letter)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|number| plain && *number < most)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> LevelRange {
        text.parse().unwrap()
    }

    #[test]
    fn levels_are_written_as_the_kernel_writes_them() {
        for text in ["s0", "s15:c1023", "s0:c1,c2,c4.c6-s1:c0.c1023", "s0-s0:c0.c3"] {
            assert_eq!(range(text).to_string(), text);
        }
        assert_eq!(range("s0:c5,c3.c4,c3").to_string(), "s0:c3.c5");
        assert_eq!(range("s0:c1-s0:c1").to_string(), "s0:c1");
    }

    #[test]
    fn what_is_no_level_says_what_is_wrong() {
        for (text, error) in [
            ("", LevelError::Sensitivity),
            ("s", LevelError::Sensitivity),
            ("s1024", LevelError::Sensitivity),
            ("s01", LevelError::Sensitivity),
            ("s+1", LevelError::Sensitivity),
            ("SystemLow", LevelError::Sensitivity),
            ("s0:", LevelError::Category),
            ("s0:c1,", LevelError::Category),
            ("s0:c1024", LevelError::Category),
            ("s0:c1:c2", LevelError::Category),
            ("s0:c1.c2.c3", LevelError::Category),
            ("s0:c5.c3", LevelError::Backwards),
            ("s0:c1-s0", LevelError::Order),
            ("s1-s0", LevelError::Order),
            ("s0-s0-s0", LevelError::Sensitivity),
        ] {
            assert_eq!(text.parse::<LevelRange>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_range_contains_what_lies_between_its_ends() {
        let rule = range("s0-s0:c0.c5");
        for inside in ["s0", "s0:c3", "s0:c0.c5", "s0-s0:c1", "s0:c1-s0:c1,c5"] {
            assert!(rule.contains(&range(inside)), "{inside}");
        }
        for outside in ["s0:c6", "s1", "s0:c0.c6", "s0-s1", "s0-s0:c0,c6"] {
            assert!(!rule.contains(&range(outside)), "{outside}");
        }
        assert!(range("s0:c1-s1:c1").contains(&range("s0:c1-s1:c1")));
        assert!(!range("s0:c1").contains(&range("s0")), "below the lower end");
    }

    /// The definition once more, over sets.
    #[derive(Clone, Debug)]
    struct Model(u16, BTreeSet<usize>);

    impl Model {
        fn dominates(&self, other: &Self) -> bool {
            self.0 >= other.0 && self.1.is_superset(&other.1)
        }

        /// Its categories one by one, and neighbours as a range where `ranges` says so.
        fn text(&self, ranges: bool) -> String {
            let single = |category: &usize| format!("c{category}");
            let pair = |category: &usize| format!("c{category}.c{category}");
            let names: Vec<_> = match ranges {
                true => self.1.iter().rev().map(pair).collect(),
                false => self.1.iter().map(single).collect(),
            };
            let colon = if names.is_empty() { "" } else { ":" };
            format!("s{}{colon}{}", self.0, names.join(","))
        }
    }

    prop_compose! {
        /// Few enough for sets to contain each other often, at both edges of a word and of all.
        fn model()(
            sensitivity in 0u16..3,
            categories in proptest::collection::btree_set(
                prop_oneof![Just(0usize), Just(1), Just(63), Just(64), Just(1023)], 0..5),
        ) -> Model {
            Model(sensitivity, categories)
        }
    }

    proptest! {
        #[test]
        fn dominance_is_that_of_sets(one in model(), other in model(), ranges: bool) {
            let parse = |model: &Model| model.text(ranges).parse::<Level>().unwrap();
            prop_assert_eq!(parse(&one).dominates(&parse(&other)), one.dominates(&other));
            prop_assert_eq!(parse(&one).categories.iter().collect::<BTreeSet<_>>(), one.1);
        }

        #[test]
        fn containment_is_that_of_sets(
            low in model(), high in model(), from in model(), to in model(),
        ) {
            let parse = |low: &Model, high: &Model| {
                format!("{}-{}", low.text(false), high.text(true)).parse::<LevelRange>()
            };
            prop_assert_eq!(parse(&low, &high).is_ok(), high.dominates(&low));
            prop_assert_eq!(parse(&from, &to).is_ok(), to.dominates(&from));
            if let (Ok(rule), Ok(peer)) = (parse(&low, &high), parse(&from, &to)) {
                prop_assert_eq!(
                    rule.contains(&peer),
                    from.dominates(&low) && high.dominates(&to)
                );
            }
        }

        #[test]
        fn what_is_written_reads_the_same(first in 0usize..1024, more in 0usize..1024, s in 0u16..1024) {
            let last = (first + more).min(1023);
            let level: Level = format!("s{s}:c{first}.c{last}").parse().unwrap();
            prop_assert_eq!(level.categories.iter().count(), last - first + 1);
            prop_assert_eq!(level.to_string().parse::<Level>(), Ok(level));
        }
    }
}
