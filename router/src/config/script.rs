//! A configuration's script, as `check` and `explain` run it: in this process, with the rights of
//! whoever typed the command. `run` never does: there only the router runs it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::mistake::Mistake;
use super::problem::Problem;
use super::source::{Place, Source};
use super::types::{Address, Config, Listener, Workers};
use crate::inspect::{Cause, ClientHello, Fact, Facts, Label, Speech};
use crate::pool::pick;
use crate::reject::Reason;
use crate::route::Refusal;
use crate::route::script::{self, Engine, Failure, Limits, Outcome, Pools, Subject, To, Verdict};
use crate::sys::users;

/// Workers that a pool of one for each CPU is taken to have.
const AUTO: u32 = 4;

/// A script that is asked about connections that are not there.
#[derive(Debug)]
pub struct Trial {
    engine: Engine<Given>,
    pools: Arc<Planned>,
    listeners: Vec<(Arc<str>, Option<SocketAddr>)>,
}

/// What a script would do with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It decides: `POOL`, `POOL-N`, a status, `reset` or `close`, and what it posts.
    Decides {
        /// Where.
        to: String,
        /// The message as JSON.
        message: Option<String>,
        /// What failed all the same, after that or beside it.
        failure: Option<Failure>,
    },
    /// It leaves the decision to the routes.
    Leaves,
    /// It needs what the client does not show.
    Unknown(Cause),
    /// It fails.
    Fails(Failure),
}

impl Tried {
    /// What failed, whatever became of the connection.
    pub(super) fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Decides { failure, .. } => failure.as_ref(),
            Self::Fails(failure) => Some(failure),
            Self::Leaves | Self::Unknown(_) => None,
        }
    }

    /// Why a connection is rejected that the script leaves to the routes, and no route matches.
    pub(super) fn unruled(&self) -> Reason {
        match self {
            Self::Unknown(cause) => cause.reason(),
            Self::Decides { .. } | Self::Leaves | Self::Fails(_) => Reason::ScriptFailed,
        }
    }
}

impl Config {
    /// Compiles the script and runs its top level; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn try_script(&self) -> Option<Result<Trial, Mistake>> {
        let script = self.router.script.value.as_ref()?;
        let source = script::Source {
            name: script.path.display().to_string(),
            text: script.text.to_string(),
        };
        let memory = usize::try_from(*self.router.script_memory).unwrap_or(usize::MAX);
        let limits = Limits { time: *self.router.script_timeout, memory };
        let pools = self.pools.iter().map(|pool| {
            let workers = match *pool.workers {
                Workers::Auto => AUTO,
                Workers::Number(number) => number.get(),
            };
            (pool.name.value.as_str().into(), workers)
        });
        let pools = Arc::new(Planned { pools: pools.collect() });
        let engine = match Engine::new(source, limits, pools.clone()) {
            Ok(engine) => engine.quietly(),
            Err(failure) => return Some(Err(mistake(&script.path, &script.text, &failure))),
        };
        let listeners = self.listeners.iter().map(|it| (it.name.value.as_str().into(), local(it)));
        let listeners = listeners.collect();
        Some(Ok(Trial { engine, pools, listeners }))
    }
}

/// A failure as a mistake at its place in the script.
fn mistake(path: &std::path::Path, text: &str, failure: &Failure) -> Mistake {
    let source = Source::new(PathBuf::from(path), text.to_owned(), usize::MAX);
    let source = Arc::new(source);
    let at = failure.place.map_or(0, |(line, column)| {
        let mut lines = text.split_inclusive('\n');
        let begin: usize = lines.by_ref().take(line.saturating_sub(1) as usize).map(str::len).sum();
        let line = lines.next().unwrap_or_default().trim_end_matches(['\n', '\r']);
        let before = line.chars().take(column.saturating_sub(1) as usize);
        begin + before.map(char::len_utf8).sum::<usize>()
    });
    let problem = Problem::ScriptFails(failure.message.clone());
    Mistake::at(&Place::new(&source, at..at), problem)
}

