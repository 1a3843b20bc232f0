//! Promises that were rejected and that nobody awaits: else what went wrong there would never be said.
//!
//! QuickJS tells of a promise that is rejected while nobody has asked for it, and again when somebody does
//! (`HostPromiseRejectionTracker` of ECMAScript). What nobody has asked for when the turn ends has failed. A script
//! that rejects nothing pays one look at an empty list a turn.

use std::cell::RefCell;

use rquickjs::{Ctx, JsLifetime, Runtime, Value};

use super::engine::Handles;
use super::waiting::Waiting;

/// Most that are kept in one turn: one is said, and more are kept only because somebody may ask for them.
const MOST: usize = 16;

/// A promise that was rejected, and with what.
#[derive(JsLifetime)]
struct Rejection<'js> {
    promise: Value<'js>,
    reason: Value<'js>,
}

/// Those of this turn that nobody has asked for, in the order in which they were rejected.
#[derive(Default, JsLifetime)]
pub(super) struct Rejections<'js> {
    kept: RefCell<Vec<Rejection<'js>>>,
}

impl<'js> Rejections<'js> {
    fn note(&self, promise: Value<'js>, reason: Value<'js>) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < MOST {
            kept.push(Rejection { promise, reason });
        }
    }

    fn forget(&self, promise: &Value<'js>) {
        let mut kept = self.kept.borrow_mut();
        if let Some(at) = kept.iter().position(|rejection| rejection.promise == *promise) {
            kept.remove(at);
        }
    }

    /// The turn has ended: what the first was rejected with that nobody has asked for. A handler's promise
    /// whose connection waits is asked for in that one's turn.
    pub(super) fn take(&self, waiting: &Waiting<'js>) -> Option<Value<'js>> {
        if self.kept.borrow().is_empty() {
            return None;
        }
        let kept = self.kept.take();
        let first = kept.into_iter().find(|rejection| !waiting.has_handler(&rejection.promise));
        first.map(|rejection| rejection.reason)
    }

    /// Whatever is still there belongs to a turn that has ended.
    pub(super) fn clear(&self) {
        if !self.kept.borrow().is_empty() {
            drop(self.kept.take());
        }
    }
}

/// Has a runtime tell of them, once it has its handles.
pub(super) fn track(runtime: &Runtime) {
    runtime.set_host_promise_rejection_tracker(Some(Box::new(told)));
}

fn told<'js>(ctx: Ctx<'js>, promise: Value<'js>, reason: Value<'js>, is_handled: bool) {
    let Ok(handles) = Handles::of(&ctx) else { return };
    match is_handled {
        true => handles.rejections.forget(&promise),
        false => handles.rejections.note(promise, reason),
    }
}
