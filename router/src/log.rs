//! The program's log, on standard error.

use std::fmt::{self, Debug, Write};
use std::io::IsTerminal;

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Text on a terminal, JSON lines otherwise. What cannot be written is lost: a full disk costs the
/// log, and nothing else.
///
/// # Errors
/// The directives are none.
pub(crate) fn start(directives: &str) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(directives).map_err(|error| format!("--log {directives}: {error}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // By default it says so on standard error, too, and panics if that fails.
        .log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        log.with_target(false).compact().fmt_fields(printable_fields()).init();
    } else {
        log.json().init();
    }
    Ok(())
}

/// What an event says, as text. Scripts and workers log what clients have sent: no character of theirs begins
/// another line, or moves the cursor.
fn printable_fields() -> impl for<'a> FormatFields<'a> + 'static {
    debug_fn(field).delimited(" ")
}

fn field(out: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    match (field.name(), out.has_ansi_escapes()) {
        ("message", _) => {}
        // As tracing-subscriber writes them: in italics, and a faint equals sign.
        (name, true) => write!(out, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
        (name, false) => write!(out, "{name}=")?,
    }
    write!(Printable(out), "{value:?}")
}

/// Escapes control characters and what else may end a line. A tab is none.
struct Printable<'a, 'out>(&'a mut Writer<'out>);

impl Write for Printable<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '\t' => self.0.write_char(c),
            '\u{2028}' | '\u{2029}' => write!(self.0, "{}", c.escape_default()),
            c if c.is_control() => write!(self.0, "{}", c.escape_default()),
            c => self.0.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Kept {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    impl Kept {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// What somebody who wants to be taken for the router would have a script log.
    const FORGED: &str = "a\n2026-01-01 INFO forged\r\x1b[2J\u{7f}\u{85}\u{2028}\u{9b}1m\0\ttab ü";

    fn say() {
        tracing::info!(target: "script", "{FORGED}");
        tracing::warn!(count = 10, script = %FORGED, "it \"fails\"");
    }

    #[test]
    fn what_a_client_has_sent_begins_no_line_and_moves_no_cursor() {
        let escaped =
            "a\\n2026-01-01 INFO forged\\r\\u{1b}[2J\\u{7f}\\u{85}\\u{2028}\\u{9b}1m\\u{0}\ttab ü";
        for ansi in [false, true] {
            let kept = Kept::default();
            let log = tracing_subscriber::fmt().with_writer(kept.clone()).with_ansi(ansi);
            let log = log.without_time().with_target(false).compact();
            let log = log.fmt_fields(printable_fields()).finish();
            tracing::subscriber::with_default(log, say);
            let text = kept.text();
            let lines: Vec<&str> = text.split('\n').collect();
            let [first, second, ""] = lines[..] else { panic!("{text:?}") };
            assert!(first.ends_with(escaped), "{first:?}");
            if !ansi {
                assert_eq!(second, format!(" WARN it \"fails\" count=10 script={escaped}"));
            }
        }
    }

    #[test]
    fn as_json_it_is_what_it_was() {
        let kept = Kept::default();
        let log = tracing_subscriber::fmt().with_writer(kept.clone()).json().finish();
        tracing::subscriber::with_default(log, say);
        let text = kept.text();
        assert_eq!(text.lines().count(), 2, "{text:?}");
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["fields"]["message"], FORGED);
    }
}
