//! What the supervisor does when somebody asks it over the admin socket. Nothing here waits.

use vestibule_protocol::supervision::{ToRouter, WorkerId};

use super::super::admin::wire::{Answer, Question, Refusal};
use super::super::admin::{Admin, Reply, Request};
use super::super::process_table::Phase;
use super::Master;
use super::pools::Pool;
use super::reload::NotReloaded;

/// The most workers that a pool can have, as for `--workers`.
const MOST_WORKERS: u32 = 4096;
/// Names that an error lists: a screenful.
const LISTED: usize = 32;

/// How a command ended. Both sides are an answer: the second is one that refuses.
type Outcome = Result<Answer, Answer>;

impl Master {
    /// Starts to answer on the socket of the plan.
    pub(super) fn open_admin(&mut self) {
        let Some(socket) = self.admin_socket.take() else { return };
        let path = socket.path().display().to_string();
        match Admin::start(socket) {
            Ok(admin) => {
                tracing::info!(path, "the admin socket is open");
                self.admin = Some(admin);
            }
            Err(error) => tracing::warn!(path, %error, "there is no admin socket"),
        }
    }

    /// Does what is asked, and answers.
    pub(super) fn administer(&mut self, Request { question, reply }: Request) {
        let answer = match question {
            Question::Status {} => self.report_status(),
            Question::Trace { rejected, since, peer } => self.ask_trace(rejected, since, peer),
            Question::Reload {} if !self.stopping => {
                tracing::info!(?question, "administered");
                return self.reread(reply);
            }
            question => {
                tracing::info!(?question, "administered");
                let (Ok(answer) | Err(answer)) = self.execute(question);
                Reply::Now(answer)
            }
        };
        // Whoever asked may be gone.
        let _ = reply.send(answer);
    }

    fn execute(&mut self, question: Question) -> Outcome {
        if self.stopping {
            return match question {
                Question::Stop {} => Ok(Answer::done("it is stopping already")),
                _ => Err(Answer::refused(Refusal::Stopping, "it is stopping")),
            };
        }
        match question {
            Question::Stop {} => {
                self.stop();
                Ok(Answer::done("stopping: workers finish what they have"))
            }
            Question::Drain { worker, hold: true } => self.hold(&worker),
            Question::Drain { worker, hold: false } => self.drain(&worker),
            Question::Ready { worker } => self.take_back(&worker),
            Question::Scale { pool, workers } => self.scale(&pool, workers),
            Question::Restart { pool } => self.restart(&pool),
            // Answered before.
            Question::Reload {} | Question::Status {} | Question::Trace { .. } => {
                Err(Answer::refused(Refusal::NotUnderstood, "this is no command"))
            }
        }
    }

    fn drain(&mut self, name: &str) -> Outcome {
        let (worker, phase) = self.find(name)?;
        match phase {
            Phase::Draining => return Ok(Answer::done(format!("{name} drains already"))),
            Phase::Backoff | Phase::Ended => {
                let text = format!("{name} has no process to drain: it is in {}", phase.as_str());
                return Err(Answer::refused(Refusal::State, text));
            }
            Phase::Starting | Phase::Ready => {}
        }
        self.table.drain(worker);
        self.tell_router(ToRouter::Drain { worker, hold: false });
        Ok(Answer::done(format!("{name} drains; another process takes its place when it is empty")))
    }

    fn hold(&mut self, name: &str) -> Outcome {
        let (worker, phase) = self.find(name)?;
        if phase == Phase::Ended {
            let text = format!("{name} has no process to hold: it is over");
            return Err(Answer::refused(Refusal::State, text));
        }
        // Who is to take over from it, too.
        for worker in self.successor_of(worker).into_iter().chain([worker]) {
            self.table.hold(worker, true);
            self.tell_router(ToRouter::Drain { worker, hold: true });
        }
        Ok(Answer::done(format!(
            "{name} is held: it keeps what it has and takes nothing new until \
             `vestibule ready {name}`"
        )))
    }

