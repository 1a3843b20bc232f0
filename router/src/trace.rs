//! One span a connection: what became of it, for whoever looks (`--log vestibule_router=debug`).
//!
//! Fields: `id`, `peer`, `listener`, `route` once it is decided, `worker` when it is handed over, and
//! `reason` when it is turned away. Never what the client sent. A span that nobody wants is one look
//! at the global level when it is made, and one at itself for each event: nothing is formatted,
//! recorded or allocated, and no subscriber is asked.

use tracing::field::Empty;
use tracing::{Span, debug};
use vestibule_protocol::ConnectionInfo;

use crate::reject::Reason;

/// A connection's span.
#[derive(Clone, Debug)]
pub(crate) struct Trace(Span);

impl Trace {
    /// Of a connection that was just accepted.
    pub(crate) fn accepted(info: &ConnectionInfo) -> Self {
        let trace = Self::of(info);
        if trace.is_wanted() {
            debug!(parent: &trace.0, "accepted");
        }
        trace
    }

    /// Of a connection that comes back.
    pub(crate) fn of_returned(info: &ConnectionInfo) -> Self {
        let trace = Self::of(info);
        trace.routed(&info.route);
        trace
    }

    fn of(info: &ConnectionInfo) -> Self {
        Self(tracing::debug_span!(
            "connection",
            id = info.id,
            peer = info.peer.map(tracing::field::display),
            listener = &*info.listener,
            route = Empty,
            worker = Empty,
            reason = Empty,
        ))
    }

    /// Recording into a span that nobody wants would look for the field's name first.
    fn is_wanted(&self) -> bool {
        !self.0.is_disabled()
    }

    /// A proxy said whose connection it is.
    #[cfg(feature = "cli")]
    pub(crate) fn proxied(&self, peer: Option<std::net::SocketAddr>) {
        if self.is_wanted() {
            match peer {
                Some(peer) => debug!(parent: &self.0, client = %peer, "a proxy's client"),
                None => debug!(parent: &self.0, "a proxy's client without an Internet address"),
            }
        }
    }

    /// More of what its client says has to be seen.
    #[cfg(feature = "cli")]
    pub(crate) fn inspected(&self) {
        if self.is_wanted() {
            debug!(parent: &self.0, "waits for what its client says");
        }
    }

    /// A rule decided.
    pub(crate) fn routed(&self, route: &str) {
        if self.is_wanted() {
            self.0.record("route", route);
        }
    }

    /// It waits in the pool's queue.
    pub(crate) fn queued(&self) {
        if self.is_wanted() {
            debug!(parent: &self.0, "waits for a worker");
        }
    }

    /// It was sent to a worker, which has not taken it yet.
    pub(crate) fn handed_over(&self, worker: &str) {
        if self.is_wanted() {
            self.0.record("worker", worker);
            debug!(parent: &self.0, "handed over");
        }
    }

    /// The worker has taken it.
    pub(crate) fn acknowledged(&self) {
        if self.is_wanted() {
            debug!(parent: &self.0, "acknowledged");
        }
    }

    /// The worker did not take it: it goes to another, or waits for one.
    pub(crate) fn moved(&self, reason: &'static str) {
        if self.is_wanted() {
            debug!(parent: &self.0, reason, "moved");
        }
    }

    /// It is not served.
    pub(crate) fn rejected(&self, reason: Reason) {
        if self.is_wanted() {
            self.0.record("reason", reason.as_str());
            debug!(parent: &self.0, "rejected");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::subscriber::Interest;
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// Wants what is above a level, and counts how often it is spoken to at all.
    struct Counting(Level, Arc<AtomicUsize>);

    impl Counting {
        fn spoken_to(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Subscriber for Counting {
        fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
            if *metadata.level() <= self.0 { Interest::always() } else { Interest::never() }
        }
        fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
            Some(self.0.into())
        }
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.spoken_to();
            *metadata.level() <= self.0
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            self.spoken_to();
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {
            self.spoken_to();
        }
        fn record_follows_from(&self, _: &Id, _: &Id) {
            self.spoken_to();
        }
        fn event(&self, _: &Event<'_>) {
            self.spoken_to();
        }
        fn enter(&self, _: &Id) {
            self.spoken_to();
        }
        fn exit(&self, _: &Id) {
            self.spoken_to();
        }
    }

    fn live(info: &ConnectionInfo) {
        let trace = Trace::accepted(info);
        trace.routed("default");
        trace.queued();
        trace.handed_over("app-1");
        trace.moved("draining");
        trace.handed_over("app-2");
        trace.acknowledged();
        trace.rejected(Reason::NoWorker);
    }

    /// How often a subscriber of this level hears of one connection's life.
    fn heard(level: Level) -> usize {
        let info = ConnectionInfo {
            id: 1,
            peer: None,
            peer_credentials: None,
            destination: None,
            listener: "web".into(),
            route: "default".into(),
            peer_context: None,
            accepted: 0,
            ..ConnectionInfo::default()
        };
        let count = Arc::new(AtomicUsize::new(0));
        let subscriber = Counting(level, Arc::clone(&count));
        tracing::subscriber::with_default(subscriber, || live(&info));
        count.load(Ordering::Relaxed)
    }

    #[test]
    fn nobody_is_asked_about_spans_that_nobody_wants() {
        assert_eq!(heard(Level::INFO), 0);
        // The span, seven events and four records at least.
        assert!(heard(Level::DEBUG) >= 12);
    }
}
