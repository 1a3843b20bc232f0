//! The whole program with two pools behind two listeners: one whose workers fail in some way, and one
//! that has nothing to do with it. Whoever is served by the second is not to notice.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::family::{Family, until_others};
use crate::ledger::{self, Ledger};
use crate::load::{Load, Tally};
use crate::master::{Master, vestibule};
use crate::place::Place;
use crate::world::{DEADLINE, until};

/// Workers of each pool.
pub const WORKERS: usize = 2;

/// Clients at once, of each pool.
const CLIENTS: usize = 2;

/// How long a fault may take to happen so often: a worker has to be killed each time.
const PATIENCE: Duration = DEADLINE.saturating_mul(4);

/// How often `status` is asked.
const LOOK: Duration = Duration::from_millis(20);

/// Requests that make a 99th percentile.
const MANY: usize = 300;

/// How a scene is set.
#[derive(Debug, Default)]
pub struct Setting<'s> {
    /// The well-behaved worker's program.
    pub worker: &'s str,
    /// The program and arguments of the faulty pool; the well-behaved one's if there is none.
    pub faulty: &'s [&'s str],
    /// Lines of `[router]`.
    pub router: &'s str,
    /// Lines of the faulty pool's route: without any, nobody is looked at.
    pub route: &'s str,
    /// Lines of the faulty pool.
    pub pool: &'s str,
    /// Variables of the faulty pool's workers.
    pub env: &'s [(&'s str, &'s str)],
}

/// A running program.
#[derive(Debug)]
pub struct Scene {
    /// Its files.
    pub place: Place,
    /// Its processes.
    pub master: Master,
    /// Where the faulty pool's clients come.
    pub faulty: SocketAddr,
    /// Where the others come.
    pub others: SocketAddr,
    /// Who served what.
    pub ledger: Ledger,
    /// What it had when all its workers were there and idle.
    pub before: Family,
    program: std::path::PathBuf,
}

impl Scene {
    /// Starts it, and waits until everybody is there.
    pub fn start(setting: &Setting<'_>) -> Self {
        Self::start_with(setting, |_| {})
    }

    /// As [`start`](Self::start), with something done to the command.
    pub fn start_with(setting: &Setting<'_>, configure: impl FnOnce(&mut Command)) -> Self {
        let place = Place::new();
        let ledger = Ledger::new();
        let config = place.config(&configuration(setting, &ledger));
        let mut command = place.vestibule(setting.worker);
        command.arg(config);
        configure(&mut command);
        let mut master = Master::launch(command);
        let faulty = master.address();
        let others = master.next_address();
        let program = vestibule(setting.worker);
        let before = Family::below(master.pid());
        let mut scene = Self { place, master, faulty, others, ledger, before, program };
        scene.settle();
        scene.before = Family::below(scene.master.pid());
        scene
    }

    /// Writes another configuration, for a reload.
    pub fn reconfigure(&self, setting: &Setting<'_>) {
        self.place.config(&configuration(setting, &self.ledger));
    }

    /// Waits until every process is in its place and the others have served somebody, so that what
    /// is made at first use is there.
    pub fn settle(&mut self) {
        until("it accepts, and all workers that can be ready are", || {
            let status = self.status();
            let ready = |pool: usize| status["pools"][pool]["ready"].as_u64().unwrap_or_default();
            status["router"]["state"] == "accepting" && ready(0) > 0 && ready(1) == WORKERS as u64
        });
        let workers = 2 * WORKERS;
        until_others(self.master.pid(), workers);
        for _ in 0..workers {
            assert_eq!(crate::load::one_request(self.others), crate::load::Outcome::Answered);
        }
        self.master.router();
        self.master.workers();
    }

    /// What `vestibule status` says.
    pub fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// What it says of the faulty pool.
    pub fn pool(&self) -> Value {
        self.status()["pools"][0].clone()
    }

    /// Runs one of the program's other commands.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("VESTIBULE_ADMIN", self.place.join("admin.sock"));
        command.output().unwrap()
    }

    /// Lets clients of both pools come until the fault has happened so many times, as `status`
    /// counts it. Returns what became of the faulty pool's clients; all others were answered.
    pub fn until_happened(&mut self, name: &str, times: u64) -> Tally {
        let others = Load::start(self.others, CLIENTS);
        others.flows(MANY);
        others.next_phase();
        let faulty = Load::start(self.faulty, CLIENTS);
        let begin = Instant::now();
        while happened(&self.pool()) + (faulty.others() as u64) < times {
            assert!(begin.elapsed() < PATIENCE, "it has not happened: {}", self.pool());
            // Each look is a process of its own.
            std::thread::sleep(LOOK);
        }
        others.flows(MANY);
        let faulty = faulty.end();
        let others = others.end();
        println!("{name}: others {others}\n{name}: its own {faulty}");
        others.assert_all_answered();
        faulty
    }

    /// Nothing was served twice, everything is as it was, and it ends regularly.
    pub fn end(mut self) {
        self.assert_as_before();
        self.master.stop();
    }

    /// Nothing was served twice, and everything is as it was.
    pub fn assert_as_before(&mut self) {
        self.ledger.assert_nothing_served_twice();
        self.before.assert_no_more_below(self.master.pid());
        self.master.router();
        self.master.workers();
    }
}

/// How often something happened in a pool that should not.
pub fn happened(pool: &Value) -> u64 {
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let workers = pool["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let restarts: u64 = workers.iter().map(|worker| count(&worker["restarts"])).sum();
    count(&pool["faults"]) + count(&pool["moved"]) + count(&pool["touched"]) + restarts
}

fn configuration(setting: &Setting<'_>, ledger: &Ledger) -> String {
    let quoted = |words: &[&str]| {
        words.iter().map(|word| format!("{word:?}")).collect::<Vec<String>>().join(", ")
    };
    let user = match rustix::process::geteuid().is_root() {
        // The build's folder may be one that only root can enter.
        true => "user = \"root\"\n",
        false => "",
    };
    let good = [setting.worker, "recv"];
    let faulty = if setting.faulty.is_empty() { &good } else { setting.faulty };
    let path = ledger.path();
    let mut env =
        format!("{} = {path:?}, TEST_GOOD_WORKER = {:?}", ledger::VARIABLE, setting.worker);
    for (name, value) in setting.env {
        env.push_str(&format!(", {name} = {value:?}"));
    }
    format!(
        "[router]\n{}\n\
         [[listener]]\nname = \"faulty\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nname = \"others\"\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nlistener = \"faulty\"\npool = \"faulty\"\n{}\n\
         [[route]]\nlistener = \"others\"\npool = \"others\"\n\
         [[pool]]\nname = \"faulty\"\ncommand = [{}]\nworkers = {WORKERS}\n{user}env = {{ {env} }}\n\
         restart = {{ delay = \"20ms\", max-delay = \"20ms\" }}\n\
         drain-timeout = \"200ms\"\nstop-timeout = \"200ms\"\n{}\n\
         [[pool]]\nname = \"others\"\ncommand = [{}]\nworkers = {WORKERS}\n{user}\
         env = {{ {} = {path:?} }}\n",
        setting.router,
        setting.route,
        quoted(faulty),
        setting.pool,
        quoted(&good),
        ledger::VARIABLE,
    )
}
