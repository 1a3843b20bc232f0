//! What a rule says about names, paths and values, as it is compared.
//!
//! Every pattern is read from the text that is written in a configuration; the texts also travel to
//! the router and to workers, which read them again.

use std::collections::HashSet;
use std::net::IpAddr;

use super::normal;

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAPattern {
    /// No name of a host.
    #[error(
        "`{0}` is no host: write a name without its port, such as `app.example.org`, `*.example.org` (what is \
         below it) or `.example.org` (both)"
    )]
    Host(String),
    /// No name that a TLS client can ask for.
    #[error("`{0}` is an address: a TLS client asks for names only")]
    SniAddress(String),
    /// An asterisk where it means nothing.
    #[error("`{0}`: `*` is for the end only")]
    Asterisk(String),
    /// A path without a slash.
    #[error("`{0}` is no path: it begins with `/`")]
    NoSlash(String),
    /// A path with something that is in none.
    #[error(
        "`{0}` is no path that can be matched: leave out what begins with `?` or `#`, `\\` and spaces"
    )]
    Path(String),
    /// No network.
    #[error("`{0}` is no network")]
    Network(String),
    /// No context.
    #[error("`{0}`: {1}")]
    Context(String, String),
}

/// Names of hosts: each itself, what is below one, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Each itself.
    pub exact: HashSet<Box<str>>,
    /// What is below one.
    pub below: HashSet<Box<str>>,
    /// `*`: any name at all.
    pub any: bool,
}

impl Names {
    /// Adds `a.example`, `*.example` (any depth below it), `.example` (both) or `*` (any name).
    ///
    /// # Errors
    /// It is none of these.
    pub fn add(&mut self, text: &str) -> Result<(), NotAPattern> {
        let host = |name: &str| {
            let plain = !name.starts_with('[') && name.contains(':');
            normal::host(name).filter(|_| !plain).ok_or(NotAPattern::Host(text.to_owned()))
        };
        if text == "*" {
            self.any = true;
        } else if let Some(name) = text.strip_prefix("*.") {
            self.below.insert(host(name)?);
        } else if let Some(name) = text.strip_prefix('.') {
            let name = host(name)?;
            self.exact.insert(name.clone());
            self.below.insert(name);
        } else {
            self.exact.insert(host(text)?);
        }
        Ok(())
    }

    /// As [`add`](Self::add), for names that TLS clients ask for, which are never addresses
    /// (RFC 6066 3).
    ///
    /// # Errors
    /// It is none of these.
    pub fn add_server_name(&mut self, text: &str) -> Result<(), NotAPattern> {
        if text.starts_with('[') || text.parse::<IpAddr>().is_ok() {
            return Err(NotAPattern::SniAddress(text.to_owned()));
        }
        self.add(text)
    }

    /// Whether a name, normalised, is one of them.
    pub fn contain(&self, name: &str) -> bool {
        self.any
            || self.exact.contains(name)
            || (!self.below.is_empty() && parents(name).any(|parent| self.below.contains(parent)))
    }
}

/// What a name is below of: `b.c` and `c` for `a.b.c`.
pub fn parents(name: &str) -> impl Iterator<Item = &str> {
    // Names are short: a search that is made for long texts takes longer than a look at each byte.
    let dots = name.bytes().enumerate().filter(|(_, byte)| *byte == b'.');
    dots.filter_map(|(at, _)| name.get(at + 1..))
}

/// A path, or everything below one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern {
    stem: Box<str>,
    end: PathEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PathEnd {
    /// Nothing follows.
    Exact,
    /// `/api/*`: the end, or a slash and anything.
    Segment,
    /// `/api*`: anything.
    Any,
}

impl PathPattern {
    /// Reads `/a/b`, `/api/*` (`/api` and what is below it) or `/api*` (whatever begins so).
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, NotAPattern> {
        if text == "*" {
            return Ok(Self { stem: "".into(), end: PathEnd::Any });
        }
        if !text.starts_with('/') {
            return Err(NotAPattern::NoSlash(text.to_owned()));
        }
        let (stem, end) = match text.strip_suffix('*') {
            None => (text, PathEnd::Exact),
            Some(stem) if stem.ends_with('/') => (stem, PathEnd::Segment),
            Some(stem) => (stem, PathEnd::Any),
        };
        if stem.contains('*') {
            return Err(NotAPattern::Asterisk(text.to_owned()));
        }
        if stem.contains('?') {
            return Err(NotAPattern::Path(text.to_owned()));
        }
        let stem = normal::path(stem).ok_or_else(|| NotAPattern::Path(text.to_owned()))?;
        let stem = match end {
            PathEnd::Segment => stem.strip_suffix('/').unwrap_or(&stem).into(),
            PathEnd::Exact | PathEnd::Any => stem,
        };
        Ok(Self { stem, end })
    }

