//! What a new process makes of itself between fork and exec, in one place and one order.
//!
//! Everything here runs in the child of a process that may have had other threads: only
//! async-signal-safe system calls, no allocation, no lock. Names were resolved and texts were made
//! before the fork. `Command::uid` and its like run *before* `pre_exec` and are not used.

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::Mode;
use rustix::io::{Errno, FdFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What is changed. The default leaves the process who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preparation {
    /// The descriptor limit, soft and hard; else the soft one is raised to the hard one.
    pub(crate) descriptors: Option<u64>,
    /// Niceness, absolute.
    pub(crate) nice: Option<i32>,
    /// The root directory.
    pub(crate) root: Option<CString>,
    /// Empty the capability bounding set: no program that it executes can gain any.
    pub(crate) empty_bounding_set: bool,
    pub(crate) groups: Option<Vec<Gid>>,
    pub(crate) gid: Option<Gid>,
    pub(crate) uid: Option<Uid>,
    /// Give up all capabilities, the inheritable ones too.
    pub(crate) no_capabilities: bool,
    /// Clear the ambient set and forbid new privileges (`PR_SET_NO_NEW_PRIVS`).
    pub(crate) no_new_privileges: bool,
    /// The working directory, below `root`, entered as the new user.
    pub(crate) directory: Option<CString>,
    pub(crate) umask: Option<Mode>,
}

/// One step, for the parent to name. The order is the order of doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Descriptors = 1,
    Port,
    Session,
    DescriptorLimit,
    Nice,
    Root,
    BoundingSet,
    KeepCapabilities,
    Groups,
    Group,
    User,
    Capabilities,
    AmbientSet,
    ForGood,
    NoNewPrivileges,
    Directory,
}

impl Step {
    const ALL: [Self; 16] = [
        Self::Descriptors,
        Self::Port,
        Self::Session,
        Self::DescriptorLimit,
        Self::Nice,
        Self::Root,
        Self::BoundingSet,
        Self::KeepCapabilities,
        Self::Groups,
        Self::Group,
        Self::User,
        Self::Capabilities,
        Self::AmbientSet,
        Self::ForGood,
        Self::NoNewPrivileges,
        Self::Directory,
    ];

    /// What could not be done, for a person.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "its inherited descriptors cannot be marked (close_range)",
            Self::Port => "its port cannot be kept open",
            Self::Session => "it cannot have a session of its own (setsid)",
            Self::DescriptorLimit => "its descriptor limit `nofile` cannot be set",
            Self::Nice => "its niceness `nice` cannot be set",
            Self::Root => "its root directory `root` cannot be set",
            Self::BoundingSet => "its capability bounding set cannot be emptied",
            Self::KeepCapabilities => "keeping capabilities cannot be switched off",
            Self::Groups => "its supplementary groups cannot be set",
            Self::Group => "its group cannot be set",
            Self::User => "its user cannot be set",
            Self::Capabilities => "its capabilities cannot be given up",
            Self::AmbientSet => "its ambient capabilities cannot be cleared",
            Self::ForGood => "it could still become root again",
            Self::NoNewPrivileges => "new privileges cannot be forbidden (no_new_privs)",
            Self::Directory => "its working directory cannot be entered",
        }
    }

    fn failed(self, error: Errno) -> Failed {
        Failed { step: self, error }
    }
}

/// A step that failed, on its way from the child to its parent.
///
/// The standard library carries one number, "the OS error code" (`CommandExt::pre_exec`), over a pipe
/// of its own. Error numbers end at 4,095, so the step has room above them; a pipe of ours would be
/// another descriptor to leak, mark and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) step: Step,
    pub(crate) error: Errno,
}

/// Where the step's number begins: above all error numbers.
const STEP_SHIFT: u32 = 16;

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        let step = i32::from(failed.step as u8) << STEP_SHIFT;
        Self::from_raw_os_error(step | failed.error.raw_os_error())
    }
}

impl Failed {
    /// The step that an error of `Command::spawn` names; `None` if all were done, or none.
    pub(crate) fn from_error(error: &io::Error) -> Option<Self> {
        let code = error.raw_os_error()?;
        let step =
            Step::ALL.into_iter().find(|step| i32::from(*step as u8) == code >> STEP_SHIFT)?;
        Some(Self { step, error: Errno::from_raw_os_error(code & ((1 << STEP_SHIFT) - 1)) })
    }
}

