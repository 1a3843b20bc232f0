//! Which keys there are, which will be, and what to say to all others.

mod foreign;

use self::foreign::{ELSEWHERE, FOREIGN};
use super::problem::{Advice, Problem};

/// The keys of one table.
#[derive(Debug)]
pub(super) struct Schema {
    /// How the table is called in messages.
    pub(super) title: &'static str,
    /// Keys that can be written.
    pub(super) keys: &'static [&'static str],
    /// Keys of the documented interface that are not there yet.
    pub(super) later: &'static [&'static str],
}

pub(super) const FILE: Schema = Schema {
    title: "the file",
    keys: &["include", "router", "admin", "listener", "pool", "route", "test"],
    later: &[],
};

pub(super) const ROUTER: Schema = Schema {
    title: "`[router]`",
    keys: &[
        "user",
        "max-attempts",
        "stuck-timeout",
        "inspect-timeout",
        "peek-max",
        "script",
        "script-timeout",
        "script-memory",
    ],
    later: &[],
};

pub(super) const ADMIN: Schema = Schema { title: "`[admin]`", keys: &["socket"], later: &[] };

pub(super) const LISTENER: Schema = Schema {
    title: "`[[listener]]`",
    keys: &[
        "name",
        "address",
        "backlog",
        "mode",
        "unknown",
        "reuse",
        "proxy-protocol",
        "ech",
        "limits",
    ],
    later: &[],
};

pub(super) const LIMITS: Schema = Schema {
    title: "`limits`",
    keys: &["per-peer", "prefix", "rate", "burst", "inspecting"],
    later: &[],
};

pub(super) const POOL: Schema = Schema {
    title: "`[[pool]]`",
    keys: &[
        "name",
        "command",
        "protocol",
        "workers",
        "balance",
        "otherwise",
        "when-full",
        "on-error",
        "hand-back-to",
        "max-connections",
        "handoff-window",
        "queue",
        "start-timeout",
        "drain-timeout",
        "stop-signal",
        "stop-timeout",
        "restart",
        "user",
        "group",
        "groups",
        "umask",
        "directory",
        "root",
        "nice",
        "nofile",
        "max-age",
        "max-connections-served",
        "max-memory",
        "env",
    ],
    later: &["selinux-context", "headers", "ports", "hook"],
};

pub(super) const QUEUE: Schema = Schema { title: "`queue`", keys: &["max", "timeout"], later: &[] };

pub(super) const RESTART: Schema =
    Schema { title: "`restart`", keys: &["delay", "max-delay", "attempts"], later: &[] };

pub(super) const ROUTE: Schema = Schema {
    title: "`[[route]]`",
    keys: &[
        "name",
        "listener",
        "peer",
        "peer-user",
        "peer-context",
        "peer-level",
        "sni",
        "alpn",
        "http2",
        "host",
        "path",
        "query",
        "header",
        "cookie",
        "pool",
        "reject",
        "redirect",
        "message",
    ],
    later: &[],
};

pub(super) const TEST: Schema = Schema {
    title: "`[[test]]`",
    keys: &[
        "peer",
        "peer-user",
        "peer-context",
        "sni",
        "alpn",
        "http2",
        "host",
        "path",
        "query",
        "header",
        "cookie",
        "listener",
        "expect",
    ],
    later: &[],
};

/// All tables, in the order of the documentation.
pub(super) const ALL: [&Schema; 10] =
    [&FILE, &ROUTER, &ADMIN, &LISTENER, &LIMITS, &POOL, &QUEUE, &RESTART, &ROUTE, &TEST];

impl Schema {
    /// What is wrong with a key; nothing if it can be written.
    pub(super) fn judge(&self, key: &str) -> Option<Problem> {
        if self.keys.contains(&key) {
            return None;
        }
        if self.later.contains(&key) {
            return Some(Problem::NotYet(key.to_owned()));
        }
        let advice = self.advice(key);
        Some(Problem::UnknownKey { key: key.to_owned(), table: self.title, advice })
    }