    /// Whether some path may be as this and as the other say. Never wrong when it says no.
    pub fn may_share(&self, other: &Self) -> bool {
        self.stem.starts_with(&*other.stem) || other.stem.starts_with(&*self.stem)
    }

    /// Whether a path, normalised, is as this says.
    pub fn matches(&self, path: &str) -> bool {
        path.strip_prefix(&*self.stem).is_some_and(|rest| match self.end {
            PathEnd::Exact => rest.is_empty(),
            PathEnd::Segment => rest.is_empty() || rest.starts_with('/'),
            PathEnd::Any => true,
        })
    }
}

/// The value of a header, a cookie or a parameter: equal, or beginning so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ValuePattern {
    stem: Box<str>,
    open: bool,
}

impl ValuePattern {
    /// Reads `acme`, `acme*` (whatever begins so) or `*` (any value, an empty one included).
    ///
    /// # Errors
    /// There is an asterisk before the end.
    pub fn parse(text: &str) -> Result<Self, NotAPattern> {
        let (stem, open) = text.strip_suffix('*').map_or((text, false), |stem| (stem, true));
        if stem.contains('*') {
            return Err(NotAPattern::Asterisk(text.to_owned()));
        }
        Ok(Self { stem: stem.into(), open })
    }

    /// Whether a value is as this says.
    pub fn matches(&self, value: &[u8]) -> bool {
        let stem = self.stem.as_bytes();
        if self.open { value.starts_with(stem) } else { value == stem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Names {
        let mut names = Names::default();
        for text in texts {
            names.add(text).unwrap();
        }
        names
    }

    #[test]
    fn names_match_as_the_documentation_says() {
        for (pattern, inside, outside) in [
            (
                "App.Example.org.",
                &["app.example.org"][..],
                &["example.org", "x.app.example.org"][..],
            ),
            (
                "*.example.org",
                &["a.example.org", "a.b.example.org"],
                &["example.org", "aexample.org"],
            ),
            (
                ".example.org",
                &["a.example.org", "a.b.example.org", "example.org"],
                &["aexample.org", "org"],
            ),
            ("*", &["a", "a.b"], &[]),
            ("[::1]", &["[::1]"], &["[::2]"]),
        ] {
            let names = names(&[pattern]);
            assert!(inside.iter().all(|name| names.contain(name)), "{pattern}");
            assert!(!outside.iter().any(|name| names.contain(name)), "{pattern}");
        }
        for wrong in ["a:80", "a/b", "*a.org", "a.*", "", "*.", "http://a", "a b", "::1"] {
            assert!(Names::default().add(wrong).is_err(), "{wrong}");
        }
        for address in ["10.0.0.1", "[::1]", "::1"] {
            assert!(Names::default().add_server_name(address).is_err(), "{address}");
        }
    }

    #[test]
    fn paths_match_as_the_documentation_says() {
        for (pattern, inside, outside) in [
            ("/api/*", &["/api", "/api/", "/api/v1"][..], &["/apis", "/", "/ap"][..]),
            ("/api*", &["/api", "/api/", "/apis"], &["/ap"]),
            ("/api", &["/api"], &["/api/", "/apis"]),
            ("/*", &["/", "/x", "/x/y"], &[]),
            ("*", &["/", "/x"], &[]),
            ("/a/../%62/*", &["/b", "/b/c"], &["/a"]),
        ] {
            let path = PathPattern::parse(pattern).unwrap();
            assert!(inside.iter().all(|it| path.matches(it)), "{pattern}");
            assert!(!outside.iter().any(|it| path.matches(it)), "{pattern}");
        }
        for wrong in ["api", "", "/*/b", "/a**", "/a?b", "/a#b", "/a b"] {
            assert!(PathPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_equal_or_begin_so() {
        let matches = |pattern: &str, value: &str| {
            ValuePattern::parse(pattern).unwrap().matches(value.as_bytes())
        };
        assert!(matches("gold", "gold") && !matches("gold", "golden") && !matches("gold", "Gold"));
        assert!(matches("gold*", "golden") && !matches("gold*", "gol"));
        assert!(matches("*", "") && matches("", "") && !matches("", "x"));
        assert!(ValuePattern::parse("a*b").is_err());
    }
}
