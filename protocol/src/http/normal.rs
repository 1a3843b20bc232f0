//! One spelling for what can be spelled in many ways: rules compare only these.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// A host without its port: in lower case, without the dot at its end, IPv6 addresses in brackets
/// and in their shortest form. `None` for what is no host: a rule could be slipped past where two
/// readers understand two.
pub fn host(text: &str) -> Option<Box<str>> {
    let (name, port) = split_port(text)?;
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if let Some(address) = name.strip_prefix('[') {
        let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]").into());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty()
        || name.starts_with('.')
        || name.ends_with('.')
        || name.contains("..")
        || !name.bytes().all(is_name)
    {
        return None;
    }
    Some(name.to_ascii_lowercase().into())
}

fn split_port(text: &str) -> Option<(&str, &str)> {
    if text.starts_with('[') {
        let end = text.find(']')? + 1;
        let (name, rest) = text.split_at_checked(end)?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((name, port)),
            None => rest.is_empty().then_some((name, "")),
        };
    }
    Some(text.split_once(':').unwrap_or((text, "")))
}

/// A path: what is before `?`, unreserved characters decoded (RFC 3986 2.3), all that is not ASCII
/// escaped (RFC 3987 3.1), the digits of escapes in upper case, dot segments removed, slashes merged.
/// `None` for what is no path: not beginning with a slash, or with a backslash or a control character in
/// it, which some servers take for something else, or with `#` in it or behind it, which some cut off.
pub fn path(target: &str) -> Option<Box<str>> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let odd = |byte: u8| byte.is_ascii_control() || matches!(byte, b'\\' | b' ');
    if !path.starts_with('/') || path.bytes().any(odd) || target.contains('#') {
        return None;
    }
    let decoded = respell(path);
    let mut normal = String::with_capacity(decoded.len());
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => normal.truncate(normal.rfind('/').unwrap_or_default()),
            name => {
                normal.push('/');
                normal.push_str(name);
            }
        }
    }
    let last = decoded.rsplit('/').next().unwrap_or_default();
    if matches!(last, "" | "." | "..") {
        normal.push('/');
    }
    Some(normal.into())
}

/// One spelling of every character: itself or its escape.
fn respell(path: &str) -> Cow<'_, str> {
    if path.is_ascii() && !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut spelled = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, escape(after)) {
            (b'%', Some(byte)) => {
                rest = after.get(2..).unwrap_or_default();
                if is_unreserved(byte) {
                    spelled.push(char::from(byte));
                } else {
                    push_escape(&mut spelled, byte);
                }
            }
            (first, _) if first.is_ascii() => spelled.push(char::from(*first)),
            (first, _) => push_escape(&mut spelled, *first),
        }
    }
    Cow::Owned(spelled)
}

fn push_escape(text: &mut String, byte: u8) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    text.push('%');
    for digit in [byte >> 4, byte & 15] {
        text.extend(DIGITS.get(usize::from(digit)));
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The byte that the two digits after a `%` mean.
fn escape(after: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// A name or a value of a query (`application/x-www-form-urlencoded`): `+` is a space, every escape is
/// decoded, and what is no UTF-8 then is replaced.
pub fn query_part(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => match escape(after) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = after.get(2..).unwrap_or_default();
                }
                None => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_host_has_one_spelling() {
        for (written, meant) in [
            ("Example.ORG", "example.org"),
            ("example.org.:8080", "example.org"),
            ("example.org:", "example.org"),
            ("10.1.2.3:80", "10.1.2.3"),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("under_score", "under_score"),
        ] {
            assert_eq!(host(written).as_deref(), Some(meant), "{written}");
        }
    }

    #[test]
    fn what_could_be_read_as_two_hosts_is_none() {
        for text in [
            "",
            ".",
            "a..b",
            "a..",
            ".a",
            "a b",
            "user@a",
            "a/b",
            "a,b",
            "a:b",
            "a:80:80",
            "[::1",
            "[a]",
            "[::1]x",
            "%61",
            "a\t",
            "\u{e4}",
            "a#b",
            "a\\b",
            "[fe80::1%25eth0]",
        ] {
            assert_eq!(host(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_path_has_one_spelling() {
        for (written, meant) in [
            ("/", "/"),
            ("/a/b?x=/../c", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("//a///b//", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("/%2e%2E/admin", "/admin"),
            ("/x/%2e%2e/admin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/%2561dmin", "/%2561dmin"),
            ("/%zz%4", "/%zz%4"),
            ("/%7Euser", "/~user"),
            ("/a%\u{e4}\u{e4}", "/a%%C3%A4%C3%A4"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
        ] {
            assert_eq!(path(written).as_deref(), Some(meant), "{written}");
        }
        for odd in ["", "a", "*", "/a\\b", "/a#/b", "/a\u{7f}", "/a b", "?/a"] {
            assert_eq!(path(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_query_is_decoded_whole() {
        assert_eq!(query_part("a+b%20c%26"), "a b c&");
        assert_eq!(query_part("%"), "%");
        assert_eq!(query_part("%4"), "%4");
        assert_eq!(query_part("plain"), "plain");
    }

    proptest! {
        /// What is normal stays so, and nothing in it climbs or repeats slashes.
        #[test]
        fn a_normal_path_is_normal(text in "/[a./%2eEfF5]{0,24}") {
            let once = path(&text).unwrap();
            prop_assert!(!once.contains("//") && !once.contains("/../") && !once.contains("/./"));
            prop_assert!(once.starts_with('/') && !once.ends_with("/..") && !once.ends_with("/."));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = (host(&text), path(&text), query_part(&text));
        }
    }
}
