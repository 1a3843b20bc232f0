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
