//! One connection on its way to a decision: what is known about it, and what to look at next.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use vestibule_protocol::supervision::{InspectSetup, ListenerSetup};

use crate::connection::Connection;
use crate::inspect::client_hello::Encrypted;
use crate::inspect::facts::{Cause, Credentials, Fact, Facts, Speech};
use crate::inspect::parsed::Parsed;
use crate::inspect::peek::{self, Attention};
use crate::inspect::proxy_header::{self, Announced, Sender};
use crate::inspect::speech::{self, Ear};
use crate::inspect::{Depth, Label};
use crate::limits::Limits;
use crate::reject::Reason;
#[cfg(feature = "script")]
use crate::route::script::Ticket;
use crate::route::{Networks, Outcome, RuleError, Table};
use crate::sys::tcp;

/// What stands between a listener and its rules.
#[derive(Debug)]
pub(super) struct Gate {
    /// Senders that must begin with a PROXY header.
    proxies: Option<Networks>,
    limits: Option<Arc<Limits>>,
    /// Connections that may be looked at for longer than a moment.
    pub(super) inspecting: usize,
    ear: Ear,
}

impl Gate {
    /// # Errors
    /// A network that is none: the supervisor has checked them.
    pub(super) fn new(setup: &ListenerSetup, inspect: InspectSetup) -> Result<Self, RuleError> {
        let networks = setup.proxies.iter().map(|text| crate::route::pattern::network(text));
        let networks = networks.collect::<Result<Vec<_>, _>>()?;
        let inspecting = setup.limits.inspecting;
        let encrypted = if setup.outer_hello { Encrypted::Outer } else { Encrypted::Hidden };
        Ok(Self {
            proxies: (!networks.is_empty()).then(|| Networks::new(networks)),
            limits: Limits::new(&setup.limits),
            inspecting: inspecting.map_or(usize::MAX, |most| most as usize),
            ear: Ear { most: inspect.most, encrypted },
        })
    }

    /// Whether every connection goes to the rules as it is.
    pub(super) fn is_open(&self) -> bool {
        self.proxies.is_none() && self.limits.is_none()
    }

    /// Whether clients speak first, and have to be heard before anything is decided for any of them.
    pub(super) fn hears_everybody(&self) -> bool {
        self.proxies.is_some()
    }

    /// Peers have what they had by this gate, which was the listener's before.
    pub(super) fn go_on_from(&mut self, before: &Self) {
        if let (Some(limits), Some(before)) = (&mut self.limits, &before.limits)
            && let Some(limits) = Arc::get_mut(limits)
        {
            limits.go_on_from(before);
        }
    }

    pub(super) fn limits(&self) -> Option<&Limits> {
        self.limits.as_deref()
    }

    /// Counts a connection of a peer's that was let in by another gate.
    pub(super) fn count(&self, connection: &mut Connection, now: Instant) {
        if let (Some(limits), Some(peer)) = (&self.limits, address(connection))
            && let Some(held) = limits.count(peer, connection.held(), now)
        {
            connection.hold(held);
        }
    }

    fn expects_header(&self, peer: Option<IpAddr>) -> bool {
        self.proxies.as_ref().zip(peer).is_some_and(|(proxies, peer)| proxies.contains(peer))
    }
}

/// What a connection is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The script is asked.
    #[cfg(feature = "script")]
    Script,
    /// The script waits for what the client says.
    #[cfg(feature = "script")]
    Speech(Ticket),
    /// The rules decide; after a script, where nobody wrote one that does, this is said.
    Rules(Option<Reason>),
}

impl Goal {
    /// What is said where nobody wrote a rule that decides.
    pub(super) fn unruled(self) -> Option<Reason> {
        match self {
            Self::Rules(reason) => reason,
            #[cfg(feature = "script")]
            Self::Script | Self::Speech(_) => None,
        }
    }
}

/// A connection, and what was found out about it.
#[derive(Debug)]
pub(super) struct Inspection {
    pub(super) connection: Connection,
    pub(super) known: Known,
    pub(super) listener: u32,
    pub(super) goal: Goal,
    stage: Stage,
    attention: Attention,
    pub(super) deadline: Instant,
}

/// A connection that was looked at, by a table that decides no more.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) connection: Connection,
    /// Its PROXY header is taken off, if it had to have one, and its peer's limits have let it in.
    pub(crate) admitted: bool,
    /// What that header said.
    pub(crate) announced: Option<Box<Announced>>,
    /// Until when it may show what a rule must see.
    pub(crate) deadline: Instant,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The PROXY header.
    Header,
    /// The limits of whoever it is from.
    Limits,
    /// The rules.
    Rules,
}

/// Facts that do not come with a connection.
#[derive(Debug)]
pub(super) struct Known {
    speech: Speech,
    announced: Option<Box<Announced>>,
    credentials: Fact<Credentials>,
    context: Fact<Label>,
}

