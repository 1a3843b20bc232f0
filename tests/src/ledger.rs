//! Who served which connection: one line a connection, by the number that the kernel gives a socket
//! for its life (`SO_COOKIE`). Two lines with one number would be two workers reading one client.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::files::Folder;

/// The variable that names the ledger to a worker.
pub const VARIABLE: &str = "TEST_LEDGER";

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The socket.
    pub cookie: u64,
    /// The worker's name.
    pub worker: String,
    /// What it did with it: `served`, `refused` …
    pub deed: String,
}

/// The test's side.
#[derive(Debug)]
pub struct Ledger {
    folder: Folder,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self { folder: Folder::new() }
    }

    /// The path to give to workers, in [`VARIABLE`].
    pub fn path(&self) -> PathBuf {
        self.folder.join("ledger")
    }

    /// What is written so far.
    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        text.lines().map(entry).collect()
    }

    /// The lines that say this deed.
    pub fn of(&self, deed: &str) -> Vec<Entry> {
        self.entries().into_iter().filter(|entry| entry.deed == deed).collect()
    }

    /// How many connections there are.
    pub fn cookies(&self) -> usize {
        let cookies = self.entries().into_iter().map(|entry| entry.cookie);
        cookies.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Fails if some connection was read by two.
    pub fn assert_nothing_served_twice(&self) {
        let mut served = self.of("served");
        served.sort_by_key(|entry| entry.cookie);
        for two in served.windows(2) {
            assert_ne!(two[0].cookie, two[1].cookie, "read twice: {two:?}");
        }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

fn entry(line: &str) -> Entry {
    let mut words = line.split(' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_else(|| panic!("cut off: {line:?}"));
    Entry { cookie: word().parse().unwrap(), worker: word(), deed: word() }
}

/// The worker's side: `None` in a worker without a ledger.
#[derive(Debug)]
pub struct Pen(Option<File>);

impl Pen {
    /// Opens the ledger that the environment names.
    pub fn from_env() -> Self {
        Self(std::env::var_os(VARIABLE).map(|path| open(path.as_ref())))
    }

    /// Writes one line, at once and whole.
    pub fn note(&self, connection: impl AsFd, deed: &str) {
        let Some(mut file) = self.0.as_ref() else { return };
        let cookie = rustix::net::sockopt::socket_cookie(connection).unwrap();
        let worker = std::env::var("VESTIBULE_WORKER").unwrap();
        file.write_all(format!("{cookie} {worker} {deed}\n").as_bytes()).unwrap();
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}
