//! Telling a client no, in words that it understands, without being held up by it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::inspect::{PausedConnection, Touched};
use crate::sys::{reactor, tcp};

/// How long a client that has said nothing may take to show which protocol it speaks.
const FIRST_BYTES: Duration = Duration::from_millis(200);
/// How long to discard what the client still sends: closing with unread data would reset the
/// connection, and the client would not see the answer.
const LINGER: Duration = Duration::from_secs(2);
/// How much to discard.
const LINGER_BYTES: usize = 64 * 1024;
/// Rejections that may linger at once; the next ones get a reset. Each holds a descriptor.
const LINGERING: usize = 256;

static ROOM: Semaphore = Semaphore::const_new(LINGERING);

/// Why a connection is turned away: the words of the documentation, all of them, whoever says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No route matches.
    NoRoute,
    /// No worker can take it, now or later.
    NoWorker,
    /// As many wait for a free worker as may.
    QueueFull,
    /// It waited for a free worker as long as it may.
    QueueTimeout,
    /// It did not show in time what a route must see.
    InspectTimeout,
    /// Its head is larger than the router looks at.
    HeadTooLarge,
    /// It speaks nothing that a route could look at.
    NotHttp,
    /// The PROXY header that it must begin with is missing or wrong.
    ProxyHeader,
    /// Its sender comes too often.
    RateLimited,
    /// Its sender has too many connections.
    TooMany,
    /// So many workers did not take it that no more are tried.
    MaxAttempts,
    /// A security policy forbids it.
    RefusedByPolicy,
    /// Its security context is not that of the worker.
    ContextMismatch,
    /// There is no room for a worker of its security context.
    ContextLimit,
    /// The script gave no answer, and no route has one.
    ScriptFailed,
    /// A route, a script or a program says so, with an answer of its own.
    Rejected,
    /// The client went away while it waited.
    ClientGone,
    /// A worker may have read from it, and cannot be asked any more.
    Touched,
    /// What a route must see is hidden.
    UnknownFact,
    /// Everything ends.
    ShuttingDown,
}

impl Reason {
    /// Every reason, in the order of the declaration.
    pub const ALL: [Self; 20] = [
        Self::NoRoute,
        Self::NoWorker,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::InspectTimeout,
        Self::HeadTooLarge,
        Self::NotHttp,
        Self::ProxyHeader,
        Self::RateLimited,
        Self::TooMany,
        Self::MaxAttempts,
        Self::RefusedByPolicy,
        Self::ContextMismatch,
        Self::ContextLimit,
        Self::ScriptFailed,
        Self::Rejected,
        Self::ClientGone,
        Self::Touched,
        Self::UnknownFact,
        Self::ShuttingDown,
    ];

    /// The word for logs, metrics and the client's `vestibule-reason` header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::NoWorker => "no-worker",
            Self::QueueFull => "queue-full",
            Self::QueueTimeout => "queue-timeout",
            Self::InspectTimeout => "inspect-timeout",
            Self::HeadTooLarge => "head-too-large",
            Self::NotHttp => "not-http",
            Self::ProxyHeader => "proxy-header",
            Self::RateLimited => "rate-limited",
            Self::TooMany => "too-many",
            Self::MaxAttempts => "max-attempts",
            Self::RefusedByPolicy => "refused-by-policy",
            Self::ContextMismatch => "context-mismatch",
            Self::ContextLimit => "context-limit",
            Self::ScriptFailed => "script-failed",
            Self::Rejected => "rejected",
            Self::ClientGone => "client-gone",
            Self::Touched => "touched",
            Self::UnknownFact => "unknown-fact",
            Self::ShuttingDown => "shutting-down",
        }
    }

    const fn answer(self) -> Answer {
        match self {
            Self::NoRoute => Answer::Status(404),
            Self::NoWorker
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::MaxAttempts
            | Self::ContextLimit
            | Self::ScriptFailed
            | Self::ShuttingDown => Answer::Status(503),
            Self::InspectTimeout => Answer::Status(408),
            Self::HeadTooLarge => Answer::Status(431),
            Self::NotHttp | Self::UnknownFact => Answer::Status(400),
            Self::ProxyHeader | Self::ClientGone | Self::Touched => Answer::Close,
            Self::RateLimited | Self::TooMany => Answer::Status(429),
            Self::RefusedByPolicy | Self::ContextMismatch => Answer::Status(403),
            // Who rejects says how; this is for who does not.
            Self::Rejected => Answer::Status(403),
        }
    }
}

/// How a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    answer: Answer,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Status(u16),
    Reset,
    Close,
}

