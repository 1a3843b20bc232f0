//! One script in one QuickJS context, and its turns.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use rquickjs::function::IntoArgs;
use rquickjs::promise::PromiseState;
use rquickjs::{Class, Context, Ctx, Function, JsLifetime, Promise, Result, Value};

use super::book::{Book, Closed, Register, Ticket};
use super::clock::Clock;
use super::connection::{JsConnection, cause_text};
use super::failure::{Failure, FailureKind, Failures};
use super::request::{JsHead, JsHello};
use super::start::{START, start};
use super::switch::{Position, Switch};
use super::{Limits, Outcome, Pools, Source, Subject, pools};
use crate::inspect::{Cause, Fact, Facts, Speech};

/// Name of the error that a script gets for what cannot be known.
pub(super) const UNKNOWN: &str = "NotReadableError";

/// Which look a script asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tls,
    Http,
}

/// A promise that `tls()` or `http()` returned.
#[derive(JsLifetime)]
pub(super) struct Want<'js> {
    #[qjs(skip)]
    pub(super) kind: Kind,
    pub(super) resolve: Function<'js>,
    pub(super) reject: Function<'js>,
}

/// What this module keeps in the runtime: it is dropped with it, never after.
#[derive(JsLifetime)]
pub(super) struct Handles<'js> {
    dispatch: Function<'js>,
    /// Promises that wait for a client's bytes, by the connection's number.
    wants: RefCell<HashMap<u64, Vec<Want<'js>>>>,
    /// Promises of handlers that wait, by the connection's number.
    handlers: RefCell<HashMap<u64, Promise<'js>>>,
    /// One object of each kind that every decision makes, see `start`.
    kept_connection: RefCell<Option<Value<'js>>>,
    kept_head: RefCell<Option<Value<'js>>>,
    #[expect(dead_code, reason = "it is there to be there")]
    kept_promise: Vec<Value<'js>>,
}

impl<'js> Handles<'js> {
    pub(super) fn new(ctx: &Ctx<'js>, dispatch: Function<'js>) -> Result<Self> {
        let (promise, resolve, reject) = Promise::new(ctx)?;
        Ok(Self {
            dispatch,
            wants: RefCell::new(HashMap::new()),
            handlers: RefCell::new(HashMap::new()),
            kept_connection: RefCell::new(None),
            kept_head: RefCell::new(None),
            kept_promise: vec![promise.into_value(), resolve.into_value(), reject.into_value()],
        })
    }
}

impl<'js> Want<'js> {
    /// Keeps the promise.
    pub(super) fn answer(
        &self,
        ctx: &Ctx<'js>,
        book: &Arc<dyn Register>,
        ticket: Ticket,
        speech: &Arc<Speech>,
    ) -> Result<()> {
        let facts = Facts { speech, ..Facts::of_address(0, None) };
        let (book, speech) = (Arc::clone(book), Arc::clone(speech));
        match self.kind {
            Kind::Tls => match facts.hello() {
                Fact::Known(_) => {
                    let hello = JsHello { book, ticket, speech };
                    self.resolve.call((Class::instance(ctx.clone(), hello)?,))
                }
                Fact::Absent | Fact::Unasked => self.nothing(ctx),
                Fact::Unknown(cause) => self.unknown(ctx, &*book, ticket, cause),
            },
            Kind::Http => match facts.head() {
                Fact::Known(_) => {
                    let head = JsHead { book, ticket, speech };
                    let head = Class::instance(ctx.clone(), head)?.into_value();
                    if let Some(handles) = ctx.userdata::<Handles<'_>>() {
                        handles.kept_head.borrow_mut().get_or_insert_with(|| head.clone());
                    }
                    self.resolve.call((head,))
                }
                // TLS and HTTP/2 hide it, and the script may go by `tls()`.
                Fact::Absent | Fact::Unasked | Fact::Unknown(Cause::Hidden) => self.nothing(ctx),
                Fact::Unknown(cause) => self.unknown(ctx, &*book, ticket, cause),
            },
        }
    }

    fn nothing(&self, ctx: &Ctx<'js>) -> Result<()> {
        self.resolve.call((Value::new_null(ctx.clone()),))
    }

    fn unknown(
        &self,
        ctx: &Ctx<'js>,
        book: &dyn Register,
        ticket: Ticket,
        cause: Cause,
    ) -> Result<()> {
        book.unknown(ticket, cause);
        rquickjs::Exception::throw_dom(ctx, UNKNOWN, cause_text(cause));
        self.reject.call((ctx.catch(),))
    }
}

