//! Functions for scripts in QuickJS's own calling convention, and looks at values that count nothing.
//!
//! rquickjs makes each Rust function an object of a class, hands it its arguments as values with counts of their
//! own, and asks six questions before it takes a value for an object. A routing script calls three or four
//! such functions a decision: that was an eighth of what it costs.

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::slice;

use rquickjs::{Array, Ctx, Error, Function, Object, Result, Value, qjs};

/// Number of the class that `{}` has. QuickJS has it first of all (`JS_CLASS_OBJECT`), and does not export its name.
const PLAIN: qjs::JSClassID = 1;

/// A value that whoever called keeps alive, without a count of its own.
pub(crate) struct Borrowed<'a, 'js> {
    value: ManuallyDrop<Value<'js>>,
    owner: PhantomData<&'a ()>,
}

impl<'js> Deref for Borrowed<'_, 'js> {
    type Target = Value<'js>;

    fn deref(&self) -> &Value<'js> {
        &self.value
    }
}

/// What a function was called with.
pub(crate) struct Call<'a, 'js> {
    ctx: Ctx<'js>,
    this: qjs::JSValue,
    arguments: &'a [qjs::JSValue],
}

impl<'a, 'js> Call<'a, 'js> {
    /// Where it was called.
    pub(crate) fn ctx(&self) -> &Ctx<'js> {
        &self.ctx
    }

    /// What it was called on.
    pub(crate) fn this(&self) -> Borrowed<'_, 'js> {
        self.borrowed(self.this)
    }

    /// An argument; none if there are not so many.
    pub(crate) fn argument(&self, at: usize) -> Option<Borrowed<'_, 'js>> {
        self.arguments.get(at).map(|value| self.borrowed(*value))
    }

    fn borrowed(&self, value: qjs::JSValue) -> Borrowed<'_, 'js> {
        // SAFETY: the copy is never dropped, so nothing is counted twice, and does not outlive its original.
        let ctx = unsafe { std::ptr::read(&self.ctx) };
        // SAFETY: QuickJS keeps what a function is called with until that returns, which is after `self`; and
        // as the value is never dropped, its count stays the caller's.
        let value = ManuallyDrop::new(unsafe { Value::from_raw(ctx, value) });
        Borrowed { value, owner: PhantomData }
    }
}

/// What a function does. It is nothing but its type, such as a closure that captures nothing.
pub(crate) trait Body:
    for<'a, 'js> Fn(&Call<'a, 'js>) -> Result<Value<'js>> + Copy + 'static
{
}

impl<F> Body for F where F: for<'a, 'js> Fn(&Call<'a, 'js>) -> Result<Value<'js>> + Copy + 'static {}

/// Makes a function, which says that it takes so many arguments.
pub(crate) fn function<'js, F: Body>(
    ctx: &Ctx<'js>,
    name: &CStr,
    length: u8,
    _body: F,
) -> Result<Value<'js>> {
    // SAFETY: the context is alive, and the name ends with NUL and is copied.
    let function = unsafe {
        qjs::JS_NewCFunction2(
            ctx.as_raw().as_ptr(),
            Some(enter::<F>),
            name.as_ptr(),
            c_int::from(length),
            qjs::JSCFunctionEnum_JS_CFUNC_generic,
            0,
        )
    };
    // SAFETY: it is ours, of this context.
    let function = unsafe { Value::from_raw(ctx.clone(), function) };
    if function.is_exception() { Err(Error::Exception) } else { Ok(function) }
}

/// Where QuickJS enters a function.
///
/// # Safety
/// Only QuickJS calls it, with the runtime's lock held, a context that is alive and as many arguments as it
/// says; `function` had an `F`.
unsafe extern "C" fn enter<F: Body>(
    ctx: *mut qjs::JSContext,
    this: qjs::JSValue,
    count: c_int,
    arguments: *mut qjs::JSValue,
) -> qjs::JSValue {
    const { assert!(size_of::<F>() == 0, "a function captures nothing") }
    // SAFETY: an `F` takes no memory and may be copied, and there was one.
    let body: &F = unsafe { NonNull::dangling().as_ref() };
    // SAFETY: as above.
    let ctx = unsafe { NonNull::new_unchecked(ctx) };
    // SAFETY: as above. Its lifetime ends here: `Body` works for any.
    let ctx = unsafe { Ctx::from_raw(ctx) };
    let arguments = match usize::try_from(count) {
        // SAFETY: as above.
        Ok(count) if count > 0 => unsafe { slice::from_raw_parts(arguments, count) },
        _ => &[],
    };
    let call = Call { ctx, this, arguments };
    // Nothing may unwind into C.
    match catch_unwind(AssertUnwindSafe(|| body(&call))) {
        Ok(Ok(value)) => given_away(value),
        Ok(Err(error)) => thrown(&call.ctx, &error),
        Err(_) => {
            tracing::error!(
                "a function that scripts call has failed; this is a fault of the router's"
            );
            thrown(&call.ctx, &Error::Unknown)
        }
    }
}