impl Rejection {
    /// The answer that belongs to a reason.
    pub const fn because(reason: Reason) -> Self {
        Self { answer: reason.answer(), reason }
    }

    /// An HTTP status from 400 to 599 (others become 500), with a reason.
    pub const fn status(status: u16, reason: Reason) -> Self {
        let status = if status >= 400 && status <= 599 { status } else { 500 };
        Self { answer: Answer::Status(status), reason }
    }

    /// A TCP reset.
    pub const fn reset(reason: Reason) -> Self {
        Self { answer: Answer::Reset, reason }
    }

    /// A close without a word.
    pub const fn close(reason: Reason) -> Self {
        Self { answer: Answer::Close, reason }
    }

    /// The reason.
    pub const fn reason(&self) -> Reason {
        self.reason
    }
}

/// Waits until everybody who is turned away has been told, or had the time for it.
#[cfg(feature = "cli")]
pub(crate) async fn all_said() {
    // Fails only if it is closed, which nobody does.
    let _ = ROOM.acquire_many(LINGERING as u32).await;
}

/// Rejects in a task of its own. Outside a runtime the connection is only closed.
///
/// A connection that a worker read from or wrote to is closed whatever the rejection says: an answer
/// in the middle of another would be taken for a part of it.
///
/// `read`: what a worker has read of it, which shows the form as well as what is still to come.
pub(crate) fn start(
    connection: PausedConnection,
    rejection: Rejection,
    inet: bool,
    read: Box<[u8]>,
) {
    if connection.touched() == Touched::Yes {
        return connection.release();
    }
    match rejection.answer {
        Answer::Status(status) if inet => {
            let reason = rejection.reason.as_str();
            speak(connection, Said { status, reason, location: None, read });
        }
        Answer::Reset => reset(connection),
        Answer::Close | Answer::Status(_) => connection.release(),
    }
}

/// Tells an HTTP/1 client in a task of its own to come again with TLS (308, RFC 9110 15.4.9), for as
/// long as a rejection may take.
#[cfg(feature = "cli")]
pub(crate) fn redirect(connection: PausedConnection, location: String, read: Box<[u8]>) {
    if connection.touched() == Touched::Yes {
        return connection.release();
    }
    let reason = Reason::Rejected.as_str();
    speak(connection, Said { status: 308, reason, location: Some(location), read });
}

/// What a client is told.
struct Said {
    status: u16,
    reason: &'static str,
    location: Option<String>,
    /// What a worker has read of it.
    read: Box<[u8]>,
}

fn speak(connection: PausedConnection, said: Said) {
    let (Ok(permit), Ok(runtime)) = (ROOM.try_acquire(), tokio::runtime::Handle::try_current())
    else {
        return reset(connection);
    };
    // A worker that it was offered to may have set it.
    tcp::clear_linger(connection.as_fd());
    let Ok(client) = reactor::readable(connection.into_descriptor()) else { return };
    runtime.spawn(async move {
        let _permit = permit;
        // Whatever fails here, the client is gone or has been told.
        let _ = timeout(LINGER + FIRST_BYTES, tell(&client, &said)).await;
        tcp::clear_linger(client.as_fd());
    });
}

fn reset(connection: PausedConnection) {
    // A lingering time of zero makes close send a reset. Fails only if the client is gone.
    let connection = connection.into_descriptor();
    let _ = sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
}

async fn tell(client: &AsyncFd<OwnedFd>, said: &Said) -> io::Result<()> {
    let mut first = [0u8; 8];
    let seen = if said.read.is_empty() {
        let peek = receive(client, &mut first, RecvFlags::PEEK);
        let Ok(seen) = timeout(FIRST_BYTES, peek).await else { return Ok(()) };
        first.get(..seen?).unwrap_or_default()
    } else {
        &said.read
    };
    match form(seen) {
        Form::Silent => return Ok(()),
        // A plain close, after what came is read: else it would be a reset.
        Form::Http2 => {}
        Form::Tls => send(client, &alert(said.status))?,
        Form::Http1 => send(client, response(said).as_bytes())?,
    }
    rustix::net::shutdown(client, Shutdown::Write)?;
    let mut discarded = 0;
    let mut rest = [0u8; 4096];
    while discarded < LINGER_BYTES {
        match receive(client, &mut rest, RecvFlags::empty()).await? {
            0 => break,
            bytes => discarded += bytes,
        }
    }
    Ok(())
}

