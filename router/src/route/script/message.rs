//! What a script posts, as JSON.
//!
//! `JSON.stringify` drops what it cannot write, calls `toJSON`, and turns a `Map` into `{}`. A worker
//! would miss it in silence; so this writes what JSON has and refuses the rest.

use std::io::Write;

use rquickjs::{Array, Ctx, Exception, Object, Result, Type, Value};
use vestibule_protocol::limits::QUEUE_BYTES;
use vestibule_protocol::{Codec, Data};

use super::engine::Handles;
use super::native;
use crate::sys::quickjs;

/// Deepest nesting, far below what JSON readers take (128): deeper is an object within itself.
const DEEPEST: usize = 64;

/// Longest text whose message is kept for its layout, in bytes: it counts as the script's memory.
const MOST_KEPT: usize = 256;

/// Reads a message. `undefined` is none.
///
/// # Errors
/// A `DataCloneError`, thrown: JSON has no such value, or the message is larger than the queue before
/// a worker.
pub(super) fn read<'js>(ctx: &Ctx<'js>, value: &Value<'js>) -> Result<Data> {
    if value.is_undefined() {
        return Ok(Data::NONE);
    }
    let mut text = Vec::with_capacity(32);
    write(ctx, value, &mut text, 0)?;
    fits(ctx, text.len())?;
    if value.is_object() && text.len() <= MOST_KEPT {
        Handles::of(ctx)?.layouts.keep_posted(value);
    }
    Ok(Data::from_parts(Codec::Json, text))
}

fn refuse(ctx: &Ctx<'_>, what: &str) -> rquickjs::Error {
    Exception::throw_dom(ctx, "DataCloneError", &format!("{what} cannot be posted"))
}

/// Whether so many bytes are no more than the queue before a worker holds.
fn fits(ctx: &Ctx<'_>, bytes: usize) -> Result<()> {
    match bytes > QUEUE_BYTES {
        true => Err(refuse(ctx, "a message of more than 1 MiB")),
        false => Ok(()),
    }
}

fn write<'js>(ctx: &Ctx<'js>, value: &Value<'js>, out: &mut Vec<u8>, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(refuse(ctx, "what is nested more than 64 levels deep, or in itself,"));
    }
    fits(ctx, out.len())?;
    // Telling the kinds of objects from each other takes longest: only where it is refused.
    if let Some(array) = quickjs::array(value) {
        return list(ctx, array, out, depth);
    }
    if let Some(object) = quickjs::object(value) {
        return record(ctx, object, out, depth);
    }
    match value.type_of() {
        Type::Null => out.extend_from_slice(b"null"),
        Type::Bool => {
            let text: &[u8] = if value.as_bool() == Some(true) { b"true" } else { b"false" };
            out.extend_from_slice(text);
        }
        Type::Int | Type::Float => number(ctx, value.as_number().unwrap_or_default(), out)?,
        Type::String => {
            text(ctx, native::text_of(value)?.as_ref(), out)?;
        }
        Type::Undefined | Type::Uninitialized => return Err(refuse(ctx, "undefined")),
        Type::Symbol => return Err(refuse(ctx, "a symbol")),
        Type::BigInt => return Err(refuse(ctx, "a BigInt")),
        other => return Err(refuse(ctx, other.as_str())),
    }
    Ok(())
}

fn number(ctx: &Ctx<'_>, number: f64, out: &mut Vec<u8>) -> Result<()> {
    /// From here on JavaScript writes an exponent.
    const LARGE: f64 = 1e21;
    if !number.is_finite() {
        return Err(refuse(ctx, "a number that is not finite"));
    }
    // Writing to memory does not fail.
    let _ = if number == number.trunc() && number.abs() < 9e15 {
        // Whole, so nothing is cut off; and `-0` is `0`, as in JavaScript.
        return serde_json::to_writer(out, &(number as i64))
            .map_err(|_| refuse(ctx, "this number"));
    } else if number.abs() < LARGE && number.abs() > 1e-6 {
        write!(out, "{number}")
    } else {
        write!(out, "{number:e}")
    };
    Ok(())
}

/// Bytes, whatever QuickJS's types say: half of a surrogate pair is no text, and is told from the rest here.
fn text(ctx: &Ctx<'_>, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    // Before it is copied, to where the script's memory does not count.
    fits(ctx, out.len() + bytes.len())?;
    let plain = |byte: &u8| (b' '..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
    if bytes.iter().all(plain) {
        out.push(b'"');
        out.extend_from_slice(bytes);
        out.push(b'"');
        return Ok(());
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(refuse(ctx, "a string that is not well formed"));
    };
    serde_json::to_writer(out, text).map_err(|_| refuse(ctx, "this text"))
}

fn list<'js>(ctx: &Ctx<'js>, array: &Array<'js>, out: &mut Vec<u8>, depth: usize) -> Result<()> {
    out.push(b'[');
    for at in 0..quickjs::length(array)? {
        if at > 0 {
            out.push(b',');
        }
        // A hole reads as undefined.
        write(ctx, &array.get::<Value>(at as usize)?, out, depth + 1)?;
    }
    out.push(b']');
    Ok(())
}

fn record<'js>(
    ctx: &Ctx<'js>,
    object: &Object<'js>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<()> {
    if !quickjs::is_plain(object) {
        if object.is_function() {
            return Err(refuse(ctx, "a function"));
        }
        if object.is_promise() || object.is_error() || object.is_proxy() {
            return Err(refuse(ctx, object.type_name()));
        }
    }
    // A plain object's prototype is null or the one without a prototype: a Date, a Map or an
    // instance of a class has more, and JSON would lose it.
    if object.get_prototype().is_some_and(|prototype| prototype.get_prototype().is_some()) {
        return Err(refuse(ctx, "an object of a class"));
    }
    out.push(b'{');
    let mut first = true;
    quickjs::each_property(object, |name, value| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        text(ctx, name, out)?;
        out.push(b':');
        write(ctx, value, out, depth + 1)
    })?;
    out.push(b'}');
    Ok(())
}
