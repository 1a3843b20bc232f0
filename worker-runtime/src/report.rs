//! Errors in the program, told to the router: the worker goes on.

use std::any::Any;
use std::panic::{Location, PanicHookInfo};
use std::sync::{Arc, Weak};

use vestibule_protocol::message::ErrorReport;

use crate::link::Link;

/// A report of something that happened at a place in the source.
pub(crate) fn at(message: String, place: Option<&Location<'_>>) -> ErrorReport {
    ErrorReport {
        message,
        file: place.map(|place| place.file().to_owned()).unwrap_or_default(),
        line: place.map(Location::line).unwrap_or_default(),
        column: place.map(Location::column).unwrap_or_default(),
    }
}

/// Reports every panic of the process to the router, then does what was done before.
pub(crate) fn install_panic_hook(link: &Arc<Link>) {
    let link: Weak<Link> = Arc::downgrade(link);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        if let Some(link) = link.upgrade() {
            link.report(&at(message(panic.payload()), panic.location()));
        }
        before(panic);
    }));
}

/// What `panic!` was called with: a text, unless the program threw something of its own.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic with a payload that is no text")
        .to_owned()
}
