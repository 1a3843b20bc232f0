//! Asks who a client is, and passes it on, with the request that it has read, to the worker of that
//! customer.

use std::error::Error;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vestibule_worker::{Connection, Event, WorkerScope};

/// Who may come, by the field that says so (`anna:sesame` and `bert:secret`), and whose worker is whose.
const CUSTOMERS: [(&str, &str, &str); 2] = [
    ("Basic YW5uYTpzZXNhbWU=", "anna", "customers-1"),
    ("Basic YmVydDpzZWNyZXQ=", "bert", "customers-2"),
];

const ASK: &str = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"customers\"\r\n\
                   content-length: 0\r\nconnection: close\r\n\r\n";

/// No head of an honest client is longer, or takes longer.
const MOST: u64 = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    // It reads one head of each connection, and no later one.
    let scope = WorkerScope::from_env()?.keeps_scope(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        while let Some(event) = scope.recv().await {
            if let Event::Connection { stream, info, .. } = event {
                let connection = Connection { stream, info };
                tokio::spawn(tokio::time::timeout(PATIENCE, welcome(scope.clone(), connection)));
            }
        }
    });
    Ok(())
}

/// Reads one head, and nothing of it is lost: the customer's worker reads it again.
async fn welcome(scope: WorkerScope, mut connection: Connection) -> std::io::Result<()> {
    let mut read = Vec::new();
    while !read.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = MOST.saturating_sub(read.len() as u64);
        if (&mut connection.stream).take(left).read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let Some((customer, worker)) = customer(&read) else {
        return connection.stream.write_all(ASK.as_bytes()).await;
    };
    connection.stream.unread(&read);
    // Where it cannot be handed back, it is closed.
    scope.hand_back(connection, customer, Some(worker)).map(drop).map_err(std::io::Error::other)
}

/// Who sent this head, and that customer's worker.
fn customer(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let head = String::from_utf8_lossy(head);
    let head = head.split("\r\n\r\n").next()?;
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let (_, who) = fields.find(|(name, _)| name.eq_ignore_ascii_case("authorization"))?;
    let known = CUSTOMERS.iter().find(|(known, ..)| *known == who.trim())?;
    Some((known.1, known.2))
}
