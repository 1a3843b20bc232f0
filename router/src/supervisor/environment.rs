//! What a worker's environment holds. Pure.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::identity::Account;

/// What is said to one worker in its environment.
#[derive(Debug)]
pub(crate) struct About<'a> {
    /// The entry of its user, and whether it was chosen: then it replaces what is inherited.
    pub(crate) account: Option<&'a Account>,
    pub(crate) chosen: bool,
    pub(crate) worker: &'a str,
    pub(crate) pool: &'a str,
    /// The descriptor of its port.
    pub(crate) port_descriptor: i32,
    /// The port of the first listener, for programs that ask where to listen.
    pub(crate) port: Option<u16>,
    pub(crate) instance: u32,
}

/// The supervisor's variables less those that speak of itself; then the user, the place and the
/// instance, which the pool's own `env` may replace; last what names the worker, which nothing does.
pub(crate) fn of_worker(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    own: &[(OsString, OsString)],
    about: &About<'_>,
) -> BTreeMap<OsString, OsString> {
    let mut all: BTreeMap<OsString, OsString> =
        inherited.filter(|(name, _)| !speaks_of_supervisor(name)).collect();
    for (name, value) in about.account.into_iter().flat_map(Account::variables) {
        if about.chosen || !all.contains_key(OsStr::new(name)) {
            all.insert(name.into(), value);
        }
    }
    if let Some(port) = about.port {
        all.insert("PORT".into(), port.to_string().into());
    }
    all.insert("NODE_APP_INSTANCE".into(), about.instance.to_string().into());
    all.extend(own.iter().cloned());
    all.insert("VESTIBULE_WORKER".into(), about.worker.into());
    all.insert("VESTIBULE_POOL".into(), about.pool.into());
    all.insert("VESTIBULE_FD".into(), about.port_descriptor.to_string().into());
    all
}

/// Settings of this program, sockets that systemd passed to it, and where it reports to.
fn speaks_of_supervisor(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(b"VESTIBULE_") || bytes.starts_with(b"LISTEN_") || bytes == b"NOTIFY_SOCKET"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account { name: c"alice".to_owned(), home: c"/home/alice".to_owned() }
    }

    fn environment(
        inherited: &[(&str, &str)],
        own: &[(&str, &str)],
        chosen: bool,
    ) -> Vec<(String, String)> {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
        };
        let account = account();
        let about = About {
            account: Some(&account),
            chosen,
            worker: "app-2",
            pool: "app",
            port_descriptor: 9,
            port: Some(8080),
            instance: 1,
        };
        of_worker(pairs(inherited).into_iter(), &pairs(own), &about)
            .into_iter()
            .map(|(name, value)| (name.into_string().unwrap(), value.into_string().unwrap()))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn what_speaks_of_the_supervisor_is_left_out_and_the_worker_is_named() {
        let inherited = [
            ("HOME", "/root"),
            ("LISTEN_FDS", "1"),
            ("LISTEN_FDNAMES", "web"),
            ("NOTIFY_SOCKET", "/run/x"),
            ("PATH", "/bin"),
            ("PORT", "1"),
            ("USER", "root"),
            ("VESTIBULE_LISTEN", "*:80"),
        ];
        assert_eq!(
            environment(&inherited, &[], true),
            pairs(&[
                ("HOME", "/home/alice"),
                ("LOGNAME", "alice"),
                ("NODE_APP_INSTANCE", "1"),
                ("PATH", "/bin"),
                ("PORT", "8080"),
                ("USER", "alice"),
                ("VESTIBULE_FD", "9"),
                ("VESTIBULE_POOL", "app"),
                ("VESTIBULE_WORKER", "app-2"),
            ])
        );
    }

    #[test]
    fn a_user_that_was_not_chosen_keeps_its_home_and_gets_what_is_missing() {
        let found = environment(&[("HOME", "/tmp/elsewhere")], &[], false);
        assert!(found.contains(&("HOME".into(), "/tmp/elsewhere".into())));
        assert!(found.contains(&("LOGNAME".into(), "alice".into())));
    }

    #[test]
    fn a_pools_own_variables_win_but_never_over_the_workers_name() {
        let own = [("PORT", "3000"), ("HOME", "/srv"), ("VESTIBULE_FD", "77")];
        let found = environment(&[], &own, true);
        assert!(found.contains(&("PORT".into(), "3000".into())));
        assert!(found.contains(&("HOME".into(), "/srv".into())));
        assert!(found.contains(&("VESTIBULE_FD".into(), "9".into())));
    }
}
