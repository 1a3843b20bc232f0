//! Objects that are there so that their layouts are.
//!
//! QuickJS shares a layout (it says shape: the prototype, and which properties in which order) among all
//! objects that have it, finds it by a hash, and frees it with its last object. Decisions make the
//! same few objects, one at a time: each would lay them out anew. So one of each is kept.
//!
//! It is the same with memory, which it takes in arenas of 4 KiB, for pieces of one size each, and gives
//! back with the last piece in one. A decision may be the only one that needs a size, or find its arenas
//! filled to the brim by the script: each would take an arena and give it back. So there is a piece of each
//! size, and room for what one decision makes.

use std::cell::RefCell;

use rquickjs::object::Property;
use rquickjs::{Ctx, Function, JsLifetime, Object, Promise, Result, Value};

use super::connection::JsConnection;
use super::native;
use super::request::JsHead;

/// Objects that a decision has at once, about: a handler, its promises and what settles them, a message.
const AT_ONCE: usize = 32;

/// A piece of each size that comes from an arena: up to 512 bytes, of which 8 are its head.
const PIECES: &str = "Array.from({ length: 63 }, (_, at) => new ArrayBuffer(8 * at + 8))";

/// What every decision makes, and the steps on the way there.
#[derive(JsLifetime)]
pub(super) struct Layouts<'js> {
    #[expect(dead_code, reason = "it is there to be there")]
    kept: Vec<Value<'js>>,
    room: RefCell<Option<Object<'js>>>,
    /// What was posted last: scripts post objects of one layout, which only they know.
    posted: RefCell<Option<Value<'js>>>,
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
        let kept = vec![
            empty.into_value(),
            event.into_value(),
            promise.into_value(),
            resolve.into_value(),
            reject.into_value(),
            function.into_value(),
            with_length.into_value(),
            bare(&native::prototype::<JsConnection>(ctx)?)?.into_value(),
            bare(&native::prototype::<JsHead>(ctx)?)?.into_value(),
            ctx.eval(PIECES)?,
        ];
        let (room, posted) = (RefCell::new(None), RefCell::new(None));
        Ok(Self { kept, room, posted })
    }

    /// Keeps a message until the next one.
    pub(super) fn keep_posted(&self, message: &Value<'js>) {
        let last = self.posted.replace(Some(message.clone()));
        // Only now: whoever drops it may run code of the script's.
        drop(last);
    }

    /// Makes room after all that is there: what was made last is kept, and so is the arena that it is in.
    pub(super) fn make_room(&self, ctx: &Ctx<'js>) -> Result<()> {
        let objects = (0..AT_ONCE).map(|_| Object::new(ctx.clone()));
        let last = objects.collect::<Result<Vec<_>>>()?.pop();
        drop(self.room.replace(last));
        Ok(())
    }
}
