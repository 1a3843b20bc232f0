//! Which rules name a name: each looked up by hash. Names lie one behind the other, each with its rule,
//! and the table has no more than where each begins: ten thousand of 19 letters take
//! some 370 KB, and a look-up touches three lines of a processor's caches or four.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::super::brief::ASK;
use super::super::pattern::{Names, parents};
use super::{Entry, List, Lists, SEVERAL, note, push};
use crate::inspect::Fact;

/// Rules by name.
#[derive(Clone, Debug, Default)]
pub(super) struct ByName {
    /// For clients whose name is not known: every rule has to be asked itself.
    all: Vec<Entry>,
    any: Vec<Entry>,
    exact: Dictionary,
    below: Dictionary,
    /// Rules of names that several rules have.
    several: Vec<Vec<Entry>>,
}

impl ByName {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn add(&mut self, entry: Entry, names: &Names) {
        push(&mut self.all, Entry { brief: ASK, ..entry });
        if names.any {
            push(&mut self.any, entry);
        }
        for (from, to) in [(&names.exact, &mut self.exact), (&names.below, &mut self.below)] {
            for name in from {
                match to.find(name) {
                    None => to.insert(name, entry),
                    Some(known) if known == entry => {}
                    Some(Entry { rule, brief: SEVERAL }) => {
                        if let Some(list) = self.several.get_mut(rule as usize) {
                            push(list, entry);
                        }
                    }
                    Some(known) => {
                        // As many as there are rules times names of one: never more than fit.
                        let rule = self.several.len() as u32;
                        self.several.push(vec![known, entry]);
                        to.replace(name, Entry { rule, brief: SEVERAL });
                    }
                }
            }
        }
    }

    pub(super) fn collect<'index>(&'index self, name: Fact<&str>, lists: &mut Lists<'index>) {
        let name = match name {
            Fact::Known(name) => name,
            // No name is none of these.
            Fact::Absent => return,
            Fact::Unknown(_) | Fact::Unasked => return note(&self.all, lists),
        };
        note(&self.any, lists);
        if !self.exact.is_empty()
            && let Some(found) = self.exact.find(name)
        {
            self.note(found, lists);
        }
        if !self.below.is_empty() {
            for found in parents(name).filter_map(|parent| self.below.find(parent)) {
                self.note(found, lists);
            }
        }
    }

    fn note<'index>(&'index self, found: Entry, lists: &mut Lists<'index>) {
        if found.brief == SEVERAL {
            note(self.several.get(found.rule as usize).map_or(&[], Vec::as_slice), lists);
        } else {
            lists.push(List { next: found, rest: &[] });
        }
    }
}

/// What there is for each name.
#[derive(Clone, Debug, Default)]
struct Dictionary {
    /// Where each name begins in `words`.
    table: HashTable<u32>,
    /// Each name with its [`Front`] before it.
    words: Vec<u8>,
    /// Who asks cannot choose what is in the table, so that a fast hash will do.
    hasher: RandomState,
}

/// What there is for a name, and how long that is.
struct Front {
    entry: Entry,
    length: u16,
}

impl Front {
    const SIZE: usize = 8;

    fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Entry { rule, brief } = self.entry;
        let all = u64::from(rule) | u64::from(brief) << 32 | u64::from(self.length) << 48;
        all.to_le_bytes()
    }

    fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let all = u64::from_le_bytes(bytes);
        let entry = Entry { rule: all as u32, brief: (all >> 32) as u16 };
        Self { entry, length: (all >> 48) as u16 }
    }
}

impl Dictionary {
    fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn find(&self, name: &str) -> Option<Entry> {
        let mut found = None;
        self.table.find(hash(&self.hasher, name.as_bytes()), |at| {
            let word = word(&self.words, *at).filter(|(_, known)| *known == name.as_bytes());
            found = word.map(|(entry, _)| entry);
            found.is_some()
        });
        found
    }

    /// Changes what there is for a name.
    fn replace(&mut self, name: &str, entry: Entry) {
        let name = name.as_bytes();
        let is = |at: &u32| word(&self.words, *at).is_some_and(|(_, known)| known == name);
        let at = self.table.find(hash(&self.hasher, name), is).copied();
        let front = at.and_then(|at| self.words.get_mut(at as usize..)?.first_chunk_mut());
        if let Some(front) = front {
            let length = Front::from_bytes(*front).length;
            *front = Front { entry, length }.to_bytes();
        }
    }

    /// Adds a name that is not there.
    fn insert(&mut self, name: &str, entry: Entry) {
        // Nobody can ask for a longer name, nor does so much come from a supervisor.
        let (Ok(length), Ok(at)) = (u16::try_from(name.len()), u32::try_from(self.words.len()))
        else {
            return;
        };
        self.words.extend(Front { entry, length }.to_bytes());
        self.words.extend(name.as_bytes());
        let Self { table, words, hasher } = self;
        let again = |at: &u32| word(words, *at).map_or(0, |(_, name)| hash(hasher, name));
        table.insert_unique(hash(hasher, name.as_bytes()), at, again);
    }
}

fn hash(hasher: &RandomState, name: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(name);
    hasher.finish()
}

fn word(words: &[u8], at: u32) -> Option<(Entry, &[u8])> {
    let (front, rest) = words.get(at as usize..)?.split_first_chunk()?;
    let Front { entry, length } = Front::from_bytes(*front);
    Some((entry, rest.get(..length.into())?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use smallvec::SmallVec;

    use super::*;

    fn found(names: &ByName, name: Fact<&str>) -> Vec<Entry> {
        let mut lists = SmallVec::new();
        names.collect(name, &mut lists);
        let all =
            lists.iter().flat_map(|list| [list.next].into_iter().chain(list.rest.iter().copied()));
        let mut all: Vec<_> = all.collect();
        all.sort_by_key(|entry| entry.rule);
        all
    }

    proptest! {
        /// Few letters, so that rules have the same names and names are parts of others.
        #[test]
        fn a_name_has_the_rules_that_name_it_and_no_others(
            written in proptest::collection::vec("[ab]{1,7}|[a-c]{1,2}\\.a|a{250,260}", 0..300),
            asked in proptest::collection::vec("[ab]{0,8}|[a-c]{1,2}\\.a|a{250,260}", 1..50),
        ) {
            let mut names = ByName::default();
            let mut exact: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
            for (rule, name) in (0..).zip(&written) {
                let entry = Entry { rule, brief: 7 };
                let mut one = Names::default();
                one.add(name).unwrap();
                names.add(entry, &one);
                exact.entry(name).or_default().push(entry);
            }
            for name in written.iter().chain(&asked) {
                let wanted = exact.get(&**name).cloned().unwrap_or_default();
                prop_assert_eq!(found(&names, Fact::Known(name)), wanted, "{}", name);
            }
            // Whose name is not known is asked about by each rule.
            let all = (0..written.len() as u32).map(|rule| Entry { rule, brief: ASK });
            prop_assert_eq!(found(&names, Fact::Unasked), all.collect::<Vec<_>>());
            prop_assert_eq!(found(&names, Fact::Absent), []);
        }
    }
}
