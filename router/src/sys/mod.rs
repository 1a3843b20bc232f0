//! System calls that rustix does not wrap, and the order of those that must have one. All unsafe
//! code of this crate is below this folder.
#![allow(unsafe_code, reason = "each call is wrapped once, with its invariant")]

#[cfg(feature = "cli")]
pub(crate) mod children;
#[cfg(test)]
pub(crate) mod filter;
#[cfg(feature = "cli")]
pub(crate) mod page;
pub(crate) mod peer;
pub(crate) mod prepare;
pub(crate) mod process;
#[cfg(feature = "script")]
pub(crate) mod quickjs;
pub(crate) mod reactor;
#[cfg(feature = "cli")]
pub(crate) mod router_privileges;
pub(crate) mod tcp;
pub(crate) mod users;
