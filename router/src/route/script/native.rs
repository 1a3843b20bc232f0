//! Functions, methods and getters that decisions call most.
//!
//! What rquickjs's macros generate takes `this` and every argument twice, as a value and as what that is
//! converted to, each with a count of its own on the context. These look at them where they are, which saves
//! a fifth of such a call.

use rquickjs::class::JsClass;
use rquickjs::function::{IntoJsFunc, ParamRequirement, Params};
use rquickjs::object::Accessor;
use rquickjs::{Class, Ctx, Error, Exception, Function, Object, Result, String, Value};

/// A function that takes no `this`.
struct Free<'js>(fn(&Params<'_, 'js>) -> Result<Value<'js>>);

impl<'js> IntoJsFunc<'js, ()> for Free<'js> {
    fn param_requirements() -> ParamRequirement {
        ParamRequirement::any()
    }

    fn call<'a>(&self, params: Params<'a, 'js>) -> Result<Value<'js>> {
        (self.0)(&params)
    }
}

/// Makes a function.
pub(super) fn function<'js>(
    ctx: &Ctx<'js>,
    name: &str,
    body: fn(&Params<'_, 'js>) -> Result<Value<'js>>,
) -> Result<Function<'js>> {
    Function::new(ctx.clone(), Free(body))?.with_name(name)
}

/// What a method does: `this`, and what it was called with.
type Body<'js, C> = fn(&C, &Params<'_, 'js>) -> Result<Value<'js>>;

struct Native<'js, C>(Body<'js, C>);

impl<'js, C: JsClass<'js>> IntoJsFunc<'js, ()> for Native<'js, C> {
    fn param_requirements() -> ParamRequirement {
        ParamRequirement::any()
    }

    fn call<'a>(&self, params: Params<'a, 'js>) -> Result<Value<'js>> {
        let this = params.this();
        let object = this_of::<C>(&params, &this)?;
        (self.0)(&object.borrow(), &params)
    }
}

/// What a method or a getter was called on, as what it is.
fn this_of<'a, 'js, C: JsClass<'js>>(
    params: &Params<'_, 'js>,
    this: &'a Value<'js>,
) -> Result<&'a Class<'js, C>> {
    this.as_object().and_then(Object::as_class::<C>).ok_or_else(|| {
        let message = format!("this is no {}", C::NAME);
        Exception::throw_type(params.ctx(), &message)
    })
}

/// What a method does that takes one text.
type TextBody<'js, C> = fn(&C, &Ctx<'js>, &str) -> Result<Value<'js>>;

struct NativeOfText<'js, C>(TextBody<'js, C>);

impl<'js, C: JsClass<'js>> IntoJsFunc<'js, ()> for NativeOfText<'js, C> {
    fn param_requirements() -> ParamRequirement {
        ParamRequirement::single()
    }

    fn call<'a>(&self, params: Params<'a, 'js>) -> Result<Value<'js>> {
        let this = params.this();
        let object = this_of::<C>(&params, &this)?;
        // It is there, or the call would not have come here.
        let text = params.arg(0).unwrap_or_else(|| Value::new_undefined(params.ctx().clone()));
        let text = String::from_value(text)?.to_cstring()?;
        // Half of a surrogate pair is no text, whatever the type says.
        let bytes: &[u8] = text.as_ref();
        (self.0)(&object.borrow(), params.ctx(), std::str::from_utf8(bytes)?)
    }
}

/// A class's prototype.
pub(super) fn prototype<'js, C: JsClass<'js>>(ctx: &Ctx<'js>) -> Result<Object<'js>> {
    Class::<C>::prototype(ctx)?.ok_or(Error::Unknown)
}

/// Adds a method to a class.
pub(super) fn method<'js, C: JsClass<'js> + 'js>(
    ctx: &Ctx<'js>,
    name: &str,
    body: Body<'js, C>,
) -> Result<()> {
    let function = Function::new(ctx.clone(), Native(body))?.with_name(name)?;
    prototype::<C>(ctx)?.set(name, function)
}

/// Adds a method to a class that takes one text.
pub(super) fn method_of_text<'js, C: JsClass<'js> + 'js>(
    ctx: &Ctx<'js>,
    name: &str,
    body: TextBody<'js, C>,
) -> Result<()> {
    let function = Function::new(ctx.clone(), NativeOfText(body))?.with_name(name)?;
    prototype::<C>(ctx)?.set(name, function)
}

/// Adds a getter to a class.
pub(super) fn getter<'js, C: JsClass<'js> + 'js>(
    ctx: &Ctx<'js>,
    name: &str,
    body: Body<'js, C>,
) -> Result<()> {
    prototype::<C>(ctx)?.prop(name, Accessor::new_get(Native(body)))
}
