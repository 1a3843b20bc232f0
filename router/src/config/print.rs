//! `check --print`: every value and where it comes from, as a file that says the same.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::source::Sourced;
use super::types::{
    Account, Address, Command, Conditions, Config, Limits, Listener, OnError, Pool, Protocol,
    Reuse, Route, Test, Workers,
};
use super::values::{show_duration, show_otherwise, show_signal, show_size};
use crate::inspect::Label;
use crate::pool::WhenFull;
use crate::route::imagine::Imagined;
use crate::route::{Refusal, Target};

/// Where comments begin, unless the value is longer.
const COLUMN: usize = 40;

impl Config {
    /// The whole configuration as TOML, each value followed by a comment that says where it comes from.
    /// What has no value is a comment that says what happens.
    pub fn print(&self) -> String {
        let mut page = Page::default();
        page.comment(&self.path.display().to_string());
        page.unset("log", &self.log, &quoted(&self.log));
        page.heading("[router]");
        let router = &self.router;
        let unset =
            "`vestibule` if there is one, else an unused number, as root; else who started it";
        page.optional("user", &router.user, account, unset);
        page.value("max-attempts", &router.max_attempts, ToString::to_string);
        page.value("stuck-timeout", &router.stuck_timeout, |timeout| {
            timeout.map_or_else(|| quoted("off"), duration)
        });
        let unset = "none; the routes decide alone";
        page.optional("script", &router.script, |script| path(&script.path), unset);
        page.value("script-timeout", &router.script_timeout, |timeout| duration(*timeout));
        page.value("script-memory", &router.script_memory, |size| quoted(&show_size(*size)));
        page.value("inspect-timeout", &router.inspect_timeout, |timeout| duration(*timeout));
        page.value("peek-max", &router.peek_max, |size| quoted(&show_size(*size)));
        page.heading("[admin]");
        let unset =
            "admin.sock in $RUNTIME_DIRECTORY, /run/vestibule or $XDG_RUNTIME_DIR/vestibule";
        page.optional("socket", &self.admin.socket, |socket| path(socket), unset);
        self.listeners.iter().for_each(|listener| page.listener(listener, self));
        self.pools.iter().for_each(|pool| page.pool(pool));
        self.routes.iter().for_each(|route| page.route(route, self));
        self.tests.iter().for_each(|test| page.test(test, self));
        page.text
    }

    fn listener_name(&self, index: usize) -> String {
        quoted(self.listeners.get(index).map_or("", |listener| listener.name.as_str()))
    }

