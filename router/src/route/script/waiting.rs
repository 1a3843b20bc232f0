//! What connections wait for: the promises that `tls()` and `http()` gave, and those of their handlers.

use std::cell::RefCell;
use std::sync::Arc;

use rquickjs::{Class, Ctx, Exception, Function, JsLifetime, Promise, Result, Value};

use super::book::{Ticket, Wants};
use super::connection::cause_text;
use super::engine::{Handles, UNKNOWN};
use super::request::{JsHead, JsHello};
use crate::inspect::{Cause, Fact, Facts, Speech};
use crate::sys::quickjs;

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

impl<'js> Want<'js> {
    /// Whether this much of what the client says is enough.
    pub(super) fn is_answered_by(&self, speech: &Speech) -> bool {
        let facts = Facts { speech, ..Facts::of_address(0, None) };
        match self.kind {
            Kind::Tls => facts.hello() != Fact::Unasked,
            Kind::Http => facts.head() != Fact::Unasked,
        }
    }

    /// Keeps the promise.
    pub(super) fn answer(
        &self,
        ctx: &Ctx<'js>,
        handles: &Handles<'js>,
        ticket: Ticket,
        speech: &Arc<Speech>,
    ) -> Result<()> {
        // It may have been asked for while the connection was away.
        let announced = (self.kind == Kind::Tls).then(|| handles.book.announced(ticket)).flatten();
        let speech = announced.as_ref().unwrap_or(speech);
        let facts = Facts { speech, ..Facts::of_address(0, None) };
        match self.kind {
            Kind::Tls => match facts.hello() {
                Fact::Known(_) => {
                    let hello = JsHello { ticket, speech: Arc::clone(speech) };
                    settle(&self.resolve, Class::instance(ctx.clone(), hello)?.as_value())
                }
                Fact::Absent | Fact::Unasked => self.nothing(ctx),
                Fact::Unknown(cause) => self.unknown(ctx, handles, ticket, cause),
            },
            Kind::Http => match facts.head() {
                Fact::Known(_) => {
                    let head = JsHead { ticket, speech: Arc::clone(speech) };
                    settle(&self.resolve, handles.head(head)?.as_value())
                }
                // TLS and HTTP/2 hide it, and the script may go by `tls()`.
                Fact::Absent | Fact::Unasked | Fact::Unknown(Cause::Hidden) => self.nothing(ctx),
                Fact::Unknown(cause) => self.unknown(ctx, handles, ticket, cause),
            },
        }
    }

    fn nothing(&self, ctx: &Ctx<'js>) -> Result<()> {
        settle(&self.resolve, &Value::new_null(ctx.clone()))
    }

    fn unknown(
        &self,
        ctx: &Ctx<'js>,
        handles: &Handles<'js>,
        ticket: Ticket,
        cause: Cause,
    ) -> Result<()> {
        handles.book.unknown(ticket, cause);
        Exception::throw_dom(ctx, UNKNOWN, cause_text(cause));
        settle(&self.reject, &ctx.catch())
    }
}

fn settle<'js>(how: &Function<'js>, with: &Value<'js>) -> Result<()> {
    quickjs::call(how, with).map(drop)
}

/// All that one connection waits for.
#[derive(Default, JsLifetime)]
pub(super) struct Place<'js> {
    /// The connection's number, from 1: its place is used again.
    #[qjs(skip)]
    number: u64,
    /// Most scripts ask once: that takes no allocation.
    first: Option<Want<'js>>,
    more: Vec<Want<'js>>,
    /// What its handler returned.
    pub(super) handler: Option<Promise<'js>>,
}

impl<'js> Place<'js> {
    /// In the order in which they were asked for.
    pub(super) fn take_wants(&mut self) -> impl Iterator<Item = Want<'js>> + use<'js> {
        self.first.take().into_iter().chain(std::mem::take(&mut self.more))
    }
}

/// Who waits, at the key that the connection has in the book: so there are as many places as there
/// were undecided connections at once.
#[derive(Default, JsLifetime)]
pub(super) struct Waiting<'js> {
    places: RefCell<Vec<Place<'js>>>,
}

impl<'js> Waiting<'js> {
    pub(super) fn add(&self, ticket: Ticket, want: Want<'js>) {
        let mut places = self.places.borrow_mut();
        if places.len() <= ticket.key {
            places.resize_with(ticket.key + 1, Place::default);
        }
        let Some(place) = places.get_mut(ticket.key) else { return };
        if place.number != ticket.number {
            *place = Place { number: ticket.number, first: Some(want), ..Place::default() };
        } else {
            place.more.push(want);
        }
    }

    /// Whether the script awaits what this connection's client says.
    pub(super) fn has(&self, ticket: Ticket) -> bool {
        let places = self.places.borrow();
        places.get(ticket.key).is_some_and(|place| place.number == ticket.number)
    }

    /// What it awaits.
    pub(super) fn wants(&self, ticket: Ticket) -> Wants {
        let places = self.places.borrow();
        let place = places.get(ticket.key).filter(|place| place.number == ticket.number);
        let mut wants = Wants::default();
        for want in place.iter().flat_map(|place| place.first.iter().chain(&place.more)) {
            match want.kind {
                Kind::Tls => wants.hello = true,
                Kind::Http => wants.head = true,
            }
        }
        wants
    }

    /// Keeps what the handler of a connection that waits has returned.
    pub(super) fn keep(&self, ticket: Ticket, handler: Promise<'js>) {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(ticket.key);
        if let Some(place) = place.filter(|place| place.number == ticket.number) {
            place.handler = Some(handler);
        }
    }

    /// Whether this is what the handler of a connection that waits has returned.
    pub(super) fn has_handler(&self, promise: &Value<'js>) -> bool {
        let places = self.places.borrow();
        places.iter().any(|place| place.handler.as_ref().is_some_and(|it| it.as_value() == promise))
    }

    /// Clears a connection's place, and what was there. Whoever drops that may run code of the script's.
    pub(super) fn take(&self, ticket: Ticket) -> Option<Place<'js>> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(ticket.key);
        place.filter(|place| place.number == ticket.number).map(std::mem::take)
    }
}
