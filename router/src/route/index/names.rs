//! Which rules name a name: each looked up by hash, short ones without leaving the table.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::super::pattern::{Names, parents};
use super::{At, List, Lists, NOBODY, note};
use crate::inspect::Fact;

/// A name. Longer ones than this are beside the table, which costs one more look into memory.
type Name = SmallVec<[u8; 24]>;

/// Rules by name. Who asks cannot choose what is in it, so that a fast hash will do.
#[derive(Clone, Debug, Default)]
pub(super) struct ByName {
    all: Vec<At>,
    any: Vec<At>,
    exact: HashMap<Name, Few, RandomState>,
    below: HashMap<Name, Few, RandomState>,
    /// Rules of names that several rules have.
    more: Vec<Vec<At>>,
}

/// The rules of a name: one, nearly always.
#[derive(Clone, Copy, Debug)]
struct Few {
    first: At,
    /// Where the others are.
    more: u32,
}

impl ByName {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn add(&mut self, at: At, names: &Names) {
        super::push(&mut self.all, at);
        if names.any {
            super::push(&mut self.any, at);
        }
        for (from, to) in [(&names.exact, &mut self.exact), (&names.below, &mut self.below)] {
            for name in from {
                let few = to.entry(Name::from_slice(name.as_bytes()));
                let few = few.or_insert(Few { first: at, more: NOBODY });
                if few.first == at {
                    continue;
                }
                if few.more == NOBODY {
                    // As many as there are rules times names of one: never more than fit.
                    few.more = self.more.len() as u32;
                    self.more.push(Vec::new());
                }
                if let Some(more) = self.more.get_mut(few.more as usize) {
                    super::push(more, at);
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
            && let Some(few) = self.exact.get(name.as_bytes())
        {
            lists.push(self.list(few));
        }
        if !self.below.is_empty() {
            for few in parents(name).filter_map(|parent| self.below.get(parent.as_bytes())) {
                lists.push(self.list(few));
            }
        }
    }

    fn list(&self, few: &Few) -> List<'_> {
        let rest = match few.more {
            NOBODY => &[],
            more => self.more.get(more as usize).map_or(&[][..], Vec::as_slice),
        };
        List { next: few.first, rest }
    }
}