/// The value alone, whose count is the receiver's now.
fn given_away(value: Value<'_>) -> qjs::JSValue {
    let value = ManuallyDrop::new(value);
    // SAFETY: its count of the context goes; it is never used again.
    drop(unsafe { std::ptr::read(value.ctx()) });
    value.as_raw()
}

fn thrown(ctx: &Ctx<'_>, error: &Error) -> qjs::JSValue {
    if !error.is_exception() {
        let mut text = error.to_string().replace('\0', "?");
        text.push('\0');
        // SAFETY: both texts end with NUL, and the format takes one.
        unsafe {
            qjs::JS_ThrowTypeError(ctx.as_raw().as_ptr(), c"%s".as_ptr(), text.as_ptr());
        }
    }
    qjs::JS_EXCEPTION
}

/// The value as an object, if it is one.
pub(crate) fn object<'a, 'js>(value: &'a Value<'js>) -> Option<&'a Object<'js>> {
    // SAFETY: it is one.
    value.is_object().then(|| unsafe { value.ref_object() })
}

/// The value as an array, if it is one.
pub(crate) fn array<'a, 'js>(value: &'a Value<'js>) -> Option<&'a Array<'js>> {
    // SAFETY: it is one.
    value.is_array().then(|| unsafe { value.ref_array() })
}

/// How many elements an array has. (`Array::len` panics above what a signed number holds, and a script may set any
/// length.)
pub(crate) fn length(array: &Array<'_>) -> Result<u32> {
    let mut length = 0;
    // SAFETY: the array and its context are alive, and the number is written before it is read.
    let done = unsafe {
        qjs::JS_GetLength(array.ctx().as_raw().as_ptr(), array.as_value().as_raw(), &raw mut length)
    };
    // A whole number below 2^32, or the call has thrown.
    u32::try_from(length).ok().filter(|_| done == 0).ok_or(Error::Exception)
}

/// Looks at each property that `Object.keys` names, in its order: what it is called, in UTF-8 but for halves of
/// surrogate pairs, and its value. That may be a getter's, which runs code of the script's.
pub(crate) fn each_property<'js>(
    object: &Object<'js>,
    mut look: impl FnMut(&[u8], &Value<'js>) -> Result<()>,
) -> Result<()> {
    /// `Object.keys`: symbols and what is not enumerable are none.
    const KEYS: c_int = (qjs::JS_GPN_STRING_MASK | qjs::JS_GPN_ENUM_ONLY) as c_int;
    let ctx = object.ctx();
    let mut keys = Keys { ctx, first: std::ptr::null_mut(), count: 0 };
    // SAFETY: the object and its context are alive; both are written unless the call has thrown.
    let done = unsafe {
        qjs::JS_GetOwnPropertyNames(
            ctx.as_raw().as_ptr(),
            &raw mut keys.first,
            &raw mut keys.count,
            object.as_value().as_raw(),
            KEYS,
        )
    };
    if done != 0 {
        return Err(Error::Exception);
    }
    for key in keys.all() {
        let name = Name::of(ctx, key.atom)?;
        // SAFETY: object, context and key are alive.
        let value = unsafe {
            qjs::JS_GetProperty(ctx.as_raw().as_ptr(), object.as_value().as_raw(), key.atom)
        };
        // SAFETY: it is ours, of this context.
        let value = unsafe { Value::from_raw(ctx.clone(), value) };
        if value.is_exception() {
            return Err(Error::Exception);
        }
        look(name.bytes(), &value)?;
    }
    Ok(())
}

/// Keys of an object.
struct Keys<'a, 'js> {
    ctx: &'a Ctx<'js>,
    first: *mut qjs::JSPropertyEnum,
    count: u32,
}

impl Keys<'_, '_> {
    fn all(&self) -> &[qjs::JSPropertyEnum] {
        if self.first.is_null() {
            return &[];
        }
        // SAFETY: QuickJS has written so many, and they are freed with `self`.
        unsafe { slice::from_raw_parts(self.first, self.count as usize) }
    }
}

impl Drop for Keys<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: they are ours, or there are none, which is nothing to free.
        unsafe { qjs::JS_FreePropertyEnum(self.ctx.as_raw().as_ptr(), self.first, self.count) }
    }
}

/// What a key is called.
struct Name<'a, 'js> {
    ctx: &'a Ctx<'js>,
    first: NonNull<c_char>,
    length: usize,
}

impl<'a, 'js> Name<'a, 'js> {
    fn of(ctx: &'a Ctx<'js>, key: qjs::JSAtom) -> Result<Self> {
        let mut length = 0;
        // SAFETY: key and context are alive, and the length is written unless the call has thrown.
        let first =
            unsafe { qjs::JS_AtomToCStringLen(ctx.as_raw().as_ptr(), &raw mut length, key) };
        let first = NonNull::new(first.cast_mut()).ok_or(Error::Exception)?;
        Ok(Self { ctx, first, length: length as usize })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: QuickJS has written so many, and they are freed with `self`.
        unsafe { slice::from_raw_parts(self.first.as_ptr().cast(), self.length) }
    }
}

