//! `pools.NAME` and its workers.

use std::sync::Arc;

use rquickjs::class::Trace;
use rquickjs::object::Property;
use rquickjs::{Array, Class, Coerced, Ctx, Exception, JsLifetime, Object, Result, String, Value};

use vestibule_protocol::Data;

use super::book::{Register, Settled};
use super::connection::JsConnection;
use super::{Outcome, Pools, To, message, native};
use crate::sys::quickjs::{self, Call};

/// Name of the global.
const POOLS: &str = "pools";

#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "Pool", frozen)]
pub(super) struct JsPool {
    #[qjs(skip_trace)]
    pools: Arc<dyn Pools>,
    #[qjs(skip_trace)]
    book: Arc<dyn Register>,
    #[qjs(skip_trace)]
    index: usize,
    #[qjs(skip_trace)]
    name: Arc<str>,
}

#[rquickjs::methods(rename_all = "camelCase")]
impl JsPool {
    #[qjs(get)]
    fn name<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, &self.name)
    }

    fn worker_for<'js>(
        &self,
        ctx: Ctx<'js>,
        key: Coerced<std::string::String>,
    ) -> Result<Value<'js>> {
        let Some(slot) = self.pools.worker_for(self.index, key.0.as_bytes()) else {
            return Ok(Value::new_null(ctx));
        };
        let slots = self.pools.slots(self.index);
        match slots.into_iter().find(|(number, _)| *number == slot) {
            Some((_, name)) => {
                let (pools, book) = (Arc::clone(&self.pools), Arc::clone(&self.book));
                let worker = JsWorker { pools, book, pool: self.index, slot, name };
                Ok(Class::instance(ctx, worker)?.into_value())
            }
            None => Ok(Value::new_null(ctx)),
        }
    }
}

#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "Worker", frozen)]
pub(super) struct JsWorker {
    #[qjs(skip_trace)]
    pools: Arc<dyn Pools>,
    #[qjs(skip_trace)]
    book: Arc<dyn Register>,
    #[qjs(skip_trace)]
    pool: usize,
    #[qjs(skip_trace)]
    slot: u32,
    #[qjs(skip_trace)]
    name: Arc<str>,
}

#[rquickjs::methods(rename_all = "camelCase")]
impl JsWorker {
    #[qjs(get)]
    fn name<'js>(&self, ctx: Ctx<'js>) -> Result<String<'js>> {
        String::from_str(ctx, &self.name)
    }

    #[qjs(get)]
    fn ready(&self) -> bool {
        self.pools.ready(self.pool, self.slot)
    }

    #[qjs(get)]
    fn connections(&self) -> f64 {
        // A 32-bit number may be above what a signed one holds.
        f64::from(self.pools.connections(self.pool, self.slot))
    }
}

/// `postMessage(message, [connection])`.
fn post<'js>(call: &Call<'_, 'js>, book: &dyn Register, pool: usize, to: To) -> Result<Value<'js>> {
    let ctx = call.ctx();
    let (message, transfer) = (call.argument(0), call.argument(1));
    let usage =
        || Exception::throw_type(ctx, "postMessage(message, [connection]) posts one connection");
    let transfer = transfer.as_deref().and_then(quickjs::array).ok_or_else(usage)?;
    let clone = |what: &str| Exception::throw_dom(ctx, "DataCloneError", what);
    let first: Value = transfer.get(0)?;
    let connection = quickjs::object(&first).and_then(Object::as_class::<JsConnection>);
    let ticket = connection.ok_or_else(usage)?.borrow().ticket;
    if quickjs::length(transfer)? > 1 {
        return Err(match transfer.get::<Value>(1)? == first {
            true => clone("the connection is twice in the transfer list"),
            false => usage(),
        });
    }
    let message = message.map_or(Ok(Data::NONE), |message| message::read(ctx, &message))?;
    let settled = book.settle(ticket, Outcome::Post { pool, to, message });
    settled.map_err(|Settled| clone("the connection was posted, rejected or is gone"))?;
    Ok(Value::new_undefined(ctx.clone()))
}

/// Sets the global `pools`.
pub(super) fn define(
    ctx: &Ctx<'_>,
    pools: &Arc<dyn Pools>,
    book: &Arc<dyn Register>,
) -> Result<()> {
    native::method::<JsPool>(ctx, c"postMessage", |pool, call| {
        post(call, &*pool.book, pool.index, To::Balance)
    })?;
    native::method::<JsWorker>(ctx, c"postMessage", |worker, call| {
        post(call, &*worker.book, worker.pool, To::Slot(worker.slot))
    })?;
    let all = Object::new(ctx.clone())?;
    for (index, name) in pools.names().into_iter().enumerate() {
        let (pools, book) = (Arc::clone(pools), Arc::clone(book));
        let pool = JsPool { pools, book, index, name: Arc::clone(&name) };
        all.prop(&*name, Property::from(Class::instance(ctx.clone(), pool)?).enumerable())?;
    }
    ctx.globals().prop(POOLS, Property::from(all).enumerable())?;
    refresh(ctx, pools, book)
}

/// Renews the lists of workers: slots came or went.
pub(super) fn refresh(
    ctx: &Ctx<'_>,
    pools: &Arc<dyn Pools>,
    book: &Arc<dyn Register>,
) -> Result<()> {
    let all: Object = ctx.globals().get(POOLS)?;
    for (index, name) in pools.names().into_iter().enumerate() {
        let workers = Array::new(ctx.clone())?;
        for (at, (slot, name)) in pools.slots(index).into_iter().enumerate() {
            let (pools, book) = (Arc::clone(pools), Arc::clone(book));
            let worker = JsWorker { pools, book, pool: index, slot, name };
            workers.set(at, Class::instance(ctx.clone(), worker)?)?;
        }
        // A plain value costs a script less than a getter. The lists of one script only.
        let pool: Object = all.get(&*name)?;
        pool.prop("workers", Property::from(workers).enumerable().configurable())?;
    }
    Ok(())
}
