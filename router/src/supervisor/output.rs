//! What workers write: read from their pipes as it comes, line by line, and passed on with their
//! names; the last lines are kept for `status` and for the error of a start that failed.
//!
//! A worker may write what it likes, as fast as it likes: lines and the tail are bounded, control
//! characters reach no terminal, and a terminal that takes nothing holds a worker up for a moment
//! and the supervisor not at all.

mod lines;
mod terminal;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::lines::{Lines, printable};
use self::terminal::Terminal;

/// Lines that are kept of a process.
const KEPT_LINES: usize = 10;
/// Bytes that are kept of a line: a status shows 5 KiB of a worker at most.
const KEPT_BYTES: usize = 512;
/// Stands between a reason and the lines that explain it.
const LAST_LINES: &str = "; its last lines:";
/// What is read at once.
const READ: usize = 8 * 1024;
/// What is still read once a process is gone. A pipe holds 64 KiB; a descendant that left the process
/// group may hold it open and write for ever.
const DRAIN: usize = 256 * 1024;

/// The last lines of a slot's process. Handles share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// Oldest first, each at most 512 bytes of printable text.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    /// Another process begins.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// A reason with the lines that explain it.
    pub(crate) fn explain(&self, reason: String) -> String {
        let lines = self.lock();
        if lines.is_empty() {
            return reason;
        }
        lines.iter().fold(reason + LAST_LINES, |text, line| text + "\n    " + line)
    }

    /// An explained reason without its lines.
    #[cfg(feature = "cli")]
    pub(crate) fn without_lines(explained: &str) -> &str {
        explained.split_once(LAST_LINES).map_or(explained, |(reason, _)| reason)
    }

    fn push(&self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let mut line = printable(line, false);
        if line.len() > KEPT_BYTES {
            let end = (0..=KEPT_BYTES - '…'.len_utf8()).rev().find(|at| line.is_char_boundary(*at));
            line.truncate(end.unwrap_or_default());
            line.push('…');
        }
        let mut lines = self.lock();
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        // Nothing that holds it can panic half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that reads one process's output; it also ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Capture {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Capture {
    /// Makes pipes, reads them from now on, and returns the ends that a process writes to: its
    /// standard output and error. Made before the process, which must not run unheard.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub(crate) fn start(worker: Arc<str>, tail: Tail) -> io::Result<(Self, [OwnedFd; 2])> {
        let (stdout, its_stdout) = io::pipe()?;
        let (stderr, its_stderr) = io::pipe()?;
        let reader = Reader {
            streams: [Stream::new("stdout", stdout.into())?, Stream::new("stderr", stderr.into())?],
            sink: Sink { terminal: Terminal::open(), worker, tail },
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(reader.run(stopped));
        Ok((Self { stop, task }, [its_stdout.into(), its_stderr.into()]))
    }

    /// After the process and its group are gone: takes what they left in the pipes, and ends.
    pub(crate) async fn finish(self) {
        // A task that ended by itself has read everything.
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a worker's output was not read to its end");
        }
    }
}

struct Reader {
    streams: [Stream; 2],
    sink: Sink,
}

impl Reader {
    /// Until told to stop. A process that closes both its streams goes on living.
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let [stdout, stderr] = &mut self.streams;
        loop {
            tokio::select! {
                biased;
                _ = &mut stopped => break,
                () = stdout.readable() => stdout.read(&mut self.sink).await,
                () = stderr.readable() => stderr.read(&mut self.sink).await,
            }
        }
        for stream in &mut self.streams {
            stream.drain(&mut self.sink).await;
        }
    }
}

/// One of a process's two streams.
struct Stream {
    name: &'static str,
    pipe: Option<pipe::Receiver>,
    lines: Lines,
}

impl Stream {
    fn new(name: &'static str, pipe: OwnedFd) -> io::Result<Self> {
        let pipe = Some(pipe::Receiver::from_owned_fd(pipe)?);
        Ok(Self { name, pipe, lines: Lines::default() })
    }

