//! What promises and microtasks have left to be done when a script's own code has returned, and what fails in it.

use rquickjs::{Ctx, Value};

use super::clock::Clock;
use super::engine::Handles;
use super::failure::Failure;
use super::text::Text;
use crate::sys::quickjs;

/// Does all of it, in the turn's time; the first that was thrown. Where there was no memory for a promise's own job,
/// nobody hears of that promise again.
pub(super) fn run<'js>(ctx: &Ctx<'js>, clock: &Clock) -> Option<Value<'js>> {
    let mut first = None;
    while !clock.expired() {
        match quickjs::next_job(ctx) {
            Ok(true) => {}
            Ok(false) => break,
            // What is still thrown tells where its time was over.
            Err(_) if clock.expired() => break,
            Err(_) => {
                let thrown = ctx.catch();
                first.get_or_insert(thrown);
            }
        }
    }
    first
}

/// What has failed in a turn that nobody will be told of but by us: what a job has thrown, or else a promise that was
/// rejected and that nobody awaits.
pub(super) fn failure<'js>(
    ctx: &Ctx<'js>,
    thrown: Option<Value<'js>>,
    handles: &Handles<'js>,
    text: &Text,
) -> Option<Failure> {
    let rejected = handles.rejections.take(&handles.waiting);
    match (thrown, rejected) {
        (Some(thrown), _) => Some(Failure::in_a_job(ctx, &thrown, text)),
        (None, Some(reason)) => Some(Failure::unawaited(ctx, &reason, text)),
        (None, None) => None,
    }
}
