//! The functions that every script has: `hash`, `inNetwork` and `console`.

use std::net::IpAddr;

use ipnet::IpNet;
use rquickjs::function::Rest;
use rquickjs::object::Property;
use rquickjs::{Coerced, Ctx, Exception, Function, Object, Result, Value};

use super::native;
use crate::route::networks::canonical;
use crate::sys::quickjs::Call;

/// Longest line that a script logs, in bytes.
const LONGEST_LINE: usize = 4096;

/// FNV-1a, 32 bits.
pub(super) fn fnv1a(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

/// As f64: a u32 above 2^31 would turn negative on its way into JavaScript.
fn hash<'js>(call: &Call<'_, 'js>) -> Result<Value<'js>> {
    let Some(text) = call.argument(0).filter(|text| text.is_string()) else {
        return Err(Exception::throw_type(call.ctx(), "hash(text) takes a string"));
    };
    let text = native::text_of(&text)?;
    // Half of a surrogate pair is no text, whatever the type says: it has three bytes like any other.
    let bytes: &[u8] = text.as_ref();
    let hash = f64::from(fnv1a(bytes));
    Ok(Value::new_number(call.ctx().clone(), hash))
}

fn in_network<'js>(
    ctx: Ctx<'js>,
    address: Value<'js>,
    network: std::string::String,
) -> Result<bool> {
    let parsed = match network.split_once('/') {
        Some(_) => network.parse::<IpNet>().ok(),
        None => network.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let Some(network) = parsed.map(|network| canonical(network.trunc())) else {
        let message = format!("`{network}` is no network, such as \"10.0.0.0/8\"");
        return Err(Exception::throw_type(&ctx, &message));
    };
    // A client on a Unix-domain socket has no address.
    let Some(address) = address.as_string() else { return Ok(false) };
    let address = address.to_string()?.parse::<IpAddr>();
    Ok(address.is_ok_and(|address| network.contains(&address.to_canonical())))
}

#[derive(Clone, Copy)]
enum Loudness {
    Debug,
    Info,
    Warn,
    Error,
}

/// What is no object as a text.
fn plain(part: &Value<'_>) -> Result<std::string::String> {
    if part.is_string() {
        // Half of a surrogate pair is no text, whatever the type says.
        let text = native::text_of(part)?;
        let bytes: &[u8] = text.as_ref();
        return Ok(std::string::String::from_utf8_lossy(bytes).into_owned());
    }
    match part.as_symbol() {
        // It has no text, and says so by throwing.
        Some(symbol) => {
            let description = symbol.description()?;
            let text = if description.is_string() { plain(&description)? } else { String::new() };
            Ok(format!("Symbol({text})"))
        }
        None => Ok(part.get::<Coerced<std::string::String>>()?.0),
    }
}

fn log<'js>(ctx: &Ctx<'js>, loudness: Loudness, parts: &[Value<'js>]) -> Result<()> {
    let mut line = std::string::String::new();
    for part in parts {
        if !line.is_empty() {
            line.push(' ');
        }
        // Objects as JSON where that can be, else as JavaScript writes them.
        let json = match part.is_object() && !part.is_error() && !part.is_function() {
            true => match ctx.json_stringify(part) {
                Ok(json) => json.map(|json| json.to_string()).transpose()?,
                // An object within itself is no reason to fail. If time is over, the engine knows.
                Err(_) => {
                    ctx.catch();
                    Some("[object]".to_owned())
                }
            },
            false => None,
        };
        line.push_str(&match json {
            Some(json) => json,
            None => plain(part)?,
        });
        if line.len() > LONGEST_LINE {
            let end = (0..=LONGEST_LINE).rev().find(|end| line.is_char_boundary(*end));
            line.truncate(end.unwrap_or_default());
            break;
        }
    }
    match loudness {
        Loudness::Debug => tracing::debug!(target: "script", "{line}"),
        Loudness::Info => tracing::info!(target: "script", "{line}"),
        Loudness::Warn => tracing::warn!(target: "script", "{line}"),
        Loudness::Error => tracing::error!(target: "script", "{line}"),
    }
    Ok(())
}

fn logger<'js>(loudness: Loudness) -> impl Fn(Ctx<'js>, Rest<Value<'js>>) -> Result<()> + 'js {
    move |ctx, parts| log(&ctx, loudness, &parts.0)
}

/// Sets them.
pub(super) fn define(ctx: &Ctx<'_>) -> Result<()> {
    let globals = ctx.globals();
    globals
        .prop("hash", Property::from(native::function(ctx, c"hash", 0, hash)?).configurable())?;
    let in_network = Function::new(ctx.clone(), in_network)?.with_name("inNetwork")?;
    globals.prop("inNetwork", Property::from(in_network).configurable())?;
    let console = Object::new(ctx.clone())?;
    for (name, loudness) in [
        ("debug", Loudness::Debug),
        ("log", Loudness::Info),
        ("info", Loudness::Info),
        ("warn", Loudness::Warn),
        ("error", Loudness::Error),
    ] {
        let function = Function::new(ctx.clone(), logger(loudness))?;
        console.set(name, function.with_name(name)?)?;
    }
    globals.prop("console", Property::from(console).configurable())?;
    Ok(())
}
