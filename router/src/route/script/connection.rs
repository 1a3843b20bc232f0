//! The `connection` that a handler gets.

use std::net::SocketAddr;

use rquickjs::class::Trace;
use rquickjs::function::Opt;
use rquickjs::{Class, Ctx, Exception, IntoJs, JsLifetime, Promise, Result, String, Value};

use super::book::{Away, Register, Settled, Ticket};
use super::engine::{Handles, UNKNOWN};
use super::request::JsLabel;
use super::waiting::{Kind, Want};
use super::{Outcome, Refusal, native};
use crate::inspect::{Cause, Fact};

/// One connection, or what is left of it.
#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "Connection", frozen)]
pub(super) struct JsConnection {
    #[qjs(skip_trace)]
    pub(super) ticket: Ticket,
    #[qjs(skip_trace)]
    pub(super) peer: Option<SocketAddr>,
}

fn away(ctx: &Ctx<'_>) -> rquickjs::Error {
    let message = "the connection was posted, rejected or is gone";
    Exception::throw_dom(ctx, "InvalidStateError", message)
}

fn address<'js>(ctx: &Ctx<'js>, address: Option<SocketAddr>) -> Result<Value<'js>> {
    match address {
        Some(SocketAddr::V4(v4)) => {
            // The common case: no allocation, and no formatting machinery.
            let mut text = TextBuffer::default();
            for (at, octet) in v4.ip().octets().into_iter().enumerate() {
                if at > 0 {
                    text.push(b'.');
                }
                text.number(octet);
            }
            Ok(String::from_str(ctx.clone(), text.as_str())?.into_value())
        }
        Some(SocketAddr::V6(v6)) => v6.ip().to_string().into_js(ctx),
        None => Ok(Value::new_null(ctx.clone())),
    }
}

/// Room for an IPv4 address.
#[derive(Default)]
struct TextBuffer {
    bytes: [u8; 15],
    length: usize,
}

impl TextBuffer {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn number(&mut self, number: u8) {
        if number >= 100 {
            self.push(b'0' + number / 100);
        }
        if number >= 10 {
            self.push(b'0' + number / 10 % 10);
        }
        self.push(b'0' + number % 10);
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

fn port<'js>(ctx: &Ctx<'js>, address: Option<SocketAddr>) -> Value<'js> {
    match address {
        Some(address) => Value::new_int(ctx.clone(), i32::from(address.port())),
        None => Value::new_null(ctx.clone()),
    }
}

/// Tells the script that something cannot be known: it never reads as if it were not there.
pub(super) fn unknown(ctx: &Ctx<'_>, ticket: Ticket, cause: Cause) -> rquickjs::Error {
    match Handles::of(ctx) {
        Ok(handles) => handles.book.unknown(ticket, cause),
        Err(error) => return error,
    }
    Exception::throw_dom(ctx, UNKNOWN, cause_text(cause))
}

pub(super) fn cause_text(cause: Cause) -> &'static str {
    match cause {
        Cause::TimedOut => "the client did not show it in time",
        Cause::TooLarge => "it is not within the bytes that are looked at",
        Cause::NotHttp => "the client speaks neither TLS nor HTTP, or breaks their rules",
        Cause::Hidden => "it is encrypted",
    }
}

#[rquickjs::methods(rename_all = "camelCase")]
impl JsConnection {
    #[qjs(get)]
    fn remote_port<'js>(&self, ctx: Ctx<'js>) -> Value<'js> {
        port(&ctx, self.peer)
    }

    #[qjs(get)]
    fn local_address<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        let local = self.ask(&ctx, |book| book.local(self.ticket))?;
        // Nobody connects to all addresses.
        address(&ctx, local.filter(|local| !local.ip().is_unspecified()))
    }

    #[qjs(get)]
    fn local_port<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        Ok(port(&ctx, self.ask(&ctx, |book| book.local(self.ticket))?))
    }

    #[qjs(get)]
    fn listener<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        let name = self.ask(&ctx, |book| book.listener(self.ticket))?;
        String::from_str(ctx, &name)
    }

    #[qjs(get)]
    fn peer_context<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        match self.ask(&ctx, |book| book.context(self.ticket))? {
            Fact::Known(label) => Ok(Class::instance(ctx.clone(), JsLabel { label })?.into_value()),
            Fact::Absent | Fact::Unasked => Ok(Value::new_null(ctx)),
            Fact::Unknown(cause) => Err(unknown(&ctx, self.ticket, cause)),
        }
    }

    #[qjs(get)]
    fn peer_user<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        match self.ask(&ctx, |book| book.user(self.ticket))? {
            Fact::Known(user) => user.into_js(&ctx),
            Fact::Absent | Fact::Unasked => Ok(Value::new_null(ctx)),
            Fact::Unknown(cause) => Err(unknown(&ctx, self.ticket, cause)),
        }
    }

    fn reject<'js>(&self, ctx: Ctx<'js>, how: Opt<Value<'js>>) -> Result<()> {
        let how = how.0.as_ref();
        let refusal = match (how.and_then(Value::as_number), how.and_then(Value::as_string)) {
            (Some(status), _) if status.trunc() == status && (400.0..600.0).contains(&status) => {
                // A whole number below 600.
                Some(Refusal::Status(status as u16))
            }
            (None, Some(word)) => match word.to_string()?.as_str() {
                "reset" => Some(Refusal::Reset),
                "close" => Some(Refusal::Close),
                _ => None,
            },
            _ => None,
        };
        let Some(refusal) = refusal else {
            let message = "reject() takes a status from 400 to 599, \"reset\" or \"close\"";
            return Err(Exception::throw_range(&ctx, message));
        };
        let settled = Handles::of(&ctx)?.book.settle(self.ticket, Outcome::Reject(refusal));
        settled.map_err(|Settled| away(&ctx))
    }
}

impl JsConnection {
    fn ask<R>(
        &self,
        ctx: &Ctx<'_>,
        question: impl FnOnce(&dyn Register) -> std::result::Result<R, Away>,
    ) -> Result<R> {
        question(&*Handles::of(ctx)?.book).map_err(|Away| away(ctx))
    }

    /// A promise of what the client says; kept at once if somebody has looked.
    fn look<'js>(&self, ctx: &Ctx<'js>, kind: Kind) -> Result<Value<'js>> {
        let handles = Handles::of(ctx)?;
        let said = handles.book.speech(self.ticket).map_err(|Away| away(ctx))?;
        // Nobody need look for what a proxy has announced.
        let announced = || handles.book.announced(self.ticket);
        let speech = if kind == Kind::Tls { announced().or(said) } else { said };
        let (promise, resolve, reject) = Promise::new(ctx)?;
        let want = Want { kind, resolve, reject };
        match speech.filter(|speech| want.is_answered_by(speech)) {
            Some(speech) => want.answer(ctx, &handles, self.ticket, &speech)?,
            None => handles.waiting.add(self.ticket, want),
        }
        Ok(promise.into_value())
    }
}

/// What is beside the macro's methods.
pub(super) fn define(ctx: &Ctx<'_>) -> Result<()> {
    native::getter::<JsConnection>(ctx, c"remoteAddress", |connection, call| {
        address(call.ctx(), connection.peer)
    })?;
    native::method::<JsConnection>(ctx, c"tls", |connection, call| {
        connection.look(call.ctx(), Kind::Tls)
    })?;
    native::method::<JsConnection>(ctx, c"http", |connection, call| {
        connection.look(call.ctx(), Kind::Http)
    })
}
