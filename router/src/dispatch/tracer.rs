//! What was decided about the last connections, and why: for `vestibule trace`.
//!
//! Rejections are kept always, at most one each 10 ms, so that a flood of them costs nothing; other
//! decisions only while somebody asks. Both are bounded.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use vestibule_protocol::supervision::TraceEntry;

use crate::connection::Connection;
use crate::inspect::Facts;
use crate::route::{Rule, Table, Verdict, Why};

/// Entries of each kind: a page or two, and the size of an answer.
const KEPT: usize = 64;
/// Rules of an entry, the deciding one not counted: a person reads no more.
const RULES: usize = 32;
/// The least time between two rejections that are kept.
const APART: Duration = Duration::from_millis(10);
/// How long after a question decisions are noted: whoever follows them asks twice a second.
const ASKED: Duration = Duration::from_secs(2);
/// Different networks that are asked about at one time; where there are more, whoever asks gets all.
const ASKERS: usize = 8;

/// The notes of one router.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    /// Whether somebody may be asking: all that a decision looks at where nobody does.
    wanted: AtomicBool,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    rejected: VecDeque<TraceEntry>,
    decided: VecDeque<TraceEntry>,
    number: u64,
    last: Option<Instant>,
    askers: Vec<Asker>,
}

/// Somebody who follows decisions about these peers, or about all.
#[derive(Debug)]
struct Asker {
    peers: Option<IpNet>,
    until: Option<Instant>,
}

/// What the rules were told, and what they said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ruled<'a> {
    pub(super) table: &'a Table,
    pub(super) facts: &'a Facts<'a>,
    pub(super) why: Why,
}

impl Tracer {
    /// Of the router of this epoch: its entries are numbered on from those of the routers before it, so
    /// that whoever follows them goes on.
    pub(crate) fn new(epoch: u16) -> Self {
        // No router decides four thousand million times.
        let notes = Notes { number: u64::from(epoch) << 32, ..Notes::default() };
        Self { wanted: AtomicBool::new(false), notes: Mutex::new(notes) }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Nothing within can leave them half done.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted after the entry of this number; from now on decisions about these peers are.
    pub(crate) fn ask(&self, rejected: bool, since: u64, peers: Option<IpNet>) -> Vec<TraceEntry> {
        let mut notes = self.notes();
        if !rejected {
            notes.asks(peers);
            self.wanted.store(true, Ordering::Relaxed);
        }
        let kept = if rejected { &notes.rejected } else { &notes.decided };
        kept.iter().filter(|entry| entry.number > since).cloned().collect()
    }

    /// Whether decisions about this connection's peer are followed.
    pub(super) fn follows(&self, connection: &Connection) -> bool {
        // One look where nobody asks.
        self.wanted.load(Ordering::Relaxed) && {
            let mut notes = self.notes();
            notes.forget_askers();
            self.wanted.store(!notes.askers.is_empty(), Ordering::Relaxed);
            notes.follow(peer(connection))
        }
    }

    /// A connection goes where the rules say.
    pub(super) fn decided(&self, connection: &Connection, ruled: Ruled<'_>, outcome: &str) {
        if self.follows(connection) {
            self.notes().keep_decided(About::of(connection), said(ruled), outcome);
        }
    }

    /// A connection, of which this was noted before, went where the script or a worker said.
    pub(super) fn posted(&self, about: About, outcome: &str) {
        self.notes().keep_decided(about, Vec::new(), outcome);
    }

    /// A connection is turned away; `ruled`: by the rules.
    pub(super) fn rejected(&self, connection: &Connection, ruled: Option<Ruled<'_>>, reason: &str) {
        let followed = self.follows(connection);
        let mut notes = self.notes();
        let now = Instant::now();
        let soon = |last: Instant| now.saturating_duration_since(last) < APART;
        let kept = !notes.last.is_some_and(soon);
        if !kept && !followed {
            return;
        }
        let entry = notes.entry(About::of(connection), ruled.map_or_else(Vec::new, said), reason);
        if kept {
            notes.last = Some(now);
            keep(&mut notes.rejected, entry.clone());
        }
        if followed {
            keep(&mut notes.decided, entry);
        }
    }
}

/// Whom an entry is about.
#[derive(Clone, Debug)]
pub(super) struct About {
    id: u64,
    peer: Option<String>,
    listener: String,
    route: String,
}

impl About {
    pub(super) fn of(connection: &Connection) -> Self {
        let info = connection.info();
        Self {
            id: info.id,
            peer: info.peer.map(|peer| peer.to_string()),
            listener: info.listener.to_string(),
            route: info.route.to_string(),
        }
    }

