//! Dropping privileges for good, in every thread of the process.
//!
//! POSIX says that a process has one user; Linux gives each thread its own. glibc (and musl) change
//! all threads, raw system calls the calling one only: a "dropped" worker could still hold root in
//! its runtime's threads. So this goes through the C library, and then looks at every thread.

use std::ffi::CString;
use std::io::{self, Write};

use rustix::io::Errno;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::sys::{self, User};

/// `CAP_SETGID` and `CAP_SETUID` as bits of a capability set.
const SET_IDS: u64 = (1 << 6) | (1 << 7);

/// Why the process did not become another user. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// Not in the user database.
    #[error("there is no user {0:?}: create it, or name an existing one such as \"nobody\"")]
    UnknownUser(String),
    /// The user is root, by whatever name.
    #[error("{0:?} is root: a worker that keeps root does not call become_user")]
    Root(String),
    /// The process may not change its user.
    #[error(
        "cannot become {user:?}: this process runs as uid {uid} without CAP_SETUID and CAP_SETGID; \
         start it as root or as {user:?}, or let the pool's `user` do it"
    )]
    NotPermitted {
        /// Who it should have become.
        user: String,
        /// Who it is.
        uid: u32,
    },
    /// Only a thread itself can give its capabilities up, unless it stops being root.
    #[error(
        "cannot give up the capabilities of {0} threads: call become_user before starting any, \
         or run as root without secure bits"
    )]
    Threads(usize),
    /// The user database cannot be read.
    #[error("user {user:?} cannot be looked up")]
    Lookup {
        /// Who was looked up.
        user: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process cannot see its own threads.
    #[error("the process's threads in /proc/self/task cannot be read")]
    Proc(#[source] io::Error),
    /// The first change was refused.
    #[error("the groups of {user:?} cannot be set")]
    Groups {
        /// Whose they are.
        user: String,
        /// What the system said.
        #[source]
        source: Errno,
    },
}

/// Becomes `user`, a name or a number, in every thread and for good: groups, group and user (real,
/// effective and saved), no capabilities, and `no_new_privs` for the calling thread and every thread
/// and program that it starts. It then checks every thread, and that root cannot be had back.
///
/// A number without an entry in the user database gets the group of the same number and no other.
/// A process that already is that user only gives up its capabilities and sets `no_new_privs`.
///
/// Call it before starting threads: `no_new_privs` does not reach those that run already.
///
/// # Errors
/// See [`PrivilegeError`]; nothing has changed then.
///
/// # Aborts
/// If anything fails after the first change, or a thread turns out not to have changed, the process
/// says why and aborts: it must not go on with half of its privileges.
pub fn become_user(user: &str) -> Result<(), PrivilegeError> {
    let target = resolve(user)?;
    if target.uid == 0 {
        return Err(PrivilegeError::Root(user.to_owned()));
    }
    let threads = threads().map_err(PrivilegeError::Proc)?;
    let already = threads.iter().all(|thread| thread.uids == [target.uid; 4]);
    may_change(user, &threads, already)?;
    if !already {
        set_groups(&target)
            .map_err(|source| PrivilegeError::Groups { user: user.to_owned(), source })?;
        if let Err(error) = sys::set_gid(target.gid) {
            give_up(user, &format!("setresgid: {error}"));
        }
        if let Err(error) = sys::set_uid(target.uid) {
            give_up(user, &format!("setresuid: {error}"));
        }
    }
    if let Err(error) = drop_capabilities() {
        give_up(user, &format!("capabilities cannot be dropped: {error}"));
    }
    match self::threads() {
        Ok(threads) => {
            if let Err(why) = check(&threads, &target, already) {
                give_up(user, why);
            }
        }
        Err(error) => give_up(user, &format!("threads cannot be checked: {error}")),
    }
    if sys::set_uid(0).is_ok() {
        give_up(user, "root could be had back");
    }
    Ok(())
}

/// What is known of a user; a number needs no entry.
fn resolve(user: &str) -> Result<User, PrivilegeError> {
    let unknown = || PrivilegeError::UnknownUser(user.to_owned());
    let lookup = |source| PrivilegeError::Lookup { user: user.to_owned(), source };
    let name = CString::new(user).map_err(|_| unknown())?;
    if let Some(found) = sys::user_by_name(&name).map_err(lookup)? {
        return Ok(found);
    }
    // -1 means "leave it" to the system calls.
    let uid = user.parse().ok().filter(|uid| *uid != u32::MAX).ok_or_else(unknown)?;
    let found = sys::user_by_uid(uid).map_err(lookup)?;
    Ok(found.unwrap_or(User { name: CString::default(), uid, gid: uid }))
}

/// Whether every thread can be changed whole.
fn may_change(user: &str, threads: &[Thread], already: bool) -> Result<(), PrivilegeError> {
    let privileged = threads.iter().filter(|thread| thread.capabilities != 0).count();
    if already && privileged == 0 {
        return Ok(());
    }
    if !already && threads.iter().any(|thread| thread.effective & SET_IDS != SET_IDS) {
        let uid = rustix::process::geteuid().as_raw();
        return Err(PrivilegeError::NotPermitted { user: user.to_owned(), uid });
    }
    // The kernel clears the capabilities of a thread that stops being root, unless told otherwise.
    let keeps = CapabilitiesSecureBits::KEEP_CAPS | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    let cleared = rustix::thread::capabilities_secure_bits()
        .is_ok_and(|bits| !bits.intersects(keeps))
        && threads.iter().all(|thread| thread.uids.contains(&0));
    if threads.len() > 1 && (already || !cleared) {
        return Err(PrivilegeError::Threads(threads.len()));
    }
    Ok(())
}

fn set_groups(target: &User) -> Result<(), Errno> {
    if target.name.is_empty() { sys::clear_groups() } else { sys::set_groups_of(target) }
}

fn drop_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, none)?;
    rustix::thread::set_no_new_privs(true)
}

