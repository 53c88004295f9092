//! The kernel's clocks that the standard library keeps to itself.

use std::time::Duration;

/// Time on `CLOCK_MONOTONIC`, as other processes have it, too.
#[must_use]
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}
