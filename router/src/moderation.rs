//! Moderation of wake-ups: whether the router's thread rests for a moment before it waits for events.
//!
//! A thread that waits is woken by the next connection, runs for that one, and waits again: two
//! changes of process a connection, and packets of one. Network interfaces met the same cost with
//! interrupts, and moderate them (`ethtool -C`, `rx-usecs`): what comes within a moment is told at
//! once. Here the thread sleeps for 50 µs before it looks for events, and what clients and workers
//! bring meanwhile is found in one look.
//!
//! With many clients that takes a fifth off what a connection costs; with few, who wait for their
//! answers, it costs a quarter of their throughput. No number that the router sees tells the two apart,
//! so it is tried, as Linux's dynamic interrupt moderation does (`lib/dim`): from a rate on, a few short
//! windows with the rest and without it alternate, the better way stays, and the trial is repeated,
//! less often as it keeps saying the same. Below that rate there is no rest, and nothing to try:
//! an idle router, and a client that comes alone, never wait.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::thread::NanosleepRelativeResult;
use rustix::time::{ClockId, Timespec};

/// How long a rest is: some connections at the rates where there is one, and what interfaces wait
/// before an interrupt by default. No client notices it beside what a connection takes there.
const REST: Duration = Duration::from_micros(50);

/// By how much the kernel may prolong it (`PR_SET_TIMERSLACK`, prctl(2)); its default would double it.
const SLACK: Duration = Duration::from_micros(1);

/// Connections a second from which on it is tried, until there are less than half as many. Below, there
/// is little to gather, and a router and its workers take a tenth of a processor at most.
const RATE: u64 = 10_000;

/// For how long each way is tried at a time: some hundred connections, and long against a time slice.
const WINDOW: Duration = Duration::from_millis(25);

/// Windows of one trial, alternating: what changes meanwhile by itself touches both ways alike.
const TRIAL: u32 = 8;

/// Windows between the first trials: as long as one.
const SHORTEST: u32 = TRIAL;

/// Windows between trials that say the same over and over: the worse way then has half of a trial in
/// sixteen seconds, one part in 160.
const LONGEST: u32 = 640;

/// The way in use changes if the other one carries so much more, in percent: less is noise.
const CARRIES_MORE: u64 = 104;

/// ... or carries the same, but for this part in percent,
const CARRIES_THE_SAME: u64 = 98;

/// ... and takes this part of the router's own CPU a connection, in percent.
const COSTS_LESS: u64 = 90;

/// What was counted in some windows.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    nanoseconds: u64,
    connections: u64,
    /// The thread's own CPU, in nanoseconds.
    cpu: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.nanoseconds += other.nanoseconds;
        self.connections += other.connections;
        self.cpu += other.cpu;
    }

    /// Whether this way is better than `other` by more than noise.
    fn beats(self, other: Self) -> bool {
        // a / b >= percent / 100, without a division.
        let at_least = |a: (u64, u64), b: (u64, u64), percent: u64| {
            100 * u128::from(a.0) * u128::from(b.1)
                >= u128::from(percent) * u128::from(b.0) * u128::from(a.1)
        };
        let rate = |tally: Self| (tally.connections, tally.nanoseconds);
        let cost = |tally: Self| (tally.cpu, tally.connections);
        at_least(rate(self), rate(other), CARRIES_MORE)
            || at_least(rate(self), rate(other), CARRIES_THE_SAME)
                && !at_least(cost(self), cost(other), COSTS_LESS)
    }
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// So few connections come that there is no rest.
    Calm,
    /// One way is used, for so many windows more.
    Steady { left: u32 },
    /// Both are tried.
    Trial { windows: u32, other: Tally, usual: Tally },
}

/// Which way is used. Pure: it is told of the time, and of what was counted.
#[derive(Debug)]
struct Moderation {
    stage: Stage,
    /// Whether the way in use is the one that rests.
    usual: bool,
    /// Windows until the next trial but one.
    patience: u32,
    /// When the window began, and what the totals were.
    begin: Totals,
}

/// Totals since any moment.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    nanoseconds: u64,
    connections: u64,
    cpu: u64,
}

impl Moderation {
    fn new(begin: Totals) -> Self {
        Self { stage: Stage::Calm, usual: false, patience: SHORTEST, begin }
    }

    /// Whether a window is over: if so, [`Moderation::window`] is to be told.
    fn is_over(&self, nanoseconds: u64) -> bool {
        nanoseconds.saturating_sub(self.begin.nanoseconds) >= in_nanoseconds(WINDOW)
    }