impl Known {
    pub(super) fn facts<'a>(&'a self, listener: u32, connection: &Connection) -> Facts<'a> {
        Facts {
            credentials: self.credentials.as_ref(),
            context: self.context.as_ref(),
            speech: &self.speech,
            announced: self.announced.as_ref().and_then(|announced| announced.tls.as_ref()),
            ..Facts::of_address(listener as usize, address(connection))
        }
    }
}

/// How far an inspection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The rules can decide.
    Ready,
    /// It is turned away before they could.
    Refused(Reason),
    /// More has to come.
    Waits,
}

impl Inspection {
    pub(super) fn new(
        connection: Connection,
        listener: u32,
        gate: &Gate,
        goal: Goal,
        deadline: Instant,
    ) -> Self {
        let stage = match gate.expects_header(address(&connection)) {
            // It has passed the gate before.
            _ if connection.is_handed_back() => Stage::Rules,
            true => Stage::Header,
            false => Stage::Limits,
        };
        // What a worker hands back had its header taken off, and keeps what that said.
        let proxied = connection.info().proxied.as_deref();
        let announced = proxied.map(|proxied| Box::new(Announced::from_proxied(proxied)));
        Self {
            connection,
            listener,
            goal,
            known: Known {
                speech: Speech::Unasked,
                announced,
                credentials: Fact::Unasked,
                context: Fact::Unasked,
            },
            stage,
            attention: Attention::new(),
            deadline,
        }
    }

    /// Begins again with one that was looked at by another table, or by another router: what was taken
    /// off stays so, and whoever was let in stays in.
    pub(super) fn again(before: Before, listener: u32, gate: &Gate, goal: Goal) -> Self {
        let Before { connection, admitted, announced, deadline } = before;
        let mut this = Self::new(connection, listener, gate, goal, deadline);
        if admitted {
            this.stage = Stage::Rules;
            gate.count(&mut this.connection, Instant::now());
        }
        this.known.announced = announced;
        this
    }

    /// What is left of it for another table, or another router.
    pub(super) fn into_before(mut self) -> Before {
        self.restore();
        Before {
            connection: self.connection,
            admitted: self.stage == Stage::Rules,
            announced: self.known.announced,
            deadline: self.deadline,
        }
    }

    /// Goes as far as what is there allows. `ended`: nothing more will come.
    pub(super) fn advance(
        &mut self,
        gate: &Gate,
        table: &Table,
        buffer: &mut [u8],
        now: Instant,
        ended: Option<Cause>,
    ) -> Progress {
        if self.stage == Stage::Header {
            match self.header(buffer, ended) {
                Progress::Ready => {}
                other => return other,
            }
        }
        if self.stage == Stage::Limits {
            if let (Some(limits), Some(peer)) = (&gate.limits, address(&self.connection)) {
                match limits.admit(peer, now) {
                    Ok(held) => self.connection.hold(held),
                    Err(reason) => return Progress::Refused(reason),
                }
            }
            self.stage = Stage::Rules;
        }
        let mut looked = false;
        loop {
            match self.missing(table) {
                None => return Progress::Ready,
                Some(Depth::Bytes) if looked => return Progress::Waits,
                Some(Depth::Bytes) => match self.look(gate.ear, buffer, ended) {
                    Ok(()) => looked = true,
                    Err(reason) => return Progress::Refused(reason),
                },
                Some(Depth::Context) => self.known.context = self.connection.ask_context(),
                Some(Depth::Credentials | Depth::Address) => {
                    self.known.credentials = self.connection.credentials();
                }
            }
        }
    }

