//! Who a worker is: its user, groups, root, folder and limits, resolved before any process is
//! started.
//!
//! Names are looked up once for a pool: a directory service that is down when a worker is started
//! again changes nothing, and nothing is looked up between fork and exec.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode};
use rustix::process::{Gid, Uid};
use rustix::thread::CapabilitySet;

use crate::sys::prepare::Preparation;
use crate::sys::users::{self, User};

/// The identity as it was written. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdentityOptions {
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) groups: Option<Vec<String>>,
    pub(crate) umask: Option<u32>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) root: Option<PathBuf>,
    pub(crate) nice: Option<i32>,
    pub(crate) nofile: Option<u64>,
    pub(crate) no_new_privileges: bool,
}

/// Why an identity cannot be had. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not in the user database.
    #[error("there is no user `{0}`: create it, or name an existing one such as `nobody`")]
    UnknownUser(String),
    /// Not in the group database.
    #[error("there is no group `{0}`: create it, or name an existing one such as `nogroup`")]
    UnknownGroup(String),
    /// A number that means "unchanged" to the kernel (`setresuid(2)`).
    #[error("{0} is no user or group: the system uses this number for itself")]
    Reserved(u32),
    /// A database cannot be read.
    #[error("`{name}` cannot be looked up")]
    Lookup {
        /// Whom it was asked for.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process may not change its user.
    #[error(
        "`{key}` needs CAP_SETUID and CAP_SETGID, which this process (uid {uid}) does not have: \
         start it as root, or leave `{key}` away and workers run as this user"
    )]
    SetIds {
        /// What was written.
        key: &'static str,
        /// Who this process is.
        uid: u32,
    },
    /// The process may not change its root.
    #[error(
        "`root` needs CAP_SYS_CHROOT, which this process (uid {0}) does not have: start it as root"
    )]
    Chroot(u32),
    /// The capabilities of this process cannot be read.
    #[error("the capabilities of this process cannot be read")]
    Capabilities(#[source] io::Error),
    /// Outside what the system knows.
    #[error("a niceness goes from -20 to 19, and {0} is outside")]
    Nice(i32),
    /// More than permission bits.
    #[error("a umask goes from 0 to 0o777, and {0:#o} is outside")]
    Umask(u32),
    /// A path that the system cannot be given.
    #[error("{} is no path", .0.display())]
    Path(PathBuf),
}

/// Somebody's entry in the user database: `HOME`, `USER` and `LOGNAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: CString,
    pub(crate) home: CString,
}

/// An identity that is known to exist and that this process may give.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The user it becomes; else this process's own, where the database knows it.
    pub(crate) account: Option<Account>,
    /// Whether the user is another than this process's by the configuration's will.
    pub(crate) chosen: bool,
    pub(crate) root: Option<PathBuf>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) preparation: Preparation,
}

impl Identity {
    /// Looks everything up and checks that this process has the rights it takes.
    pub(crate) fn resolve(options: &IdentityOptions) -> Result<Self, IdentityError> {
        let rights = Rights::of_this_process()?;
        rights.check(options)?;
        let mut preparation = plain(options)?;
        let account = match &options.user {
            Some(name) => {
                let user = find_user(name)?;
                let gid = match &options.group {
                    Some(group) => find_group(group)?,
                    None => user.gid,
                };
                preparation.uid = Some(Uid::from_raw(user.uid));
                preparation.gid = Some(Gid::from_raw(gid));
                preparation.groups = Some(match &options.groups {
                    Some(groups) => find_groups(groups)?,
                    None => groups_of(&user, gid, name)?,
                });
                Some(Account { name: user.name, home: user.home })
            }
            None => {
                preparation.gid =
                    options.group.as_deref().map(find_group).transpose()?.map(Gid::from_raw);
                preparation.groups = options.groups.as_deref().map(find_groups).transpose()?;
                // Only for the environment: that nobody knows this user is no obstacle.
                let own = users::user_by_uid(rustix::process::geteuid().as_raw()).ok().flatten();
                own.map(|user| Account { name: user.name, home: user.home })
            }
        };
        let uid = preparation.uid.unwrap_or_else(rustix::process::geteuid);
        // Root that was written keeps what makes it root; everybody else has nothing to lose.
        let dropped = !uid.is_root() && (preparation.uid.is_some() || options.no_new_privileges);
        preparation.no_capabilities = dropped;
        preparation.empty_bounding_set = dropped && rights.may(CapabilitySet::SETPCAP);
        Ok(Self {
            account,
            chosen: options.user.is_some(),
            root: options.root.clone(),
            directory: options.directory.clone(),
            preparation,
        })
    }

