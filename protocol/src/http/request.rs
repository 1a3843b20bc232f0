//! What a request is about, from its method, its target and its field lines.

use std::borrow::Cow;

use super::normal;

/// A thing that a request says once, never, or so that two readers could understand two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<T> {
    /// This.
    Once(T),
    /// Nothing.
    Never,
    /// More than one thing, or what is none.
    Oddly,
}

/// A target's authority and its path with the query (RFC 9112 3.2). No path has `CONNECT`, with an
/// authority alone, and `OPTIONS`, with `*`; some servers take other targets of `CONNECT`, and `*` of other
/// methods, for paths.
pub fn parts<'a>(method: &str, target: &'a str) -> (Option<&'a str>, Said<&'a str>) {
    if method == "CONNECT" {
        let path = if normal::host(target).is_some() { Said::Never } else { Said::Oddly };
        return (Some(target), path);
    }
    if target.starts_with('/') {
        return (None, Said::Once(target));
    }
    if target == "*" {
        return (None, if method == "OPTIONS" { Said::Never } else { Said::Oddly });
    }
    let scheme = |name: &str| {
        let (scheme, rest) = target.split_once("://")?;
        scheme.eq_ignore_ascii_case(name).then_some(rest)
    };
    let Some(rest) = scheme("http").or_else(|| scheme("https")) else {
        return (None, Said::Oddly);
    };
    match rest.find(['/', '?', '#', '\\']) {
        None => (Some(rest), Said::Once("/")),
        Some(at) => {
            let (authority, path) = rest.split_at(at);
            // `http://host?x` has an empty path, which is `/`.
            let path = if path.starts_with('?') { "/" } else { path };
            (Some(authority), Said::Once(path))
        }
    }
}

/// The host, see [`normal::host`]: what the target's authority and all `Host` lines say, if they say
/// one thing.
pub fn host<'a>(
    authority: Option<&'a str>,
    lines: impl Iterator<Item = &'a [u8]>,
) -> Said<Box<str>> {
    let lines = lines.map(|value| std::str::from_utf8(value).ok());
    let mut found: Option<Box<str>> = None;
    for text in authority.map(Some).into_iter().chain(lines) {
        // An empty line is what a target without authority has (RFC 9112 3.2).
        if text == Some("") && authority.is_none() {
            continue;
        }
        let Some(host) = text.and_then(normal::host) else { return Said::Oddly };
        if found.as_ref().is_some_and(|found| *found != host) {
            return Said::Oddly;
        }
        found = Some(host);
    }
    found.map_or(Said::Never, Said::Once)
}

/// The path, see [`normal::path`], of what [`parts`] found.
pub fn path(target: Said<&str>) -> Said<Box<str>> {
    match target {
        Said::Once(path) => normal::path(path).map_or(Said::Oddly, Said::Once),
        Said::Never => Said::Never,
        Said::Oddly => Said::Oddly,
    }
}

/// Every value that one `Cookie` line has for a cookie (RFC 6265 4.2), as sent.
pub fn cookie<'a>(line: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    line.split(|byte| *byte == b';').filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let (known, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        (known.trim_ascii_end() == name.as_bytes())
            .then(|| value.get(1..).unwrap_or_default().trim_ascii_start())
    })
}

/// Every value of a parameter of a target's query, decoded.
pub fn query<'a>(target: &'a str, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|pair| !pair.is_empty()).filter_map(move |pair| {
        let (known, value) = pair.split_once('=').unwrap_or((pair, ""));
        (normal::query_part(known) == name).then(|| normal::query_part(value))
    })
}
