//! The facts of a connection that travel with it: what the router learned, as TLV.

mod proxied;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZero;
use std::sync::Arc;

pub use self::proxied::{
    Proxied, TAG_PROXIED_ALPN, TAG_PROXIED_ID, TAG_PROXIED_NAME, TAG_PROXIED_TLS,
};
use crate::scope::{Scope, Scopes};
use crate::tlv::{self, Field, Fields, TlvError};

/// Number of the connection since its router started.
pub const TAG_ID: u16 = 0x0101;
/// Peer's address: 6 bytes for IPv4 (address, port), 22 for IPv6 (address, port, scope).
pub const TAG_PEER: u16 = 0x0102;
/// Name of the listener.
pub const TAG_LISTENER: u16 = 0x0103;
/// Name of the route.
pub const TAG_ROUTE: u16 = 0x0104;
/// Destination that a proxy in front reported; as [`TAG_PEER`].
pub const TAG_DESTINATION: u16 = 0x0105;
/// Peer's security context.
pub const TAG_PEER_CONTEXT: u16 = 0x0106;
/// Time of accept, nanoseconds of `CLOCK_MONOTONIC`.
pub const TAG_ACCEPTED: u16 = 0x0107;
/// Process, user and group at the other end of a Unix-domain connection: three `u32`.
pub const TAG_PEER_CREDENTIALS: u16 = 0x0108;

/// Who made the other end of a Unix-domain connection, as the kernel saw it when it connected
/// (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Number of the process; 0 where this process could not see it (another namespace).
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// With what the connection can be handed back.
pub const TAG_TICKET: u16 = 0x0110;
/// Name of the worker that handed the connection back.
pub const TAG_HANDED_BACK_BY: u16 = 0x0111;
/// For which later requests the decision about the connection holds.
pub const TAG_SCOPE: u16 = 0x0112;

/// What a router gives with a connection, and wants to see again when the connection is handed back.
/// To everybody else it is sixteen bytes without a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The first eight bytes; never all zero, so that no ticket takes no room.
    first: NonZero<u64>,
    second: u64,
}

impl Ticket {
    /// A ticket of two halves. The first is never zero: of 2^64 one is another's.
    pub fn new(first: u64, second: u64) -> Self {
        Self { first: NonZero::new(first).unwrap_or(NonZero::<u64>::MAX), second }
    }

    /// Its halves.
    pub fn halves(self) -> (u64, u64) {
        (self.first.get(), self.second)
    }

    /// As it travels.
    pub fn to_bytes(self) -> [u8; 16] {
        let both = u128::from(self.second) << 64 | u128::from(self.first.get());
        both.to_le_bytes()
    }
}

impl From<[u8; 16]> for Ticket {
    fn from(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self::new(both as u64, (both >> 64) as u64)
    }
}

/// What is known about a connection. Addresses mapped into IPv6 (`::ffff:10.1.2.3`) are IPv4 here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Counts the connections of this router, from 1.
    pub id: u64,
    /// Who connected; `None` for a Unix-domain peer, which has no address.
    pub peer: Option<SocketAddr>,
    /// Who is at the other end of a Unix-domain connection.
    pub peer_credentials: Option<PeerCredentials>,
    /// Where the client wanted to go, if a proxy in front said so.
    pub destination: Option<SocketAddr>,
    /// What else that proxy said of its client. A box, since most have none.
    pub proxied: Option<Box<Proxied>>,
    /// Name of the listener that accepted it.
    pub listener: Arc<str>,
    /// Name of the route that chose the pool.
    pub route: Arc<str>,
    /// Security context of the peer, if a route, a balance or a script asked for it and there was one.
    pub peer_context: Option<Arc<str>>,
    /// When it was accepted, in nanoseconds of `CLOCK_MONOTONIC` (the same in all processes of a
    /// machine); 0 if not recorded.
    pub accepted: u64,
    /// With what it can be handed back; `None` if its router takes nothing back.
    pub ticket: Option<Ticket>,
    /// Which worker handed it back, if one did: the message posted with it is that worker's, too.
    /// A box, since most have none.
    pub handed_back_by: Option<Box<Arc<str>>>,
    /// For which later requests the decision about it holds; `None`: for all.
    pub scope: Option<Arc<Scope>>,
}

