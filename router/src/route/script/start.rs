//! A script's context, from nothing to a handler that can be called.

use std::sync::Arc;
use std::time::Duration;

use rquickjs::context::EvalOptions;
use rquickjs::object::Property;
use rquickjs::{Context, Ctx, Function, Result, Runtime, Value};

use super::book::Register;
use super::clock::Clock;
use super::engine::Handles;
use super::failure::{Failure, FailureKind};
use super::text::Text;
use super::{Limits, Pools, connection, globals, jobs, pools, rejections, request};

/// Stack of a script, in bytes. The router's thread has far more.
const STACK: usize = 256 * 1024;

/// Time for a script's top level, which is run once: it may build tables.
pub(super) const START: Duration = Duration::from_secs(1);

/// Name of the code around the script, in stacks.
const OWN: &str = "vestibule";

/// Calls the script's handler, which may change: `onconnection` is looked up each time.
const DISPATCH: &str = "(connection) => onconnection({ connection })";

/// A new context in which the script's top level has run.
pub(super) fn start(
    text: &Text,
    limits: &Limits,
    pools: &Arc<dyn Pools>,
    clock: &Clock,
    book: Arc<dyn Register>,
) -> std::result::Result<Context, Failure> {
    let name = text.name();
    let no_memory = |_| Failure::new(FailureKind::Memory, name, "there is no memory for a script");
    let runtime = Runtime::new().map_err(no_memory)?;
    runtime.set_max_stack_size(STACK);
    runtime.set_interrupt_handler(Some(Box::new(clock.handler())));
    rejections::track(&runtime);
    let context = Context::full(&runtime).map_err(no_memory)?;
    // What the engine itself needs is not the script's.
    let own = usize::try_from(runtime.memory_usage().malloc_size).unwrap_or_default();
    runtime.set_memory_limit(limits.memory.saturating_add(own));
    clock.begin(START);
    context.with(|ctx| {
        let not_enough = |_| {
            ctx.catch();
            Failure::new(FailureKind::Memory, name, "there is not enough memory for a script")
        };
        prepare(&ctx, pools, book).map_err(not_enough)?;
        let mut options = EvalOptions::default();
        options.global = true;
        options.strict = false;
        options.filename = Some(name.replace('\0', "?"));
        let result = ctx.eval_with_options::<Value, _>(text.as_str(), options);
        let thrown = result.is_ok().then(|| jobs::run(&ctx, clock)).flatten();
        if clock.expired() {
            return Err(Failure::late(&ctx, text, &Limits { time: START, ..*limits }));
        }
        if result.is_err() {
            return Err(Failure::thrown(&ctx, &ctx.catch(), text));
        }
        let handles = Handles::of(&ctx).map_err(not_enough)?;
        if let Some(failure) = jobs::failure(&ctx, thrown, &handles, text) {
            return Err(failure);
        }
        // As the handler is called: it may be a `const`.
        let mut options = EvalOptions::default();
        options.strict = false;
        options.filename = Some(OWN.to_owned());
        let kind = ctx.eval_with_options::<String, _>("typeof onconnection", options);
        match kind.as_deref() {
            Ok("function") => handles.make_room(&ctx).map_err(not_enough),
            _ => {
                ctx.catch();
                let message = "the script sets no handler: `onconnection = ({ connection }) => …`";
                Err(Failure::new(FailureKind::NoHandler, name, message))
            }
        }
    })?;
    Ok(context)
}

/// Everything that is there before the script.
fn prepare(ctx: &Ctx<'_>, pools: &Arc<dyn Pools>, book: Arc<dyn Register>) -> Result<()> {
    globals::define(ctx)?;
    connection::define(ctx)?;
    request::define(ctx)?;
    pools::define(ctx, pools, &book)?;
    let handler = Property::from(Value::new_null(ctx.clone()));
    ctx.globals().prop("onconnection", handler.writable().configurable().enumerable())?;
    let mut options = EvalOptions::default();
    options.filename = Some(OWN.to_owned());
    let dispatch: Function = ctx.eval_with_options(DISPATCH, options)?;
    let handles = Handles::new(ctx, dispatch, book)?;
    // The first of its type in a new runtime, so there is nothing that it could replace.
    ctx.store_userdata(handles).map_err(|_| rquickjs::Error::Unknown)?;
    Ok(())
}
