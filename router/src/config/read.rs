//! From the tables of a file to drafts: every value is read, names are not yet looked up.

mod limits;
mod pool;
mod route;
mod script;
mod test;

use std::path::PathBuf;

use vestibule_protocol::supervision::InspectSetup;

use super::problem::Problem;
use super::source::{Place, Sourced};
use super::tree::{Item, Report, Section};
use super::types::{Account, Address, Admin, Conditions, Listener, Pool, Reuse, Router};
use super::values;
use super::words::{ADMIN, LISTENER, ROUTER, Schema};
use crate::listener::path::{LONGEST, MODE};
use crate::route::Refusal;
use crate::route::imagine::{Imagined, Impossible};

/// A duration's unit in a message.
pub(super) const DURATION: &str = "a duration, such as `\"5s\"`";
const ACCOUNT: &str = "a name or a number";
const NUMBER: &str = "a number";

/// What all files say, as far as it could be read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) router: Option<(Place, Router)>,
    pub(super) admin: Option<(Place, Admin)>,
    pub(super) listeners: Vec<ListenerDraft>,
    pub(super) pools: Vec<Pool>,
    pub(super) routes: Vec<RouteDraft>,
    pub(super) tests: Vec<TestDraft>,
    /// Tables that are there in a form that could not be read: they are not missing.
    pub(super) unread: Vec<&'static str>,
}

/// A listener whose `unknown` is a pool's name; `None`: they are rejected.
#[derive(Debug)]
pub(super) struct ListenerDraft {
    pub(super) listener: Listener,
    pub(super) unknown: Sourced<Option<String>>,
}

/// A route whose listeners and pool are names.
#[derive(Debug)]
pub(super) struct RouteDraft {
    pub(super) place: Place,
    pub(super) name: Option<Sourced<String>>,
    pub(super) listeners: Sourced<Option<Vec<(String, Place)>>>,
    pub(super) peers: Sourced<Option<Vec<ipnet::IpNet>>>,
    pub(super) conditions: Conditions,
    pub(super) target: Option<Sourced<TargetDraft>>,
    pub(super) message: Sourced<Option<serde_json::Value>>,
}

#[derive(Debug)]
pub(super) enum TargetDraft {
    Pool(String),
    Reject(Refusal),
    Redirect,
}

/// A test whose listener is a name.
#[derive(Debug)]
pub(super) struct TestDraft {
    pub(super) place: Place,
    pub(super) peer: Sourced<Option<std::net::IpAddr>>,
    pub(super) client: Imagined,
    pub(super) listener: Option<Sourced<String>>,
    pub(super) expect: Sourced<String>,
    /// Why there is no such client, and where it says so: where no proxy speaks for it, and where some do.
    pub(super) impossible: [Option<(Place, Impossible)>; 2],
}

impl Draft {
    /// Adds what a file says.
    pub(super) fn add(&mut self, file: &Section<'_>, report: &mut Report) {
        if let Some(item) = one(file, "router", report)
            && let Some(router) = router(&item, report)
        {
            keep_first(&mut self.router, "router", &item, router, report);
        }
        if let Some(item) = one(file, "admin", report)
            && let Some(admin) = admin(&item, report)
        {
            keep_first(&mut self.admin, "admin", &item, admin, report);
        }
        for item in self.several(file, "listener", report) {
            self.listeners.extend(listener(&item, report));
        }
        for item in self.several(file, "pool", report) {
            self.pools.extend(pool::read(&item, report));
        }
        for item in self.several(file, "route", report) {
            self.routes.extend(route::read(&item, report));
        }
        for item in self.several(file, "test", report) {
            self.tests.extend(test::read(&item, report));
        }
    }

