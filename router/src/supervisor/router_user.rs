//! Which user the router becomes: one that no worker is.

use std::collections::HashSet;

use rustix::thread::CapabilitySet;

use crate::sys::users::{user_by_name, user_by_uid};

/// systemd's range for dynamic users: nobody else hands these out.
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;

/// There is no such user.
#[derive(Debug, thiserror::Error)]
#[error("there is no user `{0}` for the router to become")]
pub struct UnknownUser(String);

/// User and group of a name or a number.
///
/// # Errors
/// The name is nobody's.
pub fn resolve(user: &str) -> Result<(u32, u32), UnknownUser> {
    let unknown = || UnknownUser(user.to_owned());
    if let Ok(number) = user.parse() {
        let known = user_by_uid(number).ok().flatten();
        return Ok((number, known.map_or(number, |known| known.gid)));
    }
    let name = std::ffi::CString::new(user).map_err(|_| unknown())?;
    let known = user_by_name(&name).ok().flatten().ok_or_else(unknown)?;
    Ok((known.uid, known.gid))
}

/// User and group for the router: the user `vestibule` if it exists, else the first number of
/// systemd's dynamic range that has no name and no process. `None` where this process may not change
/// users: the router stays who it is, and every worker of that user could signal it.
pub fn choose() -> Option<(u32, u32)> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    if !rustix::thread::capabilities(None).is_ok_and(|own| own.effective.contains(needed)) {
        return None;
    }
    if let Ok(Some(user)) = user_by_name(c"vestibule") {
        return Some((user.uid, user.gid));
    }
    let running = running_users();
    DYNAMIC
        .into_iter()
        .find(|uid| !running.contains(uid) && matches!(user_by_uid(*uid), Ok(None)))
        .map(|uid| (uid, uid))
}

/// The users of all processes.
fn running_users() -> HashSet<u32> {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashSet::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|entry| entry.metadata().ok())
        .map(|process| process.uid())
        .collect()
}