impl ConnectionInfo {
    /// Whether the client is who has made the other end of the connection's socket, which is at this
    /// address: no proxy in front has named another one, of which the kernel knows neither user nor
    /// security context.
    pub fn is_from(&self, other_end: Option<SocketAddr>) -> bool {
        let place = |address: SocketAddr| (canonical(address).ip(), address.port());
        self.peer.map(place) == other_end.map(place)
    }

    /// Appends the facts as fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        tlv::put_array(out, TAG_ID, self.id.to_le_bytes());
        if let Some(peer) = self.peer {
            put_address(out, TAG_PEER, peer);
        }
        if let Some(PeerCredentials { pid, uid, gid }) = self.peer_credentials {
            let [p, u, g] = [pid, uid, gid].map(u32::to_le_bytes);
            let mut value = [0u8; 12];
            for (place, byte) in value.iter_mut().zip(p.into_iter().chain(u).chain(g)) {
                *place = byte;
            }
            tlv::put_array(out, TAG_PEER_CREDENTIALS, value);
        }
        if let Some(destination) = self.destination {
            put_address(out, TAG_DESTINATION, destination);
        }
        if let Some(proxied) = &self.proxied {
            proxied.encode(out);
        }
        if !self.listener.is_empty() {
            tlv::put_text(out, TAG_LISTENER, &self.listener);
        }
        if !self.route.is_empty() {
            tlv::put_text(out, TAG_ROUTE, &self.route);
        }
        if let Some(context) = &self.peer_context {
            tlv::put_text(out, TAG_PEER_CONTEXT, context);
        }
        if self.accepted != 0 {
            tlv::put_array(out, TAG_ACCEPTED, self.accepted.to_le_bytes());
        }
        if let Some(ticket) = self.ticket {
            tlv::put_array(out, TAG_TICKET, ticket.to_bytes());
        }
        if let Some(worker) = &self.handed_back_by {
            tlv::put_text(out, TAG_HANDED_BACK_BY, worker);
        }
        if let Some(scope) = &self.scope {
            // What was read from a field fits one.
            let _ = tlv::put(out, TAG_SCOPE, scope.as_bytes());
        }
    }

    /// Reads the facts from fields; unknown ones are skipped.
    ///
    /// # Errors
    /// The bytes are no fields, a known field is malformed, or the number is missing.
    pub fn decode(bytes: &[u8], names: &mut Names) -> Result<Self, TlvError> {
        let mut builder = Builder::default();
        let mut fields = Fields::new(bytes);
        while let Some(field) = fields.next_field()? {
            builder.take(&field, names)?;
        }
        builder.finish(names)
    }
}

/// Collects facts field by field: an offer's entry holds other fields among them.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    id: Option<u64>,
    peer: Option<SocketAddr>,
    peer_credentials: Option<PeerCredentials>,
    destination: Option<SocketAddr>,
    proxied: Option<Box<Proxied>>,
    listener: Option<Arc<str>>,
    route: Option<Arc<str>>,
    peer_context: Option<Arc<str>>,
    accepted: u64,
    ticket: Option<Ticket>,
    handed_back_by: Option<Box<Arc<str>>>,
    scope: Option<Arc<Scope>>,
}

impl Builder {
    pub(crate) fn take(&mut self, field: &Field<'_>, names: &mut Names) -> Result<(), TlvError> {
        match field.tag {
            TAG_ID => self.id = Some(field.u64()?),
            TAG_PEER => self.peer = Some(address(field)?),
            TAG_PEER_CREDENTIALS => self.peer_credentials = Some(credentials(field)?),
            TAG_DESTINATION => self.destination = Some(address(field)?),
            TAG_LISTENER => self.listener = Some(names.read(field)?),
            TAG_ROUTE => self.route = Some(names.read(field)?),
            TAG_PEER_CONTEXT => self.peer_context = Some(names.read(field)?),
            TAG_ACCEPTED => self.accepted = field.u64()?,
            TAG_TICKET => {
                let wrong = TlvError::Length { tag: field.tag, length: field.value.len() };
                let bytes = <[u8; 16]>::try_from(field.value).map_err(|_| wrong)?;
                self.ticket = Some(bytes.into());
            }
            TAG_SCOPE => self.scope = Some(names.scopes.read(field.value)?),
            TAG_HANDED_BACK_BY => self.handed_back_by = Some(Box::new(names.read(field)?)),
            _ => Proxied::take(&mut self.proxied, field)?,
        }
        Ok(())
    }

