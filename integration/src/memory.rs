//! What memory a process takes, as the kernel counts it, and figures for people.

use std::fs;
use std::io::Write as _;

/// A size of `/proc/<pid>/status`, in KiB.
fn size(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let size = line.expect("a size").split_whitespace().next();
    size.expect("a number").parse().expect("a number")
}

/// Resident memory, in KiB.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn resident(pid: u32) -> u64 {
    size(pid, "VmRSS:")
}

/// The most that was resident since [`forget_peak`], in KiB.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn peak(pid: u32) -> u64 {
    size(pid, "VmHWM:")
}

/// Lets [`peak`] begin anew.
///
/// # Panics
/// When there is no such process.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("reset the peak");
}

/// Tells a figure to who runs a story by hand (`--nocapture`).
pub fn figure(text: std::fmt::Arguments<'_>) {
    // Nobody may be reading.
    drop(writeln!(std::io::stdout(), "{text}"));
}
