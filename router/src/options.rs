//! What a library's user says about workers: the keys of `[[pool]]`, with the same defaults.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use vestibule_protocol::Codec;

use crate::pool::{Balance, Otherwise, Settings, WhenFull};
use crate::supervisor::identity::IdentityOptions;

/// How to run a worker, and how its pool behaves. Every default is the documented one.
#[derive(Clone, Debug)]
#[must_use]
pub struct WorkerOptions {
    pub(crate) program: PathBuf,
    pub(crate) arg0: Option<OsString>,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) identity: IdentityOptions,
    pub(crate) output: Output,
    pub(crate) port: Option<u16>,
    pub(crate) pool: String,
    pub(crate) codec: Codec,
    pub(crate) balance: Balance,
    pub(crate) otherwise: Otherwise,
    pub(crate) when_full: WhenFull,
    pub(crate) window: usize,
    pub(crate) max_attempts: u32,
    pub(crate) max_connections: u32,
    pub(crate) queue_max: usize,
    pub(crate) queue_timeout: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) stuck_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) stop_timeout: Duration,
    pub(crate) stop_signal: Signal,
    pub(crate) restart: Option<Restart>,
    pub(crate) restart_on_error: bool,
    pub(crate) hand_back_to: Vec<String>,
    pub(crate) recycle: Recycle,
}

/// When a worker that serves is replaced by another of the same program. Each process has up to a
/// tenth less, so that workers that were started together do not end together. The program's: a
/// library's pools replace nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recycle {
    /// After this time.
    pub max_age: Option<Duration>,
    /// After so many connections.
    pub max_served: Option<u64>,
    /// When its process has so many bytes in memory (its resident set).
    pub max_memory: Option<u64>,
}

/// Where a worker's standard output and error go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Where this process's go. Standard input is this process's too.
    #[default]
    Inherit,
    /// Line by line to the terminal that standard error is, as `app-1 | …`; else to the log
    /// (`tracing`, target `vestibule::output`, fields `worker` and `stream`). Standard input is
    /// `/dev/null`. A worker that ends before it is ready is reported with its last lines.
    Lines,
}

/// When a worker that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Before the first restart; it doubles with each one that follows soon.
    pub delay: Duration,
    /// The longest delay.
    pub max_delay: Duration,
    /// Starts in a row that may fail before the slot is given up; `None`: for ever.
    pub attempts: Option<NonZeroU32>,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(30),
            attempts: None,
        }
    }
}

