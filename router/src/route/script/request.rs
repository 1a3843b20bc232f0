//! What a script sees of a client's security context, TLS hello and first request.

use std::borrow::Cow;
use std::sync::Arc;

use rquickjs::class::Trace;
use rquickjs::{Array, Ctx, IntoJs, JsLifetime, Result, String, Value};

use super::book::Ticket;
use super::connection::unknown;
use super::native;
use crate::inspect::{ClientHello, Fact, HttpHead, Label, Speech};

/// `connection.peerContext`.
#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "PeerContext", frozen)]
pub(super) struct JsLabel {
    #[qjs(skip_trace)]
    pub(super) label: Label,
}

#[rquickjs::methods(rename_all = "camelCase")]
impl JsLabel {
    #[qjs(get)]
    fn user<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, self.label.user())
    }

    #[qjs(get)]
    fn role<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, self.label.role())
    }

    #[qjs(get, rename = "type")]
    fn type_<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, self.label.type_())
    }

    #[qjs(get)]
    fn level<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, self.label.level())
    }

    #[qjs(get)]
    fn label<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, self.label.as_str())
    }

    #[qjs(rename = "toString")]
    fn text<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, self.label.as_str())
    }
}

/// What `await connection.tls()` is.
#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "ClientHello", frozen)]
pub(super) struct JsHello {
    #[qjs(skip_trace)]
    pub(super) ticket: Ticket,
    /// A hello.
    #[qjs(skip_trace)]
    pub(super) speech: Arc<Speech>,
}

#[rquickjs::methods(rename_all = "camelCase")]
impl JsHello {
    #[qjs(get)]
    fn server_name<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        let name = self.hello().and_then(|hello| hello.server_name.as_ref().map(|name| &**name));
        fact(&ctx, self.ticket, name)
    }

    #[qjs(get)]
    fn alpn<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        let protocols = Array::new(ctx.clone())?;
        match self.hello().and_then(|hello| hello.alpn.as_ref().map(Vec::as_slice)) {
            Fact::Known(offered) => {
                for (at, protocol) in offered.iter().enumerate() {
                    protocols.set(at, text(protocol).into_owned())?;
                }
            }
            Fact::Absent | Fact::Unasked => {}
            Fact::Unknown(cause) => return Err(unknown(&ctx, self.ticket, cause)),
        }
        Ok(protocols.into_value())
    }
}

impl JsHello {
    fn hello(&self) -> Fact<&ClientHello> {
        match &*self.speech {
            Speech::Tls(hello) => Fact::Known(hello),
            _ => Fact::Absent,
        }
    }
}

/// What `await connection.http()` is.
#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "HttpHead", frozen)]
pub(super) struct JsHead {
    #[qjs(skip_trace)]
    pub(super) ticket: Ticket,
    /// A head.
    #[qjs(skip_trace)]
    pub(super) speech: Arc<Speech>,
}

#[rquickjs::methods(rename_all = "camelCase")]
impl JsHead {
    #[qjs(get)]
    fn method<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        known(&ctx, self.head().map(HttpHead::method))
    }

    #[qjs(get)]
    fn target<'js>(&self, ctx: Ctx<'js>) -> Result<Value<'js>> {
        known(&ctx, self.head().map(HttpHead::target))
    }
}

impl JsHead {
    fn head(&self) -> Option<&HttpHead> {
        match &*self.speech {
            Speech::Http1(head) => Some(head),
            _ => None,
        }
    }

    fn header<'js>(&self, ctx: &Ctx<'js>, name: &str) -> Result<Value<'js>> {
        let name = name.to_ascii_lowercase();
        // As `Headers.get` of the web; a cookie line ends with `;` instead.
        let between = if name == "cookie" { "; " } else { ", " };
        let mut all: Option<std::string::String> = None;
        for value in self.head().into_iter().flat_map(|head| head.header(&name)) {
            match &mut all {
                None => all = Some(text(value).into_owned()),
                Some(all) => {
                    all.push_str(between);
                    all.push_str(&text(value));
                }
            }
        }
        known(ctx, all.as_deref())
    }

    fn cookie<'js>(&self, ctx: &Ctx<'js>, name: &str) -> Result<Value<'js>> {
        let value = self.head().and_then(|head| head.cookie(name).next()).map(text);
        known(ctx, value.as_deref())
    }

    fn query<'js>(&self, ctx: &Ctx<'js>, name: &str) -> Result<Value<'js>> {
        let value = self.head().and_then(|head| head.query(name).next());
        known(ctx, value.as_deref())
    }
}

/// What is beside the macro's methods.
pub(super) fn define(ctx: &Ctx<'_>) -> Result<()> {
    native::getter::<JsHead>(ctx, c"path", |this, call| {
        fact(call.ctx(), this.ticket, this.head().map_or(Fact::Absent, HttpHead::path))
    })?;
    native::getter::<JsHead>(ctx, c"host", |this, call| {
        fact(call.ctx(), this.ticket, this.head().map_or(Fact::Absent, HttpHead::host))
    })?;
    native::method_of_text::<JsHead>(ctx, c"header", |this, ctx, name| this.header(ctx, name))?;
    native::method_of_text::<JsHead>(ctx, c"cookie", |this, ctx, name| this.cookie(ctx, name))?;
    native::method_of_text::<JsHead>(ctx, c"query", |this, ctx, name| this.query(ctx, name))
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::string::String::from_utf8_lossy(bytes)
}

fn known<'js>(ctx: &Ctx<'js>, text: Option<&str>) -> Result<Value<'js>> {
    match text {
        Some(text) => text.into_js(ctx),
        None => Ok(Value::new_null(ctx.clone())),
    }
}

fn fact<'js>(ctx: &Ctx<'js>, ticket: Ticket, fact: Fact<&str>) -> Result<Value<'js>> {
    match fact {
        Fact::Known(text) => text.into_js(ctx),
        Fact::Absent | Fact::Unasked => Ok(Value::new_null(ctx.clone())),
        Fact::Unknown(cause) => Err(unknown(ctx, ticket, cause)),
    }
}
