//! Connections of which more has to be seen: bounded, each with a deadline, and watched.
//!
//! Each costs its place here, a descriptor and an item in the kernel: no task and no registration with
//! the reactor. `dispatch` is the only caller.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use super::watch::Watch;

/// Names one that waits, and nobody else who has its place later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    place: u32,
    entered: u32,
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        Self::from(token.entered) << 32 | Self::from(token.place)
    }
}

impl From<u64> for Token {
    fn from(number: u64) -> Self {
        let low = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default();
        Self { place: low(number), entered: low(number >> 32) }
    }
}

/// All that wait, of any listener.
#[derive(Debug)]
pub(crate) struct Waiting<T: AsFd> {
    watch: Arc<Watch>,
    places: Slab<Place<T>>,
    /// When each is due, whatever happens: its next look or its end.
    timers: BTreeSet<(Instant, usize)>,
    /// Who waits longest, by listener.
    ages: BTreeMap<(u32, u64), usize>,
    /// How many have entered so far.
    entered: u64,
    /// How many of each listener are there.
    counts: BTreeMap<u32, usize>,
}

#[derive(Debug)]
struct Place<T> {
    item: T,
    listener: u32,
    entered: u64,
    due: Instant,
}

impl<T> Place<T> {
    fn token(&self, place: usize) -> Token {
        Token {
            place: u32::try_from(place).unwrap_or(u32::MAX),
            entered: u32::try_from(self.entered & u64::from(u32::MAX)).unwrap_or_default(),
        }
    }
}

