//! `script` and its limits, in `[router]`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vestibule_protocol::supervision::ScriptSetup;

use super::super::problem::Problem;
use super::super::source::{Place, Source};
use super::super::tree::{Item, Report};
use super::super::types::Script;
use super::super::values;

/// Longest script, in bytes.
const LONGEST: u64 = ScriptSetup::MOST_TEXT as u64;

/// The text is read and never run here.
pub(super) fn read(item: &Item<'_>, report: &mut Report) -> Option<Script> {
    let text = item.filled(report, "the path of a JavaScript file")?;
    if cfg!(not(feature = "script")) {
        report.wrong(&item.place, Problem::NoScripts);
        return None;
    }
    let folder = item.source().path().parent().unwrap_or_else(|| Path::new(""));
    let path = folder.join(text);
    let result = contents(&path).map_err(|reason| Problem::Script { path: path.clone(), reason });
    let bytes = report.take(&item.place, result)?;
    match String::from_utf8(bytes) {
        Ok(text) => Some(Script { path, text: text.into() }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            // Behind all files of the configuration.
            let source = Arc::new(Source::new(path, text, usize::MAX));
            let end = at + char::REPLACEMENT_CHARACTER.len_utf8();
            report.wrong(&Place::new(&source, at..end), Problem::NotText);
            None
        }
    }
}

/// A bounded read: the path may be a device.
fn contents(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let read = file.take(LONGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("it is larger than {}", values::show_size(LONGEST)));
    }
    Ok(bytes)
}

pub(super) fn timeout(item: &Item<'_>, report: &mut Report) -> Option<Duration> {
    let range = Duration::from_millis(1)..=ScriptSetup::MOST_TIME;
    item.duration(report, super::DURATION, &range)
}

pub(super) fn memory(item: &Item<'_>, report: &mut Report) -> Option<u64> {
    let text = item.text(report, "a size, such as `\"16MiB\"`")?;
    report.take(&item.place, values::size(text, &((1 << 20)..=ScriptSetup::MOST_MEMORY)))
}