/// Receives what is there. Never blocks: whether the descriptor does is shared with every worker
/// that it was offered to.
async fn receive(
    client: &AsyncFd<OwnedFd>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<usize> {
    loop {
        let mut ready = client.readable().await?;
        match rustix::net::recv(client, &mut *buffer, flags | RecvFlags::DONTWAIT) {
            Ok((bytes, _)) => return Ok(bytes),
            Err(Errno::WOULDBLOCK) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends an answer, which is shorter than any empty send buffer: what does not fit at once finds a
/// client that does not read.
fn send(client: &AsyncFd<OwnedFd>, answer: &[u8]) -> io::Result<()> {
    rustix::net::send(client, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Silent,
    Tls,
    Http2,
    Http1,
}

fn form(first: &[u8]) -> Form {
    match first {
        [] => Form::Silent,
        // A handshake record of TLS (RFC 8446 5.1); its major version is 3.
        [0x16] | [0x16, 0x03, ..] => Form::Tls,
        // The connection preface of HTTP/2 (RFC 9113 3.4).
        [b'P', b'R', b'I', b' ', ..] => Form::Http2,
        _ => Form::Http1,
    }
}

/// A fatal alert (RFC 8446 6): access_denied for what the client may not, else internal_error.
fn alert(status: u16) -> [u8; 7] {
    let description = if status < 500 { 49 } else { 80 };
    [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, description]
}

fn response(said: &Said) -> String {
    let Said { status, reason, location, .. } = said;
    let status = *status;
    let phrase = match status {
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        // The phrase may be empty (RFC 9112 4).
        _ => "",
    };
    let retry = if status == 503 { "retry-after: 1\r\n" } else { "" };
    // What is in it was read as a host and a target of HTTP: no line ends there.
    let location = location.as_ref().map(|to| format!("location: {to}\r\n")).unwrap_or_default();
    let body = format!("{status} {phrase}\n");
    format!(
        "HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\nvestibule-reason: {reason}\r\n{location}{retry}\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[test]
    fn every_reason_has_its_own_place_and_word() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason:?}");
        }
        let words: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn the_first_bytes_decide_the_form() {
        assert_eq!(form(b""), Form::Silent);
        assert_eq!(form(&[0x16, 0x03, 0x01, 0x02]), Form::Tls);
        assert_eq!(form(b"PRI * HT"), Form::Http2);
        assert_eq!(form(b"GET / HT"), Form::Http1);
        assert_eq!(form(b"P"), Form::Http1);
    }

    #[test]
    fn a_status_outside_errors_becomes_500() {
        assert_eq!(
            Rejection::status(200, Reason::Rejected),
            Rejection::status(500, Reason::Rejected)
        );
    }

    async fn rejected(sent: &'static [u8], status: u16) -> Vec<u8> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        client.write_all(sent).await.unwrap();
        start(
            PausedConnection::new(server.into()),
            Rejection::status(status, Reason::NoWorker),
            true,
            Box::default(),
        );
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_http_client_reads_status_and_reason_though_it_sent_a_body() {
        let answer = rejected(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", 503).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        assert!(answer.contains("\r\nvestibule-reason: no-worker\r\n"), "{answer}");
        assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    }

    #[cfg(feature = "cli")]
    #[tokio::test]
    async fn a_redirected_client_reads_where_to_go() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        client.write_all(b"GET /a?b HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        redirect(
            PausedConnection::new(server.into()),
            "https://a.example/a?b".to_owned(),
            Box::default(),
        );
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{answer}");
        assert!(answer.contains("\r\nlocation: https://a.example/a?b\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn nothing_is_said_after_what_a_worker_wrote_or_read() {
        use std::io::{Read, Write};
        for reads in [false, true] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().unwrap();
            let mut worker = server.try_clone().unwrap();
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let expected: &[u8] = if reads {
                worker.read_exact(&mut [0]).unwrap();
                b""
            } else {
                worker.write_all(b"x").unwrap();
                b"x"
            };
            drop(worker);
            start(
                PausedConnection::new(server.into()),
                Rejection::status(503, Reason::NoWorker),
                true,
                Box::default(),
            );
            let mut seen = Vec::new();
            // Closed with data that nobody read, it ends with a reset.
            let _ = client.read_to_end(&mut seen).await;
            assert_eq!(seen, expected);
        }
    }

    #[tokio::test]
    async fn a_tls_client_gets_an_alert() {
        assert_eq!(rejected(&[0x16, 3, 1, 0, 5], 404).await, [0x15, 3, 3, 0, 2, 2, 49]);
        assert_eq!(rejected(&[0x16, 3, 1, 0, 5], 503).await, [0x15, 3, 3, 0, 2, 2, 80]);
    }

    #[tokio::test]
    async fn a_silent_client_and_an_http2_client_see_only_the_end() {
        assert_eq!(rejected(b"", 503).await, b"");
        assert_eq!(rejected(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 503).await, b"");
    }
}
