//! The peer's security context: what the kernel says of whoever made the other end of a connection.
//!
//! The label belongs to the *socket* at the other end, from `socket()` on, not to what that process
//! became later. On TCP there is one only where the network is labelled (NetLabel, labelled IPsec);
//! elsewhere the kernel answers as it does without SELinux. So a rule for clients without a label is
//! always needed, and whoever asks sees three outcomes: a label, none, or that it cannot be told.

mod level;
mod pattern;

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

pub use self::level::{Categories, Level, LevelError, LevelRange, MOST_CATEGORIES};
pub use self::pattern::{LabelPattern, PatternError};
use crate::sys::peer;

/// What a rule, a test or a log says where there is no label.
pub const NONE: &str = "none";

/// Longest label that is taken: what a text that travels to a worker may be. Real ones are far
/// shorter; a whole set of 1,024 categories without a range among them is 2.5 KiB.
pub const MOST: usize = vestibule_protocol::limits::MAX_TEXT;

/// Room for the first question: enough for any label that is not made to be long.
const FIRST: usize = 256;

/// A security context, `user:role:type:level`, as the kernel writes it.
///
/// The level holds colons itself (`s0:c1`), and is missing under a policy without levels. A clone
/// copies no text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Label {
    text: Arc<str>,
    /// Where the first three parts end.
    ends: [u16; 3],
}

/// Why a text is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Longer than [`MOST`] bytes.
    #[error("a security context of {0} bytes is longer than {MOST}")]
    TooLong(usize),
    /// It holds what no context holds.
    #[error("a security context holds printable ASCII without spaces")]
    Character,
    /// Not `user:role:type` and perhaps `:level`: another security module's, or none at all.
    #[error("a security context is `user:role:type:level`")]
    Parts,
    /// The kernel does not say.
    #[error("the kernel does not tell the peer's security context")]
    System(#[source] Errno),
}