/// Lets a promise wait until the client's bytes are there.
pub(super) fn wait<'js>(ctx: &Ctx<'js>, ticket: Ticket, want: Want<'js>) -> Result<()> {
    if let Some(handles) = ctx.userdata::<Handles<'_>>() {
        handles.wants.borrow_mut().entry(ticket.number).or_default().push(want);
    }
    Ok(())
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
    /// It waits for the client's bytes.
    Waits,
    Failed(Failure),
}

/// A script that decides about connections.
pub struct Engine<S: Subject> {
    source: Source,
    limits: Limits,
    pools: Arc<dyn Pools>,
    book: Arc<Book<S>>,
    clock: Clock,
    switch: Switch,
    failures: Failures,
    last: Option<Failure>,
    /// Failures are somebody else's to tell.
    quiet: bool,
    /// Lists of workers are out of date.
    stale: bool,
    /// Dropped before the runtime that it belongs to, which is inside. `None`: it could not be started
    /// again.
    context: Option<Context>,
}

impl<S: Subject> fmt::Debug for Engine<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Engine").field("script", &self.source.name).finish_non_exhaustive()
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
        let context = start(&source, &limits, &pools, &clock)?;
        Ok(Self {
            source,
            limits,
            pools,
            book: Arc::new(Book::new()),
            clock,
            switch: Switch::default(),
            failures: Failures::default(),
            last: None,
            quiet: false,
            stale: false,
            context: Some(context),
        })
    }

    /// Logs no failure: whoever asks tells what became of it.
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
        let end = self.turn(ticket, |ctx, handles, book| {
            let connection = JsConnection { book: Arc::clone(book), ticket, peer };
            let connection = Class::instance(ctx.clone(), connection)?.into_value();
            let mut kept = handles.kept_connection.borrow_mut();
            kept.get_or_insert_with(|| connection.clone());
            drop(kept);
            let result: Value = call(&handles.dispatch, (connection,))?;
            Ok(result.into_promise())
        });
        self.conclude(ticket, end)
    }

    /// Goes on with a connection whose client has said something, or has not in time.
    pub fn resume(&mut self, ticket: Ticket, subject: S, speech: Arc<Speech>) -> Verdict<S> {
        if let Err(subject) = self.book.give_back(ticket, subject, Arc::clone(&speech)) {
            return Verdict::Decided(subject, Outcome::Failed);
        }
        let end = self.turn(ticket, |ctx, handles, book| {
            let wants = handles.wants.borrow_mut().remove(&ticket.number);
            for want in wants.into_iter().flatten() {
                want.answer(ctx, book, ticket, &speech)?;
            }
            Ok(handles.handlers.borrow_mut().remove(&ticket.number))
        });
        self.conclude(ticket, end)
    }

    /// Forgets a connection that waits: it is gone.
    pub fn forget(&mut self, ticket: Ticket) {
        self.book.close(ticket);
        self.drop_waiting(ticket);
    }

    /// What failed last.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last.as_ref()
    }

    /// Connections that the script was asked about and that are not decided.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.book.len()
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
            let refreshed = context
                .with(|ctx| pools::refresh(&ctx, &self.pools).map_err(|_| ctx.catch()).is_ok());
            if !refreshed {
                tracing::warn!(script = %self.source.name, "the script's pools cannot be renewed");
            }
        }
        self.context.is_some()
    }

    /// One turn of the script: `step`, then whatever it left to be done.
    fn turn(
        &self,
        ticket: Ticket,
        step: impl for<'js> FnOnce(
            &Ctx<'js>,
            &Handles<'js>,
            &Arc<dyn Register>,
        ) -> Result<Option<Promise<'js>>>,
    ) -> End {
        let Some(context) = &self.context else { return End::Done };
        let book: Arc<dyn Register> = self.book.clone();
        self.clock.begin(self.limits.time);
        context.with(|ctx| {
            let Some(handles) = ctx.userdata::<Handles<'_>>() else { return End::Done };
            let result = step(&ctx, &handles, &book);
            let failed = |ctx: &Ctx<'_>| self.failure(ctx);
            let promise = match result {
                Ok(promise) => promise,
                Err(_) => return End::Failed(failed(&ctx)),
            };
            while !self.clock.expired() && ctx.execute_pending_job() {}
            if self.clock.expired() {
                return End::Failed(self.late(&ctx));
            }
            if let Some(promise) = promise {
                match promise.state() {
                    PromiseState::Resolved => {}
                    PromiseState::Rejected => {
                        // Throws what it was rejected with.
                        let _ = promise.result::<Value>();
                        return End::Failed(failed(&ctx));
                    }
                    PromiseState::Pending
                        if handles.wants.borrow().contains_key(&ticket.number) =>
                    {
                        handles.handlers.borrow_mut().insert(ticket.number, promise);
                    }
                    PromiseState::Pending => {}
                }
            }
            match handles.wants.borrow().contains_key(&ticket.number) {
                true => End::Waits,
                false => End::Done,
            }
        })
    }

    /// What was just thrown.
    fn failure(&self, ctx: &Ctx<'_>) -> Failure {
        if self.clock.expired() {
            return self.late(ctx);
        }
        Failure::thrown(ctx, &ctx.catch(), &self.source.name)
    }

    /// Time is over; where, if that is known.
    fn late(&self, ctx: &Ctx<'_>) -> Failure {
        let thrown = ctx.catch();
        let place = match thrown.is_object() {
            true => Failure::thrown(ctx, &thrown, &self.source.name).place,
            false => None,
        };
        Failure { place, ..Failure::time(&self.source.name, &self.limits) }
    }

    fn conclude(&mut self, ticket: Ticket, end: End) -> Verdict<S> {
        let register: &dyn Register = &*self.book;
        if matches!(end, End::Waits)
            && !register.is_settled(ticket)
            && let Some(subject) = self.book.lend(ticket)
        {
            return Verdict::Waits(subject, ticket);
        }
        if matches!(end, End::Waits) {
            self.drop_waiting(ticket);
        }
        let closed = self.book.close(ticket);
        let Some(Closed { subject: Some(subject), outcome, unknown }) = closed else {
            return Verdict::Gone;
        };
        let outcome = match (end, outcome) {
            (End::Failed(failure), outcome) => match (outcome, unknown) {
                (None, Some(cause)) if failure.message.starts_with(UNKNOWN) => {
                    Outcome::Unknown(cause)
                }
                (outcome, _) => {
                    self.drop_waiting(ticket);
                    self.failed(&failure);
                    outcome.unwrap_or(Outcome::Failed)
                }
            },
            (End::Done | End::Waits, outcome) => {
                self.switch.worked();
                outcome.unwrap_or(Outcome::Undecided)
            }
        };
        Verdict::Decided(subject, outcome)
    }

    fn drop_waiting(&self, ticket: Ticket) {
        if let Some(context) = &self.context {
            context.with(|ctx| {
                if let Some(handles) = ctx.userdata::<Handles<'_>>() {
                    let wants = handles.wants.borrow_mut().remove(&ticket.number);
                    let handler = handles.handlers.borrow_mut().remove(&ticket.number);
                    drop((wants, handler));
                }
            });
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if let Some(count) = self.failures.note(failure).filter(|_| !self.quiet) {
            tracing::warn!(count, "{failure}");
        }
        if self.switch.failed(Instant::now()) && !self.quiet {
            tracing::error!(
                script = %self.source.name,
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
        match start(&self.source, &self.limits, &self.pools, &self.clock) {
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

fn call<'js, A: IntoArgs<'js>>(function: &Function<'js>, args: A) -> Result<Value<'js>> {
    function.call(args)
}