    /// Whether the thread rests now.
    fn rests(&self) -> bool {
        match self.stage {
            Stage::Calm => false,
            Stage::Steady { .. } => self.usual,
            Stage::Trial { windows, .. } => self.usual != windows.is_multiple_of(2),
        }
    }

    /// The end of a window.
    fn window(&mut self, totals: Totals) {
        let window = Tally {
            nanoseconds: totals.nanoseconds.saturating_sub(self.begin.nanoseconds),
            connections: totals.connections.saturating_sub(self.begin.connections),
            cpu: totals.cpu.saturating_sub(self.begin.cpu),
        };
        self.begin = totals;
        let enough = if matches!(self.stage, Stage::Calm) { RATE } else { RATE / 2 };
        let calm = u128::from(window.connections) * 1_000_000_000
            < u128::from(window.nanoseconds) * u128::from(enough);
        if calm {
            *self = Self::new(totals);
            return;
        }
        self.stage = match self.stage {
            Stage::Calm => Stage::Steady { left: 1 },
            Stage::Steady { left: 0 | 1 } => {
                Stage::Trial { windows: 0, other: Tally::default(), usual: Tally::default() }
            }
            Stage::Steady { left } => Stage::Steady { left: left - 1 },
            Stage::Trial { windows, mut other, mut usual } => {
                if windows.is_multiple_of(2) {
                    other.add(window)
                } else {
                    usual.add(window)
                }
                if windows + 1 < TRIAL {
                    Stage::Trial { windows: windows + 1, other, usual }
                } else {
                    self.conclude(other.beats(usual))
                }
            }
        };
    }

    fn conclude(&mut self, changes: bool) -> Stage {
        if changes {
            self.usual = !self.usual;
            self.patience = SHORTEST;
        } else {
            self.patience = (2 * self.patience).min(LONGEST);
        }
        Stage::Steady { left: self.patience }
    }
}

/// What to give to [`on_thread_park`](tokio::runtime::Builder::on_thread_park) of the runtime, of one
/// thread, that accepts: at more than 10,000 connections a second the thread may rest for 50 µs
/// before it waits for events, as long as that is seen to carry more connections, or as many for less.
/// `vestibule run` does so itself.
///
/// The closure blocks its thread for that long, and sets the thread's timer slack to 1 µs
/// (`PR_SET_TIMERSLACK`, prctl(2)) at the first rest. It counts the connections that all
/// [`Listener`](crate::Listener)s of the process accept; two such runtimes in one process try at
/// each other's cost.
pub fn before_park() -> impl Fn() + Send + Sync + 'static {
    let since = Instant::now();
    let moderation = Mutex::new(Moderation::new(Totals::default()));
    move || {
        // Taken: another thread of the same runtime is here.
        let Ok(mut moderation) = moderation.try_lock() else { return };
        let nanoseconds = in_nanoseconds(since.elapsed());
        if moderation.is_over(nanoseconds) {
            let connections = crate::listener::accepted();
            moderation.window(Totals { nanoseconds, connections, cpu: own_cpu() });
        }
        let rests = moderation.rests();
        drop(moderation);
        if rests {
            rest();
        }
    }
}

