//! Everything that can be wrong with a configuration, in the words in which it is said.

mod advice;

use std::path::PathBuf;

pub use self::advice::{Advice, Others};
use crate::inspect::label::{LabelError, LevelError};
use crate::route::imagine::Impossible;
use crate::route::pattern::NotAPattern;
use crate::route::table::{DEFAULT, NO_ROUTE, SCRIPT, UNKNOWN};

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    // Files.
    /// The system does not give the file's text.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// More than a configuration can be.
    #[error("is larger than {0} bytes: this is no configuration")]
    TooLarge(u64),
    /// Not text.
    #[error("this is no UTF-8")]
    NotText,
    /// Not TOML.
    #[error("{0}")]
    Syntax(String),
    /// `include` names a file that cannot be read.
    #[error("{} cannot be read: {reason}", .path.display())]
    Include {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The script cannot be read.
    #[error("the script {} cannot be read: {reason}", .path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The script cannot be used.
    #[error("{0}")]
    ScriptFails(String),
    /// Scripts were left out of this program.
    #[error("this program was built without scripts")]
    NoScripts,
    /// `include` is no pattern.
    #[error("`{pattern}` is no pattern of file names: {reason}")]
    Pattern {
        /// What is written.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file includes itself, through others or directly.
    #[error("{} includes itself", .0.display())]
    Cycle(PathBuf),
    /// A file would be read twice.
    #[error("{} is read already: its tables would be there twice", .0.display())]
    Twice(PathBuf),
    /// Too many files.
    #[error("more than {0} files are included")]
    TooMany(usize),

    // Keys.
    /// Nothing is called so.
    #[error("`{key}` is no key of {table}{advice}")]
    UnknownKey {
        /// What is written.
        key: String,
        /// Where.
        table: &'static str,
        /// What to do.
        advice: Advice,
    },
    /// It will be there.
    #[error("`{0}` is not there yet")]
    NotYet(String),
    /// `workers` as a table.
    #[error("a table for `workers` is not there yet")]
    TableOfWorkers,
    /// `auto` means a protocol that will be there.
    #[error("`node-cluster`, which `protocol = \"auto\"` means for node, is not there yet")]
    NodeNotYet,
    /// It has to be written.
    #[error("{table} needs `{key}`")]
    Missing {
        /// Where.
        table: &'static str,
        /// What.
        key: &'static str,
    },
    /// `[pool]` instead of `[[pool]]`.
    #[error("there can be several: write `[[{0}]]`")]
    NotRepeated(&'static str),
    /// `[[router]]` instead of `[router]`.
    #[error("there is only one: write `[{0}]`")]
    Repeated(&'static str),
    /// A table that another file has too.
    #[error("`[{table}]` is there already, at {first}")]
    TableTwice {
        /// Which.
        table: &'static str,
        /// `FILE:LINE`.
        first: String,
    },

    // Values.
    /// A value of another type.
    #[error("`{key}` takes {takes}, not {found}")]
    Kind {
        /// Whose value.
        key: String,
        /// What could be there.
        takes: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A number as a string.
    #[error("`{key}` takes {takes}: write {number} without quotes")]
    Quoted {
        /// Whose value.
        key: String,
        /// What could be there.
        takes: &'static str,
        /// The number.
        number: String,
    },
    /// A value that its key does not have.
    #[error("`{found}` is no {what}: write {write}")]
    Word {
        /// What is written.
        found: String,
        /// What it should be.
        what: &'static str,
        /// What can be written.
        write: String,
    },
    /// Too little or too much.
    #[error("`{found}` is out of range: write {least} to {most}")]
    Range {
        /// What is written.
        found: String,
        /// The least that can be.
        least: String,
        /// The most that can be.
        most: String,
    },
    /// A duration without unit.
    #[error("`{0}` has no unit: write `\"{0}s\"` or `\"{0}ms\"`")]
    NoUnit(String),
    /// A zero byte, which nothing of the system can carry.
    #[error("there is a zero byte in this text")]
    Zero,
    /// Nothing is written.
    #[error("`{0}` is empty")]
    Empty(String),
    /// A list that nothing could be one of.
    #[error("`{0}` is an empty list: nothing is one of it; leave the key out")]
    EmptyList(String),
    /// What ends a cookie's value.
    #[error("`{0}` is no cookie's value: `;` ends it, so that nothing would match")]
    CookieValue(String),
    /// `command` as one string.
    #[error("`command` takes a list, for there is no shell: write `{0}`")]
    CommandLine(String),
    /// A name that means something else.
    #[error(
        "the name `{0}` is taken: `{DEFAULT}` is the implicit route, `{NO_ROUTE}` what no route matches, \
         `{UNKNOWN}` what a route could not see, `{SCRIPT}` what the script decides"
    )]
    TakenName(String),
    /// A condition that cannot be read.
    #[error(transparent)]
    Condition(NotAPattern),
    /// A level that cannot be read.
    #[error("`{0}`: {1}")]
    Level(String, LevelError),
    /// A context that cannot be read.
    #[error("`{0}`: {1}")]
    NoLabel(String, LabelError),
    /// A variable that the program sets itself.
    #[error("`{0}` is set by vestibule itself")]
    OwnVariable(String),
    /// `max-delay` below `delay`.
    #[error("`max-delay` is shorter than `delay` ({0})")]
    DelayOrder(String),
    /// `burst` and no `rate`.
    #[error("`burst` needs a `rate`, such as `\"100/s\"`: how fast is it used up again?")]
    BurstWithoutRate,
    /// A path that no socket can have.
    #[error("the path of a socket has at most 107 bytes, and this one has {0}")]
    LongSocket(usize),
    /// `mode` where there is no path.
    #[error("`mode` is that of a socket's path: it needs `address = \"unix:PATH\"`")]
    ModeOfNoPath,
    /// `proxy-protocol` where no sender has an address.
    #[error(
        "`proxy-protocol` lists senders by their addresses, and whoever connects to a Unix-domain socket has \
         none: let the proxy come in by a listener with an address, such as `127.0.0.1:8080`, or take this out"
    )]
    ProxiesWithoutAddress,
    /// One of `limits` that knows peers by their addresses, where no peer has one.
    #[error(
        "`{0}` tells clients apart by their addresses, and whoever connects to a Unix-domain socket has none: \
         take this out (`inspecting` is about all of them together)"
    )]
    LimitWithoutAddress(&'static str),
    /// With `root` there is no folder of the file's to begin from.
    #[error("with `root`, {0} is looked for inside of it: write an absolute path")]
    InsideRoot(&'static str),

    // Between values.
    /// Nothing to accept connections from.
    #[error("there is no `[[listener]]`: write one, with `name` and `address`")]
    NoListener,
    /// Nothing to hand connections to.
    #[error("there is no `[[pool]]`: write one, with `name` and `command`")]
    NoPool,
    /// Several pools and nothing that says which.
    #[error("there are several pools and no `[[route]]`: nothing would reach any of them")]
    NoRoute,
    /// Two of one name.
    #[error("{what} `{name}` is there already, at {first}")]
    NameTwice {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
        /// `FILE:LINE`.
        first: String,
    },
    /// Two listeners that cannot both have it.
    #[error("`{address}` is taken by the listener `{name}`{with}, at {first}")]
    AddressTwice {
        /// The second one's.
        address: String,
        /// The first one's name.
        name: String,
        /// The first one's address, where it is another one.
        with: Others,
        /// `FILE:LINE`.
        first: String,
    },
    /// A name that nothing has.
    #[error("there is no {what} `{name}`{advice}")]
    Nothing {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
        /// What to do.
        advice: Advice,
    },
    /// A route that leads nowhere.
    #[error("this route leads nowhere: write `pool`, `reject` or `redirect`")]
    NoTarget,
    /// A route that leads to two places.
    #[error("this route has two of `pool`, `reject` and `redirect`: one of them can be")]
    TwoTargets,
    /// Conditions that no client meets.
    #[error("no client matches this: `{one}` and `{other}` are never seen of the same one")]
    NeverBoth {
        /// One key.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A message without anybody to read it.
    #[error("`message` is posted to a worker, and this route has no `pool`")]
    MessageToNobody,
    /// A test about a client that there cannot be.
    #[error(transparent)]
    Impossible(Impossible),
    /// A router that its workers could harm.
    #[error(
        "the router's user must not be that of a pool, whose workers could then signal it and take \
         its descriptors: `{user}` is the user of the pool `{pool}`{at}"
    )]
    RouterUser {
        /// Who.
        user: String,
        /// A pool of the same user.
        pool: String,
        /// Where that is written, if it is.
        at: Others,
    },

    // The system.
    /// Something is missing here.
    #[error("{0}")]
    Surroundings(Obstacle),

    // Tests.
    /// A `[[test]]` failed.
    #[error("a connection{peer} on `{listener}` takes the route `{route}`{why}, not `{expected}`")]
    Test {
        /// ` from` the client, if it has an address.
        peer: String,
        /// The listener's name.
        listener: String,
        /// Which it takes.
        route: String,
        /// Why.
        why: Others,
        /// Which it should take.
        expected: String,
    },
}