    /// The tables of an array of tables.
    fn several<'a>(
        &mut self,
        file: &Section<'a>,
        name: &'static str,
        report: &mut Report,
    ) -> Vec<Item<'a>> {
        let Some(item) = file.item(name) else { return Vec::new() };
        let elements = item.elements();
        // An empty list of tables is none of them.
        if let Some(elements) = &elements
            && elements.iter().all(Item::is_table)
        {
            return elements.clone();
        }
        self.unread.push(name);
        match elements {
            Some(elements) => return elements,
            None if item.is_table() => report.wrong(&item.place, Problem::NotRepeated(name)),
            None => {
                report.wrong(&item.place, item.other_kind("tables, each with `[[…]]` above it"));
            }
        }
        Vec::new()
    }
}

/// A table that is there once.
fn one<'a>(file: &Section<'a>, name: &'static str, report: &mut Report) -> Option<Item<'a>> {
    let item = file.item(name)?;
    if item.is_list() {
        report.wrong(&item.place, Problem::Repeated(name));
        return None;
    }
    Some(item)
}

fn keep_first<T>(
    kept: &mut Option<(Place, T)>,
    table: &'static str,
    item: &Item<'_>,
    value: T,
    report: &mut Report,
) {
    match kept {
        None => *kept = Some((item.place.clone(), value)),
        Some((first, _)) => {
            report.wrong(&item.place, Problem::TableTwice { table, first: first.short() });
        }
    }
}

fn open<'a>(item: &Item<'a>, report: &mut Report, schema: &'static Schema) -> Option<Section<'a>> {
    item.section(report, schema, "a table")
}

fn router(item: &Item<'_>, report: &mut Report) -> Option<Router> {
    let table = open(item, report, &ROUTER)?;
    let default = Router::default();
    Some(Router {
        inspect_timeout: table.or(
            report,
            "inspect-timeout",
            default.inspect_timeout.value,
            |item, report| {
                let least = std::time::Duration::from_millis(10);
                item.duration(report, DURATION, &(least..=InspectSetup::MOST_TIME))
            },
        ),
        peek_max: table.or(report, "peek-max", default.peek_max.value, |item, report| {
            let takes = "a size, such as `\"16KiB\"`";
            let text = item.text(report, takes)?;
            report.take(&item.place, values::size(text, &(1024..=InspectSetup::MOST_BYTES as u64)))
        }),
        user: table.optional(report, "user", account),
        max_attempts: table.or(
            report,
            "max-attempts",
            default.max_attempts.value,
            |item, report| item.count(report, NUMBER, 1..=100),
        ),
        stuck_timeout: table.or(
            report,
            "stuck-timeout",
            default.stuck_timeout.value,
            |item, report| match item.word() {
                Some("off") => Some(None),
                _ => item
                    .duration(
                        report,
                        "a duration or `\"off\"`",
                        &(std::time::Duration::from_millis(100)
                            ..=std::time::Duration::from_secs(DAY)),
                    )
                    .map(Some),
            },
        ),
        script: table.optional(report, "script", script::read),
        script_timeout: table.or(
            report,
            "script-timeout",
            default.script_timeout.value,
            script::timeout,
        ),
        script_memory: table.or(
            report,
            "script-memory",
            default.script_memory.value,
            script::memory,
        ),
    })
}

fn admin(item: &Item<'_>, report: &mut Report) -> Option<Admin> {
    let table = open(item, report, &ADMIN)?;
    Some(Admin { socket: table.optional(report, "socket", socket) })
}

fn socket(item: &Item<'_>, report: &mut Report) -> Option<PathBuf> {
    let path = path(item, report)?;
    report.take(&item.place, short(path))
}

/// A socket's path has to fit an address (unix(7)).
fn short(path: PathBuf) -> Result<PathBuf, Problem> {
    let length = path.as_os_str().len();
    if length <= LONGEST { Ok(path) } else { Err(Problem::LongSocket(length)) }
}

