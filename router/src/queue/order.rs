//! Who waits, in which order, until when. Pure: no descriptors, no clock of its own.
//!
//! Entries stand in a slab and in two lists through it: their lane's (a FIFO for each worker, for
//! what only that worker may have, and one for what any may have), and everybody's, by the time of
//! entering. As all wait equally long, the second list is in the order of deadlines too, so that it
//! serves as the timer wheel: every operation takes constant time.

use std::time::{Duration, Instant};

use slab::Slab;

/// Whose room an entry waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Any worker's.
    Pool,
    /// This slot's, because its key leads there.
    Worker(u32),
}

impl Lane {
    fn index(self) -> usize {
        match self {
            Self::Pool => 0,
            Self::Worker(slot) => slot as usize + 1,
        }
    }
}

/// Names one entry for as long as it waits, and nothing afterwards: places are used again, numbers
/// are not (within four thousand million entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    place: u32,
    number: u32,
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        Self::from(token.number) << 32 | Self::from(token.place)
    }
}

impl From<u64> for Token {
    fn from(bits: u64) -> Self {
        // The two halves, each of 32 bits.
        Self { place: bits as u32, number: (bits >> 32) as u32 }
    }
}

const NONE: u32 = u32::MAX;

/// Neighbours in one list.
#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

impl Ends {
    const EMPTY: Self = Self { first: NONE, last: NONE };
}

#[derive(Debug)]
struct Place<T> {
    item: T,
    number: u32,
    lane: Lane,
    since: Instant,
    /// It was a newcomer, and is none any more.
    settled: bool,
    in_lane: Links,
    in_all: Links,
}

/// Which of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Lane,
    All,
}

impl<T> Place<T> {
    fn links(&mut self, list: List) -> &mut Links {
        match list {
            List::Lane => &mut self.in_lane,
            List::All => &mut self.in_all,
        }
    }
}

/// Everybody who waits.
#[derive(Debug)]
pub(crate) struct Order<T> {
    places: Slab<Place<T>>,
    /// By [`Lane::index`]; grows with the slots that have a key's entry.
    lanes: Vec<Ends>,
    all: Ends,
    /// The first in `all` that is a newcomer: those after it are too.
    newcomer: u32,
    number: u32,
    max: usize,
    timeout: Duration,
}

impl<T> Order<T> {
    /// Bytes that one entry takes.
    pub(crate) const PLACE: usize = size_of::<Place<T>>();

    /// At most `max` entries in all lanes together, each for `timeout`.
    pub(crate) fn new(max: usize, timeout: Duration) -> Self {
        Self {
            places: Slab::new(),
            lanes: Vec::new(),
            all: Ends::EMPTY,
            newcomer: NONE,
            number: 0,
            max: max.min(NONE as usize),
            timeout,
        }
    }

