//! The databases of users and groups, through the C library (`getpwnam_r(3)`, `getgrouplist(3)`).
//!
//! A look-up may read files or ask a service, and it allocates: it belongs before a fork.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// What the database says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: CString,
}

/// Room for the texts of one entry: far more than names, paths and a group's members need, and a
/// bound on what a database may make us allocate.
const MOST: usize = 1 << 20;

/// The most groups that a process can be in (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

pub(crate) fn user_by_name(name: &CStr) -> io::Result<Option<User>> {
    look_up(user, |entry, room, found| {
        // SAFETY: all pointers are valid for the call, and `room` is as long as is said.
        unsafe {
            libc::getpwnam_r(name.as_ptr(), entry, room.as_mut_ptr().cast(), room.len(), found)
        }
    })
}

/// The number of a user, by it or by a name that is known here.
#[cfg(feature = "config")]
pub(crate) fn number_of(user: &str) -> Option<u32> {
    user.parse().ok().or_else(|| {
        let name = std::ffi::CString::new(user).ok()?;
        Some(user_by_name(&name).ok()??.uid)
    })
}

/// Whether the kernel tells this user by its number here: it is mapped in this process's user namespace,
/// or it is the one that stands for all who are not (user_namespaces(7)).
#[cfg(feature = "config")]
pub(crate) fn is_mapped(uid: u32) -> bool {
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    if overflow.is_ok_and(|number| number.trim_ascii_end().parse() == Ok(uid)) {
        return true;
    }
    // Where it cannot be read there is no such namespace, or nobody can tell.
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return true };
    maps(&map, uid)
}

/// Whether a map has this user on its inner side: lines of its first one, the outer one, and how many.
#[cfg(feature = "config")]
fn maps(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        uid.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

pub(crate) fn user_by_uid(uid: u32) -> io::Result<Option<User>> {
    look_up(user, |entry, room, found| {
        // SAFETY: all pointers are valid for the call, and `room` is as long as is said.
        unsafe { libc::getpwuid_r(uid, entry, room.as_mut_ptr().cast(), room.len(), found) }
    })
}

/// A group's number.
pub(crate) fn group_by_name(name: &CStr) -> io::Result<Option<u32>> {
    let number = |entry: &libc::group| entry.gr_gid;
    look_up(number, |entry, room, found| {
        // SAFETY: all pointers are valid for the call, and `room` is as long as is said.
        unsafe {
            libc::getgrnam_r(name.as_ptr(), entry, room.as_mut_ptr().cast(), room.len(), found)
        }
    })
}

/// All groups of a user: `gid` and those that list it as a member.
pub(crate) fn groups_of(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `groups` has room for `count` numbers, and `name` ends with a zero byte.
        let result =
            unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &mut count) };
        let count = usize::try_from(count).unwrap_or_default();
        if result >= 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        if groups.len() >= MOST_GROUPS {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        // The C library says how many there are; musl does not.
        groups.resize(count.max(groups.len() * 2).min(MOST_GROUPS), 0);
    }
}

/// Calls a look-up with more and more room for its texts until they fit, and reads the entry while
/// that room lives.
fn look_up<E, T>(
    read: impl Fn(&E) -> T,
    call: impl Fn(*mut E, &mut [u8], *mut *mut E) -> libc::c_int,
) -> io::Result<Option<T>> {
    let mut room = vec![0u8; 1024];
    loop {
        let (mut entry, mut found) = (MaybeUninit::<E>::uninit(), ptr::null_mut());
        match call(entry.as_mut_ptr(), &mut room, &raw mut found) {
            0 => {
                // SAFETY: null, or `entry`, which lives and was filled in.
                let entry = unsafe { found.as_ref() };
                return Ok(entry.map(read));
            }
            libc::EINTR => {}
            libc::ERANGE if room.len() < MOST => room.resize(room.len() * 4, 0),
            // What databases without an entry also say (`getpwnam(3)`, ERRORS).
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn user(entry: &libc::passwd) -> User {
    // SAFETY: `look_up` passes entries whose texts are in room that lives until this returns.
    let name = unsafe { text(entry.pw_name) };
    // SAFETY: as above.
    let home = unsafe { text(entry.pw_dir) };
    User { name, uid: entry.pw_uid, gid: entry.pw_gid, home }
}

/// A text of an entry; empty if it has none.
///
/// # Safety
/// The pointer is null, or points to a live text that ends with a zero byte.
unsafe fn text(pointer: *const libc::c_char) -> CString {
    if pointer.is_null() {
        return CString::default();
    }
    // SAFETY: not null, and live by the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "config")]
    #[test]
    fn a_map_has_the_users_of_its_lines_and_no_others() {
        let map = "         0       1000          1\n         5     100000         10\n";
        let mapped: Vec<u32> = (0..20).filter(|uid| maps(map, *uid)).collect();
        assert_eq!(mapped, [0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        let everybody = "         0          0 4294967295\n";
        assert!(maps(everybody, 0) && maps(everybody, u32::MAX - 1));
        // A number that no user has (chown(2)).
        assert!(!maps(everybody, u32::MAX));
        assert!(!maps("", 0));
    }

    #[test]
    fn root_is_found_by_name_and_by_number() {
        let root = user_by_name(c"root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(user_by_uid(0).unwrap(), Some(root));
        assert_eq!(group_by_name(c"root").unwrap(), Some(0));
        assert!(groups_of(c"root", 0).unwrap().contains(&0));
    }

    #[test]
    fn nobody_of_that_name_is_no_error() {
        assert_eq!(user_by_name(c"no-such-user").unwrap(), None);
        assert_eq!(group_by_name(c"no-such-group").unwrap(), None);
        assert_eq!(groups_of(c"no-such-user", 77).unwrap(), [77]);
    }
}
