//! Handing connections back, as the path of a request says.

use tokio::io::AsyncReadExt;
use vestibule_worker::{Connection, ConnectionInfo, Stream, WorkerScope};

/// What a path asks for.
enum Wish {
    /// To whom the rules say, once.
    Next,
    /// The same, once so many bytes were read.
    NextAfter(usize),
    /// To this pool or worker.
    To(String),
    /// To whom the rules say, for ever.
    Circle,
}

impl Wish {
    fn of(path: &str) -> Option<Self> {
        match path.trim_start_matches('/').split_once('/') {
            Some(("next", length)) => length.parse().ok().map(Self::NextAfter),
            Some(("to", name)) => Some(Self::To(name.to_owned())),
            None if path == "/next" => Some(Self::Next),
            None if path == "/circle" => Some(Self::Circle),
            _ => None,
        }
    }
}

/// Whether this request, whose bytes `read` are, is another worker's.
pub(crate) fn is_another_workers(scope: &WorkerScope, info: &ConnectionInfo, path: &str) -> bool {
    match Wish::of(path) {
        None => false,
        Some(Wish::Circle) => true,
        Some(Wish::Next | Wish::NextAfter(_)) => info.handed_back_by.is_none(),
        Some(Wish::To(name)) => name != scope.name() && name != scope.pool(),
    }
}

/// Hands a connection back of which `read` was read and not answered; what cannot be handed back
/// comes out again, with the reason.
pub(crate) async fn hand_back(
    scope: &WorkerScope,
    mut stream: Stream,
    info: &ConnectionInfo,
    path: &str,
    mut read: Vec<u8>,
) -> Result<(), (Stream, String)> {
    let wish = Wish::of(path);
    if let Some(Wish::NextAfter(length)) = wish {
        while read.len() < length {
            stream.read_buf(&mut read).await.unwrap();
        }
    }
    stream.unread(&read);
    let connection = Connection { stream, info: info.clone() };
    let handed = match &wish {
        Some(Wish::To(name)) => {
            let message = serde_json::json!({ "from": scope.name() });
            scope.hand_back(connection, &message, Some(name))
        }
        _ => scope.hand_back(connection, &(), None),
    };
    handed.map(drop).map_err(|error| (error.connection.stream, error.reason.to_string()))
}

/// Reads the rest of a request that was handed over after so many bytes: how many came, and a sum of
/// them in which each byte's place counts.
pub(crate) async fn sum(stream: &mut Stream, path: &str, read: &mut Vec<u8>) -> Option<String> {
    let Some(Wish::NextAfter(length)) = Wish::of(path) else { return None };
    while read.len() < length {
        stream.read_buf(read).await.unwrap();
    }
    let sum = vestibule_tests::sum(read);
    Some(format!("read={} sum={sum}\n", std::mem::take(read).len()))
}
