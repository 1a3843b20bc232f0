//! From one router to the next, in a planned change: what waits for a worker, what workers have not
//! answered, and whoever is looked at, is passed on, so that nothing is lost.
//!
//! The supervisor gives the two the ends of one channel. The old one has accepted its last, and reads no
//! port any more; it says what waits, what was sent to workers and not answered, and who is looked at,
//! with their descriptors, and that this was all. It answers nobody any more, and keeps everything until
//! the new one acts: if that one dies before, the supervisor names another, which is told the same.
//!
//! What a worker answers is read by one of the two: by the old one, and then what it answers is not passed
//! on; or it stays in the worker's port, and is for the new one.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use vestibule_protocol::supervision::{FromRouter, ToRouter};

use super::passing::{self, Heard, Passed};
use super::{End, Router};
use crate::control::{ControlError, ControlPort, Parcel};
use crate::dispatch::{Before, Dispatch, Used};
use crate::handoff::Entry;
use crate::pool::Core;
use crate::pool::core::succession::Legacy;
use crate::reject;

/// How long the ports of processes that are known to be dead may take to end: a second each, all at
/// once; then somebody else holds them, and what they were sent is closed.
const BURY: Duration = Duration::from_secs(2);
/// How long it may take to route what came back before that: as a rule a turn of the event loop.
const ROUTE: Duration = Duration::from_secs(1);
/// Rates that are said in one message.
const RATES: usize = 1_000;

/// The router that is to take over.
pub(super) struct Successor {
    /// Which one, of those that are tried.
    pub(super) number: u64,
    pub(super) channel: OwnedFd,
}

/// Everything that is passed on. It stays here until somebody else acts.
struct Kept {
    waiting: Vec<(u32, Entry)>,
    /// What workers have not answered.
    legacies: Vec<Legacy>,
    present: LookedAt,
    /// Of listeners that a reload has removed: the number of what decides about them.
    former: Vec<(u64, LookedAt)>,
}

/// Whoever is looked at, by one table.
struct LookedAt {
    clients: Vec<(u32, Before)>,
    used: Vec<Used>,
}

impl LookedAt {
    fn of(table: &Dispatch) -> Self {
        Self { clients: table.take_all_looked_at(), used: table.used_rates() }
    }
}

/// What comes next for a router that keeps everything.
enum Turn {
    /// Another router acts.
    LetGo,
    /// The one that was to does not.
    Failed(u64),
    /// This one is to.
    Another(Successor),
    /// There is no supervisor any more.
    Over,
}

impl Router {
    /// Nothing is accepted any more: everything that waits goes to the next router.
    pub(super) async fn hand_over(
        mut self,
        successor: Successor,
        mut control: ControlPort<FromRouter, ToRouter>,
    ) {
        self.stop_acting().await;
        let kept = self.keep();
        // Named meanwhile, in place of one that has died.
        let mut next = match self.end.take() {
            Some(End::HandOver(another)) => Some(another),
            _ => Some(successor),
        };
        let supervisor = self.sender.clone();
        loop {
            let turn = tokio::select! {
                turn = pass_on(next.take(), &kept, &supervisor) => turn,
                turn = self.hear(&mut control) => turn,
            };
            match turn {
                Turn::LetGo => break,
                Turn::Over => return,
                Turn::Another(successor) => next = Some(successor),
                Turn::Failed(number) => {
                    tracing::warn!("what is passed on is kept for another router");
                    self.tell(FromRouter::Kept { number });
                }
            }
        }
        drop(kept);
        // Who is being turned away gets to read it.
        reject::all_said().await;
    }

    /// Offers nothing any more, and reads no port; what came back before that is routed.
    async fn stop_acting(&mut self) {
        for pool in self.ports.pools().values() {
            pool.step(Core::stop_offering);
        }
        // The supervisor does not name them to the next router.
        if timeout(BURY, self.ports.last_words()).await.is_err() {
            tracing::warn!("not every worker that has died is buried before the next router");
        }
        for pool in self.ports.pools().values() {
            pool.step(Core::stop_listening);
        }
        // What workers have handed back by now is routed first, by those who follow the pools.
        let routed = async {
            while self.ports.pools().values().any(|pool| pool.core().has_events()) {
                tokio::task::yield_now().await;
            }
        };
        if timeout(ROUTE, routed).await.is_err() {
            tracing::warn!("not everything that workers handed back goes to the next router");
        }
    }

