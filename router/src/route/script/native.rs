//! Functions, methods and getters that decisions call most.
//!
//! What rquickjs's macros generate costs a decision a quarter more: [`quickjs`] says why.

use std::ffi::CStr;

use rquickjs::class::JsClass;
use rquickjs::{Class, Ctx, Error, Exception, Function, Object, Result, String, Value};

use crate::sys::quickjs::{self, Call};

/// Makes a global function.
pub(super) use crate::sys::quickjs::function;

/// Defines a getter; there is no simpler way to one that is a function of ours.
const DEFINE: &str = "(on, name, get) => { Object.defineProperty(on, name, { get }); }";

/// What a method or a getter does: `this`, and what it was called with.
pub(super) trait Body<C>:
    for<'a, 'js> Fn(&C, &Call<'a, 'js>) -> Result<Value<'js>> + Copy + 'static
{
}

impl<C, F> Body<C> for F where
    F: for<'a, 'js> Fn(&C, &Call<'a, 'js>) -> Result<Value<'js>> + Copy + 'static
{
}

/// What a method does that takes one text.
pub(super) trait TextBody<C>:
    for<'js> Fn(&C, &Ctx<'js>, &str) -> Result<Value<'js>> + Copy + 'static
{
}

impl<C, F> TextBody<C> for F where
    F: for<'js> Fn(&C, &Ctx<'js>, &str) -> Result<Value<'js>> + Copy + 'static
{
}

/// What a method or a getter was called on, as what it is.
fn this_of<'a, 'js, C: JsClass<'js>>(
    ctx: &Ctx<'js>,
    this: &'a Value<'js>,
) -> Result<&'a Class<'js, C>> {
    quickjs::object(this).and_then(Object::as_class::<C>).ok_or_else(|| {
        let message = format!("this is no {}", C::NAME);
        Exception::throw_type(ctx, &message)
    })
}

fn of<'js, C: for<'c> JsClass<'c>>(
    call: &Call<'_, 'js>,
    body: impl FnOnce(&C) -> Result<Value<'js>>,
) -> Result<Value<'js>> {
    let this = call.this();
    let object = this_of::<C>(call.ctx(), &this)?;
    body(&object.borrow())
}

/// The text that an argument is.
pub(super) fn text_of<'js>(value: &Value<'js>) -> Result<rquickjs::CString<'js>> {
    String::from_value(value.clone())?.to_cstring()
}

/// A class's prototype.
pub(super) fn prototype<'js, C: JsClass<'js>>(ctx: &Ctx<'js>) -> Result<Object<'js>> {
    Class::<C>::prototype(ctx)?.ok_or(Error::Unknown)
}

/// Adds a method to a class.
pub(super) fn method<C: for<'c> JsClass<'c>>(
    ctx: &Ctx<'_>,
    name: &CStr,
    body: impl Body<C>,
) -> Result<()> {
    let function = function(ctx, name, 0, move |call| of(call, |this| body(this, call)))?;
    prototype::<C>(ctx)?.set(&*name.to_string_lossy(), function)
}

/// Adds a method to a class that takes one text.
pub(super) fn method_of_text<C: for<'c> JsClass<'c>>(
    ctx: &Ctx<'_>,
    name: &CStr,
    body: impl TextBody<C>,
) -> Result<()> {
    let function = function(ctx, name, 1, move |call| {
        of(call, |this| {
            let missing = Error::MissingArgs { expected: 1, given: 0 };
            let text = text_of(&*call.argument(0).ok_or(missing)?)?;
            // Half of a surrogate pair is no text, whatever the type says.
            let bytes: &[u8] = text.as_ref();
            body(this, call.ctx(), std::str::from_utf8(bytes)?)
        })
    })?;
    prototype::<C>(ctx)?.set(&*name.to_string_lossy(), function)
}

/// Adds a getter to a class.
pub(super) fn getter<C: for<'c> JsClass<'c>>(
    ctx: &Ctx<'_>,
    name: &CStr,
    body: impl Body<C>,
) -> Result<()> {
    let get = function(ctx, name, 0, move |call| of(call, |this| body(this, call)))?;
    let define: Function = ctx.eval(DEFINE)?;
    define.call((prototype::<C>(ctx)?, &*name.to_string_lossy(), get))
}