    fn advice(&self, key: &str) -> Advice {
        let plain = plain(key);
        // `max_connections` and `maxConnections` are ours in another dress.
        if let Some(same) = self.all().find(|ours| **ours == plain) {
            return Advice::Write((*same).to_owned());
        }
        if let Some((_, ours, table)) = best_foreign(&plain, self) {
            return match *table {
                table if table.later.contains(ours) => Advice::WillBe(ours, table.title),
                table if table.title == FILE.title => Advice::Write(heading(ours)),
                table if table.title == self.title => Advice::Write((*ours).to_owned()),
                table => Advice::WriteIn(ours, table.title),
            };
        }
        if let Some((_, sentence)) = ELSEWHERE.iter().find(|(word, _)| *word == plain) {
            return Advice::Say(sentence);
        }
        if let Some(near) = near(&plain, self.all().copied()) {
            return Advice::DidYouMean(near.to_owned());
        }
        let has = |table: &&&Schema| table.all().any(|ours| *ours == plain);
        if let Some(table) = ALL.iter().find(has) {
            return match table.title == FILE.title {
                true => Advice::Write(heading(&plain)),
                false => Advice::BelongsTo(table.title),
            };
        }
        Advice::None
    }

    fn all(&self) -> impl Iterator<Item = &'static &'static str> {
        self.keys.iter().chain(self.later)
    }
}

/// Of several meanings that of the table where the word is written.
fn best_foreign(
    plain: &str,
    here: &Schema,
) -> Option<&'static (&'static str, &'static str, &'static Schema)> {
    let mut meanings = FOREIGN.iter().filter(|(word, ..)| *word == plain);
    let first = meanings.clone().next();
    meanings.find(|(.., table)| table.title == here.title).or(first)
}

/// How a table is written.
fn heading(name: &str) -> String {
    match name {
        "router" | "admin" => format!("[{name}]"),
        "include" => name.to_owned(),
        _ => format!("[[{name}]]"),
    }
}

/// A word in lower case with `-` between its parts, whatever others put there.
pub(super) fn plain(word: &str) -> String {
    let mut plain = String::with_capacity(word.len());
    let mut before_lower = false;
    for c in word.trim().chars() {
        if c.is_ascii_uppercase() && before_lower {
            plain.push('-');
        }
        before_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        plain.push(if c == '_' || c == ' ' { '-' } else { c.to_ascii_lowercase() });
    }
    plain
}

/// The word that was probably meant: one slip in a short word, two in a longer one, three in a long one.
pub(super) fn near<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Distances cost the product of the lengths; nothing of ours is longer.
    if word.len() > 64 {
        return None;
    }
    let slips = match word.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    words
        .map(|ours| (strsim::osa_distance(word, ours), ours))
        .filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, ours)| ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(schema: &Schema, key: &str) -> String {
        schema.judge(key).map_or_else(|| "fine".to_owned(), |problem| problem.to_string())
    }

    #[test]
    fn foreign_words_are_answered_with_ours() {
        for (schema, key, answer) in [
            (&POOL, "instances", "`instances` is no key of `[[pool]]`: write `workers`"),
            (
                &POOL,
                "max_connections",
                "`max_connections` is no key of `[[pool]]`: write `max-connections`",
            ),
            (
                &POOL,
                "maxConnections",
                "`maxConnections` is no key of `[[pool]]`: write `max-connections`",
            ),
            (&FILE, "upstream", "`upstream` is no key of the file: write `[[pool]]`"),
            (&FILE, "pools", "`pools` is no key of the file: did you mean `pool`?"),
            (
                &LISTENER,
                "server_name",
                "`server_name` is no key of `[[listener]]`: write `host` in `[[route]]`",
            ),
            (
                &LISTENER,
                "workers",
                "`workers` is no key of `[[listener]]`: it belongs to `[[pool]]`",
            ),
            (&POOL, "script", "`script` is no key of `[[pool]]`: write `command`"),
            (&POOL, "selinux-context", "`selinux-context` is not there yet"),
            (&POOL, "wrokers", "`wrokers` is no key of `[[pool]]`: did you mean `workers`?"),
            (&ADMIN, "colour", "`colour` is no key of `[admin]`"),
            (&POOL, "workers", "fine"),
        ] {
            assert_eq!(said(schema, key), answer);
        }
        assert!(said(&POOL, "memory_limit").contains("MemoryMax="));
        assert!(said(&POOL, "max_memory_restart").ends_with("write `max-memory`"));
    }

    #[test]
    fn every_answer_names_a_key_that_is_there() {
        for (word, ours, table) in FOREIGN {
            assert!(table.all().any(|key| key == ours), "{word} is answered with {ours}");
            assert_eq!(*word, plain(word));
        }
        for schema in ALL {
            assert!(schema.keys.iter().all(|key| !schema.later.contains(key)), "{}", schema.title);
        }
    }
}