/// Whether every thread is what it should be; if not, what is wrong.
fn check(threads: &[Thread], target: &User, already: bool) -> Result<(), &'static str> {
    let Some(first) = threads.first() else { return Err("no thread was found") };
    for thread in threads {
        if thread.uids != [target.uid; 4] {
            return Err("a thread has another user");
        }
        if !already && thread.gids != [target.gid; 4] {
            return Err("a thread has another group");
        }
        if thread.groups != first.groups || (!already && thread.groups.contains(&0)) {
            return Err("a thread has other supplementary groups");
        }
        if thread.capabilities != 0 {
            return Err("a thread has capabilities");
        }
    }
    Ok(())
}

/// Ends the process, which is neither what it was nor what it should be.
fn give_up(user: &str, why: &str) -> ! {
    // A panic, if that cannot be written, could be caught.
    let _ = writeln!(io::stderr(), "cannot become {user:?}, and cannot go on half changed: {why}");
    std::process::abort();
}

/// The identity of one thread, from its `status` (proc(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Thread {
    /// Real, effective, saved, file system.
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
    /// Inheritable, permitted, effective and ambient together.
    capabilities: u64,
    effective: u64,
}

fn threads() -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let status = match std::fs::read_to_string(entry?.path().join("status")) {
            Ok(status) => status,
            // It ended meanwhile.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let thread = parse(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of status"))?;
        threads.push(thread);
    }
    Ok(threads)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

/// Reads a `status`; `None` if a line is missing or not of its form.
fn parse(status: &str) -> Option<Thread> {
    let line = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    };
    let set = |key: &str| u64::from_str_radix(line(key)?, 16).ok();
    let effective = set("CapEff")?;
    Some(Thread {
        uids: numbers(line("Uid")?)?.try_into().ok()?,
        gids: numbers(line("Gid")?)?.try_into().ok()?,
        groups: numbers(line("Groups")?)?,
        capabilities: set("CapInh")? | set("CapPrm")? | effective | set("CapAmb")?,
        effective,
    })
}

