//! One script in one QuickJS context, and its turns.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use rquickjs::promise::PromiseState;
use rquickjs::runtime::UserDataGuard;
use rquickjs::{Class, Context, Ctx, Error, Function, JsLifetime, Object, Promise, Result, Value};

use super::book::{Book, Closed, Register, Ticket, Wants};
use super::clock::Clock;
use super::connection::JsConnection;
use super::failure::{Failure, FailureKind, Failures};
use super::layouts::Layouts;
use super::rejections::Rejections;
use super::request::JsHead;
use super::start::{START, start};
use super::switch::{Position, Switch};
use super::text::Text;
use super::waiting::Waiting;
use super::{Limits, Outcome, Pools, Source, Subject, jobs, native, pools};
use crate::inspect::Speech;
use crate::sys::quickjs;

/// Name of the error that a script gets for what cannot be known.
pub(super) const UNKNOWN: &str = "NotReadableError";

/// What is kept in the runtime: it is dropped with it, never after.
#[derive(JsLifetime)]
pub(super) struct Handles<'js> {
    dispatch: Function<'js>,
    /// Here, and not with each object: sharing it takes two locked instructions an object.
    #[qjs(skip)]
    pub(super) book: Arc<dyn Register>,
    pub(super) waiting: Waiting<'js>,
    pub(super) rejections: Rejections<'js>,
    /// Of the classes that decisions make objects of, looked up once.
    connection: Object<'js>,
    head: Object<'js>,
    pub(super) layouts: Layouts<'js>,
}

impl<'js> Handles<'js> {
    pub(super) fn new(
        ctx: &Ctx<'js>,
        dispatch: Function<'js>,
        book: Arc<dyn Register>,
    ) -> Result<Self> {
        Ok(Self {
            dispatch,
            book,
            waiting: Waiting::default(),
            rejections: Rejections::default(),
            connection: native::prototype::<JsConnection>(ctx)?,
            head: native::prototype::<JsHead>(ctx)?,
            layouts: Layouts::new(ctx)?,
        })
    }

    /// Those of a script.
    ///
    /// # Errors
    /// It has none: it was not started by `start`.
    pub(super) fn of<'a>(ctx: &'a Ctx<'js>) -> Result<UserDataGuard<'a, Self>> {
        ctx.userdata().ok_or(Error::Unknown)
    }

    /// The script has run, and decisions begin.
    pub(super) fn make_room(&self, ctx: &Ctx<'js>) -> Result<()> {
        self.layouts.make_room(ctx)
    }

    pub(super) fn head(&self, head: JsHead) -> Result<Class<'js, JsHead>> {
        Class::instance_proto(head, self.head.clone())
    }
}

/// What became of a connection in one turn.
#[derive(Debug)]
pub enum Verdict<S> {
    /// The script has decided, or will not.
    Decided(S, Outcome),
    /// It awaits what the client says: to be resumed with that.
    Waits(S, Ticket),
    /// It was forgotten meanwhile.
    Gone,
}

/// How a turn ended.
enum End {
    /// The handler has returned, and waits for nothing.
    Done,
    /// It waits for these of the client's bytes. Something else may have failed meanwhile.
    Waits(Wants, Option<Failure>),
    Failed(Failure),
}

/// A script that decides about connections.
pub struct Engine<S: Subject> {
    text: Text,
    limits: Limits,
    pools: Arc<dyn Pools>,
    book: Arc<Book<S>>,
    clock: Clock,
    switch: Switch,
    failures: Failures,
    last: Option<Failure>,
    /// Failures are somebody else's to tell, and each connection is judged by itself.
    quiet: bool,
    /// Lists of workers are out of date.
    stale: bool,
    /// Dropped before the runtime that it belongs to, which is inside. `None`: it could not be started
    /// again.
    context: Option<Context>,
}

impl<S: Subject> fmt::Debug for Engine<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Engine").field("script", &self.text.name()).finish_non_exhaustive()
    }
}

impl<S: Subject> Engine<S> {
    /// Compiles a script and runs its top level.
    ///
    /// # Errors
    /// The text is no JavaScript, its top level fails, or it sets no handler.
    pub fn new(
        source: Source,
        limits: Limits,
        pools: Arc<dyn Pools>,
    ) -> std::result::Result<Self, Failure> {
        let clock = Clock::default();
        let book = Arc::new(Book::new());
        let text = Text::new(source, pools.names());
        let context = start(&text, &limits, &pools, &clock, book.clone())?;
        Ok(Self {
            text,
            limits,
            pools,
            book,
            clock,
            switch: Switch::default(),
            failures: Failures::default(),
            last: None,
            quiet: false,
            stale: false,
            context: Some(context),
        })
    }

