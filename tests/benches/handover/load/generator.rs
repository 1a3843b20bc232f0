//! One thread of the load generator: its clients, its epoll set and its pace.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::client::{Client, ClientError, Progress, Way};
use super::{Asking, Histogram, Load, LoadError, Phase};

/// Events a turn.
const EVENTS: usize = 256;
/// How long a turn may wait when nothing happens: then it looks at the phase.
const TURN: Duration = Duration::from_millis(20);
/// How long connections under way may take to end after the load has stopped; what is not done by then is an error.
const GRACE: Duration = Duration::from_secs(5);
/// Destinations are 127.0.0.1 to 127.0.0.50: 28,000 ports on one address would not last two seconds.
const DESTINATIONS: u8 = 50;
/// A server that fails this often is not measured any further.
const ERRORS_MAX: u64 = 1_000;

/// When a free client begins.
enum Pace {
    /// At once.
    Saturated,
    /// At `next` and then every `interval`.
    Offered { next: Instant, interval: Duration },
}

/// What one thread saw.
pub(super) struct Tally {
    pub(super) latency: Histogram,
    pub(super) first_read: Histogram,
    pub(super) errors: u64,
    pub(super) first_error: Option<ClientError>,
}

pub(super) struct Generator {
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// Indexes of the clients that do nothing, the longest idle first: at a given rate all connections are used in turn.
    idle: VecDeque<usize>,
    pace: Pace,
    port: u16,
    timed: bool,
    asking: Asking,
    /// Connections begun so far: chooses the destination and what is asked.
    begun: u64,
    tally: Tally,
}

impl Generator {
    /// Thread number `index` of `threads`: it has its share of the clients and of the rate.
    pub(super) fn new(load: &Load, index: usize, threads: usize) -> Result<Self, LoadError> {
        let count = load.clients / threads + usize::from(index < load.clients % threads);
        let pace = match load.rate {
            None => Pace::Saturated,
            Some(rate) => {
                let interval = Duration::from_secs_f64(threads as f64 / rate);
                // Threads take turns: their arrivals do not fall together.
                let offset = interval.mul_f64(index as f64 / threads as f64);
                Pace::Offered { next: Instant::now() + offset, interval }
            }
        };
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(LoadError::Epoll)?,
            clients: (0..count).map(|_| Client::new(load.mode)).collect(),
            idle: (0..count).collect(),
            pace,
            port: load.port,
            timed: load.timed,
            asking: load.asking,
            // No two threads ask the same.
            begun: (index as u64) << 32,
            tally: Tally {
                latency: Histogram::new(),
                first_read: Histogram::new(),
                errors: 0,
                first_error: None,
            },
        })
    }

    pub(super) fn run(mut self, phase: &Phase) -> Result<Tally, LoadError> {
        // The default slack of 50 µs would be a good part of the interval between two arrivals. Without the call pacing is coarser.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut events = Vec::with_capacity(EVENTS);
        while !phase.is(Phase::STOP) && self.tally.errors < ERRORS_MAX {
            self.begin_due();
            self.turn(&mut events, self.timeout(), phase.is(Phase::MEASURE), true)?;
        }
        let deadline = Instant::now() + GRACE;
        while self.idle.len() < self.clients.len() && Instant::now() < deadline {
            self.turn(&mut events, TURN, false, false)?;
        }
        for _ in self.idle.len()..self.clients.len() {
            self.failed(ClientError::Stuck);
        }
        Ok(self.tally)
    }

    fn timeout(&self) -> Duration {
        match self.pace {
            Pace::Offered { next, .. } if !self.idle.is_empty() => {
                next.saturating_duration_since(Instant::now()).min(TURN)
            }
            Pace::Saturated if !self.idle.is_empty() => Duration::ZERO,
            _ => TURN,
        }
    }

    /// Begins with every idle client whose time has come.
    fn begin_due(&mut self) {
        // Looked at once a turn: arrivals that become due meanwhile are the next turn's.
        let now = Instant::now();
        for _ in 0..self.idle.len() {
            let since = match &mut self.pace {
                Pace::Saturated => now,
                Pace::Offered { next, interval } if *next <= now => {
                    let due = *next;
                    *next += *interval;
                    due
                }
                Pace::Offered { .. } => return,
            };
            let Some(index) = self.idle.pop_front() else { return };
            self.begin(index, since);
        }
    }

    fn begin(&mut self, index: usize, since: Instant) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let (port, asking) = (self.port, self.asking);
        let begun = &mut self.begun;
        let way = || {
            *begun += 1;
            let last = (*begun % u64::from(DESTINATIONS)) as u8 + 1;
            let kind = asking.kind(*begun);
            Way {
                to: SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), port),
                from: asking.source(kind),
                host: asking.host(kind),
            }
        };
        if let Err(error) = client.begin(&self.epoll, index as u64, way, since) {
            client.close();
            self.idle.push_back(index);
            self.failed(error);
        }
    }

    /// Waits for events and does what they allow. With `again`, a client of a saturated load that is done begins anew at once.
    fn turn(
        &mut self,
        events: &mut Vec<Event>,
        timeout: Duration,
        measuring: bool,
        again: bool,
    ) -> Result<(), LoadError> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(LoadError::Epoll(error)),
        }
        for event in events.iter() {
            self.on_event(event.data.u64() as usize, event.flags, measuring, again);
        }
        Ok(())
    }

    fn on_event(&mut self, index: usize, flags: EventFlags, measuring: bool, again: bool) {
        let Some(client) = self.clients.get_mut(index) else { return };
        match client.on_event(flags) {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Done) => {
                let now = Instant::now();
                if measuring {
                    let latency = now.saturating_duration_since(client.since);
                    self.tally.latency.record(latency.as_nanos() as u64);
                    if self.timed {
                        match client.first_read() {
                            Some(nanoseconds) => self.tally.first_read.record(nanoseconds),
                            None => self.failed(ClientError::Untimed),
                        }
                    }
                }
                if again && matches!(self.pace, Pace::Saturated) {
                    self.begin(index, now);
                } else {
                    self.idle.push_back(index);
                }
            }
            Err(error) => {
                client.close();
                self.idle.push_back(index);
                self.failed(error);
            }
        }
    }

    fn failed(&mut self, error: ClientError) {
        self.tally.errors += 1;
        self.tally.first_error.get_or_insert(error);
    }
}
