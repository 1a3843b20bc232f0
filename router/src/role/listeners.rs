//! The listeners of a router: one task each, which accepts until it is told what to do instead.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dispatch::{Dispatch, Switch};
use crate::listener::{BURST, Listener};
use crate::sys::tcp;

/// Tasks that accept, by the numbers of their listeners.
#[derive(Default)]
pub(super) struct Listeners {
    courses: BTreeMap<u32, watch::Sender<Course>>,
    tasks: JoinSet<u32>,
}

/// What a listener's task does.
#[derive(Clone)]
enum Course {
    /// It accepts; whether the kernel keeps clients until they have said something.
    On { defer: bool },
    /// It takes what the kernel has accepted already, for closing the socket would reset it, and
    /// ends. By the table that is given, if the present one does not know the listener any more.
    Dry(Option<Arc<Dispatch>>),
    /// It ends; somebody else has the same socket.
    Leave,
}

impl Listeners {
    /// Begins to accept.
    pub(super) fn begin(&mut self, id: u32, name: &str, socket: OwnedFd, switch: &Arc<Switch>) {
        match Listener::from_socket(socket) {
            Ok(socket) => {
                let defer = switch.present().hears(id);
                defer_accept(&socket, defer);
                let (course, told) = watch::channel(Course::On { defer });
                let switch = Arc::clone(switch);
                self.tasks.spawn(accept(socket.named(name), id, switch, told));
                self.courses.insert(id, course);
            }
            Err(error) => tracing::error!(listener = name, %error, "cannot accept"),
        }
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.courses.get(&id).is_some_and(|course| matches!(*course.borrow(), Course::On { .. }))
    }

    /// By another table clients may have to be heard who had not, or the reverse.
    pub(super) fn set_defer(&self, table: &Dispatch) {
        for (id, course) in &self.courses {
            let hears = table.hears(*id);
            course.send_if_modified(|course| match course {
                Course::On { defer } => std::mem::replace(defer, hears) != hears,
                Course::Dry(_) | Course::Leave => false,
            });
        }
    }

    /// Those that accept and are not among these are accepted dry, by this table.
    pub(super) fn dry_others(&mut self, stay: impl Fn(u32) -> bool, table: &Arc<Dispatch>) {
        for course in self.courses.iter().filter(|(id, _)| !stay(**id)).map(|(_, course)| course) {
            course.send_if_modified(|course| {
                let on = matches!(course, Course::On { .. });
                if on {
                    *course = Course::Dry(Some(Arc::clone(table)));
                }
                on
            });
        }
    }

    /// Everything ends.
    pub(super) fn dry_all(&mut self) {
        for course in self.courses.values() {
            course.send_if_modified(|course| {
                let on = matches!(course, Course::On { .. });
                if on {
                    *course = Course::Dry(None);
                }
                on
            });
        }
    }

    /// Another router accepts.
    pub(super) fn leave_all(&mut self) {
        for course in self.courses.values() {
            course.send_if_modified(|course| {
                let on = matches!(course, Course::On { .. });
                if on {
                    *course = Course::Leave;
                }
                on
            });
        }
    }

    /// Whether one of them is being accepted dry.
    pub(super) fn are_drying(&self) -> bool {
        self.courses.values().any(|course| matches!(*course.borrow(), Course::Dry(_)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.courses.is_empty()
    }

    /// The next one that has ended; `None` if there is none.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next_end(&mut self) -> Option<u32> {
        let ended = self.tasks.join_next().await?;
        // A task that panicked took its listener along; nobody else knows its number.
        let id = ended.ok()?;
        self.courses.remove(&id);
        Some(id)
    }
}

fn defer_accept(listener: &Listener, defer: bool) {
    // Where it cannot be had, silent clients are looked at a little more often.
    let _ = tcp::defer_accept(listener.as_fd(), defer);
}

async fn accept(
    mut listener: Listener,
    id: u32,
    switch: Arc<Switch>,
    mut course: watch::Receiver<Course>,
) -> u32 {
    let mut burst = Vec::with_capacity(BURST);
    loop {
        tokio::select! {
            biased;
            _ = course.changed() => match *course.borrow_and_update() {
                Course::On { defer } => defer_accept(&listener, defer),
                Course::Dry(_) | Course::Leave => break,
            },
            result = listener.accept_burst(&mut burst) => {
                if let Err(error) = result {
                    tracing::error!(%error, "a listener is unusable");
                    return id;
                }
                let full = burst.len() == BURST;
                switch.present().hand_over(id, &mut burst);
                if !full {
                    continue;
                }
            }
        }
        // Acknowledgements are read before the next burst: they free descriptors and windows. After
        // a burst that took all there was, that is so without a look at the reactor in between.
        tokio::task::yield_now().await;
    }
    let table = match &*course.borrow() {
        Course::Dry(Some(table)) => Arc::clone(table),
        Course::Dry(None) => switch.present(),
        Course::On { .. } | Course::Leave => {
            // What the last turn took is not for somebody else.
            switch.present().hand_over(id, &mut burst);
            return id;
        }
    };
    loop {
        let more = listener.take_present(&mut burst);
        // Closed right after a look that found nobody: who comes in between is reset.
        if burst.is_empty() && !more {
            return id;
        }
        table.hand_over(id, &mut burst);
        tokio::task::yield_now().await;
    }
}