impl WorkerOptions {
    /// A program: with a slash a path, else looked up in `PATH`.
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arg0: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            identity: IdentityOptions::default(),
            output: Output::Inherit,
            port: None,
            pool: "app".to_owned(),
            codec: Codec::Bincode,
            balance: Balance::LeastConnections,
            otherwise: Otherwise::LeastConnections,
            when_full: WhenFull::Wait,
            window: 64,
            max_attempts: 3,
            max_connections: u32::MAX,
            queue_max: 1024,
            queue_timeout: Duration::from_secs(5),
            start_timeout: Duration::from_secs(25),
            stuck_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(10),
            stop_signal: Signal::TERM,
            restart: None,
            restart_on_error: false,
            recycle: Recycle::default(),
            hand_back_to: Vec::new(),
        }
    }

    /// The name that the program is called by (its argument 0, what `ps` shows); else its path.
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.arg0 = Some(name.as_ref().to_owned());
        self
    }

    /// An argument of the program.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// A variable of its environment, besides what it inherits.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Its working directory, inside its [`root`](Self::root), entered as its user. Unless it is
    /// said: this process's, or that root.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.identity.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Its user, a name or a number: with that user's groups, `HOME`, `USER` and `LOGNAME`, without
    /// capabilities unless it is root, and for good. Unless it is said: this process's.
    ///
    /// Needs `CAP_SETUID` and `CAP_SETGID`, as do [`group`](Self::group) and
    /// [`groups`](Self::groups). A number without an entry in the user database gets the group of
    /// the same number and no other.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.identity.user = Some(user.into());
        self
    }

    /// Its group, a name or a number, instead of its user's.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.identity.group = Some(group.into());
        self
    }

    /// Its supplementary groups, names or numbers: these and no others, instead of its user's.
    pub fn groups<G: Into<String>>(mut self, groups: impl IntoIterator<Item = G>) -> Self {
        self.identity.groups = Some(groups.into_iter().map(Into::into).collect());
        self
    }

    /// Permission bits that its new files do not get, at most `0o777` (`umask(2)`).
    pub fn umask(mut self, mask: u32) -> Self {
        self.identity.umask = Some(mask);
        self
    }

    /// Its niceness, from -20 (favoured, which takes `CAP_SYS_NICE` or `RLIMIT_NICE`) to 19.
    pub fn nice(mut self, nice: i32) -> Self {
        self.identity.nice = Some(nice);
        self
    }

    /// Its descriptor limit, soft and hard. Unless it is said, the soft limit is raised to the hard
    /// one; above the hard one takes `CAP_SYS_RESOURCE`.
    pub fn nofile(mut self, descriptors: u64) -> Self {
        self.identity.nofile = Some(descriptors);
        self
    }

    /// Its root directory (`chroot(2)`), which takes `CAP_SYS_CHROOT`. Program, `PATH` and working
    /// directory are looked for inside.
    pub fn root(mut self, root: impl AsRef<Path>) -> Self {
        self.identity.root = Some(root.as_ref().to_owned());
        self
    }

    /// Neither it nor a program that it executes gains privileges (`PR_SET_NO_NEW_PRIVS`); it has no
    /// ambient capabilities, and none at all unless it is root.
    pub fn no_new_privileges(mut self) -> Self {
        self.identity.no_new_privileges = true;
        self
    }

    /// Where its standard output and error go.
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// `PORT` in its environment: where an application that asks finds out what it is served at.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Name of the pool: workers are `NAME-1`, `NAME-2` …
    pub fn pool(mut self, name: impl Into<String>) -> Self {
        self.pool = name.into();
        self
    }

    /// Format of posted messages: bincode between Rust programs (the default), JSON for others.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How the pool chooses a worker.
    pub fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// How the pool chooses for connections that have no key
    /// ([`LeastConnections`](Otherwise::LeastConnections)).
    pub fn otherwise(mut self, otherwise: Otherwise) -> Self {
        self.otherwise = otherwise;
        self
    }

    /// What happens where a key's worker is full or not ready ([`Wait`](WhenFull::Wait)).
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Offers that a worker may leave unacknowledged (64).
    pub fn handoff_window(mut self, offers: usize) -> Self {
        self.window = offers.max(1);
        self
    }

    /// Workers tried for one connection (3).
    pub fn max_attempts(mut self, workers: u32) -> Self {
        self.max_attempts = workers.max(1);
        self
    }

    /// Connections that one worker may hold (no bound but its own).
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Connections that wait for a free worker (1,024), and for how long (5 s).
    pub fn queue(mut self, max: usize, timeout: Duration) -> Self {
        self.queue_max = max;
        self.queue_timeout = timeout;
        self
    }

    /// How long a worker may take to be ready (25 s).
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How long an offer may go unanswered before its worker is killed (60 s).
    pub fn stuck_timeout(mut self, timeout: Duration) -> Self {
        self.stuck_timeout = timeout;
        self
    }

    /// How long a draining worker may finish what it has (60 s).
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// How long after the close message SIGTERM follows (5 s), and SIGKILL after that (10 s).
    pub fn stop_timeouts(mut self, close: Duration, term: Duration) -> Self {
        self.close_timeout = close;
        self.stop_timeout = term;
        self
    }

    /// The signal that follows an unheard close message (SIGTERM).
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    /// Whether an error that a worker reports means that it is drained and replaced.
    pub fn restart_on_error(mut self, restart: bool) -> Self {
        self.restart_on_error = restart;
        self
    }

    /// Names of the pools that its workers may name when they hand a connection back. Without a name
    /// the rules decide.
    pub fn hand_back_to<T: Into<String>>(mut self, pools: impl IntoIterator<Item = T>) -> Self {
        self.hand_back_to = pools.into_iter().map(Into::into).collect();
        self
    }

    /// Starts workers again that ended. Without it a slot stays empty.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = Some(restart);
        self
    }

    /// When a worker is replaced that has served for long enough.
    pub fn recycle(mut self, recycle: Recycle) -> Self {
        self.recycle = recycle;
        self
    }

    /// Whether a process of one is what a process of the other would be: a pool whose program is
    /// another one is rolled.
    #[cfg(feature = "cli")]
    pub(crate) fn is_same_program(&self, other: &Self) -> bool {
        self.program == other.program
            && self.arg0 == other.arg0
            && self.arguments == other.arguments
            && self.environment == other.environment
            && self.identity == other.identity
            && self.output == other.output
            && self.port == other.port
            && self.codec == other.codec
    }

    /// Whether the supervisor treats workers of both alike.
    #[cfg(feature = "cli")]
    pub(crate) fn has_same_times(&self, other: &Self) -> bool {
        self.start_timeout == other.start_timeout
            && self.drain_timeout == other.drain_timeout
            && self.close_timeout == other.close_timeout
            && self.stop_timeout == other.stop_timeout
            && self.stop_signal == other.stop_signal
            && self.restart == other.restart
            && self.recycle == other.recycle
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            balance: self.balance.clone(),
            otherwise: self.otherwise,
            when_full: self.when_full,
            window: self.window,
            max_attempts: self.max_attempts,
            queue_max: self.queue_max,
            queue_timeout: self.queue_timeout,
            stuck_timeout: self.stuck_timeout,
            drain_timeout: self.drain_timeout,
            max_connections: self.max_connections,
            restart_on_error: self.restart_on_error,
            hand_back_to: self.hand_back_to.clone(),
        }
    }
}
