//! What Linux tells of a process in `/proc/PID/status` (proc(5)).

use std::fmt::Display;

/// A line of the status of `process`, by what it begins with: `VmRSS:` of `self`, for one. `None` where there is no
/// such process, or no `/proc`.
#[must_use]
pub fn status(process: impl Display, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

/// Bytes of `process` that are in memory.
#[must_use]
pub fn resident(process: impl Display) -> Option<u64> {
    let told = status(process, "VmRSS:")?;
    let kib: u64 = told.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