    /// The user's number.
    pub(crate) fn uid(&self) -> u32 {
        self.preparation.uid.unwrap_or_else(rustix::process::geteuid).as_raw()
    }

    /// Its name, or its number.
    pub(crate) fn name(&self) -> String {
        match &self.account {
            Some(account) => account.name.to_string_lossy().into_owned(),
            None => format!("uid {}", self.uid()),
        }
    }

    /// Where a path of the worker's is for this process.
    pub(crate) fn path_outside(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// Whether the worker may execute a file, or enter a folder. The mode bits say it for another
    /// user (access control lists do not count), the kernel for this one.
    pub(crate) fn may_execute(&self, path: &Path) -> bool {
        let Preparation { uid, gid, groups, .. } = &self.preparation;
        if uid.is_none() && gid.is_none() && groups.is_none() {
            return rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
        }
        let Ok(meta) = std::fs::metadata(path) else { return false };
        let uid = self.uid();
        let gid = gid.unwrap_or_else(rustix::process::getegid).as_raw();
        let in_group = |group: u32| {
            gid == group
                || match groups {
                    Some(groups) => groups.iter().any(|one| one.as_raw() == group),
                    None => rustix::process::getgroups()
                        .is_ok_and(|groups| groups.iter().any(|one| one.as_raw() == group)),
                }
        };
        may_execute(meta.mode(), meta.is_dir(), uid == meta.uid(), in_group(meta.gid()), uid == 0)
    }
}

/// The kernel's rule (`path_resolution(7)`): the first class that one belongs to decides alone. Root
/// enters every folder, and executes what anybody may.
fn may_execute(mode: u32, folder: bool, owner: bool, group: bool, root: bool) -> bool {
    if root {
        return folder || mode & 0o111 != 0;
    }
    let bits = if owner {
        mode >> 6
    } else if group {
        mode >> 3
    } else {
        mode
    };
    bits & 1 != 0
}

/// What this process is allowed to do.
struct Rights(CapabilitySet);

impl Rights {
    fn of_this_process() -> Result<Self, IdentityError> {
        let sets = rustix::thread::capabilities(None)
            .map_err(|error| IdentityError::Capabilities(error.into()))?;
        Ok(Self(sets.effective))
    }

    fn may(&self, capabilities: CapabilitySet) -> bool {
        self.0.contains(capabilities)
    }

    /// Who may change users is decided by capabilities: root in a container may lack them, and
    /// another user may have been given them.
    fn check(&self, options: &IdentityOptions) -> Result<(), IdentityError> {
        let uid = rustix::process::geteuid().as_raw();
        let key = match options {
            IdentityOptions { user: Some(_), .. } => Some("user"),
            IdentityOptions { group: Some(_), .. } => Some("group"),
            IdentityOptions { groups: Some(_), .. } => Some("groups"),
            _ => None,
        };
        if let Some(key) = key
            && !self.may(CapabilitySet::SETUID | CapabilitySet::SETGID)
        {
            return Err(IdentityError::SetIds { key, uid });
        }
        if options.root.is_some() && !self.may(CapabilitySet::SYS_CHROOT) {
            return Err(IdentityError::Chroot(uid));
        }
        Ok(())
    }
}

/// Everything that needs no look-up.
fn plain(options: &IdentityOptions) -> Result<Preparation, IdentityError> {
    if let Some(nice) = options.nice
        && !(-20..=19).contains(&nice)
    {
        return Err(IdentityError::Nice(nice));
    }
    if let Some(umask) = options.umask
        && umask > 0o777
    {
        return Err(IdentityError::Umask(umask));
    }
    Ok(Preparation {
        descriptors: options.nofile,
        nice: options.nice,
        root: options.root.as_deref().map(path).transpose()?,
        no_new_privileges: options.no_new_privileges,
        directory: options.directory.as_deref().map(path).transpose()?,
        umask: options.umask.map(Mode::from_raw_mode),
        ..Preparation::default()
    })
}

fn path(path: &Path) -> Result<CString, IdentityError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| IdentityError::Path(path.to_owned()))
}

/// A user by name or number. A number that nobody has gets the group of the same number and no
/// other, as in a container that runs as one.
fn find_user(name: &str) -> Result<User, IdentityError> {
    let lookup = |source| IdentityError::Lookup { name: name.to_owned(), source };
    let unknown = || IdentityError::UnknownUser(name.to_owned());
    let text = CString::new(name).map_err(|_| unknown())?;
    let user = match users::user_by_name(&text).map_err(lookup)? {
        Some(user) => user,
        None => {
            let uid: u32 = name.parse().map_err(|_| unknown())?;
            check_number(uid)?;
            match users::user_by_uid(uid).map_err(lookup)? {
                Some(user) => user,
                None => User { name: text, uid, gid: uid, home: c"/".to_owned() },
            }
        }
    };
    check_number(user.uid)?;
    check_number(user.gid)?;
    Ok(user)
}

