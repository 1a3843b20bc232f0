//! One place of a pool, and the process in it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use vestibule_protocol::handshake::{Abilities, Acks};
use vestibule_protocol::limits::MAX_DESCRIPTORS;
use vestibule_protocol::message::Refusal;
use vestibule_protocol::supervision::{Exit, WorkerId};

use crate::handoff::Handoff;
use crate::link::{Limits, Link};

/// Where a slot's process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A process runs or will; it has not said hello.
    Starting,
    /// It takes connections.
    Ready,
    /// It takes nothing new: it drains, closes or was told to end.
    Leaving,
    /// Its port ended or it broke the protocol; its certain death is awaited.
    Condemned,
    /// There is no process. `last`: there will be none.
    Vacant {
        /// No other process comes.
        last: bool,
    },
}

/// What is to be said to a worker besides messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Control {
    Attach,
    Drain,
    Close,
    Refuse(Refusal),
}

/// A port whose last packet could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstruction {
    None,
    /// Until the port is writable.
    Blocked,
    /// For a little while.
    Later,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: Arc<str>,
    /// Its task has something to send.
    pub(crate) wake: Arc<Notify>,
    pub(crate) id: WorkerId,
    pub(crate) pid: Option<u32>,
    pub(crate) state: State,
    pub(crate) link: Option<Arc<Link>>,
    pub(crate) limits: Limits,
    pub(crate) handoff: Handoff,
    pub(crate) control: Vec<Control>,
    pub(crate) obstruction: Obstruction,
    /// Since when its queue in the kernel has been full: it takes nothing out.
    pub(crate) blocked_since: Option<Instant>,
    /// This process said hello once.
    pub(crate) greeted: bool,
    /// `terminate()` was called: no event of it any more but the exit.
    pub(crate) silenced: bool,
    /// Somebody keeps it out of the choice.
    pub(crate) held: bool,
    /// It finishes what it has, and nobody takes its place.
    pub(crate) finishing: bool,
    /// It refused for want of room: nothing is offered before it says something else.
    pub(crate) choked: bool,
    /// Connections that its process took.
    pub(crate) served: u64,
    /// How much it was given and has not handed back: it can hand back no more.
    pub(crate) given: u64,
    /// Highest sequence of a message from it.
    pub(crate) received: u64,
    /// Messages of it that nobody has fetched, and their bytes.
    pub(crate) unfetched: usize,
    pub(crate) unfetched_bytes: usize,
    /// It is certainly dead.
    pub(crate) gone: Option<(Exit, Option<String>, bool)>,
    /// Its port was read to the end.
    pub(crate) ended: bool,
    /// The supervisor was told that its port ended, or asked to kill it.
    pub(crate) kill_asked: bool,
    /// It broke the protocol: nothing that it says is believed any more.
    pub(crate) faulty: bool,
    /// It stands in the list of slots with something to send.
    pub(crate) marked: bool,
    /// Its task knows that there are offers without an answer, and when they are too old.
    pub(crate) watched: bool,
}

impl Slot {
    pub(crate) fn new(name: Arc<str>, pool: u32, slot: u32) -> Self {
        Self {
            name,
            wake: Arc::new(Notify::new()),
            id: WorkerId { pool, slot, generation: 0 },
            pid: None,
            state: State::Starting,
            link: None,
            limits: Limits {
                packet: 1024,
                batch: MAX_DESCRIPTORS,
                acks: Acks::Cumulative,
                connections: u32::MAX,
                abilities: Abilities::default(),
            },
            handoff: Handoff::default(),
            control: Vec::new(),
            obstruction: Obstruction::None,
            blocked_since: None,
            greeted: false,
            silenced: false,
            held: false,
            finishing: false,
            choked: false,
            served: 0,
            given: 0,
            received: 0,
            unfetched: 0,
            unfetched_bytes: 0,
            gone: None,
            ended: false,
            kill_asked: false,
            faulty: false,
            marked: false,
            watched: false,
        }
    }

    /// A new process is in the slot. Without its port it cannot be spoken to.
    pub(crate) fn occupy(&mut self, id: WorkerId, pid: u32, link: Option<Arc<Link>>) {
        self.id = id;
        self.pid = Some(pid);
        self.link = link;
        if !self.silenced {
            self.state = State::Starting;
        }
        self.control = vec![Control::Attach];
        self.obstruction = Obstruction::None;
        self.blocked_since = None;
        self.greeted = false;
        self.choked = false;
        self.given = 0;
        self.received = 0;
        self.served = 0;
        self.gone = None;
        self.ended = false;
        self.kill_asked = false;
        self.faulty = false;
        self.watched = false;
    }

    /// Whether what is posted to this very worker can still reach a process.
    pub(crate) fn accepts_posts(&self) -> bool {
        !self.is_unwanted()
            && match self.state {
                State::Starting | State::Ready | State::Vacant { last: false } => true,
                State::Leaving | State::Condemned | State::Vacant { last: true } => false,
            }
    }

    /// Whether connections for which there is no room now may wait for this slot.
    pub(crate) fn may_take_later(&self) -> bool {
        !self.held
            && !self.is_unwanted()
            && !matches!(self.state, State::Leaving | State::Vacant { last: true })
    }

    /// Whether this process takes nothing new, and another is to take its place.
    pub(crate) fn will_be_followed(&self) -> bool {
        !self.held && !self.is_unwanted() && self.state == State::Leaving
    }

    /// Whether nobody will take this process's place.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.silenced || self.finishing
    }

    /// Since when the worker has left something alone: an offer, or what could not even be sent because
    /// it takes nothing out of its queue.
    pub(crate) fn oldest_wait(&self) -> Option<Instant> {
        let unsent = self.blocked_since.filter(|_| self.handoff.waiting() > 0);
        match (self.handoff.oldest_offer(), unsent) {
            (Some(offer), Some(unsent)) => Some(offer.min(unsent)),
            (offer, unsent) => offer.or(unsent),
        }
    }

    /// Whether the slot is empty for good.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Vacant { last: true })
    }
}