    pub(crate) fn finish(self, names: &mut Names) -> Result<ConnectionInfo, TlvError> {
        Ok(ConnectionInfo {
            id: self.id.ok_or(TlvError::Missing(TAG_ID))?,
            peer: self.peer,
            peer_credentials: self.peer_credentials,
            destination: self.destination,
            proxied: self.proxied,
            listener: self.listener.unwrap_or_else(|| names.intern("")),
            route: self.route.unwrap_or_else(|| names.intern("")),
            peer_context: self.peer_context,
            accepted: self.accepted,
            ticket: self.ticket,
            handed_back_by: self.handed_back_by,
            scope: self.scope,
        })
    }
}

/// Names of listeners, routes and contexts repeat on every connection: the last few are kept, so
/// that reading them again allocates nothing.
#[derive(Debug, Default)]
pub struct Names {
    kept: Vec<Arc<str>>,
    next: usize,
    scopes: Scopes,
}

/// A router has a handful of listeners and routes; a linear look at eight is cheaper than a hash.
const KEPT_NAMES: usize = 8;

impl Names {
    fn read(&mut self, field: &Field<'_>) -> Result<Arc<str>, TlvError> {
        // A name that is known is text.
        match self.known(field.value) {
            Some(known) => Ok(known),
            None => Ok(self.keep(field.text()?)),
        }
    }

    fn intern(&mut self, name: &str) -> Arc<str> {
        self.known(name.as_bytes()).unwrap_or_else(|| self.keep(name))
    }

    fn known(&self, name: &[u8]) -> Option<Arc<str>> {
        self.kept.iter().find(|known| known.as_bytes() == name).map(Arc::clone)
    }

    fn keep(&mut self, name: &str) -> Arc<str> {
        let new: Arc<str> = Arc::from(name);
        match self.kept.get_mut(self.next) {
            Some(place) => *place = Arc::clone(&new),
            None => self.kept.push(Arc::clone(&new)),
        }
        self.next = (self.next + 1) % KEPT_NAMES;
        new
    }
}

/// An IPv4 address that was mapped into IPv6 is the IPv4 address, for matching and for printing.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

fn put_address(out: &mut Vec<u8>, tag: u16, address: SocketAddr) {
    let [p0, p1] = address.port().to_le_bytes();
    match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            tlv::put_array(out, tag, [a, b, c, d, p0, p1]);
        }
        SocketAddr::V6(v6) => {
            let mut value = [0u8; 22];
            let (ip, rest) = value.split_at_mut(16);
            ip.copy_from_slice(&v6.ip().octets());
            let [s0, s1, s2, s3] = v6.scope_id().to_le_bytes();
            rest.copy_from_slice(&[p0, p1, s0, s1, s2, s3]);
            tlv::put_array(out, tag, value);
        }
    }
}

fn credentials(field: &Field<'_>) -> Result<PeerCredentials, TlvError> {
    let Ok([p0, p1, p2, p3, u0, u1, u2, u3, g0, g1, g2, g3]) = <[u8; 12]>::try_from(field.value)
    else {
        return Err(TlvError::Length { tag: field.tag, length: field.value.len() });
    };
    Ok(PeerCredentials {
        pid: u32::from_le_bytes([p0, p1, p2, p3]),
        uid: u32::from_le_bytes([u0, u1, u2, u3]),
        gid: u32::from_le_bytes([g0, g1, g2, g3]),
    })
}

