//! What a socket was told, asked of the kernel.
#![allow(unsafe_code, reason = "an option that has no safe wrapper")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Whether a listening socket keeps clients until they have said something (`TCP_DEFER_ACCEPT`, tcp(7)).
pub fn defers_accept(socket: impl AsFd) -> bool {
    let mut seconds: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one c_int, which is live, as its length says; the descriptor is
    // borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw mut seconds).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    seconds > 0
}

/// How much memory what was sent takes, and the other side has not read, in each socket of packets that
/// another process has (`SIOCOUTQ`, unix(7)).
pub fn unread_by_others(pid: u32) -> Vec<libc::c_int> {
    let sockets = of(pid).into_iter();
    let packets = sockets.filter(|socket| {
        rustix::net::sockopt::socket_type(socket) == Ok(rustix::net::SocketType::SEQPACKET)
    });
    packets.map(unread).collect()
}

/// Who is at the other ends of the connections that another process has.
pub fn peers(pid: u32) -> BTreeSet<SocketAddr> {
    let sockets = of(pid).into_iter();
    let peers = sockets.filter_map(|socket| rustix::net::getpeername(&socket).ok()?);
    peers.filter_map(|peer| SocketAddr::try_from(peer).ok()).collect()
}

/// Duplicates of everything that another process has open.
fn of(pid: u32) -> Vec<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let process = pidfd_open(crate::process::number(pid), PidfdFlags::empty()).unwrap();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap());
    // Some may have been closed since.
    numbers.filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()).collect()
}

fn unread(socket: impl AsFd) -> libc::c_int {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one c_int, which is live; the descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    bytes
}
