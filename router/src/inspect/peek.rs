//! Looking at what a client has sent without taking it, and no more often than it brings something.
//!
//! A peek leaves a socket readable: whoever waits for more has to raise the socket's low-water mark
//! to what is missing (`SO_RCVLOWAT`), and to lower it again before the connection is handed over.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::sys::tcp;

/// Looks that one connection gets. Each costs a copy of all that is there: 64 of 16 KiB cost about as
/// much as serving the connection thirty times over, and no network needs as many pieces.
pub(crate) const LOOKS: u32 = 64;

/// Looks at each new byte, before the steps grow. A head comes whole or in two or three packets; a
/// person who types one needs a line's look each.
const EAGER: u32 = 8;

/// Nothing can come of the connection: it was reset, or is no socket that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// The bytes that are there, at most as many as the buffer holds. None if the client has said
/// nothing; whether it ever will is not told here.
pub(crate) fn look(connection: impl AsFd, buffer: &mut [u8]) -> Result<&[u8], Gone> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let length = loop {
        match rustix::net::recv(&connection, &mut *buffer, flags) {
            Ok((length, _)) => break length,
            Err(Errno::WOULDBLOCK) => break 0,
            Err(Errno::INTR) => {}
            Err(_) => return Err(Gone),
        }
    };
    Ok(buffer.get(..length).unwrap_or_default())
}

/// When a connection is worth another look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attention {
    looks: u32,
    /// Bytes that were there at the last look.
    seen: usize,
    /// Bytes that have to be there for the next one.
    target: usize,
    /// The low-water mark as it was, if it was changed.
    original: Option<u32>,
}

impl Attention {
    /// Nobody has looked.
    pub(crate) const fn new() -> Self {
        Self { looks: 0, seen: 0, target: 1, original: None }
    }

    /// After a look that found `seen` bytes, of which `missing` more are needed at least. `most` is as
    /// far as anybody looks.
    pub(crate) fn looked(&mut self, seen: usize, missing: usize, most: usize) {
        self.looks += 1;
        self.seen = seen;
        let step = if missing == 1 && self.looks > EAGER { (seen / 2).max(1) } else { missing };
        self.target = seen.saturating_add(step).min(most);
    }

    /// Whether what is missing may be there before the target is reached: the length was guessed.
    pub(crate) fn is_guessed(&self) -> bool {
        self.looks > EAGER
    }

    /// Whether a look has found anything.
    pub(crate) fn has_seen(&self) -> bool {
        self.seen > 0
    }

    /// Whether it gets no further look.
    pub(crate) fn is_used_up(&self) -> bool {
        self.looks >= LOOKS
    }

    #[cfg(test)]
    pub(crate) fn looks(&self) -> u32 {
        self.looks
    }

    /// Whether as much is there as the next look needs.
    pub(crate) fn is_due(&self, connection: impl AsFd) -> bool {
        self.unread(connection) >= self.target
    }

    /// Whether more is there than at the last look.
    pub(crate) fn has_news(&self, connection: impl AsFd) -> bool {
        self.unread(connection) > self.seen
    }

    fn unread(&self, connection: impl AsFd) -> usize {
        let unread = tcp::unread(connection.as_fd()).unwrap_or(u64::MAX);
        usize::try_from(unread).unwrap_or(usize::MAX)
    }

    /// Has the kernel say nothing before the target is reached, where it can (TCP).
    pub(crate) fn raise(&mut self, connection: impl AsFd) {
        // Fails only for what is no stream socket; then each arrival is told.
        if self.original.is_none() {
            self.original = tcp::low_water(connection.as_fd()).ok();
        }
        let target = u32::try_from(self.target).unwrap_or(u32::MAX);
        let _ = tcp::set_low_water(connection.as_fd(), target);
    }

    /// Leaves the socket as it was.
    pub(crate) fn restore(&mut self, connection: impl AsFd) {
        if let Some(original) = self.original.take() {
            let _ = tcp::set_low_water(connection.as_fd(), original);
        }
    }

    /// Begins anew, after what was looked for is found and something else is to be.
    pub(crate) fn begin_anew(&mut self) {
        let original = self.original;
        *self = Self { original, ..Self::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_look_takes_nothing_and_never_waits() {
        let (mut client, server) = pair();
        let mut buffer = [0; 8];
        assert_eq!(look(&server, &mut buffer), Ok(&b""[..]));
        client.write_all(b"0123456789").unwrap();
        while tcp::unread(server.as_fd()).unwrap() < 10 {
            std::thread::yield_now();
        }
        for _ in 0..3 {
            assert_eq!(look(&server, &mut buffer), Ok(&b"01234567"[..]));
        }
    }

    #[test]
    fn a_head_that_is_dribbled_to_its_largest_gets_64_looks_at_most() {
        const MOST: usize = 16 * 1024;
        let mut attention = Attention::new();
        let mut there = 0;
        while there < MOST {
            // A byte at a time; looked at when the target is reached.
            there = attention.target;
            attention.looked(there, 1, MOST);
        }
        assert!(!attention.is_used_up(), "{attention:?}");
        assert!(attention.looks <= 40, "{attention:?}");
    }

    #[test]
    fn where_a_length_is_known_nothing_is_looked_at_before() {
        let mut attention = Attention::new();
        attention.looked(5, 512, 16 * 1024);
        assert_eq!((attention.target, attention.is_guessed()), (517, false));
        attention.looked(5, 60_000, 16 * 1024);
        assert_eq!(attention.target, 16 * 1024, "the bound is worth a look");
    }

    #[test]
    fn the_low_water_mark_is_left_as_it_was() {
        let (_client, server) = pair();
        let mut attention = Attention::new();
        attention.looked(5, 512, 16 * 1024);
        attention.raise(&server);
        assert_eq!(tcp::low_water(server.as_fd()), Ok(517));
        attention.looked(517, 10, 16 * 1024);
        attention.raise(&server);
        attention.restore(&server);
        assert_eq!(tcp::low_water(server.as_fd()), Ok(1));
    }
}