impl Trial {
    /// What the script does with a connection of which this is known.
    pub fn ask(&mut self, facts: &Facts<'_>) -> Tried {
        let listener = self.listeners.get(facts.listener);
        let given = Given {
            peer: facts.peer,
            listener: listener.map_or_else(|| "".into(), |(name, _)| Arc::clone(name)),
            local: listener.and_then(|(_, local)| *local),
            context: owned(facts.context),
            user: facts.credentials.map(|who| match &who.user {
                Some(name) => number(name),
                None => who.uid.to_string(),
            }),
            announced: facts.announced.cloned(),
        };
        let mut verdict = self.engine.decide(given);
        if let Verdict::Waits(given, ticket) = verdict {
            let speech = match facts.speech {
                Speech::Unasked => Speech::Unknown(Cause::TimedOut),
                known => known.clone(),
            };
            verdict = self.engine.resume(ticket, given, Arc::new(speech));
        }
        let failure = self.engine.take_failure();
        let Verdict::Decided(_, outcome) = verdict else {
            // It asked for all there is and cannot wait for more.
            return failure.map_or(Tried::Leaves, Tried::Fails);
        };
        match outcome {
            Outcome::Post { pool, to, message } => {
                let name = self.pools.name(pool);
                let to = match to {
                    To::Balance => name,
                    To::Slot(slot) => format!("{name}-{}", slot + 1),
                };
                let message = String::from_utf8(message.as_bytes().to_vec());
                let message = message.ok().filter(|text| !text.is_empty());
                Tried::Decides { to, message, failure }
            }
            Outcome::Reject(refusal) => Tried::Decides {
                to: match refusal {
                    Refusal::Status(status) => status.to_string(),
                    Refusal::Reset => "reset".to_owned(),
                    Refusal::Close => "close".to_owned(),
                },
                message: None,
                failure,
            },
            Outcome::Unknown(cause) => Tried::Unknown(cause),
            Outcome::Undecided | Outcome::Failed => failure.map_or(Tried::Leaves, Tried::Fails),
        }
    }
}

/// Where clients of a listener have wanted to go, as far as that is written. Those of a proxy have wanted to go
/// elsewhere.
fn local(listener: &Listener) -> Option<SocketAddr> {
    let address = match *listener.address {
        Address::Inet(address) => address,
        Address::Both(port) => (Ipv6Addr::UNSPECIFIED, port).into(),
        Address::Path(_) | Address::Name(_) | Address::Inherited(_) => return None,
    };
    // With port 0 the kernel chooses one.
    Some(address).filter(|address| address.port() != 0 && listener.proxies.is_empty())
}

/// A user's number, as the kernel tells it of a peer; of a user who is not on this system, the name.
fn number(name: &str) -> String {
    users::number_of(name).map_or_else(|| name.to_owned(), |uid| uid.to_string())
}

fn owned(label: Fact<&Label>) -> Fact<Label> {
    label.map(Label::clone)
}

/// A connection that is only described.
#[derive(Debug)]
struct Given {
    peer: Option<IpAddr>,
    listener: Arc<str>,
    local: Option<SocketAddr>,
    context: Fact<Label>,
    user: Fact<String>,
    announced: Option<ClientHello>,
}

impl Subject for Given {
    fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(|peer| SocketAddr::new(peer, 0))
    }

    fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    fn listener(&self) -> Arc<str> {
        Arc::clone(&self.listener)
    }

    fn context(&mut self) -> Fact<Label> {
        self.context.clone()
    }

    fn user(&self) -> Fact<String> {
        self.user.clone()
    }

    fn announced(&self) -> Option<ClientHello> {
        self.announced.clone()
    }
}

/// Pools as they are planned: every worker ready, none with a connection.
#[derive(Debug)]
struct Planned {
    pools: Vec<(Arc<str>, u32)>,
}

impl Planned {
    fn name(&self, pool: usize) -> String {
        self.pools.get(pool).map_or_else(String::new, |(name, _)| name.to_string())
    }
}

impl Pools for Planned {
    fn names(&self) -> Vec<Arc<str>> {
        self.pools.iter().map(|(name, _)| Arc::clone(name)).collect()
    }

    fn slots(&self, pool: usize) -> Vec<(u32, Arc<str>)> {
        let Some((name, workers)) = self.pools.get(pool) else { return Vec::new() };
        (0..*workers).map(|slot| (slot, format!("{name}-{}", slot + 1).into())).collect()
    }

    fn ready(&self, _: usize, _: u32) -> bool {
        true
    }

    fn connections(&self, _: usize, _: u32) -> u32 {
        0
    }

    fn worker_for(&self, pool: usize, key: &[u8]) -> Option<u32> {
        let slots = self.slots(pool).into_iter();
        slots.max_by_key(|(_, name)| pick::score(key, name)).map(|(slot, _)| slot)
    }
}
