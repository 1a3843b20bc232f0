//! What a running program has, process by process: descriptors, children and memory, so that a
//! fault that costs something for good is seen whichever process pays.

use std::collections::BTreeMap;

use crate::master::is_router;
use crate::process;
use crate::world::{DEADLINE, until};

/// What allocators keep after a burst, at most. A leak of what a test hands over is more: its
/// connections are some thousand, and nothing that is kept of one is less than a kilobyte.
const SLACK: u64 = 8 << 20;

/// What one process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors; none where this user may not look.
    pub descriptors: Option<usize>,
    /// Resident memory in bytes, without files.
    pub memory: u64,
}

/// What a program has: its supervisor, its router, and everything below them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The supervisor.
    pub supervisor: Usage,
    /// The router, if there is one.
    pub router: Option<Usage>,
    /// How many routers there are: several while one takes over from another.
    pub routers: usize,
    /// All others below the supervisor, whoever started them: their names.
    pub others: Vec<String>,
    /// Open descriptors of all others together.
    pub descriptors: usize,
    /// Resident memory of all others together in bytes, without files.
    pub memory: u64,
}

impl Family {
    /// Looks at all processes below a supervisor.
    pub fn below(supervisor: u32) -> Self {
        let below = descendants(supervisor);
        let (routers, rest): (Vec<u32>, Vec<u32>) = below.into_iter().partition(|p| is_router(*p));
        let name = |pid: &u32| process::status(*pid).map(|status| status.name);
        let mut others: Vec<String> = rest.iter().filter_map(name).collect();
        others.sort();
        let usages: Vec<Usage> = rest.iter().filter_map(|pid| usage(*pid)).collect();
        Self {
            supervisor: usage(supervisor).expect("a supervisor"),
            router: routers.first().and_then(|router| usage(*router)),
            routers: routers.len(),
            others,
            descriptors: usages.iter().filter_map(|usage| usage.descriptors).sum(),
            memory: usages.iter().map(|usage| usage.memory).sum(),
        }
    }

    /// Waits until there is no more than this again: the same processes with as many descriptors as
    /// before, and no memory that grew.
    ///
    /// # Panics
    /// Something stays.
    pub fn assert_no_more_below(&self, supervisor: u32) {
        self.assert_no_more_below_within(supervisor, SLACK);
    }

    /// As [`assert_no_more_below`](Self::assert_no_more_below), with so many bytes of memory more.
    ///
    /// # Panics
    /// Something stays.
    pub fn assert_no_more_below_within(&self, supervisor: u32, slack: u64) {
        let mut now = self.clone();
        let begin = std::time::Instant::now();
        while !self.covers(&now, slack) {
            let waited = begin.elapsed();
            assert!(waited < DEADLINE, "something is left: {now:#?}, before: {self:#?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
            now = Self::below(supervisor);
        }
        println!("before {}; after {}", self.said(), now.said());
    }

    fn covers(&self, now: &Self, slack: u64) -> bool {
        let router = match (self.router, now.router) {
            (Some(before), Some(now)) => before.covers(now, slack),
            (before, now) => before.is_some() == now.is_some(),
        };
        router
            && self.routers == now.routers
            && self.supervisor.covers(now.supervisor, slack)
            && self.others == now.others
            && now.descriptors <= self.descriptors
            && now.memory <= self.memory + slack
    }

    fn said(&self) -> String {
        let usage = |usage: Usage| {
            let descriptors = usage.descriptors.map_or("?".to_owned(), |count| count.to_string());
            format!("{descriptors} descriptors {} KiB", usage.memory >> 10)
        };
        let router = self.router.map_or("none".to_owned(), usage);
        let (supervisor, others) = (usage(self.supervisor), self.others.len());
        let (descriptors, memory) = (self.descriptors, self.memory >> 10);
        format!(
            "supervisor {supervisor}, router {router}, {others} others {descriptors} descriptors \
             {memory} KiB"
        )
    }
}

impl Usage {
    fn covers(self, now: Self, slack: u64) -> bool {
        now.descriptors <= self.descriptors && now.memory <= self.memory + slack
    }
}

/// Memory and descriptors of one process; `None` if it is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        // A process that waits to be reaped has none.
        .map_or(Some("0"), |rest| rest.split_whitespace().next())?
        .parse::<u64>()
        .ok()?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count);
    Some(Usage { descriptors, memory: memory << 10 })
}

/// Every process below one: what a worker leaves behind comes to its supervisor.
pub fn descendants(of: u32) -> Vec<u32> {
    let parents: BTreeMap<u32, u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, process::status(pid)?.parent)))
        .collect();
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Waits until so many processes below a supervisor are not routers.
pub fn until_others(supervisor: u32, count: usize) {
    until("there are as many workers as there should be", || {
        Family::below(supervisor).others.len() == count
    });
}
