//! Running a case as an ordinary user, though the tests run as root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::files::Folder;

/// `nobody` on every Linux system.
const NOBODY: u32 = 65_534;

/// Runs the case `name` of this test binary again as `nobody`, in a copy that it may execute, and
/// returns whether this process is the one that does the work. As an ordinary user it always is.
///
/// `programs` are copied too; their new paths are in the variables `TEST_PROGRAM_0` and so on, see
/// [`program`].
pub fn as_nobody(name: &str, programs: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let _turn = crate::world::turn();
    let folder = Folder::new();
    let mut command = Command::new(folder.copy(std::env::current_exe().unwrap()));
    command.args(["--exact", name, "--nocapture"]).current_dir("/");
    command.env("TMPDIR", "/tmp").uid(NOBODY).gid(NOBODY);
    for (index, program) in programs.iter().enumerate() {
        command.env(format!("TEST_PROGRAM_{index}"), folder.copy(program));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "as nobody: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    print!("{said}");
    false
}

/// The copy of a program for the user who runs the case; without one, the program itself.
pub fn program(index: usize, otherwise: &str) -> String {
    std::env::var(format!("TEST_PROGRAM_{index}")).unwrap_or_else(|_| otherwise.to_owned())
}