    /// Other bounds. As many as wait may be more than may wait.
    #[cfg(feature = "cli")]
    pub(crate) fn set_bounds(&mut self, max: usize, timeout: Duration) {
        self.max = max.min(NONE as usize);
        self.timeout = timeout;
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Puts an entry at the end of its lane; its deadline counts from `now`, which never goes back.
    ///
    /// # Errors
    /// As many as may wait already do; the entry comes back.
    pub(crate) fn push(&mut self, lane: Lane, item: T, now: Instant) -> Result<Token, T> {
        if self.places.len() >= self.max {
            return Err(item);
        }
        if self.places.len() == self.places.capacity() {
            // Twice as much as a slab takes by itself, but never more than the bound needs.
            let more = self.places.len().max(16).min(self.max - self.places.len());
            self.places.reserve_exact(more);
        }
        self.enter(lane, item, now)
    }

    /// As [`push`](Self::push), for who had a place before: however many wait.
    ///
    /// # Errors
    /// As many wait as can be numbered; the entry comes back.
    pub(crate) fn push_again(&mut self, lane: Lane, item: T, now: Instant) -> Result<Token, T> {
        if self.places.len() >= NONE as usize { Err(item) } else { self.enter(lane, item, now) }
    }

    fn enter(&mut self, lane: Lane, item: T, now: Instant) -> Result<Token, T> {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        let apart = Links { before: NONE, after: NONE };
        let settled = false;
        let new = Place { item, number, lane, since: now, settled, in_lane: apart, in_all: apart };
        // Below NONE, as the callers have seen.
        let place = self.places.insert(new) as u32;
        self.append(List::Lane, lane, place);
        self.append(List::All, lane, place);
        if self.newcomer == NONE {
            self.newcomer = place;
        }
        Ok(Token { place, number })
    }

    /// The first of a lane.
    pub(crate) fn first(&self, lane: Lane) -> Option<Token> {
        self.token(self.lanes.get(lane.index())?.first)
    }

    /// The next in the same lane.
    pub(crate) fn after(&self, token: Token) -> Option<Token> {
        self.token(self.get(token)?.in_lane.after)
    }

    /// Whoever waits longest, of all lanes.
    pub(crate) fn oldest(&self) -> Option<Token> {
        self.token(self.all.first)
    }

    /// Everybody, the oldest first.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        std::iter::successors(self.oldest(), |token| self.token(self.get(*token)?.in_all.after))
            .filter_map(|token| Some((token, &self.get(token)?.item)))
    }

    /// An entry that still waits.
    pub(crate) fn item(&self, token: Token) -> Option<&T> {
        self.get(token).map(|place| &place.item)
    }

    /// As [`item`](Self::item), to be changed.
    pub(crate) fn item_mut(&mut self, token: Token) -> Option<&mut T> {
        self.places
            .get_mut(token.place as usize)
            .filter(|place| place.number == token.number)
            .map(|place| &mut place.item)
    }

    /// Which lane an entry stands in.
    pub(crate) fn lane(&self, token: Token) -> Option<Lane> {
        self.get(token).map(|place| place.lane)
    }

    /// Since when an entry waits.
    pub(crate) fn since(&self, token: Token) -> Option<Instant> {
        self.get(token).map(|place| place.since)
    }

    /// The newcomer that waits longest. An entry is one until [`settle`](Self::settle).
    pub(crate) fn newcomer(&self) -> Option<Token> {
        self.token(self.newcomer)
    }

    /// The newcomer that waits longest is none any more.
    pub(crate) fn settle(&mut self) {
        if let Some(place) = self.places.get_mut(self.newcomer as usize) {
            place.settled = true;
            self.newcomer = place.in_all.after;
        }
    }

    /// Whether an entry waits that is no newcomer any more.
    pub(crate) fn is_settled(&self, token: Token) -> bool {
        self.get(token).is_some_and(|place| place.settled)
    }

    /// Takes an entry out, wherever it stands.
    pub(crate) fn take(&mut self, token: Token) -> Option<T> {
        let Place { lane, in_all, .. } = *self.get(token)?;
        if self.newcomer == token.place {
            self.newcomer = in_all.after;
        }
        self.unlink(List::Lane, lane, token.place);
        self.unlink(List::All, lane, token.place);
        self.places.try_remove(token.place as usize).map(|place| place.item)
    }

    /// The oldest entry, if it has waited as long as it may.
    pub(crate) fn expired(&self, now: Instant) -> Option<Token> {
        self.oldest().filter(|_| self.next_deadline().is_some_and(|deadline| deadline <= now))
    }

