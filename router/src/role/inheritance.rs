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
    things: Vec<Inherited>,
    /// To the router before this one, if it is there.
    channel: Option<ControlPort<Heard, Passed>>,
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
    /// What came goes to wait where it waited, and whoever was looked at is looked at from the first
    /// look. The router before this one keeps all of it until it is told that this one acts.
    pub(super) async fn take_over(&mut self, Inheritance { arrives, orders }: Inheritance) {
        let Estate { things, channel } = arrives.await.unwrap_or_default();
        if let Some(channel) = channel {
            // Whoever cannot be told is gone, and will not act either.
            let _ = channel.say(&Heard::Acts, None).await;
        }
        for (message, descriptor) in orders {
            self.take(message, descriptor);
        }
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
            }
        }
    }

    fn queue_again(&self, pool: u32, mut entry: Entry) {
        let table = self.switch.present();
        if let Cargo::Connection(connection) = &mut entry.cargo {
            table.count_again(connection);
        }
        let given = match self.ports.pools().get(&pool) {
            Some(pool) => pool.step(|core| {
                let given = core.offer(entry);
                core.flush();
                given.map_err(|(refused, entry)| (crate::accept::rejection(refused), entry))
            }),
            None => Err((Rejection::because(Reason::NoWorker), entry)),
        };
        if let Err((rejection, Entry { cargo: Cargo::Connection(connection), .. })) = given {
            table.reject(connection, rejection);
        }
    }
}

async fn receive(predecessor: OwnedFd) -> Estate {
    let mut things = Vec::new();
    let Ok(mut channel) = ControlPort::<Heard, Passed>::new(predecessor) else {
        return Estate::default();
    };
    let mut names = Names::default();
    // Its end without a last word is that of a router that crashed: what came has come.
    while let Ok(Some((passed, descriptor))) = channel.recv().await {
        if matches!(passed, Passed::All) {
            let channel = channel.say(&Heard::Taken, None).await.is_ok().then_some(channel);
            return Estate { things, channel };
        }
        things.extend(Inherited::new(passed, descriptor, &mut names));
    }
    Estate { things, channel: None }
}
