//! What this process has: descriptors and children, by name, so that a leak says what it is.

use std::collections::BTreeMap;

/// Open descriptors of this process: number and what it is.
pub fn descriptors() -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter_map(|entry| {
            let entry = entry.unwrap();
            // The folder's own descriptor is closed by the time it is looked at.
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, target.display().to_string()))
        })
        .filter(|(_, target): &(u32, String)| !target.starts_with("/proc/"))
        .collect()
}

/// Children of this process, the ones that wait to be reaped included: number, and name with state.
pub fn children() -> BTreeMap<u32, String> {
    let own = std::process::id();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let status = crate::process::status(pid)?;
            (status.parent == own).then(|| (pid, format!("{} ({})", status.name, status.state)))
        })
        .collect()
}
