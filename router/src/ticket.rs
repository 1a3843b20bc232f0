//! Tickets: how a router knows a connection again that a worker hands back.
//!
//! A ticket is a keyed hash over the socket's cookie, which the kernel gives to each socket once
//! (`SO_COOKIE`, `socket(7)`), and over the facts that a rule or a log may rest on. So a worker can hand
//! back nothing but a socket that a router of this supervisor gave away, and nothing else about it than
//! what was said then. What a ticket cannot prove is who had it: see `docs/threat-model.md`.
//!
//! The key is the supervisor's, so that a connection can be handed back to the router that follows a
//! crash. Guessing is not a way in: the first wrong ticket costs the worker its life.

use std::hash::Hasher;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use siphasher::sip::SipHasher24;
use vestibule_protocol::ConnectionInfo;
use vestibule_protocol::connection_info::Ticket;

use crate::connection::Connection;

/// Makes tickets and knows its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tickets {
    key: [u8; 16],
}

/// What a ticket says besides that it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// How often the connection was handed back before its client got anything.
    pub(crate) hops: u8,
    /// Bytes that had been written to the client when it was given away; the upper byte is cut off.
    pub(crate) written: u64,
}

/// Where the number of hops stands above the bytes written. 64 PiB on one connection are enough.
const HOPS_SHIFT: u32 = 56;
pub(crate) const WRITTEN: u64 = (1 << HOPS_SHIFT) - 1;

impl Stamp {
    fn pack(self) -> u64 {
        u64::from(self.hops) << HOPS_SHIFT | self.written & WRITTEN
    }

    fn unpack(packed: u64) -> Self {
        Self { hops: (packed >> HOPS_SHIFT) as u8, written: packed & WRITTEN }
    }
}

/// A key that nobody can guess.
///
/// # Errors
/// As `getrandom(2)`.
pub(crate) fn new_key() -> Result<[u8; 16], Errno> {
    let mut key = [0; 16];
    // Up to 256 bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
    Ok(key)
}

impl Tickets {
    pub(crate) fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// The ticket of a connection that is about to be given away; `None` if the system tells no
    /// cookie.
    pub(crate) fn issue(self, connection: &Connection) -> Option<Ticket> {
        let cookie = rustix::net::sockopt::socket_cookie(connection).ok()?;
        Some(self.ticket(cookie, connection.info(), connection.stamp()))
    }

    /// What the ticket of a connection that came back says, if a router gave this very socket with
    /// these facts.
    pub(crate) fn check(self, socket: BorrowedFd<'_>, info: &ConnectionInfo) -> Option<Stamp> {
        let given = info.ticket?;
        let cookie = rustix::net::sockopt::socket_cookie(socket).ok()?;
        let (_, stamp) = given.halves();
        let stamp = Stamp::unpack(stamp);
        (self.ticket(cookie, info, stamp) == given).then_some(stamp)
    }

    fn ticket(self, cookie: u64, info: &ConnectionInfo, stamp: Stamp) -> Ticket {
        let stamp = stamp.pack();
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u64(cookie);
        hasher.write_u64(stamp);
        hasher.write_u64(info.id);
        hasher.write_u64(info.accepted);
        for address in [info.peer, info.destination] {
            match address {
                None => hasher.write_u8(0),
                Some(address) => {
                    match address.ip() {
                        std::net::IpAddr::V4(ip) => {
                            hasher.write_u8(4);
                            hasher.write(&ip.octets());
                        }
                        std::net::IpAddr::V6(ip) => {
                            hasher.write_u8(6);
                            hasher.write(&ip.octets());
                        }
                    }
                    hasher.write_u16(address.port());
                }
            }
        }
        if let Some(proxied) = &info.proxied {
            hasher.write_u8(u8::from(proxied.tls));
            let name = proxied.server_name.as_deref().map(str::as_bytes);
            for part in [name, proxied.alpn.as_deref(), proxied.unique_id.as_deref()] {
                // Its length first: where one ends and the next begins.
                hasher.write_u64(part.map_or(u64::MAX, |part| part.len() as u64));
                hasher.write(part.unwrap_or_default());
            }
        }
        hasher.write(info.listener.as_bytes());
        // Where one text ends and the other begins.
        hasher.write_u8(0xff);
        hasher.write(info.route.as_bytes());
        Ticket::new(hasher.finish(), stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::PausedConnection;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use vestibule_protocol::connection_info::Proxied;

    fn connection(listener: &TcpListener) -> (TcpStream, Connection) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let info = ConnectionInfo {
            id: 1,
            peer: Some(peer),
            listener: "web".into(),
            accepted: 5,
            ..ConnectionInfo::default()
        };
        (client, Connection::new(PausedConnection::new(server.into()), info))
    }

    #[test]
    fn a_ticket_is_good_for_its_socket_and_its_facts_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tickets = Tickets::new([7; 16]);
        let (_client, given) = connection(&listener);
        let (_other_client, other) = connection(&listener);
        let ticket = tickets.issue(&given).unwrap();
        let info = ConnectionInfo { ticket: Some(ticket), ..given.info().clone() };
        assert_eq!(tickets.check(given.as_fd(), &info), Some(Stamp::default()));
        // A copy of the descriptor is the same socket.
        let copy = given.as_fd().try_clone_to_owned().unwrap();
        assert!(tickets.check(copy.as_fd(), &info).is_some());

        let wrong = |change: &dyn Fn(&mut ConnectionInfo)| {
            let mut info = info.clone();
            change(&mut info);
            tickets.check(given.as_fd(), &info)
        };
        assert_eq!(wrong(&|info| info.id = 2), None);
        assert_eq!(wrong(&|info| info.accepted = 6), None);
        assert_eq!(wrong(&|info| info.peer = None), None);
        assert_eq!(wrong(&|info| info.destination = info.peer), None);
        assert_eq!(wrong(&|info| info.proxied = Some(Box::default())), None);
        let named = |info: &mut ConnectionInfo| {
            let server_name = Some("admin.example.org".into());
            info.proxied = Some(Box::new(Proxied { server_name, ..Proxied::default() }));
        };
        assert_eq!(wrong(&named), None);
        assert_eq!(wrong(&|info| info.listener = "internal".into()), None);
        assert_eq!(wrong(&|info| info.route = "admin".into()), None);
        assert_eq!(wrong(&|info| info.ticket = None), None);
        // The number of hops cannot be lowered.
        fn lowered(ticket: Ticket) -> Ticket {
            Ticket::new(ticket.halves().0, ticket.halves().1 ^ 1 << 56)
        }
        assert_eq!(wrong(&|info| info.ticket = info.ticket.map(lowered)), None);
        assert_eq!(tickets.check(other.as_fd(), &info), None);
        assert_eq!(Tickets::new([8; 16]).check(given.as_fd(), &info), None);
        // What is no socket at all, and what listens.
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(tickets.check(file.as_fd(), &info), None);
        assert_eq!(tickets.check(listener.as_fd(), &info), None);
        let (pair, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(tickets.check(pair.as_fd(), &info), None);
    }

    #[test]
    fn a_stamp_comes_back_as_it_was() {
        let stamp = Stamp { hops: 8, written: 123_456 };
        assert_eq!(Stamp::unpack(stamp.pack()), stamp);
    }
}
