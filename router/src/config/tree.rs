//! Going through a parsed file: a value is asked for by key and comes with its place; what is wrong is
//! noted, and the rest is read on.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Warning, Whereabouts};
use super::problem::{Caution, Problem};
use super::source::{Origin, Place, Source, Sourced};
use super::values;
use super::words::Schema;

/// Most mistakes that are kept: after so many, more of them help nobody.
const MOST: usize = 100;

/// What was noted so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Warning>,
}

impl Report {
    pub(super) fn wrong(&mut self, place: &Place, problem: Problem) {
        self.note(Whereabouts::At(place.clone()), problem);
    }

    pub(super) fn note(&mut self, whereabouts: Whereabouts, problem: Problem) {
        if self.mistakes.len() < MOST {
            self.mistakes.push(Mistake { whereabouts, problem });
        }
    }

    pub(super) fn doubtful(&mut self, place: &Place, caution: Caution) {
        if self.warnings.len() < MOST {
            self.warnings.push(Warning::at(place, caution));
        }
    }

    /// The value, or a note.
    pub(super) fn take<T>(&mut self, place: &Place, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.wrong(place, problem)).ok()
    }
}

/// A value and where it is.
#[derive(Clone)]
pub(super) struct Item<'a> {
    key: &'a str,
    value: &'a DeValue<'a>,
    source: &'a Arc<Source>,
    pub(super) place: Place,
}

impl<'a> Item<'a> {
    fn new(key: &'a str, value: &'a Spanned<DeValue<'a>>, source: &'a Arc<Source>) -> Self {
        Self { key, value: value.get_ref(), source, place: Place::new(source, value.span()) }
    }

    pub(super) fn value(&self) -> &'a DeValue<'a> {
        self.value
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, report: &mut Report) -> Option<bool> {
        let flag = self.value.as_bool().ok_or_else(|| self.other_kind("`true` or `false`"));
        report.take(&self.place, flag)
    }

    pub(super) fn source(&self) -> &'a Arc<Source> {
        self.source
    }

    pub(super) fn origin(&self) -> Origin {
        Origin::File(self.place.clone())
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    /// The text, if it is one.
    pub(super) fn word(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    /// A whole number, in the form in which it is written: its digits and their base.
    pub(super) fn digits(&self) -> Option<(&'a str, u32)> {
        self.value.as_integer().map(|integer| (integer.as_str(), integer.radix()))
    }

    pub(super) fn other_kind(&self, takes: &'static str) -> Problem {
        let found = match self.value {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(true) => "`true`",
            DeValue::Boolean(false) => "`false`",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        Problem::Kind { key: self.key.to_owned(), takes, found }
    }

    /// A text that the system can carry.
    pub(super) fn text(&self, report: &mut Report, takes: &'static str) -> Option<&'a str> {
        let result = match self.value.as_str() {
            Some(text) if text.contains('\0') => Err(Problem::Zero),
            Some(text) => Ok(text),
            None => Err(self.other_kind(takes)),
        };
        report.take(&self.place, result)
    }

    /// A text with something in it.
    pub(super) fn filled(&self, report: &mut Report, takes: &'static str) -> Option<&'a str> {
        let text = self.text(report, takes)?;
        let result =
            if text.is_empty() { Err(Problem::Empty(self.key.to_owned())) } else { Ok(text) };
        report.take(&self.place, result)
    }

    /// A whole number of a range.
    pub(super) fn number(
        &self,
        report: &mut Report,
        takes: &'static str,
        range: &RangeInclusive<i64>,
    ) -> Option<i64> {
        report.take(&self.place, self.parse_number(takes, range))
    }

    fn parse_number(
        &self,
        takes: &'static str,
        range: &RangeInclusive<i64>,
    ) -> Result<i64, Problem> {
        if let Some(text) = self.value.as_str()
            && text.parse::<i64>().is_ok()
        {
            let (key, number) = (self.key.to_owned(), text.to_owned());
            return Err(Problem::Quoted { key, takes, number });
        }
        let (digits, radix) = self.digits().ok_or_else(|| self.other_kind(takes))?;
        match i64::from_str_radix(digits, radix) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(Problem::Range {
                found: digits.to_owned(),
                least: range.start().to_string(),
                most: range.end().to_string(),
            }),
        }
    }

    /// How many.
    pub(super) fn count(
        &self,
        report: &mut Report,
        takes: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.number(report, takes, &range).and_then(|number| u32::try_from(number).ok())
    }

    /// A duration of a range.
    pub(super) fn duration(
        &self,
        report: &mut Report,
        takes: &'static str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let result = match (self.value.as_str(), self.digits()) {
            (Some(text), _) => values::duration(text, range),
            (None, Some((digits, _))) => Err(Problem::NoUnit(digits.to_owned())),
            (None, None) => Err(self.other_kind(takes)),
        };
        report.take(&self.place, result)
    }

    /// The values of a list, or the one value that stands for a list of it.
    pub(super) fn one_or_more(&self, report: &mut Report) -> Option<Vec<Self>> {
        let Some(elements) = self.elements() else { return Some(vec![self.clone()]) };
        if elements.is_empty() {
            report.wrong(&self.place, Problem::EmptyList(self.key.to_owned()));
            return None;
        }
        Some(elements)
    }

    /// The values of a list, if it is one.
    pub(super) fn elements(&self) -> Option<Vec<Self>> {
        let element = |value| Self::new(self.key, value, self.source);
        self.value.as_array().map(|array| array.iter().map(element).collect())
    }

    /// A table with the keys of a schema; every other key in it is noted.
    pub(super) fn section(
        &self,
        report: &mut Report,
        schema: &'static Schema,
        takes: &'static str,
    ) -> Option<Section<'a>> {
        let Some(table) = self.value.as_table() else {
            report.wrong(&self.place, self.other_kind(takes));
            return None;
        };
        let section = Section { schema, table, source: self.source, place: self.place.clone() };
        section.judge_keys(report);
        Some(section)
    }

    /// Every pair of a table of any keys.
    pub(super) fn pairs(&self, report: &mut Report, takes: &'static str) -> Vec<(Place, Self)> {
        let Some(table) = self.value.as_table() else {
            report.wrong(&self.place, self.other_kind(takes));
            return Vec::new();
        };
        let pair = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let name: &'a std::borrow::Cow<'a, str> = key.get_ref();
            (Place::new(self.source, key.span()), Self::new(name, value, self.source))
        };
        table.iter().map(pair).collect()
    }

    pub(super) fn key(&self) -> &'a str {
        self.key
    }
}