impl<T: AsFd> Waiting<T> {
    /// Nobody waits.
    pub(crate) fn new(watch: Arc<Watch>) -> Self {
        Self {
            watch,
            places: Slab::new(),
            timers: BTreeSet::new(),
            ages: BTreeMap::new(),
            entered: 0,
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// How many of a listener wait.
    pub(crate) fn of_listener(&self, listener: u32) -> usize {
        self.counts.get(&listener).copied().unwrap_or_default()
    }

    /// Takes one in, which is watched from now on. Returns whether it is due before all others.
    pub(crate) fn insert(&mut self, listener: u32, item: T, due: Instant) -> bool {
        self.entered += 1;
        let place = Place { item, listener, entered: self.entered, due };
        let entry = self.places.vacant_entry();
        let at = entry.key();
        let place = entry.insert(place);
        self.watch.add(&place.item, place.token(at));
        self.timers.insert((due, at));
        self.ages.insert((listener, self.entered), at);
        *self.counts.entry(listener).or_default() += 1;
        self.timers.first() == Some(&(due, at))
    }

    /// Takes one out. It is not watched any more.
    pub(crate) fn take(&mut self, token: Token) -> Option<T> {
        let at = self.place(token)?;
        let place = self.places.try_remove(at)?;
        self.watch.remove(&place.item);
        self.timers.remove(&(place.due, at));
        self.ages.remove(&(place.listener, place.entered));
        if let Some(count) = self.counts.get_mut(&place.listener) {
            *count = count.saturating_sub(1);
        }
        Some(place.item)
    }

    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let at = self.place(token)?;
        self.places.get_mut(at).map(|place| &mut place.item)
    }

    /// Sets when one is due.
    pub(crate) fn set_due(&mut self, token: Token, due: Instant) {
        let Some(at) = self.place(token) else { return };
        let Some(place) = self.places.get_mut(at) else { return };
        if place.due != due {
            self.timers.remove(&(place.due, at));
            self.timers.insert((due, at));
            place.due = due;
        }
    }

    /// Whoever is due by now.
    pub(crate) fn due(&self, now: Instant) -> Option<Token> {
        let (due, at) = *self.timers.first()?;
        (due <= now).then(|| self.places.get(at).map(|place| place.token(at)))?
    }

    /// When somebody is due next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Whoever of a listener waits longest.
    pub(crate) fn oldest(&self, listener: u32) -> Option<Token> {
        let (_, at) = self.ages.range((listener, 0)..=(listener, u64::MAX)).next()?;
        self.places.get(*at).map(|place| place.token(*at))
    }

    /// Takes out whoever of a listener waits longest.
    pub(crate) fn take_oldest(&mut self, listener: u32) -> Option<T> {
        self.take(self.oldest(listener)?)
    }

    /// The listener of which most wait, if anybody does.
    pub(crate) fn fullest(&self) -> Option<u32> {
        let waits = self.counts.iter().filter(|(_, count)| **count > 0);
        waits.max_by_key(|(_, count)| **count).map(|(listener, _)| *listener)
    }

    /// Takes anybody out.
    pub(crate) fn take_any(&mut self) -> Option<T> {
        self.take(self.oldest(self.fullest()?)?)
    }

    fn place(&self, token: Token) -> Option<usize> {
        let at = usize::try_from(token.place).ok()?;
        (self.places.get(at)?.token(at) == token).then_some(at)
    }
}

impl<T: AsFd> Drop for Waiting<T> {
    fn drop(&mut self) {
        // Each is taken out of the set before it is closed.
        while self.take_any().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::watch::Sign;
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    async fn next_sign<T: AsFd>(waiting: &Waiting<T>) -> Sign {
        loop {
            let mut ready = waiting.watch.readable().await.unwrap();
            let mut signs = Vec::new();
            if waiting.watch.take_signs(&mut signs).unwrap() == 0 {
                ready.clear_ready();
            }
            if let Some(sign) = signs.pop() {
                return sign;
            }
        }
    }

    fn signs<T: AsFd>(waiting: &Waiting<T>) -> usize {
        waiting.watch.take_signs(&mut Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn who_is_due_first_is_told_and_who_waits_longest_is_known() {
        let mut waiting = Waiting::new(Arc::new(Watch::new().unwrap()));
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let mut clients = Vec::new();
        for ((client, server), (listener, due)) in pairs.into_iter().zip([(7, 3), (7, 1), (8, 2)]) {
            clients.push(client);
            waiting.insert(listener, server, now + second * due);
        }
        assert_eq!((waiting.len(), waiting.of_listener(7), waiting.of_listener(9)), (3, 2, 0));
        assert_eq!(waiting.due(now), None);
        let first = waiting.due(now + second).unwrap();
        assert_eq!(waiting.oldest(7).map(u64::from), Some(1 << 32));
        waiting.set_due(first, now + second * 9);
        let next = waiting.due(now + second * 2).unwrap();
        assert!(waiting.take(next).is_some() && waiting.take(next).is_none());
        assert_eq!(waiting.next_due(), Some(now + second * 3));
    }

    #[tokio::test]
    async fn what_is_not_enough_is_no_sign_again_and_more_is() {
        let mut waiting = Waiting::new(Arc::new(Watch::new().unwrap()));
        for (mut client, server) in [
            {
                let (a, b) = tcp();
                (Box::new(a) as Box<dyn Write>, std::os::fd::OwnedFd::from(b))
            },
            {
                let (a, b) = UnixStream::pair().unwrap();
                (Box::new(a) as Box<dyn Write>, b.into())
            },
        ] {
            waiting.insert(0, server, Instant::now());
            client.write_all(b"G").unwrap();
            let token = next_sign(&waiting).await.token;
            assert_eq!(signs(&waiting), 0, "it would spin");
            client.write_all(b"E").unwrap();
            assert_eq!(next_sign(&waiting).await.token, token);
            waiting.take(token);
        }
    }

    #[tokio::test]
    async fn an_end_and_an_urgent_byte_are_signs() {
        let mut waiting = Waiting::new(Arc::new(Watch::new().unwrap()));
        let (mut client, server) = tcp();
        client.write_all(b"G").unwrap();
        waiting.insert(0, server, Instant::now());
        assert!(!next_sign(&waiting).await.is_end());
        rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
        assert!(next_sign(&waiting).await.is_urgent());
        client.shutdown(Shutdown::Write).unwrap();
        assert!(next_sign(&waiting).await.is_end());
    }

    #[tokio::test]
    async fn what_was_taken_out_gives_no_sign_though_a_copy_lives_on() {
        let mut waiting = Waiting::new(Arc::new(Watch::new().unwrap()));
        let (client, server) = tcp();
        let copy = server.try_clone().unwrap();
        waiting.insert(0, server, Instant::now());
        let token = waiting.oldest(0).unwrap();
        drop(waiting.take(token));
        drop(client);
        let (mut other, server) = tcp();
        waiting.insert(0, server, Instant::now());
        other.write_all(b"G").unwrap();
        assert_ne!(next_sign(&waiting).await.token, token, "whoever has the place now is another");
        assert_eq!(signs(&waiting), 0);
        drop(copy);
    }
}
