//! What the program chose for its scope.

use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
use crate::message::Decoder;

/// How long a client may take for its first request. Long enough for a slow mobile network's
/// handshake and retransmissions, short enough that silent clients cannot pile up.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a kept-alive connection may be idle, and how long a later request's head may take: what
/// nginx uses, more than the minute after which common proxies drop idle connections themselves.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);

/// Takes the events that are no connections while connections are being served.
pub(crate) type Handler = Arc<dyn Fn(Event) + Send + Sync>;

/// What the program chose.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) first_request_timeout: Duration,
    pub(crate) keep_alive_timeout: Duration,
    /// Most connections that this worker holds; 0: no bound of its own.
    pub(crate) max_connections: u32,
    pub(crate) nodelay: bool,
    pub(crate) peer_context: bool,
    /// Whether the program compares later requests with the scope of their connection.
    pub(crate) keeps_scope: bool,
    pub(crate) decoder: Option<Decoder>,
    pub(crate) handler: Option<Handler>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_request_timeout: FIRST_REQUEST_TIMEOUT,
            keep_alive_timeout: KEEP_ALIVE_TIMEOUT,
            max_connections: 0,
            nodelay: false,
            peer_context: false,
            keeps_scope: false,
            decoder: None,
            handler: None,
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("first_request_timeout", &self.first_request_timeout)
            .field("keep_alive_timeout", &self.keep_alive_timeout)
            .field("max_connections", &self.max_connections)
            .field("nodelay", &self.nodelay)
            .field("peer_context", &self.peer_context)
            .field("keeps_scope", &self.keeps_scope)
            .field("typed", &self.decoder.is_some())
            .field("handler", &self.handler.is_some())
            .finish()
    }
}