    /// Takes the next step with the connection, which comes back if more has to be known.
    pub(super) fn step(
        self,
        step: impl FnOnce(Connection, &Facts<'_>, Goal) -> Option<(Connection, Goal)>,
    ) -> Option<Self> {
        let Self { connection, known, listener, goal, stage, attention, deadline } = self;
        let facts = known.facts(listener, &connection);
        let (connection, goal) = step(connection, &facts, goal)?;
        Some(Self { connection, known, listener, goal, stage, attention, deadline })
    }

    /// How deep it has to be looked at before the next step.
    fn missing(&self, table: &Table) -> Option<Depth> {
        let facts = self.known.facts(self.listener, &self.connection);
        match self.goal {
            #[cfg(feature = "script")]
            Goal::Script => None,
            #[cfg(feature = "script")]
            Goal::Speech(ticket) => (!ticket.is_answered(&facts)).then_some(Depth::Bytes),
            Goal::Rules(_) => match table.decide(&facts) {
                Outcome::Decided(_) => None,
                Outcome::Need(depth) => Some(depth),
            },
        }
    }

    /// No more is waited for; the rules decide by what is known.
    pub(super) fn give_up(&mut self, table: &Table, cause: Cause) -> Progress {
        match self.stage {
            Stage::Header | Stage::Limits => Progress::Refused(Reason::ProxyHeader),
            Stage::Rules => {
                let speech = std::mem::replace(&mut self.known.speech, Speech::Unasked);
                self.known.speech = speech::give_up(speech, cause);
                match self.missing(table) {
                    None => Progress::Ready,
                    Some(_) => Progress::Refused(cause.reason()),
                }
            }
        }
    }

    /// The PROXY header: taken off, if it is whole.
    fn header(&mut self, buffer: &mut [u8], ended: Option<Cause>) -> Progress {
        let Ok(bytes) = peek::look(&self.connection, buffer) else {
            return Progress::Refused(Reason::ClientGone);
        };
        let seen = bytes.len();
        let header = match proxy_header::parse(bytes) {
            Parsed::Done(header) => header,
            // A health check that only connects.
            Parsed::More(_) if ended.is_some() && seen == 0 => {
                return Progress::Refused(Reason::ClientGone);
            }
            Parsed::More(missing) if ended.is_none() => {
                self.attention.looked(seen, missing, proxy_header::LONGEST);
                if self.attention.is_used_up() {
                    return Progress::Refused(Reason::ProxyHeader);
                }
                return Progress::Waits;
            }
            Parsed::More(_) | Parsed::Not(_) => return Progress::Refused(Reason::ProxyHeader),
        };
        if !self.connection.consume_header(header.length, buffer) {
            return Progress::Refused(Reason::ProxyHeader);
        }
        match header.sender {
            Sender::Itself => {}
            Sender::Client { source, destination } => {
                self.connection.proxied(Some(source), Some(destination));
            }
            Sender::Unix => self.connection.proxied(None, None),
        }
        if header.announced != Announced::NOTHING {
            self.connection.info_mut().proxied = header.announced.to_proxied();
            self.known.announced = Some(Box::new(header.announced));
        }
        self.attention.begin_anew();
        self.stage = Stage::Limits;
        Progress::Ready
    }

    /// One look at what the client says: first what a worker has read of it, then what is there.
    fn look(&mut self, ear: Ear, buffer: &mut [u8], ended: Option<Cause>) -> Result<(), Reason> {
        let room = ear.most.min(buffer.len());
        let prefix = self.connection.prefix();
        let read = prefix.get(..prefix.len().min(room)).unwrap_or_default();
        let (front, back) = buffer.split_at_mut(read.len());
        front.copy_from_slice(read);
        let back = back.get_mut(..room - read.len()).unwrap_or_default();
        let seen = match back.is_empty() {
            true => 0,
            false => peek::look(&self.connection, back).map_err(|_| Reason::ClientGone)?.len(),
        };
        let (read, most) = (read.len(), ear.most - read.len());
        let bytes = buffer.get(..read + seen).unwrap_or_default();
        let (mut speech, missing) = speech::listen(bytes, ear);
        if missing > 0 {
            self.attention.looked(seen, missing, most);
            match ended {
                // Not so if all that it has sent yet is urgent.
                Some(_) if bytes.is_empty() && tcp::is_read_closed(self.connection.as_fd()) => {
                    return Err(Reason::ClientGone);
                }
                Some(cause) => speech = speech::give_up(speech, cause),
                None if self.attention.is_used_up() => {
                    speech = speech::give_up(speech, Cause::TooLarge);
                }
                None => {}
            }
        }
        self.known.speech = speech;
        Ok(())
    }

    /// Has the kernel wake the router only for what is missing. Returns when to look again, whatever
    /// the kernel says.
    pub(super) fn attend(&mut self, now: Instant) -> Instant {
        /// Where the length of a head was guessed, what is missing may be there without a sign: so
        /// long it waits for a look at most.
        const AGAIN: std::time::Duration = std::time::Duration::from_millis(50);
        if self.attention.has_seen() {
            self.attention.raise(&self.connection);
        }
        match self.attention.is_guessed() {
            true => now.checked_add(AGAIN).map_or(self.deadline, |again| again.min(self.deadline)),
            false => self.deadline,
        }
    }

    /// How often it was looked at.
    #[cfg(test)]
    pub(super) fn looks(&self) -> u32 {
        self.attention.looks()
    }

    /// Whether a look would find what the last one missed.
    pub(super) fn is_due(&self) -> bool {
        self.attention.is_due(&self.connection)
    }

    /// Whether a look would find anything new.
    pub(super) fn has_news(&self) -> bool {
        self.attention.has_news(&self.connection)
    }

    /// Leaves the socket as it was, for whoever gets it.
    pub(super) fn restore(&mut self) {
        self.attention.restore(&self.connection);
    }
}

impl AsFd for Inspection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

pub(super) fn address(connection: &Connection) -> Option<IpAddr> {
    connection.peer_addr().map(|peer| peer.ip())
}