    /// When the next entry will have waited as long as it may; `None` if nobody waits, or as long as
    /// it takes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.since(self.oldest()?)?.checked_add(self.timeout)
    }

    fn get(&self, token: Token) -> Option<&Place<T>> {
        self.places.get(token.place as usize).filter(|place| place.number == token.number)
    }

    fn token(&self, place: u32) -> Option<Token> {
        let number = self.places.get(place as usize)?.number;
        Some(Token { place, number })
    }

    fn links(&mut self, list: List, place: u32) -> Option<&mut Links> {
        self.places.get_mut(place as usize).map(|place| place.links(list))
    }

    fn ends(&mut self, list: List, lane: Lane) -> Option<&mut Ends> {
        match list {
            List::All => Some(&mut self.all),
            List::Lane => {
                let index = lane.index();
                if index >= self.lanes.len() {
                    self.lanes.resize(index + 1, Ends::EMPTY);
                }
                self.lanes.get_mut(index)
            }
        }
    }

    fn append(&mut self, list: List, lane: Lane, place: u32) {
        let Some(ends) = self.ends(list, lane) else { return };
        let before = std::mem::replace(&mut ends.last, place);
        if before == NONE {
            ends.first = place;
        }
        if let Some(links) = self.links(list, before) {
            links.after = place;
        }
        if let Some(links) = self.links(list, place) {
            links.before = before;
        }
    }

    fn unlink(&mut self, list: List, lane: Lane, place: u32) {
        let Some(&mut Links { before, after }) = self.links(list, place) else { return };
        match self.links(list, before) {
            Some(links) => links.after = after,
            None => {
                if let Some(ends) = self.ends(list, lane) {
                    ends.first = after;
                }
            }
        }
        match self.links(list, after) {
            Some(links) => links.before = before,
            None => {
                if let Some(ends) = self.ends(list, lane) {
                    ends.last = before;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: u64 = 10;
    const MAX: usize = 12;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u32),
        PopFront(u32),
        /// The entry with this index among all that ever entered: it may wait, or be long gone.
        Gone(usize),
        /// This much later.
        Expire(u64),
        /// The oldest newcomer is none any more.
        Settle,
        /// A worker leaves: its lane moves to another's.
        Move(u32, u32),
    }

    fn lane(number: u32) -> Lane {
        number.checked_sub(1).map_or(Lane::Pool, Lane::Worker)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u32).prop_map(Step::Push),
            2 => (0..4u32).prop_map(Step::PopFront),
            2 => any::<prop::sample::Index>().prop_map(|index| Step::Gone(index.index(64))),
            2 => (0..2 * TIMEOUT).prop_map(Step::Expire),
            2 => Just(Step::Settle),
            1 => (0..4u32, 0..4u32).prop_map(|(from, to)| Step::Move(from, to)),
        ]
    }

    /// The same by looking through a plain list: `(number, lane, entered)`, in the order of entering.
    #[derive(Default)]
    struct Naive {
        waiting: Vec<(usize, u32, u64)>,
        /// How many of them, the first, are no newcomers.
        settled: usize,
        now: u64,
    }

    impl Naive {
        fn push(&mut self, number: usize, lane: u32) -> bool {
            let room = self.waiting.len() < MAX;
            if room {
                self.waiting.push((number, lane, self.now));
            }
            room
        }

        fn take(&mut self, wanted: impl Fn(&(usize, u32, u64)) -> bool) -> Option<usize> {
            let at = self.waiting.iter().position(wanted)?;
            self.settled -= usize::from(at < self.settled);
            Some(self.waiting.remove(at).0)
        }
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_plain_list(steps in prop::collection::vec(step(), 0..200)) {
            let start = Instant::now();
            let mut order = Order::new(MAX, Duration::from_secs(TIMEOUT));
            let mut naive = Naive::default();
            let mut tokens: Vec<Token> = Vec::new();
            let mut number = 0;
            for step in steps {
                let now = start + Duration::from_secs(naive.now);
                match step {
                    Step::Push(to) => {
                        let result = order.push(lane(to), number, now);
                        prop_assert_eq!(result.is_ok(), naive.push(number, to));
                        tokens.extend(result);
                        number += 1;
                    }
                    Step::PopFront(from) => {
                        let popped = order.first(lane(from)).and_then(|token| order.take(token));
                        prop_assert_eq!(popped, naive.take(|(_, lane, _)| *lane == from));
                    }
                    Step::Gone(index) => {
                        let Some(token) = tokens.get(index).copied() else { continue };
                        let named = order.item(token).copied();
                        prop_assert_eq!(order.take(token), named);
                        prop_assert_eq!(named, named.and_then(|named| naive.take(|(n, ..)| *n == named)));
                        prop_assert_eq!(order.take(token), None, "a token names one entry, once");
                    }
                    Step::Expire(later) => {
                        naive.now += later;
                        let now = start + Duration::from_secs(naive.now);
                        let due = naive.now.checked_sub(TIMEOUT);
                        while let Some(token) = order.expired(now) {
                            let expired = order.take(token);
                            let plain = naive.take(|(_, _, since)| due.is_some_and(|due| *since <= due));
                            prop_assert_eq!(expired, plain);
                        }
                        prop_assert!(!naive.waiting.iter().any(|w| due.is_some_and(|due| w.2 <= due)));
                    }
                    Step::Settle => {
                        order.settle();
                        naive.settled = naive.waiting.len().min(naive.settled + 1);
                    }
                    Step::Move(from, to) => {
                        while let Some(token) = order.first(lane(from)) {
                            let moved = order.take(token).unwrap();
                            prop_assert_eq!(Some(moved), naive.take(|(_, lane, _)| *lane == from));
                            if from == to {
                                continue;
                            }
                            tokens.push(order.push(lane(to), moved, now).unwrap());
                            prop_assert!(naive.push(moved, to));
                        }
                    }
                }
                prop_assert_eq!(order.len(), naive.waiting.len());
                let all: Vec<usize> = order.iter().map(|(_, item)| *item).collect();
                let plain: Vec<usize> = naive.waiting.iter().map(|(n, ..)| *n).collect();
                prop_assert_eq!(all, plain);
                let newcomer = order.newcomer().and_then(|token| order.item(token)).copied();
                prop_assert_eq!(newcomer, naive.waiting.get(naive.settled).map(|w| w.0));
                let settled = std::iter::successors(order.oldest(), |token| {
                    order.token(order.get(*token)?.in_all.after)
                });
                prop_assert_eq!(settled.filter(|token| order.is_settled(*token)).count(), naive.settled);
                for number in 0..4 {
                    let mut lane_order = Vec::new();
                    let mut at = order.first(lane(number));
                    while let Some(token) = at {
                        prop_assert_eq!(order.lane(token), Some(lane(number)));
                        lane_order.extend(order.item(token).copied());
                        at = order.after(token);
                    }
                    let plain: Vec<usize> =
                        naive.waiting.iter().filter(|w| w.1 == number).map(|w| w.0).collect();
                    prop_assert_eq!(lane_order, plain);
                }
                let deadline = naive.waiting.first().map(|w| start + Duration::from_secs(w.2 + TIMEOUT));
                prop_assert_eq!(order.next_deadline(), deadline);
            }
        }

        #[test]
        fn a_token_survives_the_kernel(place in any::<u32>(), number in any::<u32>()) {
            let token = Token { place, number };
            prop_assert_eq!(Token::from(u64::from(token)), token);
        }
    }

    #[test]
    fn a_place_that_is_used_again_does_not_answer_to_its_old_name() {
        let mut order = Order::new(1, Duration::ZERO);
        let old = order.push(Lane::Pool, 'a', Instant::now()).unwrap();
        assert_eq!(order.take(old), Some('a'));
        let new = order.push(Lane::Pool, 'b', Instant::now()).unwrap();
        assert_eq!(old.place, new.place);
        assert_eq!(order.take(old), None);
        assert_eq!(order.item(new), Some(&'b'));
    }

    #[test]
    fn a_timeout_beyond_all_time_is_none() {
        let mut order = Order::new(1, Duration::MAX);
        order.push(Lane::Pool, (), Instant::now()).unwrap();
        assert_eq!(order.next_deadline(), None);
        assert_eq!(order.expired(Instant::now()), None);
    }
}
