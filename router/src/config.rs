//! The configuration file: read strictly, once, into types that cannot be wrong.
//!
//! ```text
//! load ─▶ read ─▶ cross ─▶ surroundings ─▶ Config
//! TOML    values   names    this system     whole and valid, or every mistake with its place
//! ```
//!
//! Every value remembers who said it, see [`Sourced`]. What is wrong is collected, not thrown: one
//! run shows all of it, in the order of the files. `read` walks a parsed file with `tree`, whose keys
//! are those of `words`; `values` makes values of texts; `print` and `trial` are for `check`.

mod cross;
mod doubts;
mod explain;
mod load;
pub mod mistake;
mod print;
pub mod problem;
mod read;
#[cfg(feature = "script")]
pub mod script;
pub mod source;
mod surroundings;
#[cfg(test)]
mod tests;
mod tree;
mod trial;
pub mod types;
mod values;
mod words;

use std::path::{Path, PathBuf};

pub use self::mistake::{Mistake, Warning};
pub use self::source::{Origin, Place, Source, Sourced};
pub use self::types::{
    Account, Address, Admin, Command, Conditions, Config, Limits, Listener, OnError, Pool,
    Protocol, Queue, Rate, RateUnit, Restart, Reuse, Route, Router, Test, Workers,
};

/// What was said beside the file and goes before it.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--admin` or `VESTIBULE_ADMIN`: the path of the admin socket.
    pub admin: Option<Sourced<PathBuf>>,
    /// `--log` or `VESTIBULE_LOG`: the filter of the log.
    pub log: Option<Sourced<String>>,
    /// Whether what this process has no right to is a mistake, as it is in `run` and with
    /// `check --here`; else it is a warning.
    pub here: bool,
}

/// Whether a program is Node, whose own protocol `protocol = "auto"` would mean.
pub fn means_node(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == "node" || name == "nodejs")
}

impl Config {
    /// Reads a file, what it includes, and what it names: programs, folders, users.
    ///
    /// # Errors
    /// Every mistake that could be found, in the order of the files.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<(Self, Vec<Warning>), Vec<Mistake>> {
        Self::load_on(path, overrides, &surroundings::Here)
    }

    fn load_on(
        path: &Path,
        overrides: &Overrides,
        system: &impl surroundings::System,
    ) -> Result<(Self, Vec<Warning>), Vec<Mistake>> {
        let mut report = tree::Report::default();
        let files = load::Files::read(path, &mut report);
        Self::finish(path, files, overrides, system, report)
    }

    fn finish(
        path: &Path,
        files: load::Files,
        overrides: &Overrides,
        system: &impl surroundings::System,
        mut report: tree::Report,
    ) -> Result<(Self, Vec<Warning>), Vec<Mistake>> {
        let config = cross::resolve(path, files, overrides, &mut report);
        if let Some(config) = &config {
            surroundings::check(config, system, overrides.here, &mut report);
        }
        let tree::Report { mut mistakes, mut warnings } = report;
        match config {
            Some(config) if mistakes.is_empty() => {
                warnings.sort_by_key(|warning| warning.whereabouts.order());
                Ok((config, warnings))
            }
            _ => {
                mistakes.sort_by_key(|mistake| mistake.whereabouts.order());
                Err(mistakes)
            }
        }
    }
}