fn address(field: &Field<'_>) -> Result<SocketAddr, TlvError> {
    if let Ok([a, b, c, d, p0, p1]) = <[u8; 6]>::try_from(field.value) {
        let ip = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        return Ok(SocketAddr::new(ip, u16::from_le_bytes([p0, p1])));
    }
    let wrong = TlvError::Length { tag: field.tag, length: field.value.len() };
    let Some((ip, rest)) = field.value.split_first_chunk::<16>() else { return Err(wrong) };
    let Ok([p0, p1, s0, s1, s2, s3]) = <[u8; 6]>::try_from(rest) else { return Err(wrong) };
    let port = u16::from_le_bytes([p0, p1]);
    let scope = u32::from_le_bytes([s0, s1, s2, s3]);
    Ok(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(*ip), port, 0, scope)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ConnectionInfo {
        ConnectionInfo {
            id: 2,
            peer: Some("127.0.0.1:51234".parse().unwrap()),
            peer_credentials: Some(PeerCredentials { pid: 4321, uid: 1000, gid: 100 }),
            destination: Some("[fe80::1%3]:443".parse().unwrap()),
            proxied: Some(Box::new(Proxied {
                tls: true,
                server_name: Some("app.example.org".into()),
                alpn: Some(b"h2"[..].into()),
                unique_id: Some(b"\x00\xff"[..].into()),
            })),
            listener: "web".into(),
            route: "default".into(),
            peer_context: Some("system_u:system_r:app_t:s0".into()),
            accepted: 12_345,
            ticket: Some(Ticket::from(*b"sixteen bytes...")),
            handed_back_by: Some(Box::new("login-1".into())),
            scope: Some(Arc::new(Scope::decode(&[]).unwrap())),
        }
    }

    /// Whoever asks the kernel about a socket asks about who made its other end.
    #[test]
    fn a_client_whom_a_proxy_has_named_is_not_at_the_other_end() {
        let from = |peer: Option<&str>, other_end: Option<&str>| {
            let address = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let info = ConnectionInfo { peer: address(peer), ..ConnectionInfo::default() };
            info.is_from(address(other_end))
        };
        assert!(from(None, None));
        assert!(from(Some("10.1.2.3:80"), Some("10.1.2.3:80")));
        assert!(from(Some("10.1.2.3:80"), Some("[::ffff:10.1.2.3]:80")));
        assert!(from(Some("[fe80::1]:80"), Some("[fe80::1%2]:80")));
        for (peer, other_end) in [
            (Some("10.1.2.3:80"), Some("10.1.2.4:80")),
            (Some("10.1.2.3:80"), Some("10.1.2.3:81")),
            (Some("10.1.2.3:80"), None),
            (None, Some("10.1.2.3:80")),
        ] {
            assert!(!from(peer, other_end), "{peer:?} {other_end:?}");
        }
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let mut bytes = Vec::new();
        info().encode(&mut bytes);
        assert_eq!(ConnectionInfo::decode(&bytes, &mut Names::default()), Ok(info()));
    }

    #[test]
    fn unknown_facts_are_skipped() {
        let mut bytes = Vec::new();
        tlv::put(&mut bytes, 0x7fff, b"from the future").unwrap();
        info().encode(&mut bytes);
        assert_eq!(ConnectionInfo::decode(&bytes, &mut Names::default()), Ok(info()));
    }

    #[test]
    fn a_connection_without_its_number_or_with_half_an_address_is_an_error() {
        let mut names = Names::default();
        assert_eq!(ConnectionInfo::decode(&[], &mut names), Err(TlvError::Missing(TAG_ID)));
        let mut bytes = Vec::new();
        tlv::put(&mut bytes, TAG_PEER, &[127, 0, 0, 1]).unwrap();
        assert_eq!(
            ConnectionInfo::decode(&bytes, &mut names),
            Err(TlvError::Length { tag: TAG_PEER, length: 4 })
        );
        bytes.clear();
        tlv::put(&mut bytes, TAG_PEER_CREDENTIALS, &[0; 11]).unwrap();
        assert_eq!(
            ConnectionInfo::decode(&bytes, &mut names),
            Err(TlvError::Length { tag: TAG_PEER_CREDENTIALS, length: 11 })
        );
    }

    #[test]
    fn names_are_shared_between_connections() {
        let mut bytes = Vec::new();
        info().encode(&mut bytes);
        let mut names = Names::default();
        let first = ConnectionInfo::decode(&bytes, &mut names).unwrap();
        let second = ConnectionInfo::decode(&bytes, &mut names).unwrap();
        assert!(Arc::ptr_eq(&first.listener, &second.listener));
        assert!(Arc::ptr_eq(&first.route, &second.route));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.1.2.3:80".parse().unwrap());
    }
}