/// Why a configuration may not do what was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Caution {
    /// Nothing goes to a pool.
    #[error("no route leads to the pool `{0}`")]
    UnusedPool(String),
    /// A route decides nothing.
    #[error("the route `{route}` is never reached: `{earlier}` ({first}) always matches before it")]
    Unreachable {
        /// Which.
        route: String,
        /// The one before.
        earlier: String,
        /// `FILE:LINE`.
        first: String,
    },
    /// A route decides nothing where no proxy speaks for its clients.
    #[error(
        "no client of `{listener}` matches this: TLS hides `{other}` from the router, so that it is seen \
         together with `{one}` only behind a proxy that ends TLS and says so (`proxy-protocol`)"
    )]
    HiddenByTls {
        /// What is seen of TLS.
        one: &'static str,
        /// What TLS hides.
        other: &'static str,
        /// The listener that the route is about, or the first of several.
        listener: String,
    },
    /// A network with bits that say nothing.
    #[error("`{written}` means `{network}`: the bits after its prefix say nothing")]
    HostBits {
        /// What is written.
        written: String,
        /// What it means.
        network: String,
    },
    /// Pools that are not protected from each other.
    #[error(
        "the pools `{first}` and `{second}` have one user, `{user}`: their workers can signal and \
         trace each other"
    )]
    SharedUser {
        /// One pool.
        first: String,
        /// The other.
        second: String,
        /// Who.
        user: String,
    },
    /// More descriptors could be under way than the router may have.
    #[error(
        "up to {needed} connections can be on their way to workers and in queues, but this system \
         lets the router have {limit} descriptors (`LimitNOFILE=`, `ulimit -Hn`): beyond that it \
         accepts none until some are taken"
    )]
    Descriptors {
        /// How many there can be.
        needed: u64,
        /// How many there may be.
        limit: u64,
    },
    /// Connections outside their rule stay where they are.
    #[error(
        "with `reuse = \"connection\"` a later request on the same connection is not checked: who \
         reached a pool by one `host`, `path`, `query`, `header` or `cookie` can ask it for any"
    )]
    Unchecked,
    /// A key that nothing looks at.
    #[error("`{key}` says nothing here: with `balance = \"{balance}\"` there is no key")]
    NoKey {
        /// Which.
        key: &'static str,
        /// The balance.
        balance: String,
    },
    /// A test is as expected, and its script fails.
    #[error("this is as expected, but the script fails: {0}")]
    ScriptFails(String),
    /// Something is missing here; where it is run it may be there.
    #[error("{0}")]
    Surroundings(Obstacle),
}