impl Drop for Name<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { qjs::JS_FreeCString(self.ctx.as_raw().as_ptr(), self.first.as_ptr()) }
    }
}

/// Calls a function with one argument.
pub(crate) fn call<'js>(function: &Function<'js>, argument: &Value<'js>) -> Result<Value<'js>> {
    let ctx = function.ctx();
    let mut argument = argument.as_raw();
    // SAFETY: function, argument and context are alive, and stay so while it runs.
    let value = unsafe {
        qjs::JS_Call(
            ctx.as_raw().as_ptr(),
            function.as_value().as_raw(),
            qjs::JS_UNDEFINED,
            1,
            &raw mut argument,
        )
    };
    // SAFETY: it is ours, of this context.
    let value = unsafe { Value::from_raw(ctx.clone(), value) };
    if value.is_exception() { Err(Error::Exception) } else { Ok(value) }
}

/// Does the next of the jobs that promises and `queueMicrotask` have left; whether there was one.
///
/// # Errors
/// The job has thrown: a microtask of the script's own, or one of a promise for which there was no memory or no time. Or
/// something before has, and QuickJS has returned as if nothing were, as when there is no memory to leave another job.
/// (`Ctx::execute_pending_job` drops the one and does not look for the other.)
pub(crate) fn next_job(ctx: &Ctx<'_>) -> Result<bool> {
    let mut of = std::ptr::null_mut();
    // SAFETY: the context is alive.
    let runtime = unsafe { qjs::JS_GetRuntime(ctx.as_raw().as_ptr()) };
    // SAFETY: its runtime is, too, and its lock is held. It has no other context, so what is thrown is this one's.
    let done = unsafe { qjs::JS_ExecutePendingJob(runtime, &raw mut of) };
    if done < 0 || ctx.has_exception() { Err(Error::Exception) } else { Ok(done > 0) }
}

/// Whether it is an object as `{}` makes them, whatever its prototype: no array, function, promise, error or proxy.
pub(crate) fn is_plain(value: &Value<'_>) -> bool {
    // SAFETY: the value is alive.
    unsafe { qjs::JS_GetClassID(value.as_raw()) == PLAIN }
}

#[cfg(test)]
mod tests {
    use rquickjs::{Context, Persistent, Runtime};

    use super::*;

    #[test]
    fn what_is_plain_is_told_from_all_else() {
        let runtime = Runtime::new().unwrap();
        Context::full(&runtime).unwrap().with(|ctx| {
            let is = |text: &str| is_plain(&ctx.eval::<Value, _>(text).unwrap());
            for text in ["({})", "({ a: 1 })", "Object.create(null)", "new (class {})()"] {
                assert!(is(text), "{text}");
            }
            for text in [
                "[]",
                "(() => 1)",
                "Promise.resolve()",
                "new Error()",
                "new Proxy({}, {})",
                "new Map()",
                "new Date()",
                "Object(1)",
                "(function () { return arguments; })()",
                "1",
                "'a'",
                "null",
            ] {
                assert!(!is(text), "{text}");
            }
        });
    }

    #[test]
    fn counts_are_as_before_whatever_a_function_does() {
        const USES: &str = "
            const fails = (body) => {
                try { body(); return false; } catch (error) { return error instanceof TypeError; }
            };
            () => {
                const object = { itself };
                return echo(object) === object && object.itself() === object && echo() === undefined
                    && echo('text') === 'text' && fails(error) && fails(panics);
            };";
        let runtime = Runtime::new().unwrap();
        let context = Context::full(&runtime).unwrap();
        let uses = context.with(|ctx| {
            let echo = function(&ctx, c"echo", 1, |call| {
                let undefined = || Value::new_undefined(call.ctx().clone());
                Ok(call.argument(0).map_or_else(undefined, |value| (*value).clone()))
            });
            let itself = function(&ctx, c"itself", 0, |call| Ok((*call.this()).clone()));
            let error = function(&ctx, c"error", 0, |_| Err(Error::Unknown));
            let panics = function(&ctx, c"panics", 0, |_| panic!("on purpose"));
            let all = [("echo", echo), ("itself", itself), ("error", error), ("panics", panics)];
            for (name, function) in all {
                ctx.globals().set(name, function.unwrap()).unwrap();
            }
            Persistent::save(&ctx, ctx.eval::<Function, _>(USES).unwrap())
        });
        let pieces_after = |times: u32| {
            context.with(|ctx| {
                let uses = uses.clone().restore(&ctx).unwrap();
                for _ in 0..times {
                    assert!(uses.call::<_, bool>(()).unwrap());
                }
            });
            runtime.run_gc();
            runtime.memory_usage().malloc_count
        };
        let before = pieces_after(1);
        assert_eq!(pieces_after(100), before);
    }
}