impl Label {
    /// Reads a label as the kernel writes it.
    ///
    /// # Errors
    /// See [`LabelError`].
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        if text.len() > MOST {
            return Err(LabelError::TooLong(text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(LabelError::Character);
        }
        let mut ends = [0; 3];
        let mut parts = text.splitn(4, ':');
        let mut at = 0;
        for end in &mut ends {
            let part = parts.next().filter(|part| !part.is_empty()).ok_or(LabelError::Parts)?;
            at += part.len();
            // At most MOST, which is below 65,536.
            *end = at as u16;
            at += 1;
        }
        match parts.next() {
            Some("") => Err(LabelError::Parts),
            Some(_) | None => Ok(Self { text: text.into(), ends }),
        }
    }

    /// Asks the kernel for the label of a connection's peer (`SO_PEERSEC`). `None`: it has none,
    /// because the network is not labelled or there is no SELinux. Nothing is read from the
    /// connection, and nothing waits.
    ///
    /// # Errors
    /// There is something that cannot be told or is no label: neither a match nor a mismatch.
    pub fn of_peer(socket: impl AsFd) -> Result<Option<Self>, LabelError> {
        let mut room = [0; FIRST];
        match peer::security(socket.as_fd(), &mut room) {
            Ok(length) => Self::from_kernel(room.get(..length).unwrap_or_default()).map(Some),
            Err(peer::NoLabel::None) => Ok(None),
            Err(peer::NoLabel::Larger(length)) if length > MOST + 1 => {
                Err(LabelError::TooLong(length))
            }
            Err(peer::NoLabel::Larger(length)) => {
                let mut room = vec![0; length];
                match peer::security(socket.as_fd(), &mut room) {
                    Ok(length) => {
                        Self::from_kernel(room.get(..length).unwrap_or_default()).map(Some)
                    }
                    // It does not change while the connection lives.
                    Err(peer::NoLabel::None | peer::NoLabel::Larger(_)) => {
                        Err(LabelError::System(Errno::RANGE))
                    }
                    Err(peer::NoLabel::System(error)) => Err(LabelError::System(error)),
                }
            }
            Err(peer::NoLabel::System(error)) => Err(LabelError::System(error)),
        }
    }

    /// Reads what `SO_PEERSEC` returned; its length counts a final zero byte.
    ///
    /// # Errors
    /// See [`LabelError`].
    pub fn from_kernel(bytes: &[u8]) -> Result<Self, LabelError> {
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        Self::parse(std::str::from_utf8(bytes).map_err(|_| LabelError::Character)?)
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// All of it, to be kept.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The SELinux user.
    pub fn user(&self) -> &str {
        self.part(0, self.end(0))
    }

    /// The role.
    pub fn role(&self) -> &str {
        self.part(self.end(0) + 1, self.end(1))
    }

    /// The type, called the domain of a process.
    pub fn type_(&self) -> &str {
        self.part(self.end(1) + 1, self.end(2))
    }

    /// The level or range of levels; empty under a policy without levels.
    pub fn level(&self) -> &str {
        self.part(self.end(2) + 1, self.text.len())
    }

    fn end(&self, part: usize) -> usize {
        self.ends.get(part).copied().unwrap_or_default().into()
    }

    /// ASCII only, so that any place is a character's boundary.
    fn part(&self, from: usize, to: usize) -> &str {
        self.text.get(from..to).unwrap_or_default()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_level_keeps_its_colons() {
        let label = Label::parse("staff_u:staff_r:staff_client_t:s0:c1-s0:c1,c3.c5").unwrap();
        assert_eq!(
            [label.user(), label.role(), label.type_(), label.level()],
            ["staff_u", "staff_r", "staff_client_t", "s0:c1-s0:c1,c3.c5"]
        );
    }

    #[test]
    fn a_policy_without_levels_has_three_parts() {
        let label = Label::parse("system_u:system_r:app_t").unwrap();
        assert_eq!((label.type_(), label.level()), ("app_t", ""));
    }

    #[test]
    fn what_the_kernel_returns_ends_with_a_zero_byte() {
        assert_eq!(Label::from_kernel(b"u:r:t:s0\0").unwrap().as_str(), "u:r:t:s0");
        assert_eq!(Label::from_kernel(b"u:r:t:s0").unwrap().as_str(), "u:r:t:s0");
        assert_eq!(Label::from_kernel(b"u:r\0:t:s0"), Err(LabelError::Character));
        assert_eq!(Label::from_kernel(b"u:r:t:\xff"), Err(LabelError::Character));
    }

    #[test]
    fn what_is_no_context_is_neither_a_label_nor_none() {
        for text in ["", "unconfined", "u:r", "u::t:s0", ":r:t:s0", "u:r:", "u:r:t:"] {
            assert_eq!(Label::parse(text), Err(LabelError::Parts), "{text}");
        }
        for text in ["u:r:t s0", "/usr/bin/man (enforce)", "u:r:t:s0\n", "ü:r:t:s0"] {
            assert_eq!(Label::parse(text), Err(LabelError::Character), "{text}");
        }
        let long = format!("u:r:t:{}", "c".repeat(MOST));
        assert_eq!(Label::parse(&long), Err(LabelError::TooLong(MOST + 6)));
    }

    /// Where the tests run with SELinux, there is one; elsewhere there is none: never an error.
    #[test]
    fn a_connection_is_asked_without_an_error() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let enforced = std::path::Path::new("/sys/fs/selinux/enforce").exists();
        assert_eq!(Label::of_peer(&one).unwrap().is_some(), enforced);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(Label::of_peer(&server).is_ok());
    }

    #[test]
    fn what_is_no_socket_cannot_be_told() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Label::of_peer(file), Err(LabelError::System(Errno::NOTSOCK)));
    }

    proptest! {
        #[test]
        fn parts_come_back_as_they_were(
            user in "[a-z_.-]{1,20}", role in "[a-z_]{1,20}", kind in "[a-z_]{1,20}",
            level in "(s[0-9]{1,2}(:c[0-9]{1,3}([.,]c[0-9]{1,3}){0,4})?)?",
        ) {
            let colon = if level.is_empty() { "" } else { ":" };
            let text = format!("{user}:{role}:{kind}{colon}{level}");
            let label = Label::parse(&text).unwrap();
            prop_assert_eq!(label.as_str(), &text);
            prop_assert_eq!(
                [label.user(), label.role(), label.type_(), label.level()],
                [&*user, &*role, &*kind, &*level]
            );
        }

        #[test]
        fn no_text_brings_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(label) = Label::from_kernel(&bytes) {
                let parts = [label.user(), label.role(), label.type_()];
                prop_assert!(parts.iter().all(|part| !part.is_empty() && !part.contains(':')));
            }
        }
    }
}