    fn take_back(&mut self, name: &str) -> Outcome {
        let (worker, phase) = self.find(name)?;
        let held = self.table.find(name).is_some_and(|record| record.held);
        if held {
            for worker in self.successor_of(worker).into_iter().chain([worker]) {
                self.table.hold(worker, false);
                self.tell_router(ToRouter::Undrain { worker });
            }
        }
        match phase {
            Phase::Ready if held => Ok(Answer::done(format!("{name} takes connections again"))),
            Phase::Ready => Ok(Answer::done(format!("{name} takes connections already"))),
            Phase::Starting | Phase::Backoff => {
                Ok(Answer::done(format!("{name} takes connections as soon as it is up")))
            }
            Phase::Draining if held => {
                Ok(Answer::done(format!("{name} drains; whoever follows it takes connections")))
            }
            Phase::Draining | Phase::Ended => {
                let text = format!("{name} cannot be taken back: it is {}", phase.as_str());
                Err(Answer::refused(Refusal::State, text))
            }
        }
    }

    fn scale(&mut self, name: &str, workers: u32) -> Outcome {
        let pool = self.pool(name)?;
        if !(1..=MOST_WORKERS).contains(&workers) {
            let text = format!("a pool has 1 to {MOST_WORKERS} workers, not {workers}");
            return Err(Answer::refused(Refusal::Number, text));
        }
        let before = self.wanted(pool);
        self.resize(pool, workers);
        let plural = if workers == 1 { "" } else { "s" };
        Ok(Answer::done(format!("pool {name} has {workers} worker{plural}, {before} before")))
    }

    fn restart(&mut self, name: &str) -> Outcome {
        let pool = self.pool(name)?;
        let workers = self.roll(pool);
        let plural = if workers == 1 { "" } else { "s" };
        Ok(Answer::done(format!(
            "pool {name} is restarted: {workers} worker{plural}, one at a time; `vestibule status` \
             shows how far it is"
        )))
    }

    fn reread(&mut self, reply: tokio::sync::oneshot::Sender<Reply>) {
        self.reload(Box::new(|outcome| {
            let answer = match outcome {
                Ok(text) => Answer::done(text),
                Err(why) => not_reloaded(why),
            };
            // Whoever asked may be gone.
            let _ = reply.send(Reply::Now(answer));
        }));
    }

    /// The number of a pool's name.
    fn pool(&self, name: &str) -> Result<u32, Answer> {
        let pool = self.pools.iter().find(|pool| pool.name() == name);
        pool.map(|pool| pool.id).ok_or_else(|| {
            let names = self.pools.iter().map(Pool::name);
            let text = format!("there is no pool `{name}`; there is {}", list(names));
            Answer::refused(Refusal::UnknownPool, text)
        })
    }

    /// A worker that has not been taken out of its pool.
    fn find(&self, name: &str) -> Result<(WorkerId, Phase), Answer> {
        match self.table.find(name) {
            Some(record) if !record.retired => Ok((record.worker, record.phase)),
            Some(record) if record.phase != Phase::Ended => {
                let text = format!("{name} was taken out of its pool and finishes what it has");
                Err(Answer::refused(Refusal::State, text))
            }
            _ => {
                let names = self.table.records().filter(|record| record.is_current());
                let names = list(names.map(|record| &*record.name));
                let text = format!("there is no worker `{name}`; there is {names}");
                Err(Answer::refused(Refusal::UnknownWorker, text))
            }
        }
    }
}

fn not_reloaded(why: NotReloaded) -> Answer {
    let (refusal, text) = match why {
        NotReloaded::NoFile => (
            Refusal::State,
            "there is no configuration file to be read again: it was started without one"
                .to_owned(),
        ),
        NotReloaded::Busy => {
            (Refusal::State, "another reload is under way: try again in a moment".to_owned())
        }
        NotReloaded::Stopping => (Refusal::Stopping, "it is stopping".to_owned()),
        NotReloaded::RouterEnded => (
            Refusal::State,
            "nothing has changed: the router ended while it tried the script".to_owned(),
        ),
        NotReloaded::Mistakes(text) => {
            (Refusal::Configuration, format!("nothing has changed:\n{text}"))
        }
    };
    Answer::refused(refusal, text)
}

/// Names for a person, the first of many.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    let shown = names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
