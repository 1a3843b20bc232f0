//! A terminal that is written to without ever waiting for it for long.

use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;

use crate::sys::reactor;

/// How long a terminal that takes nothing (stopped with Ctrl-S, or at the end of a dead network) holds
/// a worker's output up before lines are dropped.
const PATIENCE: Duration = Duration::from_millis(100);

/// One line at a time, whichever worker's.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The terminal of standard error, opened once more: `O_NONBLOCK` belongs to the open file, and the
/// one that we inherited is shared with the shell.
#[derive(Debug)]
pub(super) struct Terminal {
    file: AsyncFd<OwnedFd>,
    /// It took nothing the last time: it is tried, but not waited for.
    stalled: bool,
    /// The last line was cut off: the next one begins on a line of its own.
    torn: bool,
    dropped: u64,
}

impl Terminal {
    /// `None` if standard error is no terminal, or one of another user's: then the log is used.
    pub(super) fn open() -> Option<Self> {
        if !io::stderr().is_terminal() {
            return None;
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()).ok()?;
        Self::new(file).ok()
    }

    fn new(file: OwnedFd) -> io::Result<Self> {
        let file = reactor::writable(file)?;
        Ok(Self { file, stalled: false, torn: false, dropped: 0 })
    }

    /// Writes a line, or drops it and counts it.
    pub(super) async fn write(&mut self, line: &[u8]) {
        let mut text = Vec::with_capacity(line.len());
        if self.torn {
            text.push(b'\n');
        }
        if self.dropped > 0 {
            let note =
                format!("({} lines were not shown: the terminal was stopped)\n", self.dropped);
            text.extend_from_slice(note.as_bytes());
        }
        text.extend_from_slice(line);
        let turn = TURN.lock().await;
        let patience = if self.stalled { Duration::ZERO } else { PATIENCE };
        let mut written = 0;
        let whole =
            tokio::time::timeout(patience, write_all(&self.file, &text, &mut written)).await;
        drop(turn);
        match whole {
            Ok(Ok(())) => (self.stalled, self.torn, self.dropped) = (false, false, 0),
            Ok(Err(_)) | Err(_) => {
                self.stalled = true;
                self.torn |= written > 0;
                self.dropped += 1;
            }
        }
    }
}

async fn write_all(file: &AsyncFd<OwnedFd>, text: &[u8], written: &mut usize) -> io::Result<()> {
    while let Some(rest) = text.get(*written..).filter(|rest| !rest.is_empty()) {
        let mut ready = file.writable().await?;
        match ready.try_io(|file| Ok(rustix::io::write(file, rest)?)) {
            Ok(Ok(length)) => *written += length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            // Not writable after all: wait for it.
            Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[tokio::test]
    async fn a_terminal_that_takes_nothing_costs_one_wait_and_says_so_later() {
        // A pipe blocks and unblocks as a terminal does.
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut terminal = Terminal::new(writer).unwrap();
        let line = [b"x".repeat(999).as_slice(), b"\n"].concat();
        let mut lines = 0;
        while !terminal.stalled {
            terminal.write(&line).await;
            lines += 1;
        }
        tokio::time::pause();
        let before = tokio::time::Instant::now();
        terminal.write(&line).await;
        // A timer of no duration ends with the clock's next millisecond.
        assert!(before.elapsed() < PATIENCE, "it was waited for once");
        assert_eq!(terminal.dropped, 2);
        tokio::time::resume();

        let mut reader = std::fs::File::from(reader);
        let mut read = vec![0; 1 << 20];
        let length = reader.read(&mut read).unwrap();
        assert!(length >= (lines - 1) * 1000, "whole lines came before it stopped");
        terminal.stalled = false;
        terminal.write(b"app-1 | on\n").await;
        let length = reader.read(&mut read).unwrap();
        let shown = std::str::from_utf8(&read[..length]).unwrap();
        let shown = shown.strip_prefix('\n').unwrap_or(shown);
        assert_eq!(shown, "(2 lines were not shown: the terminal was stopped)\napp-1 | on\n");
        assert_eq!(terminal.dropped, 0);
    }
}
