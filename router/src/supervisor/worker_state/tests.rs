//! Every state with every event as a table, and what holds for any order of events.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

const TIMINGS: Timings = Timings {
    start: Duration::from_secs(100),
    drain: Duration::from_secs(60),
    close: Duration::from_secs(5),
    stop: Duration::from_secs(10),
};

const EVENTS: [Event; 11] = [
    Event::Ready,
    Event::Draining,
    Event::Finishing,
    Event::End,
    Event::Term,
    Event::PortEnded,
    Event::Kill,
    Event::Orphaned,
    Event::Due,
    Event::KillFailed,
    Event::Exited,
];

/// The kinds of state that a process can be in, and the events that lead there.
const STATES: [(&str, &[Event]); 13] = [
    ("starting", &[]),
    ("serving", &[Event::Ready]),
    ("draining", &[Event::Ready, Event::Draining]),
    ("finishing", &[Event::Ready, Event::Finishing]),
    ("ending", &[Event::Ready, Event::End]),
    ("stopped", &[Event::Ready, Event::Term, Event::Due]),
    ("without-port", &[Event::Ready, Event::PortEnded]),
    ("too-late", &[Event::Due]),
    ("condemned", &[Event::Ready, Event::Kill]),
    ("killed", &[Event::Ready, Event::Kill, Event::Due]),
    ("not-killed", &[Event::Ready, Event::Kill, Event::Due, Event::KillFailed]),
    ("left", &[Event::Ready, Event::Kill, Event::Due, Event::Due]),
    ("over", &[Event::Ready, Event::Exited]),
];

/// A process whose clock stands still, except that it goes on to what is due.
#[derive(Clone, Copy, Debug)]
struct Process {
    state: WorkerState,
    now: Deadline,
}

impl Process {
    fn new() -> Self {
        let now = Deadline::now();
        Self { state: WorkerState::new(TIMINGS, now), now }
    }

    fn on(&mut self, event: Event) -> Option<Action> {
        if event == Event::Due {
            self.now = self.state.next().map_or(self.now, |next| next.max(self.now));
        }
        let (state, action) = self.state.on(event, self.now);
        self.state = state;
        action
    }

    /// The state in words: what is due in how many seconds.
    fn said(&self) -> String {
        let WorkerState { deadlines, ready, last, killed, over, .. } = self.state;
        let mut said = String::from(match (over, killed, ready) {
            (true, ..) => "over",
            (_, true, _) => "killed",
            (_, _, true) => "ready",
            _ => "starting",
        });
        let due = |said: &mut String, what: &str, deadline: Option<Deadline>| {
            if let Some(deadline) = deadline {
                write!(said, " {what}:{}", (deadline - self.now).as_secs()).unwrap();
            }
        };
        due(&mut said, "start", deadlines.ready);
        due(&mut said, "stop", deadlines.term);
        due(&mut said, "kill", deadlines.kill);
        due(&mut said, "end", deadlines.end);
        if deadlines.termed {
            said.push_str(" signalled");
        }
        if last {
            said.push_str(" last");
        }
        said
    }

    /// When it is killed at the latest if nothing more happens.
    fn killed_by(&self) -> Option<Deadline> {
        let deadlines = self.state.deadlines;
        [deadlines.ready, deadlines.kill, deadlines.term.map(|term| term + TIMINGS.stop)]
            .into_iter()
            .flatten()
            .min()
    }
}

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    let mut table = String::new();
    for (name, events) in STATES {
        let mut process = Process::new();
        for event in events {
            process.on(*event);
        }
        writeln!(table, "{name}: {}", process.said()).unwrap();
        for event in EVENTS {
            let mut process = process;
            let action = process.on(event).map_or("-".to_owned(), |action| format!("{action:?}"));
            let (event, said) = (format!("{event:?}"), process.said());
            writeln!(table, "  {event:<10} {action:<7} {said}").unwrap();
        }
    }
    let expected = include_str!("table.txt");
    assert!(table == expected, "another table:\n{table}");
}

fn event() -> impl Strategy<Value = Event> {
    proptest::sample::select(EVENTS.to_vec())
}

proptest! {
    #[test]
    fn whatever_happens_it_is_buried_or_left_once_and_killed_once_and_nothing_gives_it_more_time(
        events in proptest::collection::vec((event(), 0..30u64), 0..40),
    ) {
        let mut process = Process::new();
        let (mut stopped, mut killed, mut failed, mut buried, mut left) = (0, 0, 0, 0, 0);
        for (event, later) in events {
            // The driver does what is due before it looks at anything else.
            let then = process.now + Duration::from_secs(later);
            while let Some(next) = process.state.next() && next <= then {
                process.now = next;
                match process.on(Event::Due) {
                    Some(Action::Stop) => stopped += 1,
                    Some(Action::Kill) => killed += 1,
                    Some(Action::TooLate) => {}
                    Some(Action::Leave) => left += 1,
                    other => prop_assert!(false, "{:?} of what is due", other),
                }
                prop_assert!(process.state.next() != Some(next) || killed <= failed);
            }
            process.now = process.now.max(then);

            let before = process;
            let action = process.on(event);
            match action {
                None => {}
                Some(Action::Stop) => stopped += 1,
                Some(Action::Kill) => killed += 1,
                Some(Action::TooLate) => prop_assert!(!process.state.ready),
                Some(Action::Bury) => buried += 1,
                Some(Action::Leave) => left += 1,
            }
            if event == Event::KillFailed && before.state.killed && !before.state.over {
                failed += 1;
            }
            if before.state.over {
                prop_assert_eq!(action, None, "after its burial");
                prop_assert_eq!(process.state, before.state);
            }
            // Being ready in time is the only thing that takes a deadline away.
            if let Some(before) = before.killed_by()
                && !process.state.over
                && !process.state.killed
                && event != Event::Ready
            {
                prop_assert!(process.killed_by().is_some_and(|by| by <= before), "{event:?}");
            }
            prop_assert!(stopped <= 1, "the stop signal twice");
            prop_assert!(killed <= 1 + failed, "killed again");
            prop_assert_eq!(buried + left, i32::from(process.state.over));
            prop_assert!(left == 0 || killed > failed, "left without a kill");
        }
    }

    #[test]
    fn whoever_was_told_to_end_is_killed_in_at_most_three_steps_and_over_in_one_more(
        // A kill that the kernel refuses is reported; time alone does not repeat it.
        events in proptest::collection::vec(
            event().prop_filter("refused", |event| *event != Event::KillFailed), 0..20,
        ),
        told in proptest::sample::select(vec![
            Event::Draining, Event::Finishing, Event::End, Event::Term, Event::PortEnded,
            Event::Kill, Event::Orphaned,
        ]),
    ) {
        let mut process = Process::new();
        for event in events.into_iter().chain([told]) {
            process.on(event);
        }
        for _ in 0..3 {
            process.on(Event::Due);
        }
        prop_assert!(process.state.killed || process.state.over, "{:?}", process.state);
        process.on(Event::Due);
        prop_assert!(process.state.over, "{:?}", process.state);
        prop_assert_eq!(process.state.next(), None);
    }
}