    /// Logs no failure: whoever asks tells what became of it. And whatever has failed, the script is asked the
    /// next time.
    pub fn quietly(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Slots of a pool came or went.
    pub fn slots_changed(&mut self) {
        self.stale = true;
    }

    /// Asks the script about a connection of which nothing is known but what comes with it.
    pub fn decide(&mut self, subject: S) -> Verdict<S> {
        if !self.is_on() {
            return Verdict::Decided(subject, Outcome::Failed);
        }
        let peer = subject.peer();
        let ticket = self.book.open(subject);
        let end = self.turn(ticket, |_, handles| {
            let connection = JsConnection { ticket, peer };
            let connection = Class::instance_proto(connection, handles.connection.clone())?;
            Ok(quickjs::call(&handles.dispatch, connection.as_value())?.into_promise())
        });
        self.conclude(ticket, end)
    }

    /// Goes on with a connection whose client has said something, or has not in time.
    pub fn resume(&mut self, ticket: Ticket, subject: S, speech: Arc<Speech>) -> Verdict<S> {
        if let Err(subject) = self.book.give_back(ticket, subject, Arc::clone(&speech)) {
            return Verdict::Decided(subject, Outcome::Failed);
        }
        let end = self.turn(ticket, |ctx, handles| {
            let Some(mut place) = handles.waiting.take(ticket) else { return Ok(None) };
            for want in place.take_wants() {
                // It was asked for while the connection was away, and goes on waiting.
                if !want.is_answered_by(&speech) {
                    handles.waiting.add(ticket, want);
                    continue;
                }
                want.answer(ctx, handles, ticket, &speech)?;
            }
            Ok(place.handler)
        });
        self.conclude(ticket, end)
    }

    /// Forgets a connection that waits: it is gone.
    pub fn forget(&mut self, ticket: Ticket) {
        self.book.close(ticket);
        self.drop_waiting(ticket);
    }

    /// What failed since this was asked before.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.last.take()
    }

