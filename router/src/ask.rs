//! The commands that ask a running supervisor over its admin socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vestibule_protocol::supervision::TraceEntry;
use vestibule_router::supervisor::admin::socket::candidates;
use vestibule_router::supervisor::admin::status::{Health, Status};
use vestibule_router::supervisor::admin::wire::{Answer, Question, Refusal};

use crate::report;

/// How long a supervisor may take: a second at most, or some more where 32 others fill its
/// conversations, which end after 5 s each way.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer: 4,096 workers with ten long lines each have room.
const MAX_ANSWER: u64 = 64 << 20;

/// Where to ask.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The admin socket. Default: `admin.sock` in `$RUNTIME_DIRECTORY`, `/run/vestibule` or
    /// `$XDG_RUNTIME_DIR/vestibule`.
    #[arg(long, value_name = "PATH", env = "VESTIBULE_ADMIN")]
    pub(crate) admin: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No such path, or nobody behind it.
    #[error("no vestibule is running here: nobody answers at {}", list(.0))]
    Nobody(Vec<PathBuf>),
    /// The path belongs to somebody else.
    #[error(
        "may not ask at {}: that takes root, or the user that started it",
        .0.display()
    )]
    Denied(PathBuf),
    /// The system refuses.
    #[error("cannot ask at {}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// Somebody answered, but not like this program.
    #[error("what answers at {} is no vestibule of this version", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What is wrong with the answer.
        #[source]
        source: serde_json::Error,
    },
    /// It said no.
    #[error("{text}")]
    Refused {
        /// Why, for the exit code.
        reason: Refusal,
        /// Why, for a person.
        text: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

/// Asks for something to be done, and says what was.
pub(crate) fn command(socket: &Socket, question: &Question) -> Result<(), AskError> {
    let text = match ask(socket.admin.as_deref(), question)? {
        Answer::Done { text } => text,
        Answer::Status { .. } | Answer::Trace { .. } => String::new(),
        Answer::Refused { reason, text } => return Err(AskError::Refused { reason, text }),
    };
    say(&text);
    Ok(())
}

/// Asks for decisions.
pub(crate) fn trace(socket: &Socket, question: &Question) -> Result<Vec<TraceEntry>, AskError> {
    match ask(socket.admin.as_deref(), question)? {
        Answer::Trace { entries } => Ok(entries),
        Answer::Refused { reason, text } => Err(AskError::Refused { reason, text }),
        Answer::Done { .. } | Answer::Status { .. } => Ok(Vec::new()),
    }
}

/// Shows how it goes. Returns whether it goes well.
pub(crate) fn status(socket: &Socket, json: bool) -> Result<bool, AskError> {
    let status: Status = match ask(socket.admin.as_deref(), &Question::Status {})? {
        Answer::Status { status } => *status,
        Answer::Trace { .. } => {
            let text = "the answer is another question's".to_owned();
            return Err(AskError::Refused { reason: Refusal::NotUnderstood, text });
        }
        Answer::Done { text } => {
            return Err(AskError::Refused { reason: Refusal::NotUnderstood, text });
        }
        Answer::Refused { reason, text } => return Err(AskError::Refused { reason, text }),
    };
    if json {
        // Nothing in it can fail to be JSON: its maps have text for keys.
        say(&serde_json::to_string_pretty(&status).unwrap_or_default());
    } else {
        say(report::text(&status, report::now()).trim_end());
    }
    Ok(status.health == Health::Healthy)
}

/// Whoever asked may have closed standard output, which is no reason for another exit code. Returns
/// whether it is open.
pub(crate) fn say(text: &str) -> bool {
    writeln!(io::stdout().lock(), "{text}").is_ok()
}

fn ask(named: Option<&Path>, question: &Question) -> Result<Answer, AskError> {
    let paths = candidates(named);
    let mut denied = None;
    for path in &paths {
        let system = |source: Errno| AskError::System { path: path.clone(), source: source.into() };
        match connect(path) {
            Ok(stream) => return talk(stream, path, question),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED) => {}
            Err(Errno::ACCESS | Errno::PERM) => denied = denied.or(Some(path.clone())),
            Err(error) => return Err(system(error)),
        }
    }
    Err(denied.map_or(AskError::Nobody(paths), AskError::Denied))
}

fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Holds for `connect` too, which waits while the other side's queue is full (unix(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn talk(mut stream: UnixStream, path: &Path, question: &Question) -> Result<Answer, AskError> {
    let system = |source| AskError::System { path: path.to_owned(), source };
    let foreign = |source| AskError::Foreign { path: path.to_owned(), source };
    let mut line = serde_json::to_vec(question).map_err(foreign)?;
    line.push(b'\n');
    // Who is refused unread may be gone already; the refusal says why.
    let sent = stream.write_all(&line);
    let mut answer = Vec::new();
    let read = BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut answer);
    match (read, sent) {
        (Ok(0), Err(error)) | (Err(error), _) => Err(system(error)),
        (Ok(0), Ok(())) => Err(AskError::Nobody(vec![path.to_owned()])),
        (Ok(_), _) => serde_json::from_slice(&answer).map_err(foreign),
    }
}
