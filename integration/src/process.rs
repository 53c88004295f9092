//! What the kernel says of processes.

use std::fs;
use std::path::Path;

/// The parent of a process. Panics when there is none with this pid.
#[must_use]
pub fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.expect("a parent").trim().parse().expect("a pid")
}

/// True while the pid is taken, also by a process that has ended and was not waited for.
#[must_use]
pub fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