impl Preparation {
    /// Does it, in the child. `port` is a descriptor that the parent holds open across the fork;
    /// `limit` is the parent's descriptor limit.
    pub(crate) fn carry_out(&self, port: RawFd, limit: Rlimit) -> Result<(), Failed> {
        close_on_exec_from(3).map_err(|error| Step::Descriptors.failed(error))?;
        keep_on_exec(port).map_err(|error| Step::Port.failed(error))?;
        rustix::process::setsid().map_err(|error| Step::Session.failed(error))?;
        self.set_limits(limit)?;
        // The SELinux context of the program is written here: /proc is still to be seen, and this
        // process still has the right.
        if let Some(root) = &self.root {
            let set = rustix::process::chroot(root.as_c_str())
                .and_then(|()| rustix::process::chdir(c"/"));
            set.map_err(|error| Step::Root.failed(error))?;
        }
        self.become_user()?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true)
                .map_err(|error| Step::NoNewPrivileges.failed(error))?;
        }
        // As the new user: nobody gets into a folder by our rights.
        if let Some(directory) = &self.directory {
            rustix::process::chdir(directory.as_c_str())
                .map_err(|error| Step::Directory.failed(error))?;
        }
        if let Some(umask) = self.umask {
            rustix::process::umask(umask);
        }
        Ok(())
    }

    /// What needs rights that the new user lacks: a higher limit, a better niceness.
    fn set_limits(&self, limit: Rlimit) -> Result<(), Failed> {
        match self.descriptors {
            Some(most) => {
                let limit = Rlimit { current: Some(most), maximum: Some(most) };
                rustix::process::setrlimit(Resource::Nofile, limit)
                    .map_err(|error| Step::DescriptorLimit.failed(error))?;
            }
            None => {
                let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
                // Nobody asked for it: it stays as it is where the system forbids it.
                let _ = rustix::process::setrlimit(Resource::Nofile, raised);
            }
        }
        if let Some(nice) = self.nice {
            rustix::process::setpriority_process(None, nice)
                .map_err(|error| Step::Nice.failed(error))?;
        }
        Ok(())
    }

    /// Groups before the user, for afterwards the right to change them is gone; capabilities after
    /// it, for who is not root before the change keeps them across it.
    fn become_user(&self) -> Result<(), Failed> {
        if self.empty_bounding_set {
            empty_bounding_set().map_err(|error| Step::BoundingSet.failed(error))?;
        }
        if self.uid.is_some() {
            rustix::thread::set_keep_capabilities(false)
                .map_err(|error| Step::KeepCapabilities.failed(error))?;
        }
        // The calls of the kernel, which change one thread: the child has no other.
        if let Some(groups) = &self.groups {
            rustix::thread::set_thread_groups(groups)
                .map_err(|error| Step::Groups.failed(error))?;
        }
        if let Some(gid) = self.gid {
            rustix::thread::set_thread_res_gid(gid, gid, gid)
                .map_err(|error| Step::Group.failed(error))?;
        }
        if let Some(uid) = self.uid {
            rustix::thread::set_thread_res_uid(uid, uid, uid)
                .map_err(|error| Step::User.failed(error))?;
        }
        if self.no_capabilities {
            let none = CapabilitySet::empty();
            let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, none)
                .map_err(|error| Step::Capabilities.failed(error))?;
        }
        if self.no_new_privileges || self.no_capabilities {
            rustix::thread::clear_ambient_capability_set()
                .map_err(|error| Step::AmbientSet.failed(error))?;
        }
        self.verify()
    }

    /// Tries to have root back: it must not work.
    fn verify(&self) -> Result<(), Failed> {
        let regained = Step::ForGood.failed(Errno::NOTRECOVERABLE);
        let dropped = self.uid.is_some_and(|uid| !uid.is_root());
        if dropped && rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).is_ok() {
            return Err(regained);
        }
        let left = dropped && self.gid.is_some_and(|gid| !gid.is_root());
        if left && rustix::thread::set_thread_res_gid(None, Gid::ROOT, None).is_ok() {
            return Err(regained);
        }
        Ok(())
    }
}

/// Drops capability after capability, until the kernel knows no more.
fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) if number > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn close_on_exec_from(first: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: marks descriptors; none is closed, so no owner is affected.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

fn keep_on_exec(descriptor: RawFd) -> Result<(), Errno> {
    // SAFETY: the parent's owner of it is in a frame above the fork, so it is open in the child too.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    rustix::io::fcntl_setfd(descriptor, FdFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_survives_the_way_to_the_parent() {
        for step in Step::ALL {
            let failed = step.failed(Errno::PERM);
            assert_eq!(Failed::from_error(&failed.into()), Some(failed));
        }
    }

    #[test]
    fn an_error_of_exec_names_no_step() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(Failed::from_error(&error), None);
        assert_eq!(Failed::from_error(&io::ErrorKind::InvalidInput.into()), None);
    }
}
