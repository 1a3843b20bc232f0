//! Objects that are there so that their layouts are.
//!
//! QuickJS shares a layout (it says shape: the prototype, and which properties in which order) among all
//! objects that have it, finds it by a hash, and frees it with its last object. Decisions make the
//! same few objects, one at a time: each would lay them out anew. So one of each is kept.

use rquickjs::object::Property;
use rquickjs::{Class, Ctx, Function, JsLifetime, Object, Promise, Result, Value};

use super::connection::JsConnection;
use super::request::JsHead;

/// What every decision makes, and the steps on the way there.
#[derive(JsLifetime)]
pub(super) struct Layouts<'js> {
    #[expect(dead_code, reason = "it is there to be there")]
    kept: Vec<Value<'js>>,
}

impl<'js> Layouts<'js> {
    pub(super) fn new(ctx: &Ctx<'js>) -> Result<Self> {
        let bare = |prototype: &Object<'js>| Object::new_proto(ctx.clone(), Some(prototype));
        // `{}` and what the handler gets, `{ connection }`.
        let empty = Object::new(ctx.clone())?;
        let event = Object::new(ctx.clone())?;
        event.set("connection", ())?;
        // A promise, and the two functions that settle it. Those are laid out in steps: a function,
        // its length, its name.
        let (promise, resolve, reject) = Promise::new(ctx)?;
        let function = bare(&Function::prototype(ctx.clone()))?;
        let with_length = bare(&Function::prototype(ctx.clone()))?;
        with_length.prop("length", Property::from(1).configurable())?;
        let mut kept = vec![
            empty.into_value(),
            event.into_value(),
            promise.into_value(),
            resolve.into_value(),
            reject.into_value(),
            function.into_value(),
            with_length.into_value(),
        ];
        let classes = [Class::<JsConnection>::prototype(ctx)?, Class::<JsHead>::prototype(ctx)?];
        for prototype in classes.iter().flatten() {
            kept.push(bare(prototype)?.into_value());
        }
        Ok(Self { kept })
    }
}
