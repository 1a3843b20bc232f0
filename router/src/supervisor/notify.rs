//! Telling systemd (sd_notify(3)): ready, stopping, alive.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

/// How long the manager may keep what it is told waiting. It has a queue, so this is only for one
/// that hangs, whose own watchdog will end it: nobody else is to hang with it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whom to tell, if anybody.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Interval>,
    stopping: bool,
}

impl Notifier {
    /// From `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with `WATCHDOG_PID` (`sd_watchdog_enabled(3)`). To
    /// be called within a runtime.
    pub(crate) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let connected = connect(path.as_bytes());
            if let Err(error) = &connected {
                tracing::warn!(path = %path.display(), %error, "NOTIFY_SOCKET cannot be reached");
            }
            connected.ok()
        });
        let variable = |name| std::env::var(name).ok();
        let bound = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        Self::new(socket, bound)
    }

    fn new(socket: Option<UnixDatagram>, watchdog: Option<Duration>) -> Self {
        let watchdog = watchdog.filter(|_| socket.is_some()).map(|bound| {
            // A clock of milliseconds has no shorter period.
            let mut interval = tokio::time::interval((bound / 2).max(Duration::from_millis(1)));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self { socket, watchdog, stopping: false }
    }

    /// Connections are accepted.
    pub(crate) fn ready(&self) {
        self.say("READY=1");
    }

    /// The configuration is read again; [`ready`](Self::ready) follows, whatever comes of it. With the
    /// time, as `Type=notify-reload` asks for (systemd.service(5)).
    pub(crate) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// What is there is finished. Said once.
    pub(crate) fn stopping(&mut self) {
        if !std::mem::replace(&mut self.stopping, true) {
            self.say("STOPPING=1");
        }
    }

    /// Says in time that this process lives, for as long as it is asked to: to be polled by the loop
    /// whose life is meant. Without a watchdog nothing happens.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn keep_alive(&mut self) -> Infallible {
        loop {
            match &mut self.watchdog {
                Some(watchdog) => watchdog.tick().await,
                None => std::future::pending().await,
            };
            self.say("WATCHDOG=1");
        }
    }

    fn say(&self, text: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(text.as_bytes())
        {
            tracing::warn!(text, %error, "the service manager was not told");
        }
    }
}

/// How long this process may be silent; `None` if nobody listens, or to another process.
fn watchdog(microseconds: Option<String>, process: Option<String>) -> Option<Duration> {
    let meant = process.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let bound: u64 = microseconds.filter(|_| meant)?.parse().ok()?;
    (bound > 0).then(|| Duration::from_micros(bound))
}

/// A path, or a name in the abstract namespace behind `@`.
fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::path::Path::new(OsStr::from_bytes(path)))?,
    };
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_meant_for_one_process_and_has_a_time() {
        let own = std::process::id().to_string();
        let of = |time: &str, process: Option<&str>| {
            watchdog(Some(time.to_owned()), process.map(str::to_owned))
        };
        assert_eq!(of("3000000", Some(&own)), Some(Duration::from_secs(3)));
        assert_eq!(of("3000000", None), Some(Duration::from_secs(3)));
        assert_eq!(of("3000000", Some("1")), None);
        assert_eq!(of("3000000", Some("")), None);
        assert_eq!(of("0", None), None);
        assert_eq!(of("soon", None), None);
        assert_eq!(watchdog(None, Some(own)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_said_once_and_life_at_half_the_watchdogs_time() {
        let (ours, manager) = UnixDatagram::pair().unwrap();
        manager.set_nonblocking(true).unwrap();
        let heard = || {
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let mut notifier = Notifier::new(Some(ours), Some(Duration::from_secs(3)));
        notifier.ready();
        assert_eq!(heard().as_deref(), Some("READY=1"));
        // At once, and then every one and a half seconds, of which four fit.
        let seven = tokio::time::timeout(Duration::from_secs(7), notifier.keep_alive());
        assert!(seven.await.is_err());
        for _ in 0..5 {
            assert_eq!(heard().as_deref(), Some("WATCHDOG=1"));
        }
        assert_eq!(heard(), None);
        notifier.stopping();
        notifier.stopping();
        assert_eq!(heard().as_deref(), Some("STOPPING=1"));
        assert_eq!(heard(), None);
    }

    #[tokio::test]
    async fn a_reload_is_said_with_the_time_of_the_monotonic_clock() {
        let (ours, manager) = UnixDatagram::pair().unwrap();
        Notifier::new(Some(ours), None).reloading();
        let mut buffer = [0; 128];
        let length = manager.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let time = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let said: i64 = time.parse().unwrap();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        assert!(said <= now.tv_sec * 1_000_000 + now.tv_nsec / 1000, "{text}");
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