    fn pool_name(&self, index: usize) -> String {
        quoted(self.pools.get(index).map_or("", |pool| pool.name.as_str()))
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn comment(&mut self, text: &str) {
        // Writing to a `String` does not fail.
        let _ = writeln!(self.text, "# {}", printable(text));
    }

    fn heading(&mut self, name: &str) {
        let _ = writeln!(self.text, "\n{name}");
    }

    fn line<T>(&mut self, text: &str, from: &Sourced<T>) {
        let origin = printable(&from.origin.to_string());
        let _ = writeln!(self.text, "{text:<COLUMN$} # {origin}");
    }

    fn value<T>(&mut self, key: &str, value: &Sourced<T>, show: impl FnOnce(&T) -> String) {
        self.line(&format!("{key} = {}", show(&value.value)), value);
    }

    fn optional<T>(
        &mut self,
        key: &str,
        value: &Sourced<Option<T>>,
        show: impl FnOnce(&T) -> String,
        unset: &str,
    ) {
        match &value.value {
            Some(it) => self.line(&format!("{key} = {}", show(it)), value),
            None => self.unset(key, value, unset),
        }
    }

    fn unset<T>(&mut self, key: &str, value: &Sourced<T>, meaning: &str) {
        self.line(&format!("# {key}: {meaning}"), value);
    }

    fn listener(&mut self, listener: &Listener, config: &Config) {
        self.heading("[[listener]]");
        self.value("name", &listener.name, |name| quoted(name));
        self.value("address", &listener.address, |address| quoted(&address.to_string()));
        self.value("backlog", &listener.backlog, ToString::to_string);
        if matches!(listener.address.value, Address::Path(_)) {
            self.value("mode", &listener.mode, |mode| quoted(&format!("{mode:03o}")));
        }
        let proxies = &listener.proxies;
        match proxies.is_empty() {
            true => self.unset("proxy-protocol", proxies, "nobody begins with a PROXY header"),
            false => self.value("proxy-protocol", proxies, |networks| {
                let networks: Vec<_> =
                    networks.iter().map(|network| quoted(&network.to_string())).collect();
                format!("[{}]", networks.join(", "))
            }),
        }
        self.value("ech", &listener.outer_hello, |outer| {
            quoted(if *outer { "outer" } else { "hidden" })
        });
        let Limits { per_peer, prefix, rate, burst, inspecting } = &listener.limits;
        let any = "any number";
        self.optional("limits.per-peer", per_peer, ToString::to_string, any);
        self.value("limits.prefix", prefix, |(v4, v6)| format!("[{v4}, {v6}]"));
        self.optional(
            "limits.rate",
            rate,
            |rate| quoted(&rate.to_string()),
            "as often as it likes",
        );
        if rate.is_some() {
            self.value("limits.burst", burst, ToString::to_string);
        }
        self.optional("limits.inspecting", inspecting, ToString::to_string, any);
        self.value("unknown", &listener.unknown, |pool| {
            pool.map_or_else(|| quoted("reject"), |pool| config.pool_name(pool))
        });
        self.value("reuse", &listener.reuse, |reuse| {
            quoted(match reuse {
                Reuse::Checked => "checked",
                Reuse::Connection => "connection",
            })
        });
    }

    fn pool(&mut self, pool: &Pool) {
        self.heading("[[pool]]");
        self.value("name", &pool.name, |name| quoted(name));
        self.value("command", &pool.command, command);
        self.value("protocol", &pool.protocol, |protocol| {
            quoted(match protocol {
                Protocol::Auto => "auto",
                Protocol::Vestibule => "vestibule",
            })
        });
        self.value("workers", &pool.workers, |workers| match workers {
            Workers::Auto => quoted("auto"),
            Workers::Number(number) => number.to_string(),
        });
        self.value("balance", &pool.balance, |balance| quoted(&balance.to_string()));
        self.value("otherwise", &pool.otherwise, |word| quoted(show_otherwise(*word)));
        self.value("when-full", &pool.when_full, |when_full| {
            quoted(match when_full {
                WhenFull::Wait => "wait",
                WhenFull::Spill => "spill",
            })
        });
        self.value("on-error", &pool.on_error, |on_error| {
            quoted(match on_error {
                OnError::Continue => "continue",
                OnError::Restart => "restart",
            })
        });
        self.optional(
            "hand-back-to",
            &pool.hand_back_to,
            |pools| {
                let names: Vec<String> = pools.iter().map(|name| quoted(name)).collect();
                format!("[{}]", names.join(", "))
            },
            "whom the rules say",
        );
        self.value("max-connections", &pool.max_connections, |most| {
            most.map_or_else(|| quoted("auto"), |most| most.to_string())
        });
        self.value("handoff-window", &pool.handoff_window, ToString::to_string);
        self.value("queue.max", &pool.queue.max, ToString::to_string);
        self.value("queue.timeout", &pool.queue.timeout, |timeout| duration(*timeout));
        self.value("start-timeout", &pool.start_timeout, |timeout| duration(*timeout));
        self.value("drain-timeout", &pool.drain_timeout, |timeout| duration(*timeout));
        self.value("stop-signal", &pool.stop_signal, |signal| quoted(show_signal(*signal)));
        self.value("stop-timeout", &pool.stop_timeout, |timeout| duration(*timeout));
        self.value("restart.delay", &pool.restart.delay, |delay| duration(*delay));
        self.value("restart.max-delay", &pool.restart.max_delay, |delay| duration(*delay));
        let attempts = &pool.restart.attempts;
        self.optional("restart.attempts", attempts, ToString::to_string, "for ever");
        self.optional("user", &pool.user, account, "`nobody` with euid 0, else who started it");
        self.optional("group", &pool.group, account, "the user's");
        self.optional(
            "groups",
            &pool.groups,
            |groups| list(groups.iter().map(account)),
            "the user's",
        );
        self.optional("umask", &pool.umask, |mask| quoted(&format!("{mask:03o}")), "inherited");
        self.value("directory", &pool.directory, |directory| path(directory));
        self.optional("root", &pool.root, |root| path(root), "the system's");
        self.optional("nice", &pool.nice, ToString::to_string, "inherited");
        self.optional("nofile", &pool.nofile, ToString::to_string, "the hard limit");
        self.optional("max-age", &pool.max_age, |age| duration(*age), "none");
        let served = &pool.max_served;
        self.optional("max-connections-served", served, ToString::to_string, "none");
        let memory = |bytes: &u64| quoted(&show_size(*bytes));
        self.optional("max-memory", &pool.max_memory, memory, "none");
        for (name, value) in &pool.env {
            self.value(&format!("env.{}", quoted(name)), value, |value| quoted(value));
        }
    }

    fn route(&mut self, route: &Route, config: &Config) {
        self.heading("[[route]]");
        self.value("name", &route.name, |name| quoted(name));
        let names = |listeners: &Vec<usize>| {
            list(listeners.iter().map(|index| config.listener_name(*index)))
        };
        self.optional("listener", &route.listeners, names, "any");
        let networks = |peers: &Vec<ipnet::IpNet>| {
            list(peers.iter().map(|network| quoted(&network.to_string())))
        };
        self.optional("peer", &route.peers, networks, "any");
        self.conditions(&route.conditions);
        match route.target.value {
            Target::Pool(index) => {
                self.value("pool", &route.target, |_| config.pool_name(index));
                if let Some(message) = &route.message.value {
                    self.value("message", &route.message, |_| value(message));
                }
            }
            Target::Redirect => self.value("redirect", &route.target, |_| quoted("https")),
            Target::Reject(refusal) => {
                self.value("reject", &route.target, |_| match refusal {
                    Refusal::Status(status) => status.to_string(),
                    Refusal::Reset => quoted("reset"),
                    Refusal::Close => quoted("close"),
                });
            }
        }
    }

    /// Only those that are written: without one there is no condition.
    fn conditions(&mut self, conditions: &Conditions) {
        let texts = [
            ("peer-user", &conditions.users),
            ("peer-context", &conditions.contexts),
            ("peer-level", &conditions.levels),
            ("sni", &conditions.server_names),
            ("alpn", &conditions.alpn),
            ("host", &conditions.hosts),
            ("path", &conditions.paths),
        ];
        for (key, texts) in texts {
            if let Some(all) = &texts.value {
                self.value(key, texts, |_| list(all.iter().map(|text| quoted(text))));
            }
        }
        if let Some(http2) = conditions.http2.value {
            self.value("http2", &conditions.http2, |_| http2.to_string());
        }
        let named = [
            ("query", &conditions.query),
            ("header", &conditions.headers),
            ("cookie", &conditions.cookies),
        ];
        for (key, named) in named {
            if !named.is_empty() {
                self.value(key, named, |all| {
                    let pair = |(name, values): &(String, Vec<String>)| {
                        let values = list(values.iter().map(|text| quoted(text)));
                        format!("{} = {values}", quoted(name))
                    };
                    format!("{{ {} }}", all.iter().map(pair).collect::<Vec<_>>().join(", "))
                });
            }
        }
    }

    fn test(&mut self, test: &Test, config: &Config) {
        self.heading("[[test]]");
        self.optional("peer", &test.peer, |peer| quoted(&peer.to_string()), "no address");
        self.client(&test.client, &Sourced { value: (), origin: test.expect.origin.clone() });
        self.value("listener", &test.listener, |index| config.listener_name(*index));
        self.value("expect", &test.expect, |route| quoted(route));
    }

    /// A test's client, besides its address: what is written, where its test is.
    fn client(&mut self, client: &Imagined, from: &Sourced<()>) {
        let mut say = |key: &str, text: String| self.value(key, from, |()| text);
        let texts = [
            ("peer-user", client.user.as_deref()),
            ("peer-context", client.context.as_ref().map(Label::as_str)),
            ("sni", client.server_name.as_deref()),
            ("host", client.host.as_deref()),
            ("path", client.path.as_deref()),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                say(key, quoted(text));
            }
        }
        if !client.alpn.is_empty() {
            say("alpn", list(client.alpn.iter().map(|text| quoted(text))));
        }
        if client.http2 {
            say("http2", "true".to_owned());
        }
        let named =
            [("query", &client.query), ("header", &client.headers), ("cookie", &client.cookies)];
        for (key, pairs) in named {
            if !pairs.is_empty() {
                let pair = |(name, value): &(String, String)| {
                    format!("{} = {}", quoted(name), quoted(value))
                };
                let pairs = pairs.iter().map(pair).collect::<Vec<_>>().join(", ");
                say(key, format!("{{ {pairs} }}"));
            }
        }
    }
}

/// A value of JSON as one of TOML: there is no null in what is read from TOML.
fn value(json: &serde_json::Value) -> String {
    match json {
        serde_json::Value::String(text) => quoted(text),
        serde_json::Value::Array(values) => list(values.iter().map(value)),
        serde_json::Value::Object(pairs) => {
            let pair = |(name, json): (&String, &serde_json::Value)| {
                format!("{} = {}", quoted(name), value(json))
            };
            format!("{{ {} }}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn command(command: &Command) -> String {
    match command {
        Command::Demo => quoted("demo"),
        Command::Program { program, argv } => {
            let arguments = argv.iter().skip(1).map(|argument| quoted(argument));
            list(std::iter::once(path(program)).chain(arguments))
        }
    }
}

fn account(account: &Account) -> String {
    match account {
        Account::Name(name) => quoted(name),
        Account::Number(number) => number.to_string(),
    }
}

fn duration(duration: Duration) -> String {
    quoted(&show_duration(duration))
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn list(elements: impl Iterator<Item = String>) -> String {
    format!("[{}]", elements.collect::<Vec<_>>().join(", "))
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Nothing of a path ends a comment or moves a cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
