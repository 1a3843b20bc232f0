//! A system that forbids one thing, as the profile of a container may.
#![allow(unsafe_code, reason = "filters of system calls are installed between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where an argument of a call is in `seccomp_data`: its low half.
const fn argument(number: u32) -> u32 {
    16 + 8 * number + if cfg!(target_endian = "little") { 0 } else { 4 }
}

/// The command and all that it starts cannot set a parent-death signal, without which no router
/// accepts anything. Nothing else of vestibule asks for one.
pub fn parent_death_signal(command: &mut Command) {
    let program = [
        load(0),
        equal(libc::SYS_prctl as u32, 0, 3),
        load(argument(0)),
        equal(libc::PR_SET_PDEATHSIG as u32, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || install(program)) };
}

/// The command and all that it starts are told nothing about who is at the other end of a connection:
/// neither its user nor its security context.
pub fn word_of_peers(command: &mut Command) {
    let program = [
        load(0),
        equal(libc::SYS_getsockopt as u32, 0, 4),
        load(argument(2)),
        equal(libc::SO_PEERCRED as u32, 1, 0),
        equal(libc::SO_PEERSEC as u32, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(move || install(program)) };
}

fn answer(code: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, code, 0, 0)
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn equal(value: u32, jt: u8, jf: u8) -> libc::sock_filter {
    statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, jt, jf)
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn install<const N: usize>(mut program: [libc::sock_filter; N]) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let filter = libc::sock_fprog { len: N as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program and its length belong together and outlive the call, which copies it.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
