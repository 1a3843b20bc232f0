//! What a socket was told, asked of the kernel.
#![allow(unsafe_code, reason = "an option that has no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd};

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
    use rustix::net::SocketType;
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let process = pidfd_open(crate::process::number(pid), PidfdFlags::empty()).unwrap();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().parse().unwrap());
    let sockets = numbers.filter_map(|number| {
        // It may have been closed since.
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        let is_packets = rustix::net::sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET);
        is_packets.then(|| unread(&socket))
    });
    sockets.collect()
}

fn unread(socket: impl AsFd) -> libc::c_int {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one c_int, which is live; the descriptor is borrowed, so it is open.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    bytes
}
