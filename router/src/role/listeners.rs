//! The listeners of a router: one task each, which accepts until it is told what to do instead.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::dispatch::{Dispatch, Switch};
use crate::listener::{BURST, Dry, Listener};
use crate::sys::tcp;

/// Tasks that accept, by the numbers of their listeners.
#[derive(Default)]
pub(super) struct Listeners {
    courses: BTreeMap<u32, watch::Sender<Course>>,
    tasks: JoinSet<Ended>,
}

/// A listener from which nothing is accepted any more.
pub(super) struct Ended {
    pub(super) id: u32,
    /// Nobody else goes on.
    pub(super) dry: bool,
}

/// What a listener's task does.
#[derive(Clone)]
enum Course {
    /// It accepts; whether the kernel keeps clients until they have said something.
    On { defer: bool },
    /// It takes what the kernel has accepted already, for closing the socket would reset it, and
    /// ends. A listener that is removed, which the present table does not know any more, goes by the one
    /// that is given, and waits for clients who are half there; not at a stop, where whoever has said
    /// nothing yet is turned away.
    Dry { by: Option<Arc<Dispatch>>, waits: bool },
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
                Course::Dry { .. } | Course::Leave => false,
            });
        }
    }

    /// A listener that is removed, of which another router has not taken everything.
    ///
    /// # Errors
    /// Nothing can be accepted from it.
    pub(super) fn begin_dry(
        &mut self,
        id: u32,
        name: &str,
        socket: OwnedFd,
        by: &Arc<Dispatch>,
    ) -> std::io::Result<()> {
        let socket = Listener::from_socket(socket)?.named(name);
        let (course, told) = watch::channel(Course::Dry { by: Some(Arc::clone(by)), waits: true });
        self.tasks.spawn(accept_last(socket, id, Arc::clone(by), told));
        self.courses.insert(id, course);
        Ok(())
    }

    /// Those that accept and are not among these are accepted dry, by this table.
    pub(super) fn dry_others(&mut self, stay: impl Fn(u32) -> bool, table: &Arc<Dispatch>) {
        for course in self.courses.iter().filter(|(id, _)| !stay(**id)).map(|(_, course)| course) {
            course.send_if_modified(|course| {
                let on = matches!(course, Course::On { .. });
                if on {
                    *course = Course::Dry { by: Some(Arc::clone(table)), waits: true };
                }
                on
            });
        }
    }

    /// Everything ends.
    pub(super) fn dry_all(&mut self) {
        for course in self.courses.values() {
            course.send_if_modified(|course| match course {
                Course::On { .. } => {
                    *course = Course::Dry { by: None, waits: false };
                    true
                }
                Course::Dry { waits, .. } => std::mem::take(waits),
                Course::Leave => false,
            });
        }
    }

    /// Another router accepts.
    pub(super) fn leave_all(&mut self) {
        self.courses.values().for_each(leave);
    }

    /// Another listener has the socket.
    pub(super) fn leave(&mut self, id: u32) {
        if let Some(course) = self.courses.get(&id) {
            leave(course);
        }
    }

    /// Whether nothing more will come from this one.
    pub(super) fn is_over(&self, id: u32) -> bool {
        !self.courses.contains_key(&id)
    }

    /// Whether one of them is being accepted dry.
    pub(super) fn are_drying(&self) -> bool {
        self.courses.values().any(|course| matches!(*course.borrow(), Course::Dry { .. }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.courses.is_empty()
    }

    /// The next one that has ended; `None` if there is none.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next_end(&mut self) -> Option<Ended> {
        let ended = self.tasks.join_next().await?;
        // A task that panicked took its listener along; nobody else knows its number.
        let ended = ended.ok()?;
        self.courses.remove(&ended.id);
        Some(ended)
    }
}

fn leave(course: &watch::Sender<Course>) {
    course.send_if_modified(|course| {
        let stays = !matches!(course, Course::Leave);
        *course = Course::Leave;
        stays
    });
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
) -> Ended {
    let mut burst = Vec::with_capacity(BURST);
    loop {
        tokio::select! {
            biased;
            _ = course.changed() => match *course.borrow_and_update() {
                Course::On { defer } => defer_accept(&listener, defer),
                Course::Dry { .. } | Course::Leave => break,
            },
            result = listener.accept_burst(&mut burst) => {
                if let Err(error) = result {
                    tracing::error!(%error, "a listener is unusable");
                    return Ended { id, dry: true };
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
        Course::Dry { by: Some(table), .. } => Arc::clone(table),
        Course::Dry { by: None, .. } => switch.present(),
        Course::On { .. } | Course::Leave => {
            // What the last turn took is not for somebody else.
            switch.present().hand_over(id, &mut burst);
            return Ended { id, dry: false };
        }
    };
    accept_last(listener, id, table, course).await
}

async fn accept_last(
    mut listener: Listener,
    id: u32,
    table: Arc<Dispatch>,
    mut course: watch::Receiver<Course>,
) -> Ended {
    let mut dry = match *course.borrow_and_update() {
        Course::Dry { waits: true, .. } => Dry::half_there(&listener),
        Course::Dry { waits: false, .. } | Course::On { .. } => Dry::present(),
        Course::Leave => return Ended { id, dry: false },
    };
    // Whoever comes to be there is there at once; so are those whom the kernel keeps already, when it
    // has asked them again.
    defer_accept(&listener, false);
    let mut burst = Vec::with_capacity(BURST);
    loop {
        let more = tokio::select! {
            biased;
            Ok(()) = course.changed() => match *course.borrow_and_update() {
                Course::Leave => return Ended { id, dry: false },
                Course::On { .. } | Course::Dry { .. } => {
                    dry.hurry();
                    continue;
                }
            },
            more = listener.take_last(&dry, &mut burst) => more,
        };
        table.hand_over(id, &mut burst);
        if !more {
            return Ended { id, dry: true };
        }
        tokio::task::yield_now().await;
    }
}