    /// # Cancel safety
    /// Safe: nothing is read.
    async fn readable(&self) {
        match &self.pipe {
            // An error shows when it is read.
            Some(pipe) => drop(pipe.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Reads once what is there.
    async fn read(&mut self, sink: &mut Sink) {
        let Some(pipe) = &self.pipe else { return };
        let mut buffer = [0; READ];
        match pipe.try_read(&mut buffer) {
            Ok(length @ 1..) => {
                self.lines.push(buffer.get(..length).unwrap_or_default());
                self.pass_on(sink).await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.end(sink).await,
        }
    }

    /// Reads what is left, without waiting for more: bounded, whoever still writes.
    async fn drain(&mut self, sink: &mut Sink) {
        let mut left = DRAIN;
        while let Some(pipe) = &self.pipe {
            let mut buffer = [0; READ];
            // Not `try_read`, which says "would block" where the runtime has not looked yet.
            match rustix::io::read(pipe, &mut buffer) {
                Ok(length @ 1..) if left > 0 => {
                    left = left.saturating_sub(length);
                    self.lines.push(buffer.get(..length).unwrap_or_default());
                    self.pass_on(sink).await;
                }
                Err(Errno::INTR) => {}
                _ => self.end(sink).await,
            }
        }
    }

    async fn pass_on(&mut self, sink: &mut Sink) {
        while let Some(line) = self.lines.next() {
            sink.take(self.name, &line).await;
        }
    }

    async fn end(&mut self, sink: &mut Sink) {
        self.pipe = None;
        if let Some(line) = self.lines.rest() {
            sink.take(self.name, &line).await;
        }
    }
}

/// Where lines go.
struct Sink {
    /// Where a person looks on; else the log.
    terminal: Option<Terminal>,
    worker: Arc<str>,
    tail: Tail,
}

impl Sink {
    async fn take(&mut self, stream: &'static str, line: &str) {
        self.tail.push(line);
        match &mut self.terminal {
            Some(terminal) => {
                let text = format!("{} | {}\n", self.worker, printable(line, true));
                terminal.write(text.as_bytes()).await;
            }
            None => {
                let worker = &*self.worker;
                tracing::info!(target: "vestibule::output", worker, stream, "{line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_keeps_ten_lines_of_512_bytes() {
        let tail = Tail::default();
        for number in 0..12 {
            tail.push(&format!("line {number}"));
            tail.push("   ");
        }
        tail.push(&"ö".repeat(400));
        let lines = tail.lines();
        assert_eq!(lines.len(), KEPT_LINES);
        assert_eq!(lines[0], "line 3");
        assert!(lines[9].len() <= KEPT_BYTES && lines[9].ends_with("ö…"));
        assert!(tail.explain("ended".into()).starts_with("ended; its last lines:\n    line 3\n"));
        tail.clear();
        assert_eq!(tail.explain("ended".into()), "ended");
    }

    fn start() -> (Capture, Tail, std::fs::File) {
        let tail = Tail::default();
        let (capture, [stdout, _]) = Capture::start("app-1".into(), tail.clone()).unwrap();
        (capture, tail, stdout.into())
    }

    #[tokio::test]
    async fn what_is_left_in_the_pipe_is_read_though_somebody_still_holds_it() {
        let (capture, tail, mut held) = start();
        held.write_all(b"first\nlast, without an end").unwrap();
        capture.finish().await;
        assert_eq!(tail.lines(), ["first", "last, without an end"]);
        drop(held);
    }

    #[tokio::test]
    async fn a_writer_that_never_ends_does_not_hold_the_end_up() {
        let (capture, tail, mut held) = start();
        let writer = std::thread::spawn(move || {
            let line = [b'x'; 100];
            while held.write_all(&line).and_then(|()| held.write_all(b"\n")).is_ok() {}
        });
        capture.finish().await;
        // Its pipe is closed: that is what ends it.
        writer.join().unwrap();
        assert!(tail.lines().len() <= KEPT_LINES);
    }

    #[tokio::test]
    async fn a_process_that_closes_its_output_lives_on() {
        let (capture, _tail, held) = start();
        drop(held);
        tokio::task::yield_now().await;
        assert!(!capture.task.is_finished());
        capture.finish().await;
    }
}
