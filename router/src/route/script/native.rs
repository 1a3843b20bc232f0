//! Functions, methods and getters that decisions call most.
//!
//! What rquickjs's macros generate takes `this` and every argument twice, as a value and as what that is
//! converted to, each with a count of its own on the context. These look at them where they are, which saves
//! a fifth of such a call.

use rquickjs::class::JsClass;
use rquickjs::function::{IntoJsFunc, ParamRequirement, Params};
use rquickjs::object::Accessor;
use rquickjs::{Class, Ctx, Error, Exception, Function, Object, Result, Value};

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
        let Some(object) = this.as_object().and_then(Object::as_class::<C>) else {
            let message = format!("this is no {}", C::NAME);
            return Err(Exception::throw_type(params.ctx(), &message));
        };
        (self.0)(&object.borrow(), &params)
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

/// Adds a getter to a class.
pub(super) fn getter<'js, C: JsClass<'js> + 'js>(
    ctx: &Ctx<'js>,
    name: &str,
    body: Body<'js, C>,
) -> Result<()> {
    prototype::<C>(ctx)?.prop(name, Accessor::new_get(Native(body)))
}
