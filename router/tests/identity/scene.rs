//! A folder that any user may write in, shells that say who they are, and this program run again as
//! somebody else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use vestibule_router::{Worker, WorkerEvent, WorkerOptions};

use crate::copies::copy_program;

/// Somebody without rights.
pub(crate) struct User {
    pub(crate) id: u32,
}

impl User {
    /// Real, effective, saved and file system id, as `/proc/PID/status` prints them.
    pub(crate) fn repeat_id(&self) -> String {
        vec![self.id.to_string(); 4].join("\t")
    }
}

/// `nobody` and `nogroup`, the same numbers on every distribution.
pub(crate) const NOBODY: User = User { id: 65_534 };

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Set for this program when a test runs it again.
const AGAIN: &str = "IDENTITY_TEST_RUNS_AGAIN";

/// Whether this is the program that a test ran again.
pub(crate) fn rerun() -> bool {
    std::env::var_os(AGAIN).is_some()
}

/// Runs one test of this program again, as nobody.
pub(crate) fn as_nobody(test: &str) {
    let mut command = Command::new("/proc/self/exe");
    // With groups cleared: what the standard library does for a root that becomes another.
    command.uid(NOBODY.id).gid(NOBODY.id);
    finish(command, test);
}

/// Runs one test of this program again, as a user with these capabilities and no others.
pub(crate) fn with_capabilities(test: &str, uid: u32, capabilities: &[&str]) {
    let scene = Scene::new();
    // Its own path may lead through folders that the user cannot enter.
    let program = scene.path.join("test");
    copy_program(std::env::current_exe().unwrap(), &program);
    let list = |sign: &str| {
        let all = capabilities.iter().map(|name| format!(",+{name}"));
        format!("-all{}", all.collect::<String>()).replace('+', sign)
    };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"]);
    command.args(["--inh-caps", &list("+")]);
    if uid == 0 {
        command.args(["--bounding-set", &list("+")]);
    } else {
        command.args(["--ambient-caps", &list("+")]);
    }
    command.arg(&program);
    finish(command, test);
}

pub(crate) fn finish(mut command: Command, test: &str) {
    assert!(!rerun(), "{test} was run again as the wrong user");
    let result = command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(AGAIN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&result.stdout);
    assert!(
        result.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&result.stderr)
    );
}

/// A shell's words that write down who it is, see [`Found`].
pub(crate) const SCRIPT: &str = "exec >\"$FOUND\"; cat /proc/$$/status; echo =; env; echo =; \
                                 umask; cut -d' ' -f1,5,6,19 /proc/$$/stat; ulimit -Sn; \
                                 ulimit -Hn; pwd; ls /proc/$$/fd";

/// A folder of a test's own, that every user may write in; gone with it.
pub(crate) struct Scene {
    pub(crate) path: PathBuf,
}

impl Scene {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vestibule-identity-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
        Self { path }
    }

    pub(crate) fn folder(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    pub(crate) fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A root directory with nothing but a shell and its libraries.
    pub(crate) fn shell_root(&self) -> PathBuf {
        let root = self.folder("root", 0o755);
        let listed = Command::new("ldd").arg("/bin/sh").output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain(["/bin/sh"]) {
            let inside = root.join(&file[1..]);
            fs::create_dir_all(inside.parent().unwrap()).unwrap();
            copy_program(file, &inside);
        }
        root
    }

    /// A shell that writes down who it is, see [`Found`].
    pub(crate) fn sh(&self) -> WorkerOptions {
        WorkerOptions::new("/bin/sh").arg("-c").arg(SCRIPT).env("FOUND", self.found())
    }

    /// Where it writes that.
    pub(crate) fn found(&self) -> PathBuf {
        self.path.join("found")
    }

    /// What a shell found out about itself.
    pub(crate) async fn look(&self, options: WorkerOptions) -> Found {
        let events = all_events(options).await;
        let exited = |event: &WorkerEvent| matches!(event, WorkerEvent::Exit(exit) if exit.to_string() == "exit code 0");
        assert!(events.iter().any(exited), "{events:?}");
        self.read()
    }

    /// What a shell wrote down.
    pub(crate) fn read(&self) -> Found {
        let text = fs::read_to_string(self.found()).unwrap();
        // The next shell may be another user.
        fs::remove_file(self.found()).unwrap();
        Found::parse(&text)
    }

    /// The error of a worker that cannot be started or ends before it is ready, without the words
    /// that all of them begin with.
    pub(crate) async fn fail(&self, options: WorkerOptions) -> String {
        let events = all_events(options).await;
        let errors: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                WorkerEvent::Error(error) => Some(error.to_string()),
                _ => None,
            })
            .collect();
        let [error] = errors.as_slice() else { panic!("{events:?}") };
        error.strip_prefix("worker was not started: ").unwrap_or(error).to_owned()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Everything until there is no process any more.
pub(crate) async fn all_events(options: WorkerOptions) -> Vec<WorkerEvent> {
    let worker = Worker::spawn(&options).unwrap();
    let mut events = Vec::new();
    while let Some(event) = worker.recv().await {
        events.push(event);
    }
    events
}

/// What a worker is.
pub(crate) struct Found {
    status: String,
    environment: BTreeMap<String, String>,
    pub(crate) umask: String,
    pub(crate) pid: String,
    pub(crate) group: String,
    pub(crate) session: String,
    pub(crate) nice: String,
    pub(crate) limits: [String; 2],
    pub(crate) directory: String,
    pub(crate) descriptors: Vec<String>,
}

impl Found {
    fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.split("=\n").collect();
        // A variable without a value ends so too: the first and the last part are what they are.
        let (status, rest) = (parts[0], parts[parts.len() - 1]);
        let environment = text.lines().filter_map(|line| line.split_once('='));
        let rest: Vec<&str> = rest.lines().collect();
        let [umask, stat, soft, hard, directory, descriptors @ ..] = rest.as_slice() else {
            panic!("{text}")
        };
        let stat: Vec<&str> = stat.split(' ').collect();
        let mut descriptors: Vec<String> =
            descriptors.iter().map(|number| (*number).to_owned()).collect();
        descriptors.sort_by_key(|number| number.parse::<u32>().unwrap());
        Self {
            status: status.to_owned(),
            environment: environment.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            umask: (*umask).to_owned(),
            pid: stat[0].to_owned(),
            group: stat[1].to_owned(),
            session: stat[2].to_owned(),
            nice: stat[3].to_owned(),
            limits: [(*soft).to_owned(), (*hard).to_owned()],
            directory: (*directory).to_owned(),
            descriptors,
        }
    }

    /// A line of `/proc/PID/status`.
    pub(crate) fn status(&self, name: &str) -> String {
        Self::line(&self.status, name)
    }

    pub(crate) fn line(status: &str, name: &str) -> String {
        let prefix = format!("{name}:");
        let line = status.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
        line.trim().to_owned()
    }

    /// The status of the thread that starts workers here.
    pub(crate) fn own_status() -> String {
        fs::read_to_string("/proc/thread-self/status").unwrap()
    }

    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).cloned()
    }
}
