//! Telling systemd (sd_notify(3)): ready, stopping, alive.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Whom to tell, if anybody.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: bool,
}

impl Notifier {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    pub(crate) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let connected = connect(path.as_bytes());
            if let Err(error) = &connected {
                tracing::warn!(path = %path.display(), %error, "NOTIFY_SOCKET cannot be reached");
            }
            connected.ok()
        });
        Self { socket, watchdog: std::env::var_os("WATCHDOG_USEC").is_some() }
    }

    pub(crate) fn ready(&self) {
        self.say("READY=1");
    }

    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// To be called every second, which is often enough for any watchdog of two seconds and more.
    pub(crate) fn alive(&self) {
        if self.watchdog {
            self.say("WATCHDOG=1");
        }
    }

    fn say(&self, text: &str) {
        if let Some(socket) = &self.socket {
            // A manager that is not there any more needs no telling.
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// A path, or a name in the abstract namespace behind `@`.
fn connect(path: &[u8]) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))?,
    };
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives_as_the_protocol_writes_it() {
        let path = std::env::temp_dir().join(format!("vestibule-notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier =
            Notifier { socket: connect(path.as_os_str().as_bytes()).ok(), watchdog: true };
        notifier.ready();
        notifier.alive();
        notifier.stopping();
        let mut buffer = [0; 64];
        for expected in ["READY=1", "WATCHDOG=1", "STOPPING=1"] {
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_name_behind_an_at_sign_is_abstract() {
        let name = format!("vestibule-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        connect(format!("@{name}").as_bytes()).unwrap().send(b"READY=1").unwrap();
        assert_eq!(manager.recv(&mut [0; 16]).unwrap(), 7);
    }
}