/// What stands in the way on this system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// The port needs a right.
    #[error(
        "ports below {first} need CAP_NET_BIND_SERVICE (start as root, or \
         `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the systemd unit)"
    )]
    Port {
        /// First port that anybody may bind.
        first: u16,
    },
    /// The user needs rights.
    #[error("`{0}` needs CAP_SETUID and CAP_SETGID: start as root, or leave it out")]
    Identity(&'static str),
    /// The setting needs a right.
    #[error("`{key}` needs {capability}: start as root, or leave it out")]
    Right {
        /// Which.
        key: &'static str,
        /// The capability.
        capability: &'static str,
    },
    /// No such user.
    #[error("there is no user `{0}` on this system")]
    User(String),
    /// A user who is not in this user namespace.
    #[error("user {0} is not mapped in this user namespace: the kernel tells it as another one")]
    Unmapped(u32),
    /// No such group.
    #[error("there is no group `{0}` on this system")]
    Group(String),
    /// The database of users and groups does not answer.
    #[error("`{name}` cannot be looked up: {reason}")]
    Lookup {
        /// Who.
        name: String,
        /// What the system says.
        reason: String,
    },
    /// A path that does not exist.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// A name that is in no folder of `PATH`.
    #[error("`{name}` is in no folder of PATH ({path}); a program beside this file is `./{name}`")]
    NotInPath {
        /// The program.
        name: String,
        /// The folders.
        path: String,
    },
    /// A file that may not be executed.
    #[error("{} is not executable (chmod +x)", .0.display())]
    NotExecutable(PathBuf),
    /// A folder as a program.
    #[error("{} is a folder, not a program", .0.display())]
    IsFolder(PathBuf),
    /// A file as a folder.
    #[error("{} is no folder", .0.display())]
    NoFolder(PathBuf),
    /// The system does not say.
    #[error("{} cannot be looked at: {reason}", .path.display())]
    Hidden {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}
