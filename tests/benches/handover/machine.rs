//! What a reader must know to compare figures: the machine, and the versions of what is measured.

use std::fs;
use std::process::Command;

use crate::processes::find_program;

/// One line a fact.
pub(crate) fn facts() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    let model = field(&cpu, "model name").unwrap_or_else(|| "unknown".into());
    let virtual_ = if cpu.contains("hypervisor") { ", virtual" } else { "" };
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(|| "unknown".into(), |kib| format!("{:.1} GiB", kib as f64 / 1_048_576.0));
    let mut text = format!(
        "- Linux {}; {count} processors ({model}{virtual_}); memory {memory}",
        read("/proc/sys/kernel/osrelease").trim()
    );
    for (program, argument) in [("nginx", "-v"), ("haproxy", "-v"), ("node", "--version")] {
        let version = version(program, argument).unwrap_or_else(|| "not installed".into());
        text.push_str(&format!("\n- {program}: {version}"));
    }
    text
}

/// The first line of what a program says of itself.
fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(find_program(program)?).arg(argument).output().ok()?;
    // nginx says it on standard error.
    let all = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&all).lines().next()?.trim().to_owned())
}