/// A table whose keys are known.
pub(super) struct Section<'a> {
    schema: &'static Schema,
    table: &'a DeTable<'a>,
    source: &'a Arc<Source>,
    pub(super) place: Place,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn file(
        report: &mut Report,
        schema: &'static Schema,
        table: &'a DeTable<'a>,
        source: &'a Arc<Source>,
    ) -> Self {
        let section = Self { schema, table, source, place: Place::new(source, 0..0) };
        section.judge_keys(report);
        section
    }

    fn judge_keys(&self, report: &mut Report) {
        for key in self.table.keys() {
            if let Some(problem) = self.schema.judge(key.get_ref()) {
                report.wrong(&Place::new(self.source, key.span()), problem);
            }
        }
    }

    pub(super) fn item(&self, key: &'static str) -> Option<Item<'a>> {
        debug_assert!(self.schema.keys.contains(&key), "{key} is in no schema");
        self.table.get(key).map(|value| Item::new(key, value, self.source))
    }

    /// A value that may be left out. If it is there and wrong, that is noted, and reading goes on with
    /// the default.
    pub(super) fn or<T>(
        &self,
        report: &mut Report,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Item<'a>, &mut Report) -> Option<T>,
    ) -> Sourced<T> {
        match self.item(key) {
            None => Sourced::default(default),
            Some(item) => {
                Sourced { value: read(&item, report).unwrap_or(default), origin: item.origin() }
            }
        }
    }

    /// A value that may be left out and has no default.
    pub(super) fn optional<T>(
        &self,
        report: &mut Report,
        key: &'static str,
        read: impl FnOnce(&Item<'a>, &mut Report) -> Option<T>,
    ) -> Sourced<Option<T>> {
        self.or(report, key, None, |item, report| read(item, report).map(Some))
    }

    /// A value that must be there.
    pub(super) fn need<T>(
        &self,
        report: &mut Report,
        key: &'static str,
        read: impl FnOnce(&Item<'a>, &mut Report) -> Option<T>,
    ) -> Option<Sourced<T>> {
        let Some(item) = self.item(key) else {
            let table = self.schema.title;
            report.wrong(&self.place, Problem::Missing { table, key });
            return None;
        };
        read(&item, report).map(|value| Sourced { value, origin: item.origin() })
    }
}
