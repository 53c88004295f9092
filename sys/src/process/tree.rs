//! Ending a helper that hangs, with all that it started.
//!
//! Invariant: only processes are killed that were seen below the given one, by their pidfd, so that
//! a pid that was used again meanwhile is no victim.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use types::Result;

use crate::error::{at, op};
use crate::pidfd;

/// More levels than a helper has; what is deeper dies with the namespace or is the reaper's.
const DEEPEST: usize = 16;

/// Between two looks at a group, which nothing else tells about.
const LOOK: Duration = Duration::from_millis(2);

/// Kills a process that leads a group of its own, its group, and every descendant, also those that
/// left the group. To be called while the process is an unreaped child of the caller.
///
/// # Errors
/// The errno of `kill`; `ESRCH` is none.
pub fn kill_tree(pid: u32) -> Result<()> {
    // Stopped, it makes no more children while they are looked for.
    signal_group(pid, Signal::STOP)?;
    let mut found = Vec::new();
    descend(pid, &mut found, DEEPEST);
    signal_group(pid, Signal::KILL)?;
    for descendant in found {
        // Ended already is as good.
        drop(pidfd::send_signal(descendant, libc::SIGKILL));
    }
    Ok(())
}

/// Waits until nobody is in the group that a process led which was killed and reaped, for no longer than
/// `limit`; whether it came. Blocks.
///
/// Of those who have ended, too, the number of the group is kept until they are reaped: while this waits
/// for members, nobody else can have it.
pub(super) fn group_ends_within(pid: u32, limit: Duration) -> bool {
    let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return true;
    };
    let until = Instant::now() + limit;
    loop {
        if rustix::process::test_kill_process_group(group) == Err(rustix::io::Errno::SRCH) {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// The pids of a process's children.
///
/// # Errors
/// The errno of reading `/proc`.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let tasks = format!("/proc/{pid}/task");
    let threads = std::fs::read_dir(&tasks).map_err(|e| at("read", Path::new(&tasks), e))?;
    let mut all = Vec::new();
    for thread in threads.flatten() {
        // A thread that has just ended has no children.
        let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Ok(all)
}

/// The command line of a process as the kernel shows it: arguments, each with a NUL behind it.
/// Empty for what has ended.
#[must_use]
pub fn command_line(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn signal_group(pid: u32, signal: Signal) -> Result<()> {
    let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    match rustix::process::kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(op("kill", e)),
    }
}

fn descend(pid: u32, found: &mut Vec<OwnedFd>, levels: usize) {
    if levels == 0 {
        return;
    }
    for child in children(pid).unwrap_or_default() {
        let Ok(fd) = pidfd::open(child) else { continue };
        // Opened and still a child: it is the one that was listed.
        if !children(pid).is_ok_and(|now| now.contains(&child)) {
            continue;
        }
        descend(child, found, levels - 1);
        found.push(fd);
    }
}
