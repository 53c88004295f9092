//! What a process is doing at the moment, for people who want to know why it does not end.

use std::time::Duration;

use super::{stat_field, tree};

/// The kernel tells times in this many ticks a second, on every machine (`USER_HZ`).
const TICKS: u64 = 100;
/// Bytes of a command line that are told.
const MAX_COMMAND: usize = 200;

/// A process at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its pid.
    pub pid: u32,
    /// Its command line, cut, or the kernel's name for it.
    pub command: String,
    /// State, as proc_pid_stat(5) writes it: `S` sleeps, `D` waits for a device, `R` runs, `T` is stopped,
    /// `Z` has ended.
    pub state: char,
    /// The kernel function that it waits in; empty when it runs or that is not told.
    pub wait: String,
    /// How long ago it began.
    pub age: Duration,
}

/// Looks at a process. `None` when there is none.
#[must_use]
pub fn look(pid: u32) -> Option<Look> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat")?;
    let (head, rest) = stat.rsplit_once(')')?;
    let line = tree::command_line(pid);
    let mut command = String::from_utf8_lossy(&line)
        .trim_end_matches('\0')
        .replace('\0', " ");
    if command.is_empty() {
        let name = head.split_once('(').map_or("", |(_, name)| name);
        command = format!("[{name}]");
    }
    if let Some((end, _)) = command.char_indices().nth(MAX_COMMAND) {
        command.truncate(end);
    }
    let wait = read("wchan").unwrap_or_default();
    let began = ticks(stat_field(pid, 22)?);
    Some(Look {
        pid,
        command,
        state: rest.trim_start().chars().next().unwrap_or('?'),
        // Without a name the kernel writes a zero.
        wait: if wait == "0" { String::new() } else { wait },
        age: uptime()?.saturating_sub(began),
    })
}

/// A time that the kernel tells in ticks.
pub(crate) const fn ticks(count: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(1000 / TICKS))
}

/// Since when the machine runs, on the clock by which processes begin.
fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Spawn;

    #[test]
    fn a_process_that_sleeps_is_seen_with_its_command_and_age() {
        let child = Spawn::new("sleep").arg("1000").spawn().unwrap();
        let seen = loop {
            let seen = look(child.pid()).unwrap();
            if seen.state == 'S' && seen.command == "sleep 1000" {
                break seen;
            }
        };
        assert!(seen.age < Duration::from_secs(60), "{seen:?}");
        child.kill(9).unwrap();
        child.wait().unwrap();
        assert_eq!(look(child.pid()), None);
    }

    #[test]
    fn this_process_is_older_than_nothing() {
        let me = look(std::process::id()).unwrap();
        assert!(me.age < Duration::from_secs(24 * 3600) && !me.command.is_empty());
    }
}
