//! What the router gives up before it touches a client.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// A privilege that could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A step failed.
    #[error("{step} failed")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The supervisor died before this process could bind itself to it.
    #[error("the supervisor is gone")]
    Orphaned,
    /// Root could be regained.
    #[error("the user could be changed back to root")]
    Regained,
}

/// Becomes the user, without capabilities and for good; ends with the supervisor; cannot be looked
/// into by other processes of that user.
///
/// The parent-death signal is set after the user changed, which clears it (`prctl(2)`), and the
/// parent is compared afterwards: it may have died in between. To be called while this process has
/// one thread.
pub(crate) fn drop_to(identity: Option<(u32, u32)>, parent: u32) -> Result<(), PrivilegeError> {
    if let Some((user, group)) = identity {
        become_user(user, group)?;
    }
    let step = |step| move |source: Errno| PrivilegeError::Step { step, source: source.into() };
    // Changing from root drops them by itself; an ordinary user with some keeps them otherwise.
    rustix::thread::clear_ambient_capability_set().map_err(step("ambient capabilities"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(step("capabilities"))?;
    if identity.is_some_and(|(user, _)| user != 0) && regains_root() {
        return Err(PrivilegeError::Regained);
    }
    rustix::thread::set_no_new_privs(true).map_err(step("no_new_privs"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("not dumpable"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("parent-death signal"))?;
    let same = |pid: Pid| pid.as_raw_nonzero().get().unsigned_abs() == parent;
    if !rustix::process::getppid().is_some_and(same) {
        return Err(PrivilegeError::Orphaned);
    }
    Ok(())
}

fn become_user(user: u32, group: u32) -> Result<(), PrivilegeError> {
    // SAFETY: no pointer is read, as the count is 0.
    call("setgroups", unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: takes numbers only.
    call("setresgid", unsafe { libc::setresgid(group, group, group) })?;
    // SAFETY: takes numbers only. The C library changes every thread.
    call("setresuid", unsafe { libc::setresuid(user, user, user) })
}

fn regains_root() -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::setresuid(0, 0, 0) == 0 }
}

fn call(step: &'static str, result: libc::c_int) -> Result<(), PrivilegeError> {
    if result == 0 {
        return Ok(());
    }
    Err(PrivilegeError::Step { step, source: io::Error::last_os_error() })
}
