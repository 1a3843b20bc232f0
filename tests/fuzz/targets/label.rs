//! Labels and levels: whatever another host's label or a configuration says, it is read as the
//! definition says or refused, and reading it twice gives the same. The definition is here once more,
//! over sets.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use vestibule_router::inspect::Label;
use vestibule_router::inspect::label::{LabelPattern, LevelRange, MOST, MOST_CATEGORIES};

fuzz_target!(|input: &[u8]| {
    // One input, split at its line feeds: a label, a pattern and two ranges.
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (label, pattern, one, other) = (line(), line(), line(), line());

    let label = read_label(label);
    if let (Some(label), Ok(pattern)) = (&label, std::str::from_utf8(pattern)) {
        matches(label, pattern);
    }
    let range = |bytes| std::str::from_utf8(bytes).ok().and_then(read_range);
    if let (Some((one, model)), Some((other, others))) = (range(one), range(other)) {
        assert_eq!(
            one.contains(&other),
            others.0.dominates(&model.0) && model.1.dominates(&others.1)
        );
    }
});

fn read_label(bytes: &[u8]) -> Option<Label> {
    let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let parts: Vec<&[u8]> = text.splitn(4, |byte| *byte == b':').collect();
    let good = text.len() <= MOST
        && text.iter().all(|byte| (0x21..0x7f).contains(byte))
        && parts.len() >= 3
        && parts.iter().all(|part| !part.is_empty());
    let label = Label::from_kernel(bytes).ok();
    assert_eq!(label.is_some(), good);
    let label = label?;
    let read = [label.user(), label.role(), label.type_(), label.level()];
    for (read, part) in read.iter().zip(parts.iter().chain([&&b""[..]])) {
        assert_eq!(read.as_bytes(), *part);
    }
    assert_eq!(Label::parse(label.as_str()), Ok(label.clone()));
    Some(label)
}

fn matches(label: &Label, text: &str) {
    let Ok(pattern) = text.parse::<LabelPattern>() else { return };
    assert_eq!(pattern.as_str(), text);
    let parts = [label.user(), label.role(), label.type_(), label.level()];
    let expected = text
        .splitn(4, ':')
        .zip(parts)
        .all(|(pattern, part)| part_matches(pattern.as_bytes(), part.as_bytes()));
    assert_eq!(pattern.matches(label), expected, "{text} and {label}");
}

/// Row by row over all prefixes: nothing is clever here.
fn part_matches(pattern: &[u8], text: &[u8]) -> bool {
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for byte in pattern {
        let mut next = vec![false; text.len() + 1];
        next[0] = row[0] && *byte == b'*';
        for (at, letter) in text.iter().enumerate() {
            next[at + 1] = match byte {
                b'*' => row[at + 1] || next[at],
                _ => row[at] && letter == byte,
            };
        }
        row = next;
    }
    row[text.len()]
}

struct Model(u16, BTreeSet<usize>);

impl Model {
    fn dominates(&self, other: &Self) -> bool {
        self.0 >= other.0 && self.1.is_superset(&other.1)
    }
}

fn read_range(text: &str) -> Option<(LevelRange, (Model, Model))> {
    let range = text.parse::<LevelRange>().ok()?;
    assert_eq!(range.to_string().parse(), Ok(range), "{text}");
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let models = (model(low), model(high));
    assert!(models.1.dominates(&models.0), "{text}");
    assert_eq!(range.low().categories.iter().collect::<BTreeSet<_>>(), models.0.1);
    assert_eq!(range.high().categories.iter().collect::<BTreeSet<_>>(), models.1.1);
    Some((range, models))
}

/// What a text that was read must say.
fn model(text: &str) -> Model {
    let number = |text: &str| text[1..].parse::<usize>().expect("a name and a number");
    let (sensitivity, categories) = text.split_once(':').unwrap_or((text, ""));
    let mut set = BTreeSet::new();
    for part in categories.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('.').unwrap_or((part, part));
        set.extend(number(first)..=number(last));
    }
    assert!(set.iter().all(|category| *category < MOST_CATEGORIES));
    Model(number(sensitivity) as u16, set)
}