fn find_group(name: &str) -> Result<u32, IdentityError> {
    let unknown = || IdentityError::UnknownGroup(name.to_owned());
    let text = CString::new(name).map_err(|_| unknown())?;
    let found = users::group_by_name(&text)
        .map_err(|source| IdentityError::Lookup { name: name.to_owned(), source })?;
    let gid = match found {
        Some(gid) => gid,
        None => name.parse().map_err(|_| unknown())?,
    };
    check_number(gid)?;
    Ok(gid)
}

fn find_groups(names: &[String]) -> Result<Vec<Gid>, IdentityError> {
    names.iter().map(|name| find_group(name).map(Gid::from_raw)).collect()
}

/// The groups that list a user as their member.
fn groups_of(user: &User, gid: u32, name: &str) -> Result<Vec<Gid>, IdentityError> {
    let groups = users::groups_of(&user.name, gid)
        .map_err(|source| IdentityError::Lookup { name: name.to_owned(), source })?;
    // The kernel knows no user or group of the reserved number.
    Ok(groups.into_iter().filter(|gid| *gid != u32::MAX).map(Gid::from_raw).collect())
}

/// `-1` says "unchanged" to the system: who would become it would stay root.
fn check_number(number: u32) -> Result<(), IdentityError> {
    if number == u32::MAX { Err(IdentityError::Reserved(number)) } else { Ok(()) }
}

impl Account {
    /// As variables of an environment.
    pub(crate) fn variables(&self) -> [(&'static str, std::ffi::OsString); 3] {
        let text = |text: &CString| std::ffi::OsString::from_vec(text.as_bytes().to_vec());
        [("HOME", text(&self.home)), ("USER", text(&self.name)), ("LOGNAME", text(&self.name))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_one_belongs_to_decides_alone() {
        let outsider = |mode| may_execute(mode, true, false, false, false);
        assert!(outsider(0o701));
        assert!(!outsider(0o770));
        assert!(!may_execute(0o677, true, true, true, false), "the owner's bits decide");
        assert!(!may_execute(0o707, true, false, true, false), "the group's bits decide");
        assert!(may_execute(0o000, true, false, false, true), "root enters every folder");
        assert!(!may_execute(0o644, false, false, false, true), "root executes no plain file");
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(find_user("root").unwrap().uid, 0);
        assert_eq!(find_user("0").unwrap().name, c"root".to_owned());
        let unlisted = find_user("61183").unwrap();
        assert_eq!((unlisted.uid, unlisted.gid), (61183, 61183));
        let text = |error: IdentityError| error.to_string();
        assert_eq!(
            text(find_user("no-such-user").unwrap_err()),
            "there is no user `no-such-user`: create it, or name an existing one such as `nobody`"
        );
        assert!(matches!(find_user("4294967295"), Err(IdentityError::Reserved(_))));
        assert!(matches!(find_group("4294967295"), Err(IdentityError::Reserved(_))));
        assert!(matches!(find_user("no\0body"), Err(IdentityError::UnknownUser(_))));
    }

    #[test]
    fn the_right_to_be_another_is_a_matter_of_capabilities() {
        let user = IdentityOptions { user: Some("root".to_owned()), ..Default::default() };
        let half = Rights(CapabilitySet::SETUID);
        assert!(matches!(half.check(&user), Err(IdentityError::SetIds { key: "user", .. })));
        let both = Rights(CapabilitySet::SETUID | CapabilitySet::SETGID);
        assert!(both.check(&user).is_ok());
        let group = IdentityOptions { group: Some("root".to_owned()), ..Default::default() };
        assert!(matches!(half.check(&group), Err(IdentityError::SetIds { key: "group", .. })));
        assert!(half.check(&IdentityOptions::default()).is_ok());
        let root = IdentityOptions { root: Some("/".into()), ..Default::default() };
        assert!(matches!(both.check(&root), Err(IdentityError::Chroot(_))));
    }

    #[test]
    fn values_outside_of_their_range_are_refused() {
        let resolve = |options| Identity::resolve(&options).unwrap_err().to_string();
        assert_eq!(
            resolve(IdentityOptions { nice: Some(20), ..Default::default() }),
            "a niceness goes from -20 to 19, and 20 is outside"
        );
        assert_eq!(
            resolve(IdentityOptions { umask: Some(0o1022), ..Default::default() }),
            "a umask goes from 0 to 0o777, and 0o1022 is outside"
        );
    }
}
