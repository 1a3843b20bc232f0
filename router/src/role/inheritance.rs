//! The next router's side of a planned change: what it takes over from the one before.

use std::os::fd::OwnedFd;

use tokio::task::JoinHandle;
use vestibule_protocol::connection_info::Names;
use vestibule_protocol::supervision::ToRouter;

use super::Router;
use super::change::Former;
use super::passing::{Heard, Inherited, Passed};
use crate::control::ControlPort;
use crate::handoff::{Cargo, Entry};
use crate::pool::core::succession::Legacy;
use crate::reject::{Reason, Rejection};

/// What the router before this one passes on, and what the supervisor says of workers meanwhile: none
/// of it is touched before it is this router's turn.
pub(super) struct Inheritance {
    arrives: JoinHandle<Estate>,
    orders: Vec<(ToRouter, Option<OwnedFd>)>,
}

/// Everything that came.
#[derive(Default)]
struct Estate {
    /// What workers have not answered.
    legacies: Vec<Legacy>,
    /// All else.
    things: Vec<Inherited>,
    /// To the router before this one, if it is there.
    channel: Option<ControlPort<Heard, Passed>>,
}

impl Estate {
    fn extend(&mut self, thing: Option<Inherited>) {
        match thing {
            Some(Inherited::Worker(legacy)) => self.legacies.push(legacy),
            Some(Inherited::Offered(offer)) => match self.legacies.last_mut() {
                Some(legacy) => legacy.unanswered.offers.push(offer),
                None => tracing::error!("a connection came before the worker that it was sent to"),
            },
            thing => self.things.extend(thing),
        }
    }
}

impl Inheritance {
    /// Takes it from the channel as it comes.
    pub(super) fn expect(predecessor: OwnedFd) -> Self {
        Self { arrives: tokio::spawn(receive(predecessor)), orders: Vec::new() }
    }

    /// What the supervisor says waits until then: to speak to a worker is to act.
    pub(super) fn later(&mut self, message: ToRouter, descriptor: Option<OwnedFd>) {
        self.orders.push((message, descriptor));
    }
}

impl Router {
    /// What came goes to wait where it waited, or for the answer of the worker that it was sent to, and
    /// whoever was looked at is looked at from the first look. The router before this one keeps all of it until it is told that this one acts.
    pub(super) async fn take_over(&mut self, Inheritance { arrives, orders }: Inheritance) {
        let Estate { legacies, things, channel } = arrives.await.unwrap_or_default();
        if let Some(channel) = channel {
            // Whoever cannot be told is gone, and will not act either.
            let _ = channel.say(&Heard::Acts, None).await;
        }
        // Before their workers are named: whatever those say then is an answer.
        for mut legacy in legacies {
            for offer in &mut legacy.unanswered.offers {
                self.count_again(&mut offer.entry);
            }
            self.ports.inherit(legacy);
        }
        for (message, descriptor) in orders {
            self.take(message, descriptor);
        }
        self.ports.end_inheriting();
        let mut table = self.switch.present();
        for thing in things {
            match thing {
                Inherited::Waiting(pool, entry) => self.queue_again(pool, entry),
                Inherited::Former(setup) => match self.prepare_former(&setup) {
                    Ok(former) => {
                        table = former;
                        self.replaced.push(Former { table: table.clone(), setup: *setup });
                    }
                    // It could be used a moment ago. By the present one its listeners are unknown.
                    Err(error) => tracing::error!(%error, "a former table cannot be used"),
                },
                Inherited::Inspected(listener, before) => table.resume(listener, before),
                Inherited::Used(used) => table.take_used_rates(&used),
                // These were sorted out.
                Inherited::Worker(_) | Inherited::Offered(_) => {}
            }
        }
    }

    /// It takes its peer's room here, too.
    fn count_again(&self, entry: &mut Entry) {
        if let Cargo::Connection(connection) = &mut entry.cargo {
            self.switch.present().count_again(connection);
        }
    }

    fn queue_again(&self, pool: u32, mut entry: Entry) {
        self.count_again(&mut entry);
        let given = match self.ports.pools().get(&pool) {
            Some(pool) => pool.step(|core| {
                let given = core.offer_again(entry);
                core.flush();
                given.map_err(|(refused, entry)| (crate::accept::rejection(refused), entry))
            }),
            None => Err((Rejection::because(Reason::NoWorker), entry)),
        };
        if let Err((rejection, Entry { cargo: Cargo::Connection(connection), .. })) = given {
            self.switch.present().reject(connection, rejection);
        }
    }
}

async fn receive(predecessor: OwnedFd) -> Estate {
    let mut estate = Estate::default();
    let Ok(mut channel) = ControlPort::<Heard, Passed>::new(predecessor) else {
        return estate;
    };
    let mut names = Names::default();
    // Its end without a last word is that of a router that crashed: what came has come.
    while let Ok(Some((passed, descriptor))) = channel.recv().await {
        if matches!(passed, Passed::All) {
            estate.channel = channel.say(&Heard::Taken, None).await.is_ok().then_some(channel);
            return estate;
        }
        estate.extend(Inherited::new(passed, descriptor, &mut names));
    }
    estate
}