    /// The same, sent on by this.
    #[cfg(feature = "script")]
    pub(super) fn by(self, route: &str) -> Self {
        Self { route: route.to_owned(), ..self }
    }
}

impl Notes {
    fn asks(&mut self, peers: Option<IpNet>) {
        self.forget_askers();
        let until = Instant::now().checked_add(ASKED);
        if let Some(known) = self.askers.iter_mut().find(|asker| asker.peers == peers) {
            known.until = until;
            return;
        }
        if self.askers.len() >= ASKERS {
            self.askers.clear();
            self.askers.push(Asker { peers: None, until });
            return;
        }
        self.askers.push(Asker { peers, until });
    }

    fn forget_askers(&mut self) {
        let now = Instant::now();
        self.askers.retain(|asker| asker.until.is_some_and(|until| now <= until));
    }

    fn follow(&self, peer: Option<IpAddr>) -> bool {
        let about = |asker: &Asker| {
            asker.peers.is_none_or(|peers| peer.is_some_and(|peer| peers.contains(&peer)))
        };
        self.askers.iter().any(about)
    }

    fn keep_decided(&mut self, about: About, rules: Vec<(String, String)>, outcome: &str) {
        let entry = self.entry(about, rules, outcome);
        keep(&mut self.decided, entry);
    }

    fn entry(&mut self, about: About, rules: Vec<(String, String)>, outcome: &str) -> TraceEntry {
        self.number += 1;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let About { id, peer, listener, route } = about;
        TraceEntry {
            number: self.number,
            // Until the year 584,942,417.
            time: time.as_millis() as u64,
            id,
            peer,
            listener,
            route,
            outcome: outcome.to_owned(),
            rules,
        }
    }
}

fn peer(connection: &Connection) -> Option<IpAddr> {
    connection.peer_addr().map(|peer| peer.ip().to_canonical())
}

fn keep(kept: &mut VecDeque<TraceEntry>, entry: TraceEntry) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(entry);
}

/// What each rule says, up to the one that decides. Of thousands only the first ones and that one.
fn said(Ruled { table, facts, why }: Ruled<'_>) -> Vec<(String, String)> {
    let decisive = match why {
        Why::Rule(rule) | Why::Unknown { rule, .. } => Some(rule),
        Why::OnlyPool | Why::NoMatch => None,
    };
    let before = table.rules().get(..decisive.unwrap_or(table.rules().len())).unwrap_or_default();
    let mine = || before.iter().filter(|rule| rule.covers(facts.listener));
    let line = |rule: &Rule| (rule.name.to_string(), verdict(rule, facts));
    let mut said: Vec<_> = mine().take(RULES).map(line).collect();
    let more = mine().count().saturating_sub(RULES);
    if more > 0 {
        said.push(("…".to_owned(), format!("no: {more} more")));
    }
    said.extend(decisive.and_then(|rule| table.rules().get(rule)).map(line));
    said
}

fn verdict(rule: &Rule, facts: &Facts<'_>) -> String {
    match rule.verdict(facts) {
        Verdict::Matches => "yes".to_owned(),
        Verdict::Differs(key) => format!("no: {key}"),
        Verdict::Unknown(key, cause) => {
            format!("{key} cannot be told: {}", cause.reason().as_str())
        }
        Verdict::Unasked(key, _) => format!("{key} was not looked at"),
    }
}