fn rest() {
    thread_local! {
        static SLACK_IS_SET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if !SLACK_IS_SET.replace(true) {
        // Without it, rests are longer, and a trial says whether they pay.
        let slack = std::num::NonZeroU64::new(in_nanoseconds(SLACK));
        let _ = rustix::thread::set_current_timer_slack(slack);
    }
    let moment = Timespec { tv_sec: 0, tv_nsec: i64::from(REST.subsec_nanos()) };
    // A signal ends it early, which does no harm.
    let (NanosleepRelativeResult::Ok
    | NanosleepRelativeResult::Interrupted(_)
    | NanosleepRelativeResult::Err(_)) = rustix::thread::nanosleep(&moment);
}

/// What this thread took of the processors so far, in nanoseconds.
fn own_cpu() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn in_nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A world in which a window brings so many connections and takes so much CPU, with rests and without.
    struct World {
        moderation: Moderation,
        totals: Totals,
        /// Windows with rests, of all.
        rested: u32,
    }

    /// Connections and nanoseconds of CPU in a window.
    type Way = (u64, u64);

    impl World {
        fn new() -> Self {
            let totals = Totals::default();
            Self { moderation: Moderation::new(totals), totals, rested: 0 }
        }

        /// Lets windows pass; returns in how many there were rests.
        fn pass(&mut self, windows: u32, with: Way, without: Way) -> u32 {
            let before = self.rested;
            for _ in 0..windows {
                let rests = self.moderation.rests();
                let (connections, cpu) = if rests { with } else { without };
                self.rested += u32::from(rests);
                self.totals.nanoseconds += in_nanoseconds(WINDOW);
                assert!(self.moderation.is_over(self.totals.nanoseconds));
                self.totals.connections += connections;
                self.totals.cpu += cpu;
                self.moderation.window(self.totals);
            }
            self.rested - before
        }
    }

    const CPU: u64 = 10_000_000;

    #[test]
    fn at_a_low_rate_nothing_is_tried() {
        let mut world = World::new();
        assert_eq!(world.pass(1_000, (249, CPU), (249, CPU)), 0, "9,960 connections a second");
        assert!(matches!(world.moderation.stage, Stage::Calm));
    }

    #[test]
    fn a_rate_near_the_bound_does_not_begin_anew_each_time() {
        let mut world = World::new();
        world.pass(100, (300, CPU / 2), (260, CPU));
        assert!(world.moderation.rests());
        world.pass(1, (130, CPU), (130, CPU));
        assert!(world.moderation.rests(), "5,200 a second");
        world.pass(1, (120, CPU), (120, CPU));
        assert!(!world.moderation.rests(), "4,800 a second");
    }

    #[test]
    fn a_window_lasts() {
        let moderation = Moderation::new(Totals::default());
        assert!(!moderation.is_over(in_nanoseconds(WINDOW) - 1));
        assert!(moderation.is_over(in_nanoseconds(WINDOW)));
    }

    #[test]
    fn who_carries_more_with_rests_has_them_after_one_trial() {
        let mut world = World::new();
        assert_eq!(world.pass(2 + TRIAL, (1_300, CPU), (1_000, CPU)), TRIAL / 2);
        assert_eq!(world.pass(SHORTEST, (1_300, CPU), (1_000, CPU)), SHORTEST);
        let rested = world.pass(10 * LONGEST, (1_300, CPU), (1_000, CPU));
        assert!(rested > 10 * LONGEST * 98 / 100, "{rested}");
    }

    #[test]
    fn who_carries_less_with_rests_hardly_ever_has_them() {
        let mut world = World::new();
        world.pass(4 * LONGEST, (750, CPU), (1_000, CPU));
        let rested = world.pass(10 * LONGEST, (750, CPU), (1_000, CPU));
        assert!(rested > 0, "it may have become better");
        assert!(rested <= 10 * LONGEST / 100, "{rested}");
    }

    #[test]
    fn at_the_same_rate_the_cheaper_way_stays() {
        let mut world = World::new();
        world.pass(100, (1_000, CPU * 3 / 4), (1_000, CPU));
        assert!(world.moderation.usual);
        world.pass(2 * LONGEST, (1_000, CPU), (1_000, CPU * 3 / 4));
        assert!(!world.moderation.usual);
    }

    #[test]
    fn a_little_less_cpu_or_a_little_more_is_noise() {
        let mut world = World::new();
        world.pass(2 * LONGEST, (1_030, CPU * 95 / 100), (1_000, CPU));
        assert!(!world.moderation.usual);
    }

    #[test]
    fn cheaper_and_less_is_not_better() {
        let mut world = World::new();
        world.pass(2 * LONGEST, (900, CPU / 2), (1_000, CPU));
        assert!(!world.moderation.usual);
    }

    #[test]
    fn when_the_load_changes_the_way_changes() {
        let mut world = World::new();
        world.pass(100, (1_300, CPU), (1_000, CPU));
        assert!(world.moderation.usual);
        world.pass(LONGEST + TRIAL, (750, CPU), (1_000, CPU));
        assert!(!world.moderation.usual);
    }

    #[test]
    fn when_the_load_ends_so_do_the_rests() {
        let mut world = World::new();
        world.pass(100, (1_300, CPU), (1_000, CPU));
        assert!(world.moderation.rests());
        world.pass(1, (10, CPU), (10, CPU));
        assert!(!world.moderation.rests());
        assert_eq!(world.pass(1_000, (10, CPU), (10, CPU)), 0);
    }

    #[test]
    fn a_burst_after_a_long_sleep_is_no_load() {
        let mut moderation = Moderation::new(Totals::default());
        moderation.window(Totals { nanoseconds: 10_000_000_000, connections: 64, cpu: 1_000 });
        assert!(!moderation.rests());
        assert!(matches!(moderation.stage, Stage::Calm));
    }

    #[test]
    fn the_thread_is_seen_to_take_cpu() {
        let before = own_cpu();
        let mut number = 1_u64;
        while own_cpu() == before {
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        assert!(own_cpu() > before);
    }

    #[test]
    fn a_runtime_that_parks_is_not_disturbed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(before_park())
            .build()
            .unwrap();
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        rest();
        assert_eq!(rustix::thread::current_timer_slack().unwrap(), in_nanoseconds(SLACK));
    }
}
