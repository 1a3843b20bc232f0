//! Listening sockets that whoever started this program bound (`sd_listen_fds(3)`).

use std::os::fd::OwnedFd;

use vestibule_router::config::Address;
use vestibule_router::role::take_listening;

/// First descriptor of `LISTEN_FDS`.
const FIRST: i32 = 3;

/// What was inherited, by name.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    sockets: Vec<(String, OwnedFd)>,
}

impl Inherited {
    /// From `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`; nothing if they are meant for another
    /// process.
    pub(crate) fn from_env() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let meant = variable("LISTEN_PID").parse() == Ok(std::process::id());
        let count = if meant { variable("LISTEN_FDS").parse().unwrap_or(0) } else { 0 };
        let names = variable("LISTEN_FDNAMES");
        let mut names = names.split(':');
        let sockets = (FIRST..FIRST.saturating_add(count)).filter_map(|number| {
            // Without names systemd calls each `unknown`.
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            Some((name.to_owned(), take_listening(number)?))
        });
        Self { sockets: sockets.collect() }
    }

    /// The first one of this name that is left.
    pub(crate) fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(known, _)| known == name)?;
        Some(self.sockets.remove(at).1)
    }

    /// Those that are left, each with the address that names it.
    pub(crate) fn rest(self) -> Vec<(String, OwnedFd)> {
        let named = |(name, socket)| (Address::Inherited(name).to_string(), socket);
        self.sockets.into_iter().map(named).collect()
    }
}