fn listener(item: &Item<'_>, report: &mut Report) -> Option<ListenerDraft> {
    let table = open(item, report, &LISTENER)?;
    let name = table.need(report, "name", name);
    let address = table.need(report, "address", |item, report| {
        // `address = 80` is what other programs take.
        let text = match item.digits() {
            Some((digits, 10)) => digits,
            _ => item.text(report, "an address, such as `\"127.0.0.1:80\"`")?,
        };
        match report.take(&item.place, values::address(text))? {
            Address::Path(path) => {
                let path = plain_path(item.source().folder().join(path));
                report.take(&item.place, short(path)).map(Address::Path)
            }
            address => Some(address),
        }
    });
    let backlog =
        table.or(report, "backlog", 4096, |item, report| item.count(report, NUMBER, 1..=65_535));
    let mode = table.or(report, "mode", MODE, mode);
    if let (Some(place), Some(address)) = (mode.place(), &address)
        && !matches!(address.value, Address::Path(_))
    {
        report.wrong(place, Problem::ModeOfNoPath);
    }
    let proxies = limits::proxies(&table, report);
    let is_unix = address
        .as_ref()
        .is_some_and(|address| matches!(address.value, Address::Path(_) | Address::Name(_)));
    if let Some(place) = proxies.place()
        && is_unix
    {
        report.wrong(place, Problem::ProxiesWithoutAddress);
    }
    let outer_hello = limits::outer_hello(&table, report);
    let limits = limits::limits(&table, report);
    if is_unix {
        for (key, place) in limits.by_address() {
            report.wrong(place, Problem::LimitWithoutAddress(key));
        }
    }
    let unknown = table.or(report, "unknown", None, |item, report| {
        match item.text(report, "`\"reject\"` or the name of a pool")? {
            "reject" => Some(None),
            pool => Some(Some(pool.to_owned())),
        }
    });
    let reuse = table.or(report, "reuse", Reuse::Checked, reuse);
    // Something stands in for what is wrong: the mistake is noted, and what names it is still found.
    let name = name.unwrap_or_else(|| Sourced::default(String::new()));
    let address = address.unwrap_or_else(|| Sourced::default(Address::Both(0)));
    let listener = Listener {
        name,
        address,
        backlog,
        mode,
        proxies,
        outer_hello,
        limits,
        unknown: Sourced::default(None),
        reuse,
    };
    Some(ListenerDraft { listener, unknown })
}

fn reuse(item: &Item<'_>, report: &mut Report) -> Option<Reuse> {
    let text = item.text(report, "`\"checked\"` or `\"connection\"`")?;
    let result = match text {
        "checked" => Ok(Reuse::Checked),
        "connection" => Ok(Reuse::Connection),
        _ => Err(Problem::Word {
            found: text.to_owned(),
            what: "way to use a connection again",
            write: "`checked` or `connection`".to_owned(),
        }),
    };
    report.take(&item.place, result)
}

fn mode(item: &Item<'_>, report: &mut Report) -> Option<u32> {
    let result = match item.digits() {
        Some((digits, 8)) => values::mode(&format!("{digits:0>3}")),
        Some((digits, _)) => Err(values::no_mode(digits)),
        None => values::mode(item.text(report, "three octal digits, such as `\"660\"`")?),
    };
    report.take(&item.place, result)
}

/// A name; one that cannot be is noted, and still names what is meant.
fn name(item: &Item<'_>, report: &mut Report) -> Option<String> {
    let text = item.text(report, "a name")?;
    if let Err(problem) = values::name(text) {
        report.wrong(&item.place, problem);
    }
    Some(text.to_owned())
}

fn account(item: &Item<'_>, report: &mut Report) -> Option<Account> {
    let text = match item.digits() {
        Some((digits, 10)) => digits,
        _ => item.text(report, ACCOUNT)?,
    };
    report.take(&item.place, values::account(text))
}

/// A path, relative to the file.
fn path(item: &Item<'_>, report: &mut Report) -> Option<PathBuf> {
    let text = item.filled(report, "a path")?;
    Some(plain_path(item.source().folder().join(text)))
}

/// Without `.` and doubled slashes: two spellings of one path are equal, and messages are short.
fn plain_path(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

pub(super) const DAY: u64 = 24 * 60 * 60;
