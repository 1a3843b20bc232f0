//! Handing a connection back to the router, for another worker.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vestibule_protocol::codec::{Codec, EncodeError};
use vestibule_protocol::limits::MAX_PREFIX;
use vestibule_protocol::message::HandBack;
use vestibule_protocol::port::PostError;
use vestibule_protocol::{ConnectionInfo as Facts, Data};

use crate::connection_info::ConnectionInfo;
use crate::event::Connection;
use crate::gate::Left;
use crate::inbox::Chain;
use crate::link::Link;
use crate::scope::WorkerScope;

/// Why a connection was not handed back. It is still this worker's.
#[derive(Debug, thiserror::Error)]
#[error("the connection was not handed back")]
pub struct HandBackError {
    /// Why.
    #[source]
    pub reason: NotHandedBack,
    /// The connection, to be served here or closed.
    pub connection: Box<Connection>,
}

/// Why a connection was not handed back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotHandedBack {
    /// The router takes nothing back, or not this connection: it came without a ticket.
    #[error("the router takes this connection not back")]
    NoTicket,
    /// More was read of it than the next worker can be given.
    #[error("{0} bytes were read and not answered, at most {MAX_PREFIX} can be handed back")]
    ReadTooMuch(usize),
    /// The message cannot be written.
    #[error("the message cannot be cloned")]
    DataClone(#[from] EncodeError),
    /// The name of the destination, or the facts, are longer than the protocol carries.
    #[error("the destination's name is too long")]
    TooLong(#[from] vestibule_protocol::tlv::TooLong),
    /// The port is closed, or too much waits to be sent.
    #[error("the port takes nothing")]
    Port(#[from] PostError),
    /// The system refused: out of descriptors.
    #[error("the system refused")]
    System(#[from] std::io::Error),
}

impl WorkerScope {
    /// Hands a connection back to the router, which gives it to another worker: to the pool or worker
    /// named by `to`, if the configuration lets this pool name it (`hand-back-to`), else to whom the
    /// rules say, as if it had just come. Returns the number of what was posted.
    ///
    /// `message` is posted with the connection, as JSON; `&()` for none. The next worker reads first
    /// what this one has read and not answered: what is [put back](crate::Stream::unread), at most
    /// 64 KiB. Hand it back only between an answer and the next request, and never once TLS was begun
    /// on it: its keys stay here.
    ///
    /// # Errors
    /// See [`NotHandedBack`]; the connection comes back.
    pub fn hand_back<T: Serialize + ?Sized>(
        &self,
        connection: Connection,
        message: &T,
        to: Option<&str>,
    ) -> Result<u64, HandBackError> {
        match Data::encode(Codec::Json, message) {
            Ok(data) if data.as_bytes() == b"null" => {
                self.hand_back_data(connection, &Data::NONE, to)
            }
            Ok(data) => self.hand_back_data(connection, &data, to),
            Err(error) => Err(failed(error, connection)),
        }
    }

    /// As [`hand_back`](Self::hand_back), for a message that is already written.
    ///
    /// # Errors
    /// As [`hand_back`](Self::hand_back).
    pub fn hand_back_data(
        &self,
        connection: Connection,
        message: &Data,
        to: Option<&str>,
    ) -> Result<u64, HandBackError> {
        give(self.link(), connection, message, to.unwrap_or_default())
    }
}

/// Gives a connection to the router, for the pool or worker named, or for whom the rules say.
pub(crate) fn give(
    link: &Arc<Link>,
    connection: Connection,
    message: &Data,
    to: &str,
) -> Result<u64, HandBackError> {
    let body = match body(link, &connection, message, to) {
        Ok(body) => body,
        Err(reason) => return Err(failed(reason, connection)),
    };
    let copy = match connection.stream.as_fd().try_clone_to_owned() {
        Ok(copy) => copy,
        Err(error) => return Err(failed(error, connection)),
    };
    match link.hand_back(body, copy) {
        Ok(sequence) => {
            connection.stream.give_away();
            Ok(sequence)
        }
        Err(reason) => Err(failed(reason, connection)),
    }
}

/// Whether the router would take this connection back.
pub(crate) fn is_possible(link: &Link, facts: &Facts) -> bool {
    facts.ticket.is_some() && link.takes_back()
}

fn body(
    link: &Link,
    connection: &Connection,
    message: &Data,
    to: &str,
) -> Result<Data, NotHandedBack> {
    let facts: &Facts = &connection.info;
    if !is_possible(link, facts) {
        return Err(NotHandedBack::NoTicket);
    }
    let prefix = connection.stream.read_before();
    if prefix.len() > MAX_PREFIX {
        return Err(NotHandedBack::ReadTooMuch(prefix.len()));
    }
    let back = HandBack {
        info: facts.clone(),
        prefix: Cow::Borrowed(prefix),
        to,
        message: message.as_bytes(),
    };
    let mut body = Vec::new();
    back.encode(&mut body)?;
    Ok(Data::from_parts(message.codec(), body))
}

fn failed(reason: impl Into<NotHandedBack>, connection: Connection) -> HandBackError {
    HandBackError { reason: reason.into(), connection: Box::new(connection) }
}

/// Hands a connection back whose next request is another worker's. Where that cannot be, the client
/// is told to ask again on another connection.
pub(crate) async fn return_to_router(link: &Arc<Link>, left: Left, info: ConnectionInfo) {
    let Left { stream, whole } = left;
    let mut connection = Connection { stream, info };
    if whole {
        let Err(error) = give(link, connection, &Data::NONE, "") else { return };
        tracing::debug!(id = error.connection.info.id, error = %Chain(&error), "not handed back");
        connection = *error.connection;
    }
    // Who takes none of it in this time will not read it.
    let answer = async {
        connection.stream.write_all(MISDIRECTED).await?;
        connection.stream.shutdown().await?;
        // What is unread at the close would take the answer away from the client.
        let mut rest = connection.stream.take(LAST_READ);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LAST_WAIT, answer).await;
}

/// The answer to a request that this worker is not for and that cannot be another's on this
/// connection (RFC 9110 15.5.20).
const MISDIRECTED: &[u8] =
    b"HTTP/1.1 421 Misdirected Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// So much is read, and so long, after the last answer: as the router does when it rejects.
const LAST_READ: u64 = 64 * 1024;
const LAST_WAIT: Duration = Duration::from_secs(2);
