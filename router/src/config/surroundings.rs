//! What a configuration needs of the system: programs, folders, users, rights.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::mistake::{Warning, Whereabouts};
use super::problem::{Caution, Obstacle, Others, Problem};
use super::source::{Place, Sourced};
use super::tree::Report;
use super::types::{Account, Address, Command, Config, Pool, Workers};
use crate::sys::users;

/// Who workers are with euid 0 unless it is written.
const NOBODY: &str = "nobody";

/// Descriptors that the router needs besides connections: listeners, ports, epoll, standard streams.
const RESERVE: u64 = 64;

/// What is asked of the system, so that tests can answer.
pub(super) trait System {
    /// The effective user.
    fn euid(&self) -> u32;
    /// Whether a capability is effective.
    fn may(&self, capability: CapabilitySet) -> bool;
    /// First port that anybody may bind.
    fn first_port(&self) -> u16;
    /// CPUs that this process may use.
    fn cpus(&self) -> u64;
    /// The hard limit of descriptors; none if there is none.
    fn descriptors(&self) -> Option<u64>;
    /// `PATH`.
    fn path(&self) -> Option<OsString>;
    /// Number of a user, if the database has it.
    fn user(&self, name: &str) -> io::Result<Option<u32>>;
    /// Whether the kernel tells this user of a peer by its number (user_namespaces(7)).
    fn sees_user(&self, uid: u32) -> bool;
    /// Whether there is such a group.
    fn group(&self, name: &str) -> io::Result<bool>;
    /// What is at a path.
    fn look(&self, path: &Path) -> io::Result<Found>;
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Folder,
    Executable,
    Other,
}

/// This system.
#[derive(Debug)]
pub(super) struct Here;

impl System for Here {
    fn euid(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn may(&self, capability: CapabilitySet) -> bool {
        rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
    }

    fn first_port(&self) -> u16 {
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(1024)
    }

    fn cpus(&self) -> u64 {
        std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64)
    }

    fn descriptors(&self) -> Option<u64> {
        rustix::process::getrlimit(Resource::Nofile).maximum
    }

    fn path(&self) -> Option<OsString> {
        std::env::var_os("PATH")
    }

    fn user(&self, name: &str) -> io::Result<Option<u32>> {
        let user = users::user_by_name(&CString::new(name)?)?;
        Ok(user.map(|user| user.uid))
    }

    fn sees_user(&self, uid: u32) -> bool {
        users::is_mapped(uid)
    }

    fn group(&self, name: &str) -> io::Result<bool> {
        users::group_by_name(&CString::new(name)?).map(|group| group.is_some())
    }

    fn look(&self, path: &Path) -> io::Result<Found> {
        if std::fs::metadata(path)?.is_dir() {
            return Ok(Found::Folder);
        }
        match rustix::fs::access(path, Access::EXEC_OK) {
            Ok(()) => Ok(Found::Executable),
            Err(rustix::io::Errno::ACCESS) => Ok(Found::Other),
            Err(error) => Err(error.into()),
        }
    }
}

/// Checks everything that a configuration names. What a right would allow is an error only if
/// `strict`.
pub(super) fn check(config: &Config, system: &impl System, strict: bool, report: &mut Report) {
    let mut check = Check { config, system, strict, report };
    check.listeners();
    check.router();
    for pool in &config.pools {
        check.identity(pool);
        check.rights(pool);
        check.files(pool);
    }
    for route in &config.routes {
        check.peer_users(&route.conditions.users);
    }
    check.users();
    check.descriptors();
}

struct Check<'a, S> {
    config: &'a Config,
    system: &'a S,
    strict: bool,
    report: &'a mut Report,
}

