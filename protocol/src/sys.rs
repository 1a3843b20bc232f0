//! System calls of the protocol: one packet in, one packet out, sealed memory. All unsafe code of
//! this crate is here.
#![allow(unsafe_code, reason = "system calls that rustix does not wrap")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::MAX_DESCRIPTORS;

/// Most descriptors that the kernel lets one packet carry (`SCM_MAX_FD`).
const SCM_MAX_FD: usize = 253;

/// Room for all that a sender may attach, whatever our packets carry: descriptors without room the
/// kernel closes inside `recvmsg`, and closing a lingering socket blocks.
const RECEIVE_CONTROL: usize = cmsg_space!(ScmRights(SCM_MAX_FD));

/// Room for what our packets carry.
const SEND_CONTROL: usize = cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Linux 6.16's `SO_PASSRIGHTS`: 0 makes a send of descriptors to this socket fail with EPERM.
const SO_PASSRIGHTS: libc::c_int = 83;

/// A client's connection, to be closed without waiting. A worker that was offered it could have set
/// `SO_LINGER` and filled the send buffer: the close of the last copy would then block. Therefore it
/// is cleared before every close.
#[derive(Debug)]
pub struct ClientSocket(OwnedFd);

impl ClientSocket {
    /// The descriptor, as it is.
    pub fn into_descriptor(self) -> OwnedFd {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so what is copied here has one owner.
        unsafe { std::ptr::read(&raw const this.0) }
    }
}

impl From<OwnedFd> for ClientSocket {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        // Fails only for what is no socket; then there is nothing to linger.
        let _ = sockopt::set_socket_linger(&self.0, None);
    }
}

/// What one `recvmsg` brought, besides the descriptors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Bytes of the packet.
    pub(crate) length: usize,
    /// The packet was longer than the buffer; its tail is lost.
    pub(crate) truncated: bool,
    /// Descriptors were lost: the receiver is at its limit, or its policy forbids them.
    pub(crate) descriptors_lost: bool,
}

/// A connected pair of seqpacket sockets, close-on-exec and non-blocking.
///
/// # Errors
/// As `socketpair(2)`: out of descriptors.
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Whether a descriptor is a Unix seqpacket socket: tokio-seqpacket takes any without complaint.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn is_seqpacket(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(sockopt::socket_type(socket)? == SocketType::SEQPACKET
        && sockopt::socket_domain(socket)? == AddressFamily::UNIX)
}

/// Whether a socket has (or had) another side: `connect` against a full backlog can succeed without,
/// and a listening socket is none.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn is_connected(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::net::getpeername(socket) {
        Ok(_) => Ok(true),
        Err(Errno::NOTCONN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets `O_NONBLOCK` and `FD_CLOEXEC`, whatever they were.
///
/// # Errors
/// As `fcntl(2)`.
pub fn set_port_flags(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)
}

/// Registers a descriptor with the running runtime, for reading only.
///
/// # Errors
/// The reactor refuses it.
pub(crate) fn watch_for_reading(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor from here until the AsyncFd drops it, after it
    // took it out of the reactor.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Receives one packet without waiting; its descriptors are appended to `descriptors`.
///
/// There is always room for descriptors. Only at this process's descriptor limit the kernel still
/// closes what it cannot install within the call.
///
/// # Errors
/// As `recvmsg(2)`; `WOULDBLOCK` if there is none.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::<u8>::uninit(); RECEIVE_CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    Ok(Received {
        length: message.bytes,
        truncated: message.flags.contains(ReturnFlags::TRUNC),
        descriptors_lost: message.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Sends one packet without waiting. A packet is sent whole or not at all.
///
/// # Errors
/// As `sendmsg(2)`: `WOULDBLOCK` (the receiver is slow), `PIPE`/`CONNRESET` (it is gone),
/// `TOOMANYREFS` (too many descriptors of this user are under way).
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if descriptors.is_empty() {
        let mut control = SendAncillaryBuffer::default();
        return rustix::net::sendmsg(socket, parts, &mut control, flags).map(drop);
    }
    let mut space = [MaybeUninit::<u8>::uninit(); SEND_CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL);
    }
    rustix::net::sendmsg(socket, parts, &mut control, flags).map(drop)
}

/// Asks the kernel to refuse descriptors sent to this socket, where it can (Linux 6.16).
///
/// Returns whether it does. On older kernels the receiver closes what arrives.
///
/// The memory of a large message is a descriptor too: its sender gets EPERM then, and must not take
/// that for the end of the port. A socket that is to take large messages leaves this alone.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> bool {
    let off: libc::c_int = 0;
    // SAFETY: the option value is a live c_int of the stated size; the descriptor is borrowed, so
    // it is open for the length of the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}

