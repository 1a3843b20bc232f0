//! What the program learns about a connection: the router's facts and the message posted with it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Extensions;
use vestibule_protocol::{ConnectionInfo as Facts, Data, scope};

use crate::message::Typed;

/// The facts of a connection and the message posted with it.
///
/// Reads like the protocol's facts (`info.peer`, `info.route`, …) and is shared: a clone costs one
/// atomic addition, so that every request of a connection can carry it.
#[derive(Clone)]
pub struct ConnectionInfo(Arc<Passed>);

struct Passed {
    facts: Facts,
    message: Data,
    typed: Option<Box<dyn Typed>>,
    /// Whether a first request came: a connection that was acknowledged is owed that one, even by a
    /// worker that ends.
    requested: AtomicBool,
}

/// Whose extractors will look into a request's extensions: each thing in them is an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extras {
    /// A hyper service's: it looks for what this crate documents.
    Plain,
    /// A tower service's, which may be axum's router.
    Tower,
}

impl ConnectionInfo {
    pub(crate) fn new(facts: Facts, message: Data, typed: Option<Box<dyn Typed>>) -> Self {
        let requested = AtomicBool::new(false);
        Self(Arc::new(Passed { facts, message, typed, requested }))
    }

    /// The message that was posted with the connection; [`Data::NONE`] if there was none.
    pub fn message(&self) -> &Data {
        &self.0.message
    }

    /// Whether the decision about the connection holds for this later request of it: its method and
    /// target as the client sent them, and every field line, its name in lower case. The first request
    /// of a connection is the one that was decided about, and is not to be asked. What cannot be told
    /// (two hosts) is not covered.
    ///
    /// A request that is not covered is another worker's: [hand the connection
    /// back](crate::WorkerScope::hand_back) with every byte from that request on, once all earlier
    /// answers are written, or answer it with 421 (RFC 9110 15.5.20) and close.
    pub fn covers(&self, method: &str, target: &str, fields: &[(&str, &[u8])]) -> bool {
        let Some(scope) = &self.scope else { return true };
        scope.covers(&scope::Request::new(method, target, fields))
    }

    /// A request came.
    pub(crate) fn note_request(&self) {
        self.0.requested.store(true, Ordering::Relaxed);
    }

    /// Whether a request came.
    pub(crate) fn was_requested(&self) -> bool {
        self.0.requested.load(Ordering::Relaxed)
    }

    /// Puts what belongs to every request of this connection into its extensions.
    pub(crate) fn insert(&self, extras: Extras, extensions: &mut Extensions) {
        extensions.insert(self.clone());
        match extras {
            Extras::Plain => {}
            Extras::Tower => {
                #[cfg(feature = "axum")]
                extensions.insert(axum::extract::ConnectInfo(self.clone()));
            }
        }
        if self.0.message.codec() != vestibule_protocol::Codec::None {
            extensions.insert(Posted(self.clone()));
        }
        if let Some(typed) = &self.0.typed {
            typed.insert(extensions);
        }
    }
}

impl Deref for ConnectionInfo {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.0.facts
    }
}

impl std::fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("facts", &self.0.facts)
            .field("message", &self.0.message.len())
            .finish_non_exhaustive()
    }
}

/// The message posted with a request's connection, in the extensions of every request that a plain
/// hyper or tower service gets. Reads like [`Data`]; a clone copies no bytes.
#[derive(Clone, Debug)]
pub struct Posted(ConnectionInfo);

impl Deref for Posted {
    type Target = Data;

    fn deref(&self) -> &Data {
        self.0.message()
    }
}