impl<S: System> Check<'_, S> {
    /// Wrong everywhere.
    fn missing(&mut self, place: Option<&Place>, obstacle: Obstacle) {
        if let Some(place) = place {
            self.report.wrong(place, Problem::Surroundings(obstacle));
        }
    }

    /// Wrong for who has not the right.
    fn forbidden(&mut self, place: Option<&Place>, obstacle: Obstacle) {
        match place {
            None => {}
            Some(place) if self.strict => {
                self.report.wrong(place, Problem::Surroundings(obstacle));
            }
            Some(place) => self.report.doubtful(place, Caution::Surroundings(obstacle)),
        }
    }

    fn listeners(&mut self) {
        let first = self.system.first_port();
        let may = self.system.may(CapabilitySet::NET_BIND_SERVICE);
        for listener in &self.config.listeners {
            let needs = match listener.address.value {
                Address::Inet(_) | Address::Both(_) => {
                    listener.address.port().is_some_and(|port| port != 0 && port < first)
                }
                Address::Path(_) | Address::Name(_) | Address::Inherited(_) => false,
            };
            if let Address::Path(path) = &listener.address.value
                && let Some(folder) = path.parent()
            {
                self.folder(listener.address.place(), folder);
            }
            if needs && !may {
                self.forbidden(listener.address.place(), Obstacle::Port { first });
            }
        }
    }

    fn router(&mut self) {
        let user = &self.config.router.user;
        if user.value.is_some() {
            self.account(user, "user");
        }
        let Some(router) = user.value.as_ref() else { return };
        let Some(number) = self.number(router) else { return };
        for pool in &self.config.pools {
            let Some(account) = self.effective(pool) else { continue };
            if self.number(&account) == Some(number) {
                let at = match pool.user.place() {
                    Some(place) => place.short(),
                    None => "the default".to_owned(),
                };
                let (user_name, pool) = (router.to_string(), pool.name.value.clone());
                if let Some(place) = user.place() {
                    let problem = Problem::RouterUser { user: user_name, pool, at: Others(at) };
                    self.report.wrong(place, problem);
                }
                return;
            }
        }
    }

    fn identity(&mut self, pool: &Pool) {
        self.account(&pool.user, "user");
        self.groups(&pool.group, "group", std::slice::from_ref);
        self.groups(&pool.groups, "groups", Vec::as_slice);
    }

    fn account(&mut self, user: &Sourced<Option<Account>>, key: &'static str) {
        let Some(account) = &user.value else { return };
        if let Account::Name(name) = account {
            match self.system.user(name) {
                Ok(Some(_)) => {}
                Ok(None) => self.missing(user.place(), Obstacle::User(name.clone())),
                Err(error) => {
                    let (name, reason) = (name.clone(), error.to_string());
                    self.missing(user.place(), Obstacle::Lookup { name, reason });
                }
            }
        }
        self.ids(user.place(), key);
    }

    fn groups<T>(
        &mut self,
        written: &Sourced<Option<T>>,
        key: &'static str,
        each: impl Fn(&T) -> &[Account],
    ) {
        let Some(groups) = &written.value else { return };
        for group in each(groups) {
            let Account::Name(name) = group else { continue };
            match self.system.group(name) {
                Ok(true) => {}
                Ok(false) => self.missing(written.place(), Obstacle::Group(name.clone())),
                Err(error) => {
                    let (name, reason) = (name.clone(), error.to_string());
                    self.missing(written.place(), Obstacle::Lookup { name, reason });
                }
            }
        }
        self.ids(written.place(), key);
    }

    /// A name that nobody has would match nobody, and a rule that rejects by it would let all pass. So
    /// would a user who shows as another one here.
    fn peer_users(&mut self, users: &Sourced<Option<Vec<String>>>) {
        for name in users.value.iter().flatten() {
            let uid = match name.parse() {
                Ok(uid) => Ok(Some(uid)),
                Err(_) => self.system.user(name),
            };
            let obstacle = match uid {
                Ok(Some(uid)) if self.system.sees_user(uid) => continue,
                Ok(Some(uid)) => Obstacle::Unmapped(uid),
                Ok(None) => Obstacle::User(name.clone()),
                Err(error) => Obstacle::Lookup { name: name.clone(), reason: error.to_string() },
            };
            self.missing(users.place(), obstacle);
        }
    }

    fn ids(&mut self, place: Option<&Place>, key: &'static str) {
        if !self.system.may(CapabilitySet::SETUID) || !self.system.may(CapabilitySet::SETGID) {
            self.forbidden(place, Obstacle::Identity(key));
        }
    }

    fn rights(&mut self, pool: &Pool) {
        let right = |key, capability| Obstacle::Right { key, capability };
        if pool.root.value.is_some() && !self.system.may(CapabilitySet::SYS_CHROOT) {
            self.forbidden(pool.root.place(), right("root", "CAP_SYS_CHROOT"));
        }
        if pool.nice.value.is_some_and(|nice| nice < 0) && !self.system.may(CapabilitySet::SYS_NICE)
        {
            self.forbidden(pool.nice.place(), right("nice", "CAP_SYS_NICE"));
        }
        let hard = self.system.descriptors();
        let more = pool.nofile.value.is_some_and(|limit| hard.is_some_and(|hard| limit > hard));
        if more && !self.system.may(CapabilitySet::SYS_RESOURCE) {
            self.forbidden(pool.nofile.place(), right("nofile", "CAP_SYS_RESOURCE"));
        }
    }

    fn files(&mut self, pool: &Pool) {
        let root = pool.root.value.as_deref();
        if let Some(root) = root {
            self.folder(pool.root.place(), root);
        }
        if pool.directory.is_written() {
            self.folder(pool.directory.place(), &below(root, &pool.directory));
        }
        let Command::Program { program, .. } = &pool.command.value else { return };
        let place = pool.command.place();
        if program.is_absolute() {
            let program = below(root, program);
            match self.system.look(&program) {
                Ok(Found::Executable) => {}
                Ok(Found::Folder) => self.missing(place, Obstacle::IsFolder(program)),
                Ok(Found::Other) => self.missing(place, Obstacle::NotExecutable(program)),
                Err(error) => self.missing(place, not_seen(program, &error)),
            }
            return;
        }
        let own = pool.env.iter().find(|(name, _)| name == "PATH");
        let path = match own {
            Some((_, path)) => OsString::from(path.value.clone()),
            None => self.system.path().unwrap_or_default(),
        };
        if !self.in_path(program, &path) {
            let (name, path) = (program.display().to_string(), path.to_string_lossy().into_owned());
            self.missing(place, Obstacle::NotInPath { name, path });
        }
    }

    fn in_path(&self, program: &Path, path: &OsStr) -> bool {
        std::env::split_paths(path)
            .any(|folder| matches!(self.system.look(&folder.join(program)), Ok(Found::Executable)))
    }

    fn folder(&mut self, place: Option<&Place>, path: &Path) {
        match self.system.look(path) {
            Ok(Found::Folder) => {}
            Ok(Found::Executable | Found::Other) => {
                self.missing(place, Obstacle::NoFolder(path.to_owned()));
            }
            Err(error) => self.missing(place, not_seen(path.to_owned(), &error)),
        }
    }

    /// Pools that could harm each other.
    fn users(&mut self) {
        let mut seen: Vec<(u32, &Pool)> = Vec::new();
        for pool in &self.config.pools {
            let Some(account) = self.effective(pool) else { continue };
            let Some(number) = self.number(&account) else { continue };
            match seen.iter().find(|(known, _)| *known == number) {
                None => seen.push((number, pool)),
                Some((_, first)) => {
                    let (first, second) = (first.name.value.clone(), pool.name.value.clone());
                    let user = account.to_string();
                    if let Some(place) = pool.user.place().or(pool.name.place()) {
                        self.report.doubtful(place, Caution::SharedUser { first, second, user });
                    }
                }
            }
        }
    }

    /// Who a pool's workers will be, where that is known: an ordinary user's are all that user's, and
    /// nothing can be done about it.
    fn effective(&self, pool: &Pool) -> Option<Account> {
        let default = (self.system.euid() == 0).then(|| Account::Name(NOBODY.to_owned()));
        pool.user.value.clone().or(default)
    }

    fn number(&self, account: &Account) -> Option<u32> {
        match account {
            Account::Number(number) => Some(*number),
            Account::Name(name) => self.system.user(name).ok().flatten(),
        }
    }

    /// What the router could hold at once.
    fn descriptors(&mut self) {
        let Some(limit) = self.system.descriptors() else { return };
        let of_pool = |pool: &Pool| {
            let workers = match pool.workers.value {
                Workers::Auto => self.system.cpus(),
                Workers::Number(number) => u64::from(number.get()),
            };
            // A port a worker, besides its offers.
            workers * (u64::from(pool.handoff_window.value) + 1) + u64::from(pool.queue.max.value)
        };
        let pools: u64 = self.config.pools.iter().map(of_pool).sum();
        let needed = pools + self.config.listeners.len() as u64 + RESERVE;
        if needed > limit {
            let whereabouts = Whereabouts::File(self.config.path.clone());
            let caution = Caution::Descriptors { needed, limit };
            self.report.warnings.push(Warning { whereabouts, caution });
        }
    }
}

/// A path as the worker sees it, seen from outside.
fn below(root: Option<&Path>, path: &Path) -> PathBuf {
    match (root, path.strip_prefix("/")) {
        // The root itself: joining nothing would add a slash.
        (Some(root), Ok(inside)) if inside.as_os_str().is_empty() => root.to_owned(),
        (Some(root), Ok(inside)) => root.join(inside),
        _ => path.to_owned(),
    }
}

fn not_seen(path: PathBuf, error: &io::Error) -> Obstacle {
    match error.kind() {
        io::ErrorKind::NotFound => Obstacle::Missing(path),
        _ => Obstacle::Hidden { path, reason: error.to_string() },
    }
}