fn numbers(line: &str) -> Option<Vec<u32>> {
    line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tworker\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t64\n\
        Groups:\t9 10 \nCapInh:\t0000000000000001\nCapPrm:\t0000000000000002\n\
        CapEff:\t00000000000000c0\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000008\n";

    fn thread(uid: u32, capabilities: u64) -> Thread {
        Thread {
            uids: [uid; 4],
            gids: [uid; 4],
            capabilities,
            effective: capabilities,
            ..Thread::default()
        }
    }

    fn nobody() -> User {
        User { name: c"nobody".into(), uid: 65534, gid: 65534 }
    }

    #[test]
    fn a_status_says_who_a_thread_is() {
        let expected = Thread {
            uids: [1, 2, 3, 4],
            gids: [5, 6, 7, 8],
            groups: vec![9, 10],
            capabilities: 0xcb,
            effective: 0xc0,
        };
        assert_eq!(parse(STATUS), Some(expected));
        assert!(parse(&STATUS.replace("\t9 10 ", "\t")).unwrap().groups.is_empty());
        assert_eq!(parse(&STATUS.replace("CapAmb", "CapXyz")), None);
        assert_eq!(parse(&STATUS.replace("Uid:\t1", "Uid:\tx")), None);
    }

    #[test]
    fn one_thread_that_has_not_changed_is_seen() {
        let good = thread(65534, 0);
        assert_eq!(check(&[good.clone(), good.clone()], &nobody(), false), Ok(()));
        for bad in [
            thread(0, 0),
            thread(65534, 1),
            Thread { gids: [0; 4], ..good.clone() },
            Thread { groups: vec![0], ..good.clone() },
            Thread { uids: [65534, 65534, 0, 65534], ..good.clone() },
        ] {
            assert!(check(&[good.clone(), bad.clone()], &nobody(), false).is_err(), "{bad:?}");
            assert!(check(&[bad.clone(), good.clone()], &nobody(), false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_ordinary_user_stays_who_it_is_and_becomes_nobody_else() {
        assert!(may_change("me", &[thread(1000, 0), thread(1000, 0)], true).is_ok());
        assert!(matches!(
            may_change("nobody", &[thread(1000, 0)], false),
            Err(PrivilegeError::NotPermitted { .. })
        ));
    }

    #[test]
    fn a_thread_whose_capabilities_would_stay_is_refused_before_anything_changes() {
        assert!(matches!(
            may_change("nobody", &[thread(1000, SET_IDS), thread(1000, SET_IDS)], false),
            Err(PrivilegeError::Threads(2))
        ));
        assert!(may_change("nobody", &[thread(1000, SET_IDS)], false).is_ok());
        assert!(may_change("nobody", &[thread(0, SET_IDS), thread(0, SET_IDS)], false).is_ok());
    }

    #[test]
    fn unknown_users_and_root_are_refused() {
        assert!(matches!(become_user("no-such-user"), Err(PrivilegeError::UnknownUser(_))));
        assert!(matches!(become_user("with\0nul"), Err(PrivilegeError::UnknownUser(_))));
        assert!(matches!(become_user("4294967295"), Err(PrivilegeError::UnknownUser(_))));
        assert!(matches!(become_user("root"), Err(PrivilegeError::Root(_))));
        assert!(matches!(become_user("0"), Err(PrivilegeError::Root(_))));
    }

    #[test]
    fn a_number_without_an_entry_is_a_user_of_its_own_group() {
        let user = resolve("61999").unwrap();
        assert_eq!((user.uid, user.gid, user.name.is_empty()), (61999, 61999, true));
        assert_eq!(resolve("65534").unwrap().name.as_c_str(), c"nobody");
    }
}
