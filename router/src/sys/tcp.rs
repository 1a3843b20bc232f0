//! What the kernel knows about a TCP connection.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

#[cfg(any(test, feature = "cli"))]
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::sockopt;

/// Byte counts of a TCP connection since it was established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Bytes received in order, a FIN counted as one.
    pub(crate) received: u64,
    /// Bytes of data sent.
    pub(crate) sent: u64,
    /// Bytes of data that the client has acknowledged: with those that it has not, all that was
    /// written.
    pub(crate) acknowledged: u64,
    /// What each side has said of the end.
    pub(crate) phase: Phase,
}

/// How far a connection is on its way to its end (`tcp(7)`, the kernel's states).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Neither side has ended it.
    Open,
    /// The client has said all it wants to say (FIN); this side has not.
    ClientDone,
    /// This side has said that it will say no more, or the connection is over.
    Ending,
}

/// `TCP_ESTABLISHED` and `TCP_CLOSE_WAIT` of the kernel's `tcp_states.h`.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// The counts, or `None` if the socket is not TCP.
pub(crate) fn info(socket: BorrowedFd<'_>) -> Result<Option<TcpInfo>, Errno> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the buffer and its length belong together and outlive the call; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return match last_error() {
            Errno::OPNOTSUPP | Errno::NOPROTOOPT => Ok(None),
            error => Err(error),
        };
    }
    let needed = std::mem::offset_of!(libc::tcp_info, tcpi_bytes_sent) + size_of::<u64>();
    if (length as usize) < needed {
        return Ok(None);
    }
    // SAFETY: every field is an integer and the memory was zeroed, so any filling is a value.
    let info = unsafe { info.assume_init() };
    let phase = match info.tcpi_state {
        ESTABLISHED => Phase::Open,
        CLOSE_WAIT => Phase::ClientDone,
        _ => Phase::Ending,
    };
    Ok(Some(TcpInfo {
        received: info.tcpi_bytes_received,
        sent: info.tcpi_bytes_sent,
        acknowledged: info.tcpi_bytes_acked,
        phase,
    }))
}

/// Bytes in the receive queue (`SIOCINQ`), up to an urgent one: as far as a read gets.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    rustix::io::ioctl_fionread(socket)
}

/// All bytes in the receive queue, urgent ones and those behind them included.
pub(crate) fn all_unread(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    sockopt::set_socket_oobinline(socket, true)?;
    let bytes = unread(socket);
    // As every new socket has it, whatever a worker has made of it.
    sockopt::set_socket_oobinline(socket, false)?;
    bytes
}

/// Bytes written and not yet acknowledged by the client, those held back (`TCP_CORK`) included
/// (`SIOCOUTQ`).
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one c_int, which is live; the descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ as _, &raw mut bytes) };
    if result != 0 {
        return Err(last_error());
    }
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Has a listening socket give out connections only once their client has said something, or, if it says
/// nothing, after a second or so (`TCP_DEFER_ACCEPT`, tcp(7)); or at once, as before.
#[cfg(feature = "cli")]
pub(crate) fn defer_accept(socket: BorrowedFd<'_>, defer: bool) -> Result<(), Errno> {
    let seconds = libc::c_int::from(defer);
    // SAFETY: the kernel reads one c_int, which is live, as its length says; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Has the kernel throw away what asks a listening socket for a new connection (SYN without ACK, RFC 9293
/// 3.1), as if it had been lost on its way: who asks tries again a second later. Connections that are there,
/// or half there, go on. A filter for packets (`SO_ATTACH_FILTER`, socket(7)), which sees them from the TCP
/// header on.
#[cfg(feature = "cli")]
pub(crate) fn ignore_newcomers(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let statement =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, FLAGS, 0, 0),
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, SYN | ACK, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, SYN, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        // Of the rest nothing is cut off.
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program and its length belong together and outlive the call, which copies it; the
    // descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Ends what [`ignore_newcomers`] began: for a listening socket, or a connection, which has its listener's
/// filter. Nothing if there is none.
#[cfg(feature = "cli")]
pub(crate) fn heed_newcomers(socket: BorrowedFd<'_>) {
    let ignored: libc::c_int = 0;
    // SAFETY: the kernel reads one c_int, which is live, as its length says; the descriptor is
    // borrowed, so it is open. It fails where there is no filter.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const ignored).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

/// How many bytes have to be there before a socket counts as readable (`SO_RCVLOWAT`, socket(7)).
#[cfg(feature = "cli")]
pub(crate) fn low_water(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut bytes: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one c_int, which is live, as its length says; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw mut bytes).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(last_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(1))
}

/// Sets what [`low_water`] says. The kernel takes no more than half of what its buffer may hold.
#[cfg(feature = "cli")]
pub(crate) fn set_low_water(socket: BorrowedFd<'_>, bytes: u32) -> Result<(), Errno> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads one c_int, which is live, as its length says; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Whether the client has sent a FIN, or the connection is over.
#[cfg(any(test, feature = "cli"))]
pub(crate) fn is_read_closed(socket: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::new(&socket, PollFlags::RDHUP)];
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut poll, Some(&zero)) {
        Ok(_) => poll
            .iter()
            .any(|fd| fd.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)),
        Err(_) => false,
    }
}

/// Lets a wait for readability end with the first byte (`SO_RCVLOWAT`, `socket(7)`).
pub(crate) fn reset_low_water_mark(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let least: libc::c_int = 1;
    // SAFETY: the option value is a live c_int of the stated size; the descriptor is borrowed, so it
    // is open for the length of the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const least).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Switches `SO_LINGER` off, so that no close of this socket waits.
pub(crate) fn clear_linger(socket: BorrowedFd<'_>) {
    // Fails only for what is no socket; then there is nothing to linger.
    let _ = rustix::net::sockopt::set_socket_linger(socket, None);
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
