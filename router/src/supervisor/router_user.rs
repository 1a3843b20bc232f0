//! Which user the router becomes: one that no worker is.

use std::collections::HashSet;

use rustix::thread::CapabilitySet;

use super::identity::Identity;
use super::master::PoolPlan;
use crate::sys::users::{user_by_name, user_by_uid};

/// systemd's range for dynamic users: nobody else hands these out.
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;

/// There is no such user.
#[derive(Debug, thiserror::Error)]
#[error("there is no user `{0}` on this system")]
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

/// The router would be who a pool's workers are: they could signal it and take its descriptors.
#[derive(Debug, thiserror::Error)]
#[error(
    "the router would run as uid {uid}, which the workers of pool `{pool}` are: they could signal it \
     and take its descriptors; give one of them another user"
)]
pub struct SharedUser {
    uid: u32,
    pool: String,
}

/// Who the workers of each pool will be, by number. `None`: there is no such user, which is told
/// where they are started.
fn users_of(pools: &[PoolPlan]) -> impl Iterator<Item = Option<u32>> {
    pools.iter().map(|pool| Identity::resolve(&pool.options.identity).ok().map(|who| who.uid()))
}

/// Looks once more at the plan that is about to be carried out, with everybody's number known. Where
/// the router cannot be another than its workers, one warning.
///
/// # Errors
/// [`SharedUser`]: it could be.
pub(crate) fn check(router: Option<(u32, u32)>, pools: &[PoolPlan]) -> Result<(), SharedUser> {
    let own = rustix::process::geteuid().as_raw();
    let uid = router.map_or(own, |(uid, _)| uid);
    let Some((pool, _)) = pools.iter().zip(users_of(pools)).find(|(_, user)| *user == Some(uid))
    else {
        return Ok(());
    };
    if router.is_some() {
        return Err(SharedUser { uid, pool: pool.options.pool.clone() });
    }
    tracing::warn!(
        uid,
        "the router and its workers are one user, as this process may not change users: a worker \
         could signal the router and take its descriptors"
    );
    Ok(())
}

/// Whether no worker of these pools would be this user.
pub fn is_free((uid, _): (u32, u32), pools: &[PoolPlan]) -> bool {
    users_of(pools).all(|user| user != Some(uid))
}

/// User and group for the router: the user `vestibule` if it exists, else the first number of
/// systemd's dynamic range that has no name and no process; never a user of these pools' workers.
/// `None` where this process may not change users: the router stays who it is.
pub fn choose(pools: &[PoolPlan]) -> Option<(u32, u32)> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    if !rustix::thread::capabilities(None).is_ok_and(|own| own.effective.contains(needed)) {
        return None;
    }
    let mut taken: HashSet<u32> = users_of(pools).flatten().collect();
    if let Ok(Some(user)) = user_by_name(c"vestibule")
        && !taken.contains(&user.uid)
    {
        return Some((user.uid, user.gid));
    }
    taken.extend(running_users());
    DYNAMIC
        .into_iter()
        .find(|uid| !taken.contains(uid) && matches!(user_by_uid(*uid), Ok(None)))
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