    /// Takes out everything that waits, and whoever is looked at.
    fn keep(&mut self) -> Kept {
        // First who is looked at: afterwards nobody can be decided about and come to wait.
        let present = LookedAt::of(&self.switch.present());
        let former = self.replaced.drain(..).filter(|former| former.table.looks());
        let former = former.map(|former| (former.number, LookedAt::of(&former.table))).collect();
        let mut waiting = Vec::new();
        for (id, pool) in self.ports.pools() {
            let entries = pool.step(|core| core.take_everything());
            waiting.extend(entries.into_iter().map(|entry| (*id, entry)));
        }
        let pools = self.ports.pools().values();
        let legacies = pools.flat_map(|pool| pool.step(Core::take_unanswered)).collect();
        Kept { waiting, legacies, present, former }
    }

    /// Answers the supervisor while another router is awaited. What it says of workers, it says to
    /// that one, too.
    async fn hear(&mut self, control: &mut ControlPort<FromRouter, ToRouter>) -> Turn {
        loop {
            tokio::select! {
                message = control.recv() => match message {
                    Ok(Some((ToRouter::HandOver { number }, Some(channel)))) => {
                        return Turn::Another(Successor { number, channel });
                    }
                    Ok(Some((ToRouter::Ping { number }, _))) => {
                        self.tell(FromRouter::Pong { number });
                    }
                    Ok(Some((ToRouter::AskLoads { number }, _))) => self.tell(self.loads(number)),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Turn::Over,
                },
                Some(message) = self.told.recv() => self.tell(message),
            }
        }
    }
}

/// Says everything to the next router, and waits until that one acts.
async fn pass_on(
    next: Option<Successor>,
    kept: &Kept,
    supervisor: &mpsc::UnboundedSender<Parcel<FromRouter>>,
) -> Turn {
    let Some(Successor { number, channel }) = next else { return std::future::pending().await };
    let acts = async {
        let mut channel = ControlPort::<Passed, Heard>::new(channel).ok()?;
        let count = say_all(&channel, kept).await.ok()?;
        let Ok(Some((Heard::Taken, _))) = channel.recv().await else { return None };
        tracing::info!(count, "what waited is passed on");
        // Without a supervisor the channel to it ends, and so does this process.
        let _ = supervisor.send((FromRouter::HandedOver { number }, None));
        matches!(channel.recv().await, Ok(Some((Heard::Acts, _)))).then_some(())
    };
    match acts.await {
        Some(()) => Turn::LetGo,
        None => Turn::Failed(number),
    }
}

/// How many connections were said.
async fn say_all(channel: &ControlPort<Passed, Heard>, kept: &Kept) -> Result<usize, ControlError> {
    for (pool, entry) in &kept.waiting {
        if let Some((passed, socket)) = passing::waiting(*pool, entry) {
            channel.say(&passed, Some(socket)).await?;
        }
    }
    let now = Instant::now();
    let mut count = kept.waiting.len();
    for legacy in &kept.legacies {
        channel.say(&passing::worker(legacy), None).await?;
        for offer in legacy.unanswered.offers() {
            if let Some((passed, socket)) = passing::offered(offer, now) {
                channel.say(&passed, Some(socket)).await?;
                count += 1;
            }
        }
    }
    count += say_looked_at(channel, &kept.present).await?;
    for (number, looked_at) in &kept.former {
        channel.say(&Passed::Former { number: *number }, None).await?;
        count += say_looked_at(channel, looked_at).await?;
    }
    channel.say(&Passed::All, None).await?;
    Ok(count)
}

async fn say_looked_at(
    channel: &ControlPort<Passed, Heard>,
    looked_at: &LookedAt,
) -> Result<usize, ControlError> {
    let now = Instant::now();
    // Room is counted again as they come, rates first: whoever is not let in yet is counted by them.
    for used in looked_at.used.chunks(RATES) {
        channel.say(&Passed::Used(used.to_vec()), None).await?;
    }
    for (listener, before) in &looked_at.clients {
        let (passed, socket) = passing::inspected(*listener, before, now);
        channel.say(&passed, Some(socket)).await?;
    }
    Ok(looked_at.clients.len())
}
