//! `vestibule check`: what is wrong with a configuration, before it is used.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::FalseyValueParser;
use vestibule_router::config::{Config, Mistake, Overrides, Warning};

/// The options of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file.
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// Print every value and where it comes from.
    #[arg(long, env = "VESTIBULE_PRINT", value_parser = FalseyValueParser::new())]
    pub(crate) print: bool,
    /// Judge as `run` would, here and as this user: a right that is missing is an error.
    #[arg(long, env = "VESTIBULE_HERE", value_parser = FalseyValueParser::new())]
    pub(crate) here: bool,
    /// Path of the admin socket, as `run` takes it beside a file.
    #[arg(long, value_name = "PATH", env = "VESTIBULE_ADMIN")]
    pub(crate) admin: Option<PathBuf>,
}

/// Reads a configuration and everything it names, runs its tests, and says what is wrong. Returns
/// whether nothing is.
pub(crate) fn run(check: &Check, overrides: &Overrides) -> bool {
    let (config, warnings) = match Config::load(&check.config, overrides) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            show(&check.config, &[], &mistakes);
            return false;
        }
    };
    let mut mistakes = config.run_tests();
    #[cfg(feature = "script")]
    let warnings = {
        let (cautions, wrong) = config.run_script_tests();
        mistakes.extend(wrong);
        [warnings, cautions].concat()
    };
    mistakes.sort_by_key(|mistake| mistake.whereabouts.order());
    show(&check.config, &warnings, &mistakes);
    if !mistakes.is_empty() {
        return false;
    }
    let said = if check.print { config.print() } else { summary(&config, warnings.len()) };
    // Nobody reads standard output any more: the exit code still says it.
    let _ = io::stdout().write_all(said.as_bytes());
    true
}

/// Says on standard error what is wrong, and how much of it there is.
pub(crate) fn show(path: &Path, warnings: &[Warning], mistakes: &[Mistake]) {
    let mut out = io::stderr().lock();
    let all = warnings.iter().map(|it| it as &dyn Display);
    for line in all.chain(mistakes.iter().map(|it| it as &dyn Display)) {
        // Standard error is all there is to say it on.
        let _ = writeln!(out, "{line}");
    }
    if !mistakes.is_empty() {
        let _ = writeln!(out, "{}: {}", path.display(), number(mistakes.len(), "mistake"));
    }
}

fn summary(config: &Config, warnings: usize) -> String {
    let mut parts = vec![
        number(config.listeners.len(), "listener"),
        number(config.pools.len(), "pool"),
        number(config.routes.len(), "route"),
        number(config.tests.len(), "test"),
    ];
    if warnings > 0 {
        parts.push(number(warnings, "warning"));
    }
    format!("{}: ok ({})\n", config.path.display(), parts.join(", "))
}

fn number(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}