    /// What failed last, unless that was taken.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last.as_ref()
    }

    /// Connections that the script was asked about and that are not decided.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.book.len()
    }

    /// Pieces of memory that the script holds.
    #[cfg(test)]
    pub(super) fn pieces(&self) -> i64 {
        self.context.as_ref().map_or(0, |context| context.runtime().memory_usage().malloc_count)
    }

    fn is_on(&mut self) -> bool {
        match self.switch.position(Instant::now) {
            Position::Off => return false,
            Position::Again => self.restart(),
            Position::On => {}
        }
        if std::mem::take(&mut self.stale)
            && let Some(context) = &self.context
        {
            self.clock.begin(START);
            let book: Arc<dyn Register> = self.book.clone();
            let refreshed = context.with(|ctx| {
                pools::refresh(&ctx, &self.pools, &book).map_err(|_| ctx.catch()).is_ok()
            });
            if !refreshed {
                tracing::warn!(script = %self.text.name(), "the script's pools cannot be renewed");
            }
        }
        self.context.is_some()
    }

    /// One turn of the script: `step`, then whatever it left to be done.
    fn turn(
        &self,
        ticket: Ticket,
        step: impl for<'js> FnOnce(&Ctx<'js>, &Handles<'js>) -> Result<Option<Promise<'js>>>,
    ) -> End {
        let Some(context) = &self.context else { return End::Done };
        self.clock.begin(self.limits.time);
        context.with(|ctx| {
            let Ok(handles) = Handles::of(&ctx) else { return End::Done };
            let result = step(&ctx, &handles);
            let end = self.end(&ctx, &handles, ticket, result);
            // Whoever has failed has said so, and what else was rejected is no other turn's.
            handles.rejections.clear();
            end
        })
    }

    /// Does what a turn has left to be done.
    fn end<'js>(
        &self,
        ctx: &Ctx<'js>,
        handles: &Handles<'js>,
        ticket: Ticket,
        result: Result<Option<Promise<'js>>>,
    ) -> End {
        let Ok(promise) = result else { return End::Failed(self.failure(ctx)) };
        let thrown = jobs::run(ctx, &self.clock);
        if self.clock.expired() {
            return End::Failed(Failure::late(ctx, &self.text, &self.limits));
        }
        if let Some(promise) = promise {
            match promise.state() {
                PromiseState::Resolved => {}
                PromiseState::Rejected => {
                    // Throws what it was rejected with.
                    let _ = promise.result::<Value>();
                    return End::Failed(self.failure(ctx));
                }
                PromiseState::Pending => handles.waiting.keep(ticket, promise),
            }
        }
        let failure = jobs::failure(ctx, thrown, handles, &self.text);
        match (handles.waiting.has(ticket), failure) {
            (true, failure) => End::Waits(handles.waiting.wants(ticket), failure),
            (false, Some(failure)) => End::Failed(failure),
            (false, None) => End::Done,
        }
    }

    /// What was just thrown.
    fn failure(&self, ctx: &Ctx<'_>) -> Failure {
        if self.clock.expired() {
            return Failure::late(ctx, &self.text, &self.limits);
        }
        Failure::thrown(ctx, &ctx.catch(), &self.text)
    }

    fn conclude(&mut self, ticket: Ticket, end: End) -> Verdict<S> {
        self.leave_alone_if_far_over(&end);
        let (wants, failure) = match end {
            End::Done => (None, None),
            End::Waits(wants, failure) => (Some(wants), failure),
            End::Failed(failure) => (None, Some(failure)),
        };
        if let Some(wants) = wants
            && let Some(subject) = self.book.lend(ticket)
        {
            // What awaits the client's bytes may decide all the same.
            if let Some(failure) = failure
                && !(failure.is_of_what_is_unknown() && self.book.has_unknown(ticket))
            {
                self.note(&failure);
                self.last = Some(failure);
            }
            let ticket = Ticket { wants, ..ticket };
            return Verdict::Waits(subject, ticket);
        }
        if wants.is_some() || failure.is_some() {
            self.drop_waiting(ticket);
        }
        let closed = self.book.close(ticket);
        let Some(Closed { subject: Some(subject), outcome, unknown }) = closed else {
            return Verdict::Gone;
        };
        let outcome = match (failure, unknown) {
            // The client's fault, which is not to switch a script off.
            (Some(failure), Some(cause)) if failure.is_of_what_is_unknown() => {
                outcome.unwrap_or(Outcome::Unknown(cause))
            }
            (Some(failure), _) => {
                self.failed(&failure);
                outcome.unwrap_or(Outcome::Failed)
            }
            (None, _) => {
                self.switch.worked();
                outcome.unwrap_or(Outcome::Undecided)
            }
        };
        Verdict::Decided(subject, outcome)
    }

    /// What a turn took alone that sixteen failures may take together is not tried again at once.
    fn leave_alone_if_far_over(&mut self, end: &End) {
        if !self.clock.is_far_over() {
            return;
        }
        // One that ended by itself was never told that its time was over; what it did stands.
        if !matches!(end, End::Failed(_)) {
            let failure = Failure::time(self.text.name(), &self.limits);
            self.note(&failure);
            self.last = Some(failure);
        }
        if self.quiet {
            return;
        }
        tracing::error!(
            script = %self.text.name(),
            "one decision of the script took the time of {} and more: the script is left alone for a second",
            super::switch::MOST_FAILURES
        );
        self.switch.off(Instant::now());
    }

    fn note(&mut self, failure: &Failure) {
        if let Some(count) = self.failures.note(failure).filter(|_| !self.quiet) {
            tracing::warn!(count, "{failure}");
        }
    }

    fn drop_waiting(&self, ticket: Ticket) {
        if let Some(context) = &self.context {
            context.with(|ctx| {
                if let Ok(handles) = Handles::of(&ctx) {
                    drop(handles.waiting.take(ticket));
                }
            });
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.note(failure);
        if !self.quiet && self.switch.failed(Instant::now()) {
            tracing::error!(
                script = %self.text.name(),
                "the script failed {} times in a row and is left alone for a second",
                super::switch::MOST_FAILURES
            );
        }
        self.last = Some(failure.clone());
        // What ran out of memory keeps it, and what ran out of time may have left work that would be
        // done in the time of others: both begin anew.
        if matches!(failure.kind, FailureKind::Time | FailureKind::Memory) {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.context = None;
        let book = self.book.clone();
        match start(&self.text, &self.limits, &self.pools, &self.clock, book) {
            Ok(context) => {
                self.context = Some(context);
                self.stale = false;
            }
            Err(failure) => {
                if let Some(count) = self.failures.note(&failure) {
                    tracing::warn!(count, "the script cannot be started again: {failure}");
                }
                self.switch.off(Instant::now());
            }
        }
    }
}
