//! The kernel's clocks that the standard library keeps to itself.

use std::time::{Duration, SystemTime};

/// Time on `CLOCK_MONOTONIC`, as other processes have it, too.
#[must_use]
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// When the machine was started, to the second; `None` when the kernel does not tell.
#[must_use]
pub fn booted() -> Option<SystemTime> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(line.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_was_started_before_this_and_not_for_ever() {
        let up = SystemTime::now().duration_since(booted().unwrap()).unwrap();
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let told: f64 = text.split(' ').next().unwrap().parse().unwrap();
        assert!((up.as_secs_f64() - told).abs() < 5.0, "{up:?} {told}");
    }
}
