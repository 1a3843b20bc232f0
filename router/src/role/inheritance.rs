//! The next router's side of a planned change: what it takes over from the one before.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::task::JoinHandle;
use vestibule_protocol::supervision::ToRouter;

use super::Router;
use super::change::Former;
use super::estate::{Bounds, Estate};
use super::passing::{Heard, Inherited, Passed, Wrong};
use crate::control::ControlPort;
use crate::dispatch::Dispatch;
use crate::handoff::{Cargo, Entry};
use crate::pool::core::succession::Legacy;
use crate::reject::{Reason, Rejection};

/// What the router before this one passes on, and what the supervisor says of workers meanwhile: none
/// of it is touched before it is this router's turn.
pub(super) struct Inheritance {
    arrives: JoinHandle<Arrived>,
    orders: Vec<(ToRouter, Option<OwnedFd>)>,
}

/// Everything that came.
#[derive(Default)]
struct Arrived {
    /// What workers have not answered.
    legacies: Vec<Legacy>,
    /// All else.
    things: Vec<Inherited>,
    /// To the router before this one, if it is there.
    channel: Option<ControlPort<Heard, Passed>>,
}

impl Inheritance {
    /// Takes it from the channel as it comes.
    pub(super) fn expect(predecessor: OwnedFd, bounds: Bounds) -> Self {
        Self { arrives: tokio::spawn(receive(predecessor, bounds)), orders: Vec::new() }
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
        let Arrived { legacies, things, channel } = arrives.await.unwrap_or_else(|error| {
            tracing::error!(%error, "what the router before passed on is lost");
            Arrived::default()
        });
        if let Some(channel) = channel {
            // Whoever cannot be told is gone, and will not act either.
            let _ = channel.say(&Heard::Acts, None).await;
        }
        // Before their workers are named: whatever those say then is an answer.
        for mut legacy in legacies {
            for entry in legacy.unanswered.entries_mut() {
                self.count_again(entry);
            }
            self.ports.inherit(legacy);
        }
        for (message, descriptor) in orders {
            self.take(message, descriptor);
        }
        self.ports.end_inheriting();
        self.go_on_with(things);
    }

    fn go_on_with(&mut self, things: Vec<Inherited>) {
        let mut table = self.switch.present();
        for thing in things {
            match thing {
                Inherited::Waiting(pool, entry) => self.queue_again(pool, entry),
                Inherited::Former(number) => {
                    // By the present one the listeners of those who follow are unknown: they are told so.
                    table = self.former_table(number).unwrap_or_else(|| self.switch.present());
                }
                Inherited::Inspected(listener, before) => table.resume(listener, before),
                Inherited::Used(used) => table.take_used_rates(&used),
                // These were sorted out.
                Inherited::Worker(_) | Inherited::Offered(_) => {}
            }
        }
        self.former.clear();
    }

    /// The table of a configuration that another has replaced. The router before this one names each once.
    fn former_table(&mut self, number: u64) -> Option<Arc<Dispatch>> {
        let Some(at) = self.former.iter().position(|former| former.number == number) else {
            tracing::error!(number, "nobody knows a former configuration that clients go by");
            return None;
        };
        let setup = self.former.swap_remove(at);
        match self.prepare_former(&setup) {
            Ok(table) => {
                self.replaced.push(Former { table: Arc::clone(&table), number });
                Some(table)
            }
            Err(error) => {
                // It could be used a moment ago.
                tracing::error!(%error, "a former table cannot be used");
                None
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

async fn receive(predecessor: OwnedFd, bounds: Bounds) -> Arrived {
    let Ok(mut channel) = ControlPort::<Heard, Passed>::new(predecessor) else {
        return Arrived::default();
    };
    let mut estate = Estate::new(bounds);
    // Its end without a last word is that of a router that crashed: what came has come. For how long it
    // may say something, the supervisor knows.
    let taken = loop {
        match channel.recv().await {
            Ok(Some((Passed::All, None))) => break true,
            Ok(Some((passed, descriptor))) => estate.take(passed, descriptor),
            Err(error) if error.is_of_one_message() => estate.leave_out(&Wrong::Unreadable(error)),
            Ok(None) => break false,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn Error,
                    "the router before is not heard any more"
                );
                break false;
            }
        }
    };
    let (legacies, things) = estate.end();
    let mut channel = taken.then_some(channel);
    if let Some(other) = &channel
        && other.say(&Heard::Taken, None).await.is_err()
    {
        channel = None;
    }
    Arrived { legacies, things, channel }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use vestibule_protocol::codec::Codec;
    use vestibule_protocol::header::Header;
    use vestibule_protocol::message::kind;
    use vestibule_protocol::socket::{PacketSocket, Sent};
    use vestibule_protocol::sys;

    use super::super::passing::tests::{decided, known};
    use super::*;

    #[tokio::test]
    async fn a_message_that_cannot_be_read_costs_itself_and_not_the_change() {
        let (ours, theirs) = sys::seqpacket_pair().unwrap();
        let arrives = tokio::spawn(receive(ours, Bounds::of(2, 0)));
        let other = PacketSocket::new(theirs.try_clone().unwrap()).unwrap();
        let mut port = ControlPort::<Passed, Heard>::new(theirs).unwrap();
        let (client, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let waiting = || Passed::Waiting { pool: 1, what: decided(known()) };
        port.say(&waiting(), Some(client.as_fd())).await.unwrap();
        // No header; another kind; another format; no such message; a body that is nowhere.
        let header = |kind, codec| Header { codec, ..Header::new(kind, 0) };
        let garbage = header(kind::SUPERVISION, Codec::Bincode);
        let heads = [
            header(kind::OFFER, Codec::Bincode).encode(),
            header(kind::SUPERVISION, Codec::Json).encode(),
            garbage.encode(),
            Header { large: true, descriptors: 1, ..garbage }.encode(),
        ];
        assert_eq!(other.try_send(&[IoSlice::new(b"?")], &[]), Ok(Sent::Whole));
        for head in heads {
            assert_eq!(
                other.try_send(&[IoSlice::new(&head), IoSlice::new(&[255; 9])], &[]),
                Ok(Sent::Whole)
            );
        }
        port.say(&waiting(), Some(client.as_fd())).await.unwrap();
        port.say(&Passed::All, None).await.unwrap();
        assert!(matches!(port.recv().await, Ok(Some((Heard::Taken, None)))));
        let arrived = arrives.await.unwrap();
        assert_eq!(arrived.things.len(), 2);
        assert!(arrived.channel.is_some(), "it is told that this one acts");
    }
}
