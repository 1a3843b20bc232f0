//! Copies of programs, for tests of several targets.

use std::path::Path;
use std::process::Command;

/// Copies a program, in a process of its own: were the copy open for writing here, a child that another
/// thread starts meanwhile would hold it open, and nobody could execute it (ETXTBSY, execve(2)).
pub(crate) fn copy_program(from: impl AsRef<Path>, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["--preserve=mode", "--"]).arg(from.as_ref()).arg(to);
    assert!(copy.status().unwrap().success(), "{copy:?}");
}
