//! What is to be run: a whole, checked configuration in the supervisor's words, and where another one
//! comes from.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use vestibule_protocol::supervision::{InspectSetup, ListenerSetup, RuleSetup, ScriptSetup};

use crate::listener::Bound;
use crate::options::WorkerOptions;
use crate::supervisor::admin::socket::AdminSocket;

/// Everything that a run needs, whole and checked.
#[derive(Debug)]
pub struct Plan {
    /// What is served, and by whom.
    pub layout: Layout,
    /// Where another layout comes from; without a file there is none. Then somebody typed a command
    /// and waits: it ends when every worker's first start failed, and with the terminal (SIGHUP).
    pub source: Option<Box<dyn Source>>,
    /// Listening sockets that somebody else has made and no listener of this layout has, each with the
    /// address that names it.
    pub inherited: Vec<(String, OwnedFd)>,
    /// What the router logs: the supervisor's filter.
    pub log: String,
    /// Where `vestibule status` and the other commands ask, if anywhere.
    pub admin: Option<AdminSocket>,
    /// What to tell a person once connections are accepted.
    pub announcement: String,
}

/// Listeners, pools and the rules between them: what a reload replaces as a whole.
#[derive(Debug)]
pub struct Layout {
    /// Rules name them by their places.
    pub listeners: Vec<ListenerPlan>,
    /// Rules name them by their places.
    pub pools: Vec<PoolPlan>,
    /// How connections are looked at.
    pub inspect: InspectSetup,
    /// The route table, first match first. Empty, with one pool: everything goes there.
    pub rules: Vec<RuleSetup>,
    /// Name and text of each rule, to see whether it is another one: places of listeners and pools
    /// are not in it.
    pub routes: Vec<(String, String)>,
    /// What is asked before the rules.
    pub script: Option<ScriptSetup>,
    /// User and group of the router; `None`: it stays who this process is.
    pub router_identity: Option<(u32, u32)>,
    /// The path that is written for the admin socket.
    pub admin: Option<PathBuf>,
}

/// One listener of a layout.
#[derive(Debug)]
pub struct ListenerPlan {
    /// What the router is to know of it; its number is given later.
    pub setup: ListenerSetup,
    /// Its address as it is written: the same address is the same socket.
    pub address: String,
    /// Length of the kernel's queue of connections that nobody accepted yet; none where whoever
    /// made the socket chose it.
    pub backlog: Option<u32>,
    /// The listening socket; none: that of the listener of this address that is there.
    pub socket: Option<Bound>,
}

/// One pool of a layout.
#[derive(Debug)]
pub struct PoolPlan {
    /// How many workers it has.
    pub workers: usize,
    /// What they run.
    pub options: WorkerOptions,
}

/// What there is already when a layout is made.
#[derive(Debug, Default)]
pub struct Present {
    /// Name and address of each listener, and where it really is. Of sockets that no listener has, the
    /// name is empty.
    pub listeners: Vec<(String, String, Option<SocketAddr>)>,
    /// Who the router is, if there is one.
    pub router_identity: Option<Option<(u32, u32)>>,
}

impl Present {
    /// Where the listener of an address really is; of several (port 0) that of this name, if it has
    /// one. Each once.
    pub fn take(&mut self, name: &str, address: &str) -> Option<Option<SocketAddr>> {
        let same = |named: bool| {
            self.listeners
                .iter()
                .position(|(known, at, _)| at == address && (!named || known == name))
        };
        let place = same(true).or_else(|| same(false))?;
        Some(self.listeners.remove(place).2)
    }
}

/// Where layouts come from: the configuration file.
pub trait Source: std::fmt::Debug {
    /// Reads all of it again. Sockets that are there are taken, others are made.
    ///
    /// # Errors
    /// Every mistake, for a person.
    fn read(&mut self, present: Present) -> Result<Layout, String>;
}
