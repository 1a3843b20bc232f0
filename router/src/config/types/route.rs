//! `[[route]]`.

use vestibule_protocol::supervision::{RuleSetup, TargetSetup};

use super::super::source::{Place, Sourced};
use crate::route::{Refusal, Target};

/// `[[route]]`: where some connections go. The first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique among routes; `route-N`, counted from 1 over all routes, unless written.
    pub name: Sourced<String>,
    /// Indices of listeners. None: any.
    pub listeners: Sourced<Option<Vec<usize>>>,
    /// Networks of the client. None: any.
    pub peers: Sourced<Option<Vec<ipnet::IpNet>>>,
    /// What else must hold.
    pub conditions: Conditions,
    /// Where they go.
    pub target: Sourced<Target>,
    /// What is posted with them.
    pub message: Sourced<Option<serde_json::Value>>,
}

/// Names, and of each the values of which one must be there.
pub type Named = Vec<(String, Vec<String>)>;

/// Conditions of a route on what has to be looked at, in the texts that are written. None: any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Users at the other end of a Unix-domain socket.
    pub users: Sourced<Option<Vec<String>>>,
    /// Security contexts.
    pub contexts: Sourced<Option<Vec<String>>>,
    /// Ranges of levels.
    pub levels: Sourced<Option<Vec<String>>>,
    /// Names that TLS clients ask for.
    pub server_names: Sourced<Option<Vec<String>>>,
    /// Protocols that TLS clients offer.
    pub alpn: Sourced<Option<Vec<String>>>,
    /// Whether it begins with HTTP/2 in clear.
    pub http2: Sourced<Option<bool>>,
    /// Hosts of the first request.
    pub hosts: Sourced<Option<Vec<String>>>,
    /// Its paths.
    pub paths: Sourced<Option<Vec<String>>>,
    /// Its parameters.
    pub query: Sourced<Named>,
    /// Its fields.
    pub headers: Sourced<Named>,
    /// Its cookies.
    pub cookies: Sourced<Named>,
}

impl Conditions {
    /// The first that is about a request, and where it is written.
    pub(in crate::config) fn about_request(&self) -> Option<(&'static str, &Place)> {
        let all = [
            ("host", self.hosts.place()),
            ("path", self.paths.place()),
            ("query", self.query.place()),
            ("header", self.headers.place()),
            ("cookie", self.cookies.place()),
        ];
        all.into_iter().find_map(|(key, place)| Some((key, place?)))
    }

    /// The first that is about what a TLS client says in clear.
    pub(in crate::config) fn about_tls(&self) -> Option<&'static str> {
        let all = [("sni", self.server_names.place()), ("alpn", self.alpn.place())];
        all.into_iter().find_map(|(key, place)| place.map(|_| key))
    }
}

impl Route {
    /// As it travels to the router, and as the table is compiled from.
    pub fn setup(&self) -> RuleSetup {
        let listeners = self.listeners.as_ref();
        RuleSetup {
            // There are at most as many as a file can name.
            listeners: listeners.map(|all| all.iter().map(|at| *at as u32).collect()),
            peers: self.peers.as_ref().map(|all| all.iter().map(ToString::to_string).collect()),
            users: self.conditions.users.value.clone(),
            contexts: self.conditions.contexts.value.clone(),
            levels: self.conditions.levels.value.clone(),
            server_names: self.conditions.server_names.value.clone(),
            alpn: self.conditions.alpn.value.clone(),
            http2: self.conditions.http2.value,
            hosts: self.conditions.hosts.value.clone(),
            paths: self.conditions.paths.value.clone(),
            query: self.conditions.query.value.clone(),
            headers: self.conditions.headers.value.clone(),
            cookies: self.conditions.cookies.value.clone(),
            message: self.message.as_ref().map(ToString::to_string),
            ..RuleSetup::new(
                self.name.value.clone(),
                match *self.target {
                    Target::Pool(pool) => TargetSetup::Pool(pool as u32),
                    Target::Reject(Refusal::Status(status)) => TargetSetup::Status(status),
                    Target::Reject(Refusal::Reset) => TargetSetup::Reset,
                    Target::Reject(Refusal::Close) => TargetSetup::Close,
                    Target::Redirect => TargetSetup::Redirect,
                },
            )
        }
    }
}