/// All seals that make a memfd's content and size final.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A memfd with this content, sealed.
///
/// # Errors
/// Out of descriptors or memory.
pub fn sealed_memory(content: &[u8]) -> Result<OwnedFd, Errno> {
    let memory = message_memory()?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&memory, rest))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// `vm.memfd_noexec=2` allows only memory that can never be executed; kernels before 6.3 do not
/// know the flag that says so.
fn message_memory() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create("vestibule-message", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("vestibule-message", flags),
        result => result,
    }
}

/// Why a descriptor is no large body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Not sealed, or not memory at all: the sender could still change it.
    #[error("large message is not sealed memory")]
    Unsealed,
    /// Longer than the receiver takes.
    #[error("large message of {length} bytes is over the bound of {bound}")]
    TooLarge {
        /// Its size.
        length: u64,
        /// The receiver's bound.
        bound: usize,
    },
    /// It could not be read.
    #[error("large message cannot be read")]
    Read(#[source] Errno),
}

/// Reads a sealed memfd. It is never mapped: a mapping of a stranger's file can fault.
///
/// # Errors
/// See [`MemoryError`]. Nothing is allocated before the size is known to be within the bound.
pub fn read_sealed_memory(memory: impl AsFd, bound: usize) -> Result<Vec<u8>, MemoryError> {
    let memory = memory.as_fd();
    let seals = rustix::fs::fcntl_get_seals(memory).map_err(|_| MemoryError::Unsealed)?;
    if !seals.contains(SEALS) {
        return Err(MemoryError::Unsealed);
    }
    let length = rustix::fs::fstat(memory).map_err(MemoryError::Read)?.st_size;
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > bound {
        return Err(MemoryError::TooLarge { length, bound });
    }
    let mut content = vec![0; size];
    let mut read = 0;
    while let Some(rest) = content.get_mut(read..)
        && !rest.is_empty()
    {
        match rustix::io::pread(memory, rest, read as u64) {
            Ok(0) => return Err(MemoryError::Read(Errno::IO)),
            Ok(bytes) => read += bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Err(MemoryError::Read(error)),
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_comes_back_whole() {
        let content: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let memory = sealed_memory(&content).unwrap();
        assert_eq!(read_sealed_memory(&memory, 100_000), Ok(content));
    }

    #[test]
    fn memory_that_can_still_change_is_refused() {
        let memory = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert_eq!(read_sealed_memory(&memory, 10), Err(MemoryError::Unsealed));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(read_sealed_memory(&file, 10), Err(MemoryError::Unsealed));
    }

    #[test]
    fn four_gigabytes_of_sealed_memory_allocate_nothing() {
        let memory = rustix::fs::memfd_create("large", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memory, 4 << 30).unwrap();
        rustix::fs::fcntl_add_seals(&memory, SEALS).unwrap();
        assert_eq!(
            read_sealed_memory(&memory, 1024),
            Err(MemoryError::TooLarge { length: 4 << 30, bound: 1024 })
        );
    }

    /// Room for fewer would let the kernel close the rest within the call, however long that takes.
    #[test]
    fn everything_that_one_packet_can_carry_arrives() {
        let (port, other) = seqpacket_pair().unwrap();
        let things = vec![other.as_fd(); SCM_MAX_FD];
        let mut space = [MaybeUninit::<u8>::uninit(); RECEIVE_CONTROL];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&things)));
        let parts = [IoSlice::new(b"x")];
        rustix::net::sendmsg(&other, &parts, &mut control, SendFlags::empty()).unwrap();
        let mut descriptors = Vec::new();
        let received = receive(port.as_fd(), &mut [0; 8], &mut descriptors).unwrap();
        assert_eq!((descriptors.len(), received.descriptors_lost), (SCM_MAX_FD, false));
    }

    #[test]
    fn a_stream_socket_is_no_port() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(is_seqpacket(stream.as_fd()), Ok(false));
        let (port, _other) = seqpacket_pair().unwrap();
        assert_eq!(is_seqpacket(port.as_fd()), Ok(true));
    }

    #[test]
    fn a_socket_is_connected_even_after_the_other_side_left() {
        let (port, other) = seqpacket_pair().unwrap();
        assert_eq!(is_connected(port.as_fd()), Ok(true));
        drop(other);
        assert_eq!(is_connected(port.as_fd()), Ok(true));
        let flags = SocketFlags::CLOEXEC;
        let alone =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        assert_eq!(is_connected(alone.unwrap().as_fd()), Ok(false));
    }
}
