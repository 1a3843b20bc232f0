//! Listening sockets: how an address is written, bound and shown.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::path::{self, PathError, SocketPath};

/// Length of the kernel's queue of connections that nobody accepted yet.
const BACKLOG: u32 = 4096;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not `ADDRESS:PORT`, `[ADDRESS]:PORT`, `*:PORT` or `unix:PATH`.
    #[error(
        "`{0}` is no address to listen on: write `127.0.0.1:8080`, `[::1]:8080`, `*:8080` or \
         `unix:/run/app.sock`"
    )]
    Address(String),
    /// The folder of a socket's path is not there.
    #[error("cannot listen on {0}: its folder is not there (make it first)")]
    NoFolder(String),
    /// Somebody answers at a path, or has a name.
    #[error("cannot listen on {0}: somebody answers there")]
    Live(String),
    /// Something else has the path.
    #[error("cannot listen on {0}: there is something that is no socket")]
    NoSocket(String),
    /// A port below 1024 needs a right.
    #[error(
        "cannot bind {address}: ports below {first} need CAP_NET_BIND_SERVICE (start as root, or \
         `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the systemd unit)"
    )]
    Privileged {
        /// The address.
        address: String,
        /// First port that anybody may bind (`net.ipv4.ip_unprivileged_port_start`).
        first: u16,
    },
    /// The system refused.
    #[error("cannot listen on {address}")]
    System {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A listening socket, and the path that goes away with it, if it has one.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: OwnedFd,
    pub(super) path: Option<SocketPath>,
}

impl Bound {
    /// The socket.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The socket alone: the path goes away.
    #[cfg(feature = "cli")]
    pub(crate) fn without_path(self) -> OwnedFd {
        self.socket
    }

    /// Its address as it was asked for, but with the port that it really has: `127.0.0.1:8080`,
    /// `unix:/run/app.sock`, `unix:@app`. `None` for what has none.
    pub fn address(&self) -> Option<String> {
        let address = rustix::net::getsockname(&self.socket).ok()?;
        if let Ok(address) = SocketAddr::try_from(address.clone()) {
            return Some(address.to_string());
        }
        let address = SocketAddrUnix::try_from(address).ok()?;
        let printable = |bytes| String::from_utf8_lossy(bytes).into_owned();
        match (address.path_bytes(), address.abstract_name()) {
            (Some(path), _) => Some(format!("unix:{}", printable(path))),
            (None, Some(name)) => Some(format!("unix:@{}", printable(name))),
            (None, None) => None,
        }
    }

    /// What to type to reach it: `http://127.0.0.1:8080`, `unix:/run/app.sock`.
    pub fn location(&self) -> Option<String> {
        let web = if local_address(&self.socket).is_some() { "http://" } else { "" };
        self.address().map(|address| format!("{web}{address}"))
    }
}

impl From<OwnedFd> for Bound {
    /// A socket that somebody else bound, and whose path is theirs.
    fn from(socket: OwnedFd) -> Self {
        Self { socket, path: None }
    }
}

/// Binds an address without a runtime: see [`Listener::bind`](super::Listener::bind).
///
/// # Errors
/// See [`ListenError`].
pub fn bind(text: &str) -> Result<Bound, ListenError> {
    bind_with(text, BACKLOG, path::MODE)
}

/// As [`bind`], with a length for the kernel's queue of connections that nobody accepted yet, and the
/// mode of a path.
///
/// # Errors
/// See [`ListenError`].
pub fn bind_with(text: &str, backlog: u32, mode: u32) -> Result<Bound, ListenError> {
    if let Some(place) = text.strip_prefix("unix:") {
        return listen_unix(place, backlog, mode).map_err(|error| match error {
            PathError::NoFolder => ListenError::NoFolder(text.to_owned()),
            PathError::Live => ListenError::Live(text.to_owned()),
            PathError::NoSocket => ListenError::NoSocket(text.to_owned()),
            PathError::System(source) => system(text, source),
        });
    }
    let (address, only_v6) = match text.strip_prefix("*:") {
        Some(port) => (format!("[::]:{port}"), false),
        None => (text.to_owned(), true),
    };
    let address: SocketAddr = address.parse().map_err(|_| ListenError::Address(text.to_owned()))?;
    let first = first_unprivileged_port();
    let socket = listen(address, only_v6, backlog).map_err(|error| match error {
        Errno::ACCESS if address.port() < first => {
            ListenError::Privileged { address: text.to_owned(), first }
        }
        error => system(text, error.into()),
    })?;
    Ok(socket.into())
}

fn listen_unix(place: &str, backlog: u32, mode: u32) -> Result<Bound, PathError> {
    if let Some(name) = place.strip_prefix('@') {
        return Ok(path::listen_as(name, backlog)?.into());
    }
    let (socket, path) = path::listen_at(Path::new(place), mode, backlog)?;
    Ok(Bound { socket, path: Some(path) })
}

/// The address of a listening socket; `None` if it is no Internet socket.
pub fn local_address(socket: &OwnedFd) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(socket).ok()?).ok()
}

fn listen(address: SocketAddr, only_v6: bool, backlog: u32) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, only_v6)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

pub(super) fn system(address: &str, source: io::Error) -> ListenError {
    ListenError::System { address: address.to_owned(), source }
}

fn first_unprivileged_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        let name = format!("unix:@vestibule-shown-{}", std::process::id());
        let bound = bind(&name).unwrap();
        assert_eq!((bound.address(), bound.location()), (Some(name.clone()), Some(name)));
        let bound = bind("127.0.0.1:0").unwrap();
        let address = local_address(bound.socket()).unwrap();
        assert_eq!(bound.location(), Some(format!("http://{address}")));
        let missing = bind("unix:/no-such-folder/app.sock").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "cannot listen on unix:/no-such-folder/app.sock: its folder is not there (make it first)"
        );
    }
}
